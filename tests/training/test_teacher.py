"""A teacher's pictures: what it makes of the samples, made once, kept, turned, and learnt from."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from clearsr.data.crops import CropDataset
from clearsr.data.labels import IN_A_FILE, Labels
from clearsr.errors import ClearSRError
from clearsr.evaluation.methods import Method
from clearsr.image import to_signed
from clearsr.models.realesrgan import upscale
from clearsr.training.engine import fit
from clearsr.training.stages import build_stage
from clearsr.training.teacher import _picture, labels_of, make_labels

COUNT = IN_A_FILE + 3
CPU = torch.device("cpu")


@pytest.fixture
def make_taught(make_run, tmp_path):
    """`make_taught(share=(1, 0))`: the configuration of a painter that has a teacher."""

    def make(output="run", seed=0, steps=2, data=None, perceptual=None, **teacher):
        values = {"labels": str(tmp_path / "labels"), "samples": COUNT, **teacher}
        return make_run(
            "painter",
            output=output,
            model={"painter": {"blocks": 1}},
            perceptual={"features": 0.0, "teacher": values, **(perceptual or {})},
            data=data or {},
            seed=seed,
            steps=steps,
        )

    return make


def samples(config, labels=None):
    return CropDataset(config.data, config.degradation, config.batch_size, config.seed, labels=labels)


def labelled(config):
    """The samples with their teacher's pictures, which are made where they are missing."""
    plain = samples(config)
    labels = labels_of(config, plain.photographs.fingerprint())
    make_labels(config, plain, labels, CPU)
    return samples(config, labels)


def test_it_is_what_the_teacher_makes_of_the_samples_lr_image(realesrgan_wheel, make_taught):
    config = make_taught()
    numbers = [0, 5, IN_A_FILE, COUNT - 1]
    plain, taught = samples(config).batch(numbers), labelled(config).batch(numbers)
    assert torch.equal(taught.hr, plain.hr) and torch.equal(taught.lr, plain.lr)
    expected = torch.cat([upscale(realesrgan_wheel, lr[None]) for lr in plain.lr])
    torch.testing.assert_close(taught.teacher, expected, atol=0.51 / 255, rtol=0)
    assert len({picture.numpy().tobytes() for picture in taught.teacher}) == len(numbers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_picture_is_as_large_as_its_original_and_rounded_to_levels(dtype, normal):
    """Of whatever number of pixels, and also where the teacher answers in 16 bits."""
    lr, hr, asked = torch.rand(1, 3, 4, 6), torch.zeros(1, 3, 16, 24), []
    answer = torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(0)).to(dtype)

    def upscale(image, size, seed):
        asked.append((image.color, size, seed))
        return answer

    dataset = SimpleNamespace(batch=lambda numbers: SimpleNamespace(lr=lr, hr=hr))
    picture = _picture(Method("a teacher", upscale), dataset, 3)
    assert torch.equal(asked[0][0], lr[0]) and asked[0][1:] == ((16, 24), 0)
    assert torch.equal(picture, (255 * answer.double()).round().to(torch.uint8))


def test_each_round_shows_the_same_samples_in_another_of_eight_views(realesrgan_wheel, make_taught):
    dataset = labelled(make_taught())
    first = dataset.batch([7])
    rounds = [dataset.batch([7 + COUNT * n]) for n in range(9)]
    symmetries = [x.rot90(k, (2, 3)) for x in (first.hr, first.hr.flip(3)) for k in range(4)]
    found = [next(i for i, s in enumerate(symmetries) if torch.equal(s, batch.hr)) for batch in rounds]
    assert sorted(found[:8]) == list(range(8)) and found[8] == found[0] == 0
    for view, batch in zip(found, rounds, strict=True):
        for ours, theirs in ((batch.lr, first.lr), (batch.teacher, first.teacher)):
            mirrored = theirs.flip(3) if view >= 4 else theirs
            assert torch.equal(ours, mirrored.rot90(view % 4, (2, 3)))
    assert [batch.sample_ids for batch in rounds[:2]] == [[7], [7 + COUNT]]  # noise is new in every round


def test_without_turning_there_are_two_views(realesrgan_wheel, make_taught):
    dataset = labelled(make_taught(data={"rotate": False}))
    first = dataset.batch([2])
    views = [dataset.batch([2 + COUNT * n]).teacher for n in range(4)]
    assert torch.equal(views[1], first.teacher.flip(3))
    assert torch.equal(views[2], first.teacher) and torch.equal(views[3], views[1])


def test_they_are_made_once_and_what_is_missing_alone(realesrgan_wheel, make_taught, tmp_path, monkeypatch):
    config = make_taught()
    labelled(config)
    first, last = sorted((tmp_path / "labels").iterdir())
    whole, kept = last.read_bytes(), first.stat()
    last.unlink()
    labelled(config)
    assert last.read_bytes() == whole and first.stat().st_mtime_ns == kept.st_mtime_ns
    monkeypatch.setattr("clearsr.training.teacher.baseline", lambda *_: pytest.fail("asked again"))
    labelled(config)


def test_a_process_leaves_out_what_another_has_made_meanwhile(realesrgan_wheel, make_taught, monkeypatch):
    config = make_taught()
    write, written = Labels.write, []

    def both(labels, numbers, pictures):
        for every in (range(0, IN_A_FILE), range(IN_A_FILE, COUNT)):  # the other one is done with all of them
            write(labels, every, pictures[:1].expand(len(every), -1, -1, -1))
        written.append(numbers)

    monkeypatch.setattr(Labels, "write", both)
    labelled(config)
    assert len(written) == 1


def test_a_file_that_another_made_does_not_end_the_rest(realesrgan_wheel, make_taught, monkeypatch):
    monkeypatch.setattr("clearsr.data.labels.IN_A_FILE", 2)
    monkeypatch.setattr("os.getpid", lambda: 0)
    write, written = Labels.write, []

    def and_the_next(labels, numbers, pictures):
        written.append(numbers)
        write(labels, numbers, pictures)
        if numbers == range(0, 2):
            write(labels, range(2, 4), pictures)

    monkeypatch.setattr(Labels, "write", and_the_next)
    labelled(make_taught(samples=6))
    assert written == [range(0, 2), range(4, 6)]


@pytest.mark.parametrize(("process", "first"), [(0, 0), (1, 1), (4, 1), (5, 2)])
def test_processes_that_start_together_begin_with_different_files(
    realesrgan_wheel, make_taught, monkeypatch, process, first
):
    monkeypatch.setattr("clearsr.data.labels.IN_A_FILE", 2)
    monkeypatch.setattr("os.getpid", lambda: process)
    write, written = Labels.write, []
    monkeypatch.setattr(
        Labels, "write", lambda labels, numbers, made: written.append(numbers) or write(labels, numbers, made)
    )
    labelled(make_taught(samples=6))
    files = [range(0, 2), range(2, 4), range(4, 6)]
    assert written == files[first:] + files[:first]


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"seed": 1}, "seed"), ({"data": {"crop_size": 24}}, "crop_size"), ({"network": "x.pth"}, "teacher")],
)
def test_labels_by_other_settings_are_refused(realesrgan_wheel, make_taught, tmp_path, changes, name):
    labelled(make_taught())
    with pytest.raises(ClearSRError, match=rf"labels-00000.safetensors: was made with another {name};"):
        labelled(make_taught(**changes))


def test_a_damaged_file_says_what_to_do(realesrgan_wheel, make_taught, tmp_path):
    dataset = labelled(make_taught())
    (tmp_path / "labels/labels-00000.safetensors").write_bytes(b"no labels")
    with pytest.raises(ClearSRError, match="labels-00000.safetensors: cannot be read .* delete it"):
        dataset.batch([0])
    with pytest.raises(ClearSRError, match="labels-00000.safetensors: cannot be read .* delete it"):
        labelled(make_taught())


def test_labels_that_cannot_be_written_name_the_setting(realesrgan_wheel, make_taught, tmp_path):
    (tmp_path / "labels").write_text("in the way")
    with pytest.raises(
        ClearSRError, match=r"perceptual.teacher.labels: .*labels-0000\d.safetensors cannot be"
    ):
        labelled(make_taught())


@pytest.mark.parametrize(("step", "share"), [(0, 1.0), (5, 0.5), (10, 0.0), (12, 0.0)])
def test_the_original_takes_over_from_the_teacher(make_taught, make_network, make_picture, step, share):
    config = make_taught(share=(1.0, 0.0), steps=11, perceptual={"pixel": 1.0})
    stage = build_stage(config, make_network(painter={"blocks": 1}))
    hr, teacher = make_picture(16, 16)[None], make_picture(16, 16, seed=5)[None]
    lr = torch.nn.functional.avg_pool2d(hr, 4)
    batch = samples(config)[0]._replace(hr=hr, lr=lr, sample_ids=[2 * step], teacher=teacher)  # two a step
    judged = []
    stage.network.painter.register_forward_hook(lambda *given: judged.append(given[-1]))
    terms = stage(batch, 0)
    wanted = to_signed(share * teacher + (1 - share) * hr)
    torch.testing.assert_close(terms["l1"], (judged[0] - wanted).abs().mean())
    without = stage(batch._replace(teacher=None), 0)
    assert share == 0 or abs(terms["l1"] - without["l1"]) > 1e-3


def test_a_run_with_a_teacher_goes_on_as_if_never_stopped(
    realesrgan_wheel, make_taught, checkpoint_tensors, assert_identical, tmp_path
):
    fit(make_taught(steps=4))
    fit(make_taught(output="other", steps=2))
    shutil.move(tmp_path / "labels", tmp_path / "moved")
    fit(make_taught(output="other", steps=4, labels=str(tmp_path / "moved")), resume="latest")
    ours, theirs = (tmp_path / run / "checkpoints/step-00000004" for run in ("run", "other"))
    assert_identical(checkpoint_tensors(theirs), checkpoint_tensors(ours))


def test_labels_say_what_they_were_made_by(realesrgan_wheel, make_taught, tmp_path):
    labelled(make_taught())
    pictures = load_file(tmp_path / "labels/labels-00001.safetensors")["pictures"]
    assert pictures.shape == (COUNT - IN_A_FILE, 3, 16, 16) and pictures.dtype == torch.uint8


def test_lr_images_of_the_device_have_no_labels(make_taught):
    with pytest.raises(ClearSRError, match=r"perceptual.teacher.*set data.degrade_on to worker"):
        make_taught(data={"degrade_on": "device"})
