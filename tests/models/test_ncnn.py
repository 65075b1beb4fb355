"""ncnn's files: what was written out conv by conv comes back, and nothing else is taken for it."""

import copy

import pytest
import torch

from clearsr.errors import ClearSRError
from clearsr.models.realesrgan import RRDBNet, load_convolutions


def tiny():
    """Odd channels: fp16 weights of the last layer are filled up to whole words."""
    return RRDBNet(blocks=2, features=3, growth=2).requires_grad_(False)


@pytest.fixture
def files(tmp_path, write_ncnn):
    return write_ncnn(tiny(), tmp_path)


@pytest.mark.parametrize("tag", [0x01306B47, 0], ids=["fp16", "fp32"])
def test_the_network_that_was_written_is_read(tmp_path, write_ncnn, normal, tag):
    written, read = tiny(), tiny()
    load_convolutions(read, *write_ncnn(written, tmp_path, tag=tag))
    expected = copy.deepcopy(written)
    if tag:
        for name, parameter in expected.named_parameters():
            if name.endswith("weight"):
                parameter.copy_(parameter.half().float())
    picture = normal(1, 3, 6, 5)
    assert not torch.equal(tiny()(picture), expected(picture))
    assert torch.equal(read(picture), expected(picture))
    assert all(map(torch.equal, read.parameters(), expected.parameters()))


def test_blank_lines_are_no_layers(files):
    param, _ = files
    head, *rest = param.read_text().split("\n", 2)
    param.write_text("\n".join([f" {head} ", rest[0], "", *rest[1].split("\n"), "  \t", ""]))
    load_convolutions(tiny(), *files)


def test_every_part_of_the_files_is_refused(files):
    """Cut off anywhere, also between two layers or lines."""
    for path in files:
        whole = path.read_bytes()
        for length in {*range(0, len(whole) - 1, 7), len(whole) - 2}:
            path.write_bytes(whole[:length])
            with pytest.raises(ClearSRError) as caught:
                load_convolutions(tiny(), *files)
            assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        path.write_bytes(whole)
    load_convolutions(tiny(), *files)


def _edit(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b"7767517", b"7767518", "is no list of ncnn's layers"),
        (b"7767517", b"\xff", "is no list of ncnn's layers"),
        (b"Split", b"PReLU", "has a layer PReLU; accepted: Convolution, Input"),
        (b"0=3 1=3", b"0=3 1=5", "convolution 1 has 3 outputs, a kernel of 5 and 81 weights; expected 3, 3 "),
        (b"6=81", b"6=80", "and 80 weights; expected 3, 3 and 81"),
        (b"6=81", b"6=many", "a layer cannot be understood: Convolution"),
        (b"5=1", b"5=0", "has a convolution without a bias"),
        (b"Convolution", b"Split", "lists 35 convolutions; expected 36"),
    ],
)
def test_other_lists_are_refused(files, old, new, says):
    _edit(files[0], old, new)
    with pytest.raises(ClearSRError, match=says):
        load_convolutions(tiny(), *files)


def test_other_numbers_are_refused(files):
    param, bin = files
    whole = bin.read_bytes()
    for content, says in (
        (b"\x38\x4b\x0d\x00" + whole[4:], "weights of the kind 0x000d4b38 at byte 0; accepted: 0x01306b47, "),
        (whole[:4] + b"\xff\xff" + whole[6:], "has weights that are no numbers, from byte 4"),
        (whole + bytes(4), "4 bytes are left over"),
    ):
        bin.write_bytes(content)
        with pytest.raises(ClearSRError, match=says):
            load_convolutions(tiny(), param, bin)
    bin.unlink()
    with pytest.raises(ClearSRError, match="cannot be read"):
        load_convolutions(tiny(), param, bin)
    param.unlink()
    with pytest.raises(ClearSRError, match="cannot be read"):
        load_convolutions(tiny(), param, bin)
