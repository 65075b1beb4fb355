"""What `--dry-run` says: counts that hold, and a memory estimate that follows what it depends on."""

import pytest
import torch

from clearsr.errors import ClearSRError
from clearsr.models.build import build_network
from clearsr.training.dry_run import _LiveMemory, plan_run
from clearsr.training.setup import prepare_stage
from clearsr.training.stages import build_stage
from clearsr.training.step import to_device


def test_counts_are_those_of_the_run(make_run, photos):
    config = make_run("lr_encoder", steps=10, batch_size=4, accumulation=2, ema_decay=0.9)
    plan = plan_run(config, processes=2)
    stage = build_stage(config, build_network(config.model))
    trainable = sum(p.numel() for p in stage.parameters() if p.requires_grad)
    total = sum(p.numel() for p in stage.parameters())
    assert sum(plan.trainable.values()) == trainable and plan.frozen == total - trainable
    assert (plan.processes, plan.micro_batch) == (2, 1)
    assert (plan.images, plan.steps_per_epoch, plan.epochs) == (5, 1.25, 8.0)
    assert plan.image_bytes == sum(path.stat().st_size for path in photos.iterdir())
    assert plan.memory["weights"] == 4 * total
    assert plan.memory["moments"] == 8 * trainable and plan.memory["average"] == 4 * trainable
    assert plan.checkpoint_bytes == 16 * trainable
    text = "\n".join(plan.lines())
    assert f"{trainable:,}" in text and "5 images" in text and "1.2" in text


def test_the_first_stage_can_be_planned(make_run):
    plan = plan_run(make_run("autoencoder"))
    assert sum(plan.trainable.values()) > 0
    assert plan.memory["step"] > 4 * sum(plan.trainable.values())  # the gradients alone


def test_the_step_follows_the_batch_and_the_precision(make_run):
    def step(batch_size, **changes):
        config = make_run("lr_encoder", batch_size=batch_size, data={"crop_size": 64}, **changes)
        return plan_run(config).memory["step"]

    one, four = step(1), step(4)
    assert one < four < 4 * one
    assert step(4, precision="bf16") < 0.9 * four


def test_recomputing_activations_shrinks_the_step(make_run):
    plain, frugal = (
        plan_run(make_run(batch_size=4, data={"crop_size": 64}, gradient_checkpointing=on)).memory["step"]
        for on in (False, True)
    )
    assert frugal < 0.8 * plain


def test_the_estimate_is_what_a_real_step_holds(make_run, make_picture):
    """The same count on real tensors, with real weights: shapes alone give the same number."""
    from clearsr.data.crops import TrainingBatch

    config = make_run(batch_size=2, data={"crop_size": 32}, loss={"prompt_dropout": 0.0})
    device = torch.device("cpu")
    stage = prepare_stage(config, build_network(config.model), device)
    hr = torch.stack([make_picture(32, 32, seed) for seed in range(2)])
    batch = to_device(TrainingBatch(hr, torch.nn.functional.avg_pool2d(hr, 4), [0, 1]), device)
    with _LiveMemory() as memory:
        stage(batch, 0)["loss"].backward()
    assert plan_run(config).memory["step"] == pytest.approx(memory.peak, rel=0.02)


def test_memory_is_counted_while_it_is_held():
    start = torch.zeros(1000)
    with _LiveMemory() as memory:
        first = start + 1  # 4000 bytes
        view = first.view(10, 100)  # none
        second = view * 2
        del first, view
        third = second[:250].clone()  # 4000 again at most: the first is gone
    assert third.numel() == 1000
    assert memory.peak == 8000


def test_data_and_sizes_that_do_not_fit_are_refused(make_run):
    with pytest.raises(ClearSRError, match="gone"):
        plan_run(make_run(data={"train": ["gone"]}))
    with pytest.raises(ClearSRError, match="a multiple of 8"):
        plan_run(make_run(data={"crop_size": 20}))
