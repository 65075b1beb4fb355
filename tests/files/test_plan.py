"""Which picture becomes which file: nothing is lost, and a second run maps the same way."""

import os
from pathlib import Path

import pytest

from clearsr.config.sampling import SamplingConfig
from clearsr.errors import ClearSRError
from clearsr.files.plan import mark_of, plan_jobs
from clearsr.files.upscale import Job
from clearsr.image.listing import ListedImage


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Makes empty files in the working folder; planning looks at names alone."""
    monkeypatch.chdir(tmp_path)

    def make(*names):
        for name in names:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).touch()

    return make


def plan(*inputs, output="out", **options):
    jobs = plan_jobs([Path(i) for i in inputs], None if output is None else Path(output), **options)
    return {job.input: job.output for job in jobs}


def test_mirrors_folders_and_replaces_suffixes(tree):
    tree("in/a.jpg", "in/b/c.tif", "d.png")
    assert plan("in", "d.png", suffix=".webp") == {
        "in/a.jpg": "out/a.webp",
        "in/b/c.tif": "out/b/c.webp",
        "d.png": "out/d.webp",
    }


def test_dots_in_names_are_kept(tree):
    tree("in/a.b.jpg")
    assert plan("in") == {"in/a.b.jpg": "out/a.b.png"}


def test_same_stem_in_one_folder_keeps_the_whole_name(tree):
    tree("in/a.jpg", "in/a.png", "in/b.png")
    assert plan("in") == {
        "in/a.jpg": "out/a.jpg.png",
        "in/a.png": "out/a.png.png",
        "in/b.png": "out/b.png",
    }
    assert plan("in/a.jpg", "in/a.png", output=None) == {
        "in/a.jpg": "in/a.jpg_x4.png",
        "in/a.png": "in/a.png_x4.png",
    }


def test_same_name_from_two_folders_keeps_the_folders(tree):
    tree("one/a.jpg", "two/a.jpg", "two/b.jpg")
    assert plan("one", "two") == {
        "one/a.jpg": "out/one/a.png",
        "two/a.jpg": "out/two/a.png",
        "two/b.jpg": "out/b.png",
    }


def test_both_at_once(tree):
    tree("one/a.jpg", "one/a.png", "two/a.jpg")
    outputs = plan("one", "two")
    assert len(set(outputs.values())) == 3
    assert outputs["two/a.jpg"] == "out/two/a.png"


def test_order_of_the_inputs_does_not_matter(tree):
    tree("one/a.jpg", "one/a.png", "two/a.jpg", "two/c/a.jpg")
    assert plan("one", "two") == plan("two", "one")


@pytest.mark.parametrize("output", ["out", None])
def test_results_of_an_earlier_run_are_no_inputs(tree, output):
    tree("a.jpg", "b/c.png", "b/c.jpg")
    first = plan(".", output=output)
    tree(*first.values())
    assert plan(".", output=output) == first


def test_results_of_another_factor_are_no_inputs(tree):
    tree("a.jpg", "a_x2.5.png", "alone_x4.png")
    assert plan(".", output=None, mark="_x4") == {"a.jpg": "a_x4.png", "alone_x4.png": "alone_x4_x4.png"}


def test_folders_of_other_results_are_no_inputs(tree):
    tree("in/a.png", "in/lr/a.png", "in/hr/a.png")
    assert plan("in", output="in/lr", results=[Path("in/hr")]) == {"in/a.png": "in/lr/a.png"}


def test_file_named_by_the_user_is_an_input_wherever_it_lies(tree):
    tree("out/a.jpg")
    assert plan("out/a.jpg") == {"out/a.jpg": "out/a.png"}


def test_one_file_to_one_file_name(tree):
    tree("a.jpg")
    assert plan("a.jpg", output="new/b.tiff") == {"a.jpg": "new/b.tiff"}


def test_existing_folder_with_a_suffix_is_a_folder(tree):
    tree("a.jpg", "odd.png/x")
    assert plan("a.jpg", output="odd.png") == {"a.jpg": "odd.png/a.png"}


@pytest.mark.parametrize(
    ("inputs", "output", "says"),
    [
        (["in"], "b.png", "names one file, but the input is a folder"),
        (["in/a.png"], "in/a.png", "is also an input"),
        (["in/a.png"], "in", "is also an input"),
        (["in"], "in", "is also an input"),
        (["in/a.png"], "in/a.png/below", "is a file; expected a folder"),
        (["in/a.png"], "taken", "is a folder; it is to become a picture"),
        (["in/a.png"], "b.psd", "accepted for output"),
    ],
)
def test_impossible_outputs_are_refused(tree, inputs, output, says):
    tree("in/a.png", "taken/a.png/x")
    with pytest.raises(ClearSRError, match=says):
        plan(*inputs, output=output)


def test_links_to_the_input_are_seen_through(tree):
    tree("in/a.png")
    os.symlink("in", "also-in")
    with pytest.raises(ClearSRError, match="is also an input"):
        plan("in", output="also-in")


def test_folder_without_permission_is_refused(tree, monkeypatch):
    tree("a.png")
    monkeypatch.setattr("clearsr.files.plan.os.access", lambda *_: False)
    with pytest.raises(ClearSRError, match="no permission to write in"):
        plan("a.png")


def test_marks():
    assert [mark_of(SamplingConfig(upscale=x)) for x in (4.0, 2.5, 0.75)] == ["_x4", "_x2.5", "_x0.75"]


@pytest.mark.parametrize(
    ("size", "mark"),
    [
        ({"width": 1920}, "_width1920"),
        ({"height": 90}, "_height90"),
        ({"longest_side": 2048}, "_longest2048"),
        ({"shortest_side": 1080}, "_shortest1080"),
        ({"megapixels": 2.5}, "_2.5mp"),
        ({"fit": "1920x1080"}, "_fit1920x1080"),
    ],
)
def test_a_size_marks_its_results_and_they_are_no_inputs(size, mark, tmp_path):
    assert mark_of(SamplingConfig(size=size)) == mark
    for name in ("a.png", f"a{mark}.png", f"a{mark}_comparison.png", "b_width.png"):
        (tmp_path / name).touch()
    jobs = plan_jobs([tmp_path], None, mark=mark)
    assert [Path(job.output).name for job in jobs] == [f"a{mark}.png", f"b_width{mark}.png"]


def test_no_picture_is_compared_with_all_others(tree, monkeypatch):
    """Tens of thousands in a folder are planned in a time that grows with their number, not its square."""
    count = 200
    tree(*(f"in/{index}.png" for index in range(count)), "in/out/0.png")
    compared = []
    for kind in (Job, ListedImage):
        same = kind.__eq__
        monkeypatch.setattr(
            kind, "__eq__", lambda a, b, same=same: compared.append(1) or same(a, b), raising=False
        )
    assert len(plan("in", output="in/out")) == count
    assert len(compared) < 10 * count


def test_a_whole_name_that_is_the_name_of_another_is_told_apart_as_well(tree):
    tree("in/x.png", "in/x.jpg", "in/x.png.png", "in/y.png")
    planned = plan("in")
    assert planned == {
        "in/x.png": "out/x.png.png",
        "in/x.jpg": "out/x.jpg.png",
        "in/x.png.png": "out/x.png.png.png",
        "in/y.png": "out/y.png",
    }
    assert len(set(planned.values())) == len(planned)


@pytest.mark.skipif(os.name == "nt", reason="no such names there")
def test_results_of_names_with_line_breaks_are_known_again(tree):
    tree("a\nb.png", "a\nb_x4.png")
    assert plan(".", output=None) == {"a\nb.png": "a\nb_x4.png"}
