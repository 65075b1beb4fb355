"""What `--dry-run` says: counts that hold, and a memory estimate that follows what it depends on."""

import gc

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from clearsr.errors import ClearSRError
from clearsr.models.build import build_network
from clearsr.training.dry_run import _LiveMemory, plan_run
from clearsr.training.engine import start_processes
from clearsr.training.setup import prepare_stage
from clearsr.training.stages import build_stage
from clearsr.training.state import TrainingState
from clearsr.training.step import Stepper, make_scaler, open_data


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


@pytest.fixture
def process_group():
    """One process that takes part in gloo as one of several would."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def measured_peak(config, shares):
    """The most bytes that torch's allocator had given out in three steps of a run, by the profiler."""
    accelerator = start_processes(config)
    gc.collect()  # what is freed below must have been made below
    kinds = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds, profile_memory=True) as profile:
        stage = prepare_stage(config, build_network(config.model), accelerator.device)
        state, data = TrainingState.of(stage, config), open_data(config, accelerator, stage)
        stepper = Stepper.start(
            config, accelerator, stage, state, data, make_scaler(config, accelerator.device)
        )
        if shares:  # as accelerate does where there are several
            wrapped = DistributedDataParallel(stage, **accelerator.ddp_handler.to_kwargs())
            object.__setattr__(stepper, "trained", wrapped)
            accelerator.no_sync = type(wrapped).no_sync
        gc.collect()  # what building left in circles
        with torch.profiler.record_function("steps"):
            for step in range(3):
                stepper.step(step)
    events = profile.profiler.kineto_results.events()
    begin = next(event.start_ns() for event in events if event.name() == "steps")
    held = peak = 0
    for time, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        held += size
        peak = max(peak, held) if time >= begin else 0
    return peak


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_estimate_is_what_a_run_holds(make_run, process_group, shares, accumulation):
    """With prompts of which some are dropped, and are of two lengths."""
    config = make_run(
        model={"null_prompt_tokens": 77}, batch_size=4, accumulation=accumulation, ema_decay=0.9, steps=3,
        data={"crop_size": 64, "small": "resize"}, loss={"prompt_dropout": 0.5},
    )  # fmt: skip
    processes = 2 if shares else 1  # whose share is the batch that is measured
    plan = plan_run(config.model_copy(update={"batch_size": 4 * processes}), processes)
    assert plan.micro_batch == 4 // accumulation
    assert sum(plan.memory.values()) == pytest.approx(measured_peak(config, shares), rel=0.05)


def test_buckets_for_gradients_are_there_all_the_time(make_run):
    config = make_run(batch_size=4, data={"crop_size": 64})
    alone, beside = (plan_run(config.model_copy(update={"batch_size": 4 * n}), n) for n in (1, 2))
    buckets = 4 * sum(alone.trainable.values())
    assert alone.memory["step"] < beside.memory["step"] <= alone.memory["step"] + buckets


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
