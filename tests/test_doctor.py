"""The examination of an installation: broken is a problem, absent and optional is not, and it goes on."""

import importlib.metadata as metadata
import json
from email.message import Message

import pytest
import torch

from clearsr import doctor
from clearsr.cli import main
from clearsr.doctor import examine
from clearsr.errors import ClearSRError, installing
from clearsr.models.checkpoint import (
    CONFIG_NAME,
    DIGEST_KEY,
    WEIGHTS_NAME,
    check_weights,
    locate,
    save_network,
    sha256_of,
)


def _by_name(part):
    return {finding.name: finding for finding in examine() if finding.part == part}


def _declare(monkeypatch, python, *requirements, extras=()):
    """The package's metadata replaced."""
    message = Message()
    message["Requires-Python"] = python
    for extra in extras:
        message["Provides-Extra"] = extra
    monkeypatch.setattr(metadata, "metadata", lambda _name: message)
    monkeypatch.setattr(metadata, "requires", lambda _name: list(requirements))


@pytest.fixture
def model(network, tmp_path):
    """A saved model that a test may spoil."""
    save_network(network, tmp_path, ["clearsr"])
    return tmp_path


def test_this_installation_is_sound(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    found = {(f["part"], f["name"]): f for f in report["findings"]}
    assert report["ok"] and not [f for f in report["findings"] if f["status"] == "problem"]
    assert found["versions", "torch"]["text"] == torch.__version__
    assert found["devices", "cpu"]["facts"]["threads"] == torch.get_num_threads()
    weights = found["weights", "compact"]["facts"]
    assert weights["sha256"] == sha256_of(locate("compact") / WEIGHTS_NAME)
    assert main(["doctor", "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_missing_and_wrong_requirements_are_problems(monkeypatch, capsys):
    _declare(
        monkeypatch, ">=99", "no-such-package>=2", "numpy>=999", "pillow>=1", "other; python_version<'3'"
    )
    found = _by_name("versions")
    assert {name: f.status for name, f in found.items()} == {
        "python": "problem",
        "clearsr": "ok",
        "no-such-package": "problem",
        "numpy": "problem",
        "pillow": "ok",
    }
    assert found["no-such-package"].remedy == 'pip install "no-such-package>=2"'
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "! numpy" in out and "does not satisfy >=999" in out and out.endswith("\n3 problems\n")


def test_extras_say_what_they_lack_and_how_to_get_it(monkeypatch):
    _declare(
        monkeypatch,
        ">=3.10",
        "torch",
        'pillow>=11; extra == "here"',
        'no-such-package>=2; extra == "gone"',
        'numpy>=2; extra == "gone"',
        'other; extra == "dev"',
        extras=("here", "gone", "dev"),
    )
    found = _by_name("extras")
    assert set(found) == {"here", "gone"}
    assert (found["here"].status, found["gone"].status) == ("ok", "absent")
    assert found["gone"].text == "lacks no-such-package>=2"
    assert found["gone"].remedy == installing("gone")


def test_a_broken_part_does_not_end_the_examination(monkeypatch):
    def fail():
        raise ImportError("libtorch.so is\nmissing")

    monkeypatch.setattr(doctor, "_devices", fail)
    findings = examine()
    (broken,) = [finding for finding in findings if finding.status == "problem"]
    assert broken.part == "devices" and "ImportError: libtorch.so is missing" in broken.text
    assert {finding.part for finding in findings} >= {"versions", "weights", "formats"}


def test_weights_are_held_against_their_configuration(model):
    whole = check_weights(model)
    assert whole.is_recorded and whole.sha256 == sha256_of(model / WEIGHTS_NAME)
    description = json.loads((model / CONFIG_NAME).read_text())
    assert description.pop(DIGEST_KEY) == whole.sha256
    (model / CONFIG_NAME).write_text(json.dumps(description))
    assert not check_weights(model).is_recorded


def test_one_changed_bit_of_the_weights_is_found(model):
    path = model / WEIGHTS_NAME
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ClearSRError, match="is another file than its config.json states"):
        check_weights(model)


def test_weights_of_another_network_are_found(model, make_network, tmp_path):
    other = tmp_path / "other"
    save_network(make_network(control={"structure_preserving": False}), other, ["clearsr"])
    (other / WEIGHTS_NAME).replace(model / WEIGHTS_NAME)
    with pytest.raises(ClearSRError, match="does not fit its config.json: it lacks structure_preserving"):
        check_weights(model)
    (model / WEIGHTS_NAME).write_bytes(b"\x80\x04pickle")
    with pytest.raises(ClearSRError, match="cannot be read as safetensors"):
        check_weights(model)


def test_missing_weights_are_a_problem_of_the_installation(monkeypatch, tmp_path):
    monkeypatch.setattr("clearsr.models.checkpoint.files", lambda _package: tmp_path)
    finding = _by_name("weights")["compact"]
    assert finding.status == "problem" and "missing from this installation" in finding.text
    assert finding.remedy == "install ClearSR again"
