"""Test sets of one's own: the same bytes every time, pairs that belong together, nothing mixed."""

import json
import tarfile

import pytest
import torch

from clearsr.config.degradation import DegradationConfig
from clearsr.degradation import degrade
from clearsr.errors import ClearSRError
from clearsr.evaluation.pairs import find_testset, match_folders, read_8_bit
from clearsr.evaluation.testset import HR_FOLDER, LR_FOLDER, Crop, TestsetConfig, make_testset, read_manifest
from clearsr.image import ImageData, read_image, resize, write_image
from clearsr.seeds import make_generator


@pytest.fixture
def photographs(tmp_path, make_picture):
    root = tmp_path / "photographs"
    (root / "below").mkdir(parents=True)
    for name, size in (("a.png", (50, 70)), ("below/b.tif", (41, 64)), ("c.png", (30, 30))):
        write_image(ImageData(make_picture(*size)), root / name)
    return root


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_second_run_gives_the_same_bytes_and_another_seed_other_ones(photographs, tmp_path):
    config = TestsetConfig(crop=32, seed=3)
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    for folder in (first, second, second):  # also over itself
        make_testset([photographs], folder, config)
    make_testset([photographs], other, config.model_copy(update={"seed": 4}))
    assert contents(first) == contents(second)
    different = {name for name, data in contents(other).items() if contents(first)[name] != data}
    assert different == {"test_LR/a.png", "test_LR/below/b.png", "manifest.json"}


def test_pairs_are_the_centre_and_its_degraded_version(photographs, tmp_path):
    config = TestsetConfig(crop=32, seed=3, upscale=2, degradation=DegradationConfig(preset="camera"))
    made = make_testset([photographs], tmp_path / "t", config)
    assert made.names == ("a", "below/b") and made.left_out == ("c.png",) and made.failed == ()
    pairs = match_folders(dict(zip(("lr", "hr"), find_testset(tmp_path / "t"), strict=True)))
    assert [pair.name for pair in pairs] == ["a", "below/b"]
    whole = read_8_bit(photographs / "a.png")
    hr = read_8_bit(pairs[0].hr)
    assert torch.equal(hr, whole[:, 9:41, 19:51])
    expected = degrade(hr, config.degradation, make_generator("testset", 3, "a.png"), 2)
    assert torch.equal(read_8_bit(pairs[0].lr), expected)


def test_without_a_crop_the_whole_picture_in_whole_lr_pixels(photographs, tmp_path):
    config = TestsetConfig(degradation=DegradationConfig(preset="bicubic"))
    make_testset([photographs], tmp_path / "t", config)
    hr, lr = (read_8_bit(tmp_path / "t" / part / "below" / "b.png") for part in ("test_HR", "test_LR"))
    assert hr.shape == (3, 40, 64) and lr.shape == (3, 10, 16)
    assert (lr - resize(hr[None], (10, 16))[0]).abs().max() < 0.02


def test_the_manifest_has_every_setting_and_nothing_of_the_machine(photographs, tmp_path):
    make_testset([photographs], tmp_path / "t", TestsetConfig(crop=32))
    text = (tmp_path / "t" / "manifest.json").read_text("utf-8")
    manifest = json.loads(text)
    assert TestsetConfig.model_validate(manifest["settings"]) == TestsetConfig(crop=32)
    assert manifest["count"] == 2 and manifest["left_out"] == ["c.png"]
    assert manifest["images"][1]["source"] == "below/b.tif"
    assert manifest["images"][1]["test_LR"]["size"] == [8, 8]
    assert str(tmp_path) not in text


def test_a_photograph_does_not_depend_on_the_others(photographs, tmp_path):
    make_testset([photographs], tmp_path / "all", TestsetConfig())
    (photographs / "c.png").unlink()
    make_testset([photographs], tmp_path / "fewer", TestsetConfig())
    assert contents(tmp_path / "fewer").items() - {("manifest.json", b"")} <= {
        *contents(tmp_path / "all").items(),
        ("manifest.json", contents(tmp_path / "fewer")["manifest.json"]),
    }


def test_two_sets_are_not_mixed(photographs, tmp_path, make_picture):
    make_testset([photographs], tmp_path / "t", TestsetConfig())
    other = tmp_path / "other.png"
    write_image(ImageData(make_picture(20, 20)), other)
    with pytest.raises(ClearSRError, match="holds pictures of another set"):
        make_testset([other], tmp_path / "t", TestsetConfig())


def test_what_cannot_be_read_is_named_and_the_others_are_made(photographs, tmp_path):
    (photographs / "d.png").write_bytes(b"no picture")
    made = make_testset([photographs], tmp_path / "t", TestsetConfig())
    assert len(made.names) == 3 and "d.png" in made.failed[0]


def test_names_that_meet_and_sets_of_nothing(photographs, tmp_path, make_picture):
    with pytest.raises(ClearSRError, match=r"no pair was made: a\.png is smaller than the crop"):
        make_testset([photographs / "a.png"], tmp_path / "t", TestsetConfig(crop=64))
    write_image(ImageData(make_picture(20, 20)), photographs / "a.tif")
    with pytest.raises(ClearSRError, match=r"would both become a\.png"):
        make_testset([photographs], tmp_path / "t", TestsetConfig())


def test_a_crop_is_whole_lr_pixels():
    with pytest.raises(ValueError, match="multiple of upscale, 4"):
        TestsetConfig(crop=30)


def test_lists_and_shards_are_taken_as_check_takes_them(photographs, tmp_path):
    (tmp_path / "list.txt").write_text(f"# mine\n{photographs.name}/a.png\n")
    listed = make_testset([tmp_path / "list.txt"], tmp_path / "listed", TestsetConfig())
    named = make_testset([photographs / "a.png"], tmp_path / "named", TestsetConfig())
    assert listed.names == named.names == ("a",)
    for part in (LR_FOLDER, HR_FOLDER):
        one, other = (tmp_path / folder / part / "a.png" for folder in ("listed", "named"))
        assert one.read_bytes() == other.read_bytes()
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        archive.add(photographs / "a.png", "x/a.png")
    assert make_testset([tmp_path / "shard.tar"], tmp_path / "t", TestsetConfig()).names == ("x/a",)
    assert (tmp_path / "t" / HR_FOLDER / "x" / "a.png").read_bytes() == other.read_bytes()


def test_equal_names_in_two_folders_are_told_apart(tmp_path, make_picture):
    for index, place in enumerate(("one/in", "two/in", "three")):
        (tmp_path / place).mkdir(parents=True)
        name = "b.png" if place == "three" else "a.png"
        write_image(ImageData(make_picture(20, 20, seed=index)), tmp_path / place / name)
    inputs = [tmp_path / "one" / "in", tmp_path / "two" / "in", tmp_path / "three"]
    made = make_testset(inputs, tmp_path / "t", TestsetConfig())
    assert made.names == ("one/in/a", "two/in/a", "b")
    for index, name in enumerate(made.names):
        written = read_image(tmp_path / "t" / HR_FOLDER / f"{name}.png").color
        assert torch.allclose(written, make_picture(20, 20, seed=index), atol=0.51 / 255)


CROPS = TestsetConfig(crop=16, crops=12, seed=3, degradation=DegradationConfig(preset="camera"))


def test_many_crops_of_a_photograph_at_listed_places(photographs, tmp_path):
    made = make_testset([photographs], tmp_path / "t", CROPS)
    assert len(made.names) == 36 and made.names[:2] == ("a_00", "a_01") and made.names[12] == "c_00"
    config, crops = read_manifest(tmp_path / "t" / "manifest.json")
    assert config == CROPS and tuple(crop.name for crop in crops) == made.names
    places = {crop.source: [c.crop for c in crops if c.source == crop.source] for crop in crops}
    for source, spare in (("a.png", (54, 34)), ("below/b.tif", (48, 25)), ("c.png", (14, 14))):
        found = torch.tensor(places[source], dtype=torch.float)
        assert len(set(places[source])) > 10 and (found <= torch.tensor(spare)).all()
        assert (found.max(0).values - found.min(0).values > 0.5 * torch.tensor(spare)).all()
    whole = read_8_bit(photographs / "a.png")
    for crop in crops[:12]:
        hr = read_8_bit(tmp_path / "t" / HR_FOLDER / f"{crop.name}.png")
        left, top = crop.crop
        assert torch.equal(hr, whole[:, top : top + 16, left : left + 16])
        expected = degrade(hr, CROPS.degradation, make_generator("testset", 3, "a.png", left, top), 4)
        assert torch.equal(read_8_bit(tmp_path / "t" / LR_FOLDER / f"{crop.name}.png"), expected)


def test_crops_are_the_same_again_and_more_of_them_begin_alike(photographs, tmp_path):
    for name in ("one", "two"):
        make_testset([photographs], tmp_path / name, CROPS)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    make_testset([photographs], tmp_path / "more", CROPS.model_copy(update={"crops": 30}))
    few, more = (contents(tmp_path / name) for name in ("one", "more"))
    assert all(few[name] == more[name] for name in few if name != "manifest.json")
    make_testset([photographs], tmp_path / "other", CROPS.model_copy(update={"seed": 4}))
    places = [
        [crop.crop for crop in read_manifest(tmp_path / n / "manifest.json").crops] for n in ("one", "other")
    ]
    assert places[0] != places[1]


@pytest.mark.parametrize("config", [CROPS, TestsetConfig(crop=16), TestsetConfig(upscale=2)])
def test_a_manifest_is_read_back_to_the_same_bytes(photographs, tmp_path, make_picture, config):
    make_testset([photographs], tmp_path / "t", config)
    write_image(ImageData(make_picture(40, 40)), photographs / "further.png")
    manifest = read_manifest(tmp_path / "t" / "manifest.json")
    made = make_testset([photographs], tmp_path / "again", manifest.config, listed=manifest.crops)
    assert contents(tmp_path / "again") == contents(tmp_path / "t") and made.different == ()


def test_a_part_of_a_list_makes_that_part_and_says_what_is_different(photographs, tmp_path, make_picture):
    make_testset([photographs], tmp_path / "t", CROPS)
    crops = read_manifest(tmp_path / "t" / "manifest.json").crops
    write_image(ImageData(make_picture(30, 30, seed=9)), photographs / "c.png")  # another photograph
    made = make_testset([photographs], tmp_path / "part", CROPS, listed=[crops[7], crops[2], crops[20]])
    assert made.names == ("a_07", "a_02", crops[20].name) and made.different == (crops[20].name,)
    whole, part = (contents(tmp_path / name) for name in ("t", "part"))
    assert all(
        part[f"{of}/{name}.png"] == whole[f"{of}/{name}.png"]
        for of in (HR_FOLDER, LR_FOLDER)
        for name in ("a_07", "a_02")
    )


def test_lists_that_cannot_be_followed(photographs, tmp_path):
    with pytest.raises(ClearSRError, match=r"the inputs lack gone\.png, of which there are pairs"):
        make_testset(
            [photographs], tmp_path / "t", CROPS, listed=[Crop(name="x", source="gone.png", crop=(0, 0))]
        )
    crops = [Crop(name="x", source="a.png", crop=(0, 0)), Crop(name="y", source="c.png", crop=(0, 15))]
    made = make_testset([photographs], tmp_path / "t", CROPS, listed=crops)
    assert made.names == ("x",) and made.failed == ("c.png: is 30x30, and 16 pixels at 0,15 leave it",)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ([{"name": "../x", "source": "a.png", "crop": [0, 0]}], "'../x' is no name of a pair"),
        ([{"name": "a\\..\\x", "source": "a.png", "crop": [0, 0]}], "is no name of a pair"),
        ([{"name": "/x", "source": "a.png", "crop": [0, 0]}], "'/x' is no name of a pair"),
        ([{"name": "x", "source": "a.png"}] * 2, "names a pair twice"),
        ([], "names no pairs"),
        ([{"name": "x", "source": "a.png", "crop": [-1, 0]}], r"is no manifest of a test set \(crop.0: "),
        ([{"source": "a.png"}], r"is no manifest of a test set \(name: Field required"),
        (None, "cannot be read as the manifest"),
    ],
)
def test_manifests_that_are_none_are_refused(tmp_path, images, says):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"settings": {"crop": 16}, "images": images}))
    with pytest.raises(ClearSRError, match=says):
        read_manifest(path)
    path.write_text(json.dumps({"settings": {"crops": 3}, "images": images}))
    with pytest.raises(ClearSRError, match="crops needs crop"):
        read_manifest(path)


def test_a_set_of_other_settings_is_not_replaced(photographs, tmp_path):
    folder = tmp_path / "t"
    make_testset([photographs], folder, TestsetConfig(seed=0))
    before = contents(folder)
    with pytest.raises(ClearSRError, match=r"-o .*: holds a set of another seed"):
        make_testset([photographs], folder, TestsetConfig(seed=9))
    make_testset([photographs], folder, TestsetConfig(seed=0))
    assert contents(folder) == before


def test_a_set_does_not_lie_among_the_photographs(photographs):
    before = contents(photographs)
    for folder in (photographs, photographs / "set"):
        with pytest.raises(ClearSRError, match=r"-o .*: is or lies in the input"):
            make_testset([photographs], folder, TestsetConfig())
    assert contents(photographs) == before


def test_what_is_no_manifest_is_not_quoted(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_bytes(b"\xff\xd8" + bytes(range(256)) * 8)
    with pytest.raises(ClearSRError, match="cannot be read as the manifest") as caught:
        read_manifest(path)
    assert len(str(caught.value).replace(str(path), "")) < 200
