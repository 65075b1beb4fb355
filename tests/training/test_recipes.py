"""Every recipe in configs/ can be read; the paper's ablations build, train and sample as they should."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import nn

from clearsr.config.base import build_config, load_config, merge, read_yaml
from clearsr.config.training import TrainConfig
from clearsr.data.crops import TrainingBatch
from clearsr.image import ImageData, write_image
from clearsr.models.build import build_network
from clearsr.models.checkpoint import EMBEDDED_MODELS, locate, read_description, save_network
from clearsr.models.realesrgan import RRDBNet
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.training.engine import fit
from clearsr.training.setup import prepare_network, stages_of_run
from clearsr.training.stages import build_stage

CONFIGS = Path(__file__).parent.parent.parent / "configs"
RECIPES = sorted(path for path in CONFIGS.rglob("*.yaml") if "stage" in read_yaml(path))
ABLATIONS = sorted((CONFIGS / "ablations").glob("*.yaml"))
SHARED = ("section-4-3", "appendix-f")
FIGURE_2 = "controlnet"  # no row of a table: what Figures 2 and 8 compare with


def test_there_is_an_overlay_for_every_row_of_the_papers_tables():
    names = {path.stem for path in ABLATIONS} - {*SHARED, FIGURE_2}
    sizes = {f"{what}-{n}" for what in ("vae-lora-rank", "unet-lora-rank", "window") for n in (8, 16, 32)}
    without = {f"without-{what}" for what in ("spm", "cross-attention", "window-partition")}
    assert names == without | sizes | {f"lora-{which}" for which in ("none", "vae-only", "unet-only", "both")}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_can_be_read(path):
    config = load_config(TrainConfig, [path])
    assert config.data.train and config.output.parts[0] == "runs"


def test_the_papers_setting():
    config = load_config(TrainConfig, [CONFIGS / "sd21.yaml"])
    model = config.model
    assert (config.stage, config.steps, config.batch_size, config.data.crop_size) == (
        "clearsr",
        150_000,
        8,
        512,
    )
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (5e-5, 0)
    assert (model.lr_encoder.lora_rank, model.unet_lora_rank, model.control.window_size) == (16, 16, 16)
    assert (model.prediction, model.train_unet) == ("epsilon", "lora")
    assert config.degradation.weights == {"full": 1.0} and config.data.upscale == 4


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_an_ablation_changes_its_switch_and_the_length_of_the_run(path):
    full, ablation = (load_config(TrainConfig, [p]).model_dump() for p in (CONFIGS / "sd21.yaml", path))
    of_section = read_yaml(path).get("optimizer", {})["learning_rate"]
    is_appendix = path.stem.startswith(("window", "vae", "unet", "appendix"))
    assert (ablation["steps"], of_section) == (50_000, 5e-5 if is_appendix else 1e-4)
    same = {"steps", "optimizer", "output", "model"}
    assert {k: v for k, v in full.items() if k not in same} == {
        k: v for k, v in ablation.items() if k not in same
    }


@pytest.fixture(scope="module")
def parts(sd_base):
    """U-Net and VAE of the base, by diffusers alone."""
    unet = UNet2DConditionModel.from_pretrained(sd_base / "unet")
    return unet, AutoencoderKL.from_pretrained(sd_base / "vae")


def size_of(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def lora_size(layer, rank):
    """A and B of a linear layer or a convolution."""
    if isinstance(layer, nn.Linear):
        return rank * (layer.in_features + layer.out_features)
    return rank * (layer.in_channels * layer.kernel_size[0] ** 2 + layer.out_channels)


def expected_trainable(parts, model):
    """What the switches of a configuration add up to, counted on the base alone."""
    unet, vae = parts
    controlnet = ControlNetModel.from_unet(unet)
    count = size_of(controlnet) - size_of(controlnet.controlnet_cond_embedding)
    if model.control.structure_preserving:
        count += size_of(unet.conv_in)
        for block in unet.down_blocks:
            count += size_of(*block.resnets, *(block.downsamplers or []))
            count -= size_of(*(resnet.time_emb_proj for resnet in block.resnets))
    if model.control.cross_attention:
        side = model.control.window_size or 64
        for level, width in enumerate(
            [*unet.config.block_out_channels[:3], unet.config.block_out_channels[3]]
        ):
            layers, ratio, heads = 1, 2**level, width // 8
            norm, projections, out = 2 * width, width**2 + 2 * 4 * width, width**2 + width
            count += layers * (norm + projections + out + heads * (2 * side - ratio) ** 2)
    attentions = [
        layer
        for name, layer in unet.up_blocks.named_modules()
        if isinstance(layer, nn.Linear) and ".attn" in name
    ]
    assert len(attentions) == 3 * 2 * 2 * 4  # blocks, transformers in each, self and cross, q k v out
    count += sum(lora_size(layer, model.unet_lora_rank) for layer in attentions)
    encoder = [layer for layer in vae.encoder.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    return count + sum(lora_size(layer, model.lr_encoder.lora_rank) for layer in encoder)


def on(sd_base, path, **changes):
    """A recipe on the miniature base."""
    base = {"model": {"base_model": str(sd_base), "image_encoder": None}, "data": {"crop_size": 64}}
    return build_config(TrainConfig, merge(merge(read_yaml(path), base), changes))


def distinct_models():
    """One overlay for each network: several rows of the tables are the full model."""
    by_model = {}
    for path in ABLATIONS:
        by_model.setdefault(load_config(TrainConfig, [path]).model.model_dump_json(), path)
    # The full model, 3 + 3 without something, the ControlNet, 2 other values of each of 3 sizes.
    assert len(by_model) == 14
    return list(by_model.values())


@pytest.mark.parametrize("path", distinct_models(), ids=lambda path: path.stem)
def test_an_ablation_builds_trains_and_samples(path, sd_base, parts, make_picture):
    config = on(sd_base, path)
    network = build_network(config.model, null_prompt=torch.zeros(1, 77, 32))
    stage = build_stage(config, network)
    trained = {name: p for name, p in stage.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == expected_trainable(parts, config.model)

    hr = torch.stack([make_picture(64, 64, seed) for seed in range(2)])
    batch = TrainingBatch(hr, torch.nn.functional.avg_pool2d(hr, 4), [0, 1])
    optimizer = torch.optim.AdamW(trained.values(), lr=config.optimizer.learning_rate)
    before = {name: p.detach().clone() for name, p in trained.items()}
    for _ in range(2):
        optimizer.zero_grad()
        loss = stage(batch, 0)["loss"]
        loss.backward()
        optimizer.step()
    assert loss.isfinite()
    assert any(not torch.equal(p, before[name]) for name, p in trained.items())

    pipeline = ClearSRPipeline(network, device="cpu", precision="fp32")
    result = pipeline.upscale([ImageData(make_picture(16, 16))], pipeline.configure(steps=1))[0]
    assert result.color.shape == (3, 64, 64) and result.color.isfinite().all()


def test_the_papers_recipe_runs_in_low_precision_and_comes_back(sd_base, tmp_path, make_picture):
    """The whole loop on a base: bf16, frozen parts in bf16, recomputed activations, an export that loads."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        # Below 64 pixels torch's bf16 convolutions on a CPU give gradients that are not numbers.
        write_image(ImageData(make_picture(72, 64, seed=number)), photos / f"{number}.png")
    config = on(
        sd_base,
        CONFIGS / "sd21.yaml",
        output=str(tmp_path / "run"),
        gradient_checkpointing=True,
        steps=2,
        batch_size=2,
        data={"train": [str(photos)], "validation": [str(photos)], "crop_size": 64, "workers": 0},
        validation={"count": 1, "crop_size": 32, "sampling": {"steps": 1}},
        validate_every=2,
    )
    export = fit(config)
    pipeline = ClearSRPipeline.from_pretrained(export, device="cpu", precision="fp32")
    assert all(p.dtype == torch.float32 for p in pipeline.network.parameters())
    result = pipeline.upscale([ImageData(make_picture(8, 8))], pipeline.configure(steps=1, guidance_scale=1))[
        0
    ]
    assert result.color.isfinite().all()
    fit(config.model_copy(update={"steps": 3}), resume="latest")
    assert (config.output / "checkpoints" / "step-00000003").is_dir()


CHAINS = {
    "version 3": [f"compact-{name}" for name in ("1-autoencoder", "2-lr-encoder", "3-decoder", "4-painter")]
    + ["compact-5-together"],
    "version 2": ["compact-1-autoencoder"]
    + [f"version2/{name}" for name in ("2-lr-encoder", "3-clearsr", "4-larger-crops")],
}


def test_no_recipe_starts_from_what_none_makes():
    recipes = [load_config(TrainConfig, [path]) for path in RECIPES]
    made = {recipe.output / "export" for recipe in recipes} | {Path(name) for name in EMBEDDED_MODELS}
    starts = {source for recipe in recipes for source in recipe.init_from}
    assert len(starts) > 5 and starts <= made


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_each_recipe_of_a_chain_takes_over_what_the_one_before_left(chain, tmp_path, monkeypatch, caplog):
    """Without training: each network is saved as its stage would, and the next stage starts from it."""
    monkeypatch.setattr("clearsr.training.setup.load_realesrgan", RRDBNet)
    exports = {}
    for name in chain:
        config = load_config(TrainConfig, [CONFIGS / f"{name}.yaml"])
        starts = [exports[source] for source in config.init_from]
        network, stages = prepare_network(config.model_copy(update={"init_from": tuple(starts)}))
        folder = exports[config.output / "export"] = tmp_path / config.output.name
        save_network(network, folder, [*stages, *stages_of_run(config)], dtype=torch.float16)
    assert "brings no stage" not in caplog.text and len(exports) == len(chain)
    shipped = read_description(locate("compact"))["model"]
    made = read_description(folder)["model"]
    for model in (shipped, made):
        del model["autoencoder"]["scaling_factor"]  # measured
    assert (made == shipped) == (chain == CHAINS["version 3"])


def test_the_recipe_of_the_last_stage_teaches_the_shipped_model():
    recipe = load_config(TrainConfig, [CONFIGS / "compact-5-together.yaml"])
    _, stages = prepare_network(recipe.model_copy(update={"init_from": (Path("compact"),)}))
    assert {"autoencoder", "lr_encoder", "decoder", "painter", "clearsr"} == set(stages)
