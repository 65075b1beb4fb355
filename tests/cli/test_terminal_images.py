"""What is written to terminals, read back by decoders of our own: the same picture comes out."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from clearsr.cli.preview import colored_cells, escape_sequences, protocol_of


@pytest.fixture
def picture():
    noise = np.random.default_rng(3).integers(0, 256, (41, 67, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def pixels_of(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_kitty(picture):
    text = escape_sequences(picture, "kitty")
    parts = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in parts) == text
    assert len(parts) > 1 and all(len(data) <= 4096 for _, data in parts)
    assert all(len(data) % 4 == 0 for _, data in parts[:-1])
    first, *others = [dict(pair.split("=") for pair in keys.split(",")) for keys, _ in parts]
    assert (first["a"], first["f"], first["q"]) == ("T", "100", "2")
    assert [keys["m"] for keys in (first, *others)] == ["1"] * len(others) + ["0"]
    assert all(set(keys) == {"m"} for keys in others)
    sent = base64.b64decode("".join(data for _, data in parts), validate=True)
    assert np.array_equal(pixels_of(sent), np.asarray(picture))


def test_iterm2(picture):
    sent = re.fullmatch(r"\x1b\]1337;File=([^:]*):([A-Za-z0-9+/=]*)\x07", escape_sequences(picture, "iterm2"))
    keys = dict(pair.split("=") for pair in sent[1].split(";"))
    content = base64.b64decode(sent[2], validate=True)
    assert keys == {"inline": "1", "size": str(len(content)), "width": "67px", "height": "41px"}
    assert np.array_equal(pixels_of(content), np.asarray(picture))


def read_sixels(text):
    """H×W×3 of what a terminal draws, in percent; what is not drawn is -1."""
    header, body = re.fullmatch(
        r'\x1bPq"1;1;(\d+;\d+)((?:#\d+;2;\d+;\d+;\d+)*.*)\x1b\\', text, re.DOTALL
    ).groups()
    width, height = map(int, header.split(";"))
    canvas, palette = np.full((height + 5, width, 3), -1), {}
    x = y = color = 0
    for token in re.findall(r"#\d+;2;\d+;\d+;\d+|#\d+|![0-9]+[?-~]|[?-~]|[$-]", body):
        if token.startswith("#"):
            color, *rgb = map(int, token[1:].split(";"))
            if rgb:
                palette[color] = rgb[1:]
        elif token == "$":
            x = 0
        elif token == "-":
            x, y = 0, y + 6
        else:
            count = int(token[1:-1]) if token.startswith("!") else 1
            for bit in range(6):
                if (ord(token[-1]) - 63) >> bit & 1:
                    canvas[y + bit, x : x + count] = palette[color]
            x += count
    assert (canvas[height:] == -1).all()
    return canvas[:height]


def test_sixel_of_few_colours_is_exact(picture):
    few = picture.quantize(40).convert("RGB")
    drawn = read_sixels(escape_sequences(few, "sixel"))
    assert np.abs(drawn - np.asarray(few) / 2.55).max() <= 0.5 + 1e-6  # whole percents


def test_sixel_of_a_gradient_is_near():
    y, x = np.mgrid[0:1:90j, 0:1:120j]
    smooth = Image.fromarray((255 * np.stack([x, y, (x + y) / 2], -1)).astype(np.uint8))
    drawn = read_sixels(escape_sequences(smooth, "sixel"))
    assert drawn.min() >= 0  # every pixel is drawn
    assert np.abs(drawn - np.asarray(smooth) / 2.55).mean() < 5


def test_cells_of_colour(picture):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="truecolor", width=80, _environ={})
    console.print(colored_cells(picture, 20), end="")
    lines = file.getvalue().splitlines()
    cell = re.compile(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m(▀+)\x1b\[0m")
    rows = []
    for line in lines:
        found = cell.findall(line)
        assert "".join(cell.sub("", line)) == ""
        colors = [[int(n) for n in c[:6]] for c in found for _ in c[6]]
        rows += [[c[:3] for c in colors], [c[3:] for c in colors]]
    expected = picture.resize((20, 12), Image.Resampling.BOX)
    assert np.array_equal(np.array(rows), np.asarray(expected))


def test_small_pictures_are_not_enlarged_to_cells():
    assert len(colored_cells(Image.new("RGB", (3, 1)), 80).plain.split("\n")[0]) == 3


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "vscode"}, "blocks"),
        ({"TERM": "tmux-256color", "TMUX": "/tmp/x", "KITTY_WINDOW_ID": "1"}, "blocks"),
        ({"TERM": "xterm-256color", "CLEARSR_PREVIEW": "sixel"}, "sixel"),
        ({"TERM": "xterm-kitty", "CLEARSR_PREVIEW": "nonsense"}, "kitty"),
        ({}, "blocks"),
    ],
)
def test_the_protocol_follows_from_the_environment(environment, protocol):
    assert protocol_of(environment) == protocol
