"""Files appear whole or not at all, and nothing is left beside them."""

import pytest

from clearsr.atomic import write_text, written_aside
from clearsr.errors import ClearSRError


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with written_aside(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old" and aside.parent == path.parent
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [OSError("disk"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_file_and_nothing_else(failure, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(failure)), written_aside(path) as aside:
        aside.write_text("half")
        raise failure
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_two_writers_at_once_do_not_mix(tmp_path):
    path = tmp_path / "a.txt"
    with written_aside(path) as first, written_aside(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_text_makes_its_folder_and_says_why_it_cannot_be_written(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "ä\n")
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "ä\n"
    with pytest.raises(ClearSRError, match=r"a\.txt.b: cannot be written \("):
        write_text(tmp_path / "new" / "a.txt" / "b", "text")
