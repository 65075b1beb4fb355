"""`clearsr upscale --preview`: on a terminal only, beside everything else that is written."""

import base64
import io
import json
import os
import re
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from clearsr.cli.preview import before_and_after

pty = pytest.importorskip("pty", reason="no pseudo-terminals here")


class Terminal:
    """Within `with`, stderr is a terminal of kitty's kind; `text` is what was written to it, afterwards."""

    def __enter__(self):
        self._received = bytearray()
        self._ours, theirs = pty.openpty()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self._stderr = os.fdopen(theirs, "w", encoding="utf-8")
        self._before, sys.stderr = sys.stderr, self._stderr
        return self

    def __exit__(self, *_):
        sys.stderr = self._before
        self._stderr.close()
        self._reader.join(10)
        os.close(self._ours)
        self.text = self._received.decode("utf-8")

    def _read(self):
        try:
            while part := os.read(self._ours, 65536):
                self._received.extend(part)
        except OSError:  # the other end is closed
            pass


@pytest.fixture
def terminal(monkeypatch):
    for name in ("NO_COLOR", "TMUX", "FORCE_COLOR", "CLEARSR_PREVIEW", "TERM_PROGRAM", "KITTY_WINDOW_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-kitty")
    return Terminal()


def shown_picture(text):
    data = "".join(re.findall(r"\x1b_G[^;]*;([^\x1b]*)\x1b\\", text))
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_the_terminal_shows_both_and_stdout_has_json_alone(upscale, photo, terminal, tmp_path):
    source = photo()
    with terminal:
        outcome = upscale(source, "--preview", "--json", "-o", tmp_path / "out.png")
    written = terminal.text
    assert outcome.code == 0
    assert json.loads(outcome.out)["status"] == "upscaled"
    assert outcome.out.count("\n") == 1
    shown = np.asarray(shown_picture(written).convert("RGB"))
    with Image.open(tmp_path / "out.png") as image:
        result = np.asarray(image.convert("RGB"))
    assert shown.shape == (48, 2 * 64 + 8, 3)
    assert np.array_equal(shown[:, -64:], result)
    with Image.open(source) as image:
        bicubic = np.asarray(image.resize((64, 48), Image.Resampling.BICUBIC), float)
    assert np.abs(shown[:, :64] - bicubic).mean() < 2
    assert "before | after" in written


def test_a_picture_on_stdout_stays_what_it_is(upscale, photo, terminal, monkeypatch):
    source = photo()
    flags = ("-o", "-", "--format", "png")
    streams = [io.TextIOWrapper(io.BytesIO()) for _ in range(2)]
    with terminal:
        for stream, preview in zip(streams, ([], ["--preview"]), strict=True):
            monkeypatch.setattr(sys, "stdout", stream)
            assert upscale(source, *flags, *preview).code == 0
            stream.flush()
    plain, previewed = (stream.buffer.getvalue() for stream in streams)
    assert plain == previewed and plain.startswith(b"\x89PNG")
    assert shown_picture(terminal.text).size == (2 * 64 + 8, 48)


def test_nothing_goes_to_a_pipe_or_where_quiet_was_asked_for(upscale, photo, terminal, monkeypatch, tmp_path):
    with terminal:
        outcome = upscale(photo(), "--preview", "--quiet", "-o", tmp_path / "a.png")
    assert outcome.code == 0 and "\x1b_G" not in terminal.text
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich would take the pipe for a terminal
    outcome = upscale(photo("b.png"), "--preview", "-o", tmp_path / "c.png")
    assert outcome.code == 0
    assert (tmp_path / "c.png").is_file()
    assert "\x1b_G" not in pipe.getvalue() and "▀" not in pipe.getvalue()


def test_cells_of_colour_where_no_picture_can_be(upscale, photo, terminal, monkeypatch, tmp_path):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    with terminal:
        assert upscale(photo(), "--preview", "-o", tmp_path / "a.png").code == 0
    written = terminal.text
    assert "\x1b_G" not in written
    assert len(re.findall(r"48;2;\d+;\d+;\d+m", written)) > 100


@pytest.mark.parametrize(("upscale_by", "side"), [(4, 20), (2.5, 33), (0.5, 10), (4, 1000)])
def test_both_show_the_same_part(tmp_path, pixels, upscale_by, side):
    lr = Image.fromarray(pixels(61, 83))
    size = (round(83 * upscale_by), round(61 * upscale_by))
    lr.save(tmp_path / "lr.png")
    lr.resize(size, Image.Resampling.BICUBIC).save(tmp_path / "sr.png")
    sheet, caption = before_and_after(tmp_path / "lr.png", tmp_path / "sr.png", side)
    shown = np.asarray(sheet, float)
    width = (sheet.width - 8) // 2
    assert width <= min(side, size[0]) and sheet.height <= min(side, size[1])
    assert width > 0.8 * min(side, size[0]) - 4
    assert np.abs(shown[:, :width] - shown[:, -width:]).mean() < 4  # a smooth picture, by two resamplings
    assert ("middle" in caption) == (side < max(size))


def test_a_preview_that_fails_fails_nothing_else(upscale, photo, terminal, monkeypatch, tmp_path):
    from clearsr.cli import preview
    from clearsr.errors import ClearSRError

    def broken(*_):
        raise ClearSRError("gone")

    monkeypatch.setattr(preview, "before_and_after", broken)
    with terminal:
        assert upscale(photo(), "--preview", "-o", tmp_path / "a.png").code == 0
    assert "no preview: gone" in terminal.text
