"""Learning-rate schedules, the moving average, and the optimizer's state."""

import sys

import pytest
import torch
from torch import nn

from clearsr.config.training import OptimizerConfig
from clearsr.errors import ClearSRError
from clearsr.training.state import TrainingState, average_decay, learning_rate_at, make_optimizer


def scheduled(make_scheduler, count, learning_rate=1e-3):
    """The learning rates that one of torch's schedulers gives."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=learning_rate)
    scheduler, rates = make_scheduler(optimizer), []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [
        ("constant", lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1.0)),
        ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20, eta_min=1e-5)),
        ("linear", lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.01, total_iters=20)),
    ],
)
def test_schedules_are_torchs_after_the_warm_up(schedule, reference):
    config = OptimizerConfig(learning_rate=1e-3, schedule=schedule, warmup_steps=5)
    ours = [learning_rate_at(config, step, 25) for step in range(25)]
    assert ours[:5] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3])
    assert ours[5:] == pytest.approx(scheduled(reference, 20), rel=1e-6)


def test_the_average_equals_a_loop_over_numbers(make_run):
    layer = nn.Linear(2, 1, bias=False)
    state = TrainingState.of(layer, make_run(ema_decay=0.9))
    expected = layer.weight.detach().double().clone()
    for step in range(1, 31):
        with torch.no_grad():
            layer.weight.add_(0.1 * step)
        decay = average_decay(0.9, step)
        state.update_average(decay)
        expected = decay * expected + (1 - decay) * layer.weight.detach().double()
    assert decay == pytest.approx(31 / 40)
    assert average_decay(0.9, 1000) == 0.9
    torch.testing.assert_close(state.average["weight"].double(), expected, rtol=1e-6, atol=0)


def test_within_averaged_the_parameters_are_the_average(make_run):
    layer = nn.Linear(2, 1)
    state = TrainingState.of(layer, make_run(ema_decay=0.9))
    average = {name: value.clone() for name, value in state.average.items()}
    with torch.no_grad():
        layer.weight.add_(1)
    trained = layer.weight.detach().clone()
    with pytest.raises(RuntimeError), state.averaged():
        assert torch.equal(layer.weight, average["weight"])
        raise RuntimeError
    assert torch.equal(layer.weight, trained)


def test_no_weight_decay_is_adam():
    ours, theirs = (nn.Parameter(torch.ones(3)) for _ in range(2))
    adamw = make_optimizer([ours], OptimizerConfig(learning_rate=0.1))
    adam = torch.optim.Adam([theirs], lr=0.1)
    for _ in range(3):
        for parameter, optimizer in ((ours, adamw), (theirs, adam)):
            parameter.grad = parameter.detach() ** 2
            optimizer.step()
    assert torch.equal(ours, theirs)


def test_eight_bits_without_bitsandbytes_say_what_to_install(monkeypatch):
    for name in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ClearSRError, match=r"pip install 'clearsr\[adamw8bit\]'"):
        make_optimizer([nn.Parameter(torch.zeros(1))], OptimizerConfig(kind="adamw8bit"))


def test_eight_bit_moments_follow_adamw_and_come_back_bit_for_bit(normal):
    pytest.importorskip("bitsandbytes")  # the extra adamw8bit
    config = OptimizerConfig(kind="adamw8bit", learning_rate=1e-2)
    start = normal(128, 128)  # smaller tensors keep 32 bits

    def begin(kind):
        parameter = nn.Parameter(start.clone())
        optimizer = make_optimizer([parameter], config.model_copy(update={"kind": kind}))
        return TrainingState({"a": parameter}, {}, optimizer)

    def advance(state, steps):
        for step in steps:
            state.parameters["a"].grad = normal(128, 128, seed=step) + state.parameters["a"].detach()
            state.optimizer.step()
        return state.parameters["a"].detach()

    whole, exact, resumed = begin("adamw8bit"), begin("adamw"), begin("adamw8bit")
    half = advance(whole, range(3)).clone()
    assert (half - advance(exact, range(3))).norm() < 0.03 * (half - start).norm()
    resumed.load({group: {n: v.clone() for n, v in ts.items()} for group, ts in whole.tensors().items()})
    assert torch.equal(advance(whole, range(3, 6)), advance(resumed, range(3, 6)))


class CountingOptimizer(torch.optim.Optimizer):
    """Keeps its state as 8-bit optimizers do: bytes, and the number of steps as an int."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self):
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["step"] = state.get("step", 0) + 1
            state["state1"] = torch.full((3,), state["step"], dtype=torch.uint8)


def test_a_state_of_bytes_and_ints_comes_back_as_it_was():
    parameters = [nn.Parameter(torch.zeros(3)) for _ in range(2)]
    first, second = (TrainingState({"a": p}, {}, CountingOptimizer([p])) for p in parameters)
    first.optimizer.step()
    first.optimizer.step()
    second.load(first.tensors())
    restored = second.optimizer.state[parameters[1]]
    assert restored["step"] == 2 and isinstance(restored["step"], int)
    assert restored["state1"].dtype == torch.uint8 and restored["state1"].tolist() == [2, 2, 2]
