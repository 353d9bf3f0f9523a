"""A network in training: its state comes back, and updates that are no number leave no trace."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.tensor_files import load_tensors, save_tensors
from fastgen.config import EMAConfig, OptimizerConfig
from fastgen.training.accelerator import start_accelerator
from fastgen.training.trained_network import Skip, TrainedNetwork
from support.stages import trained


def loss_at(network: TrainedNetwork, step: int) -> Tensor:
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
    return (network.network(x) - x.sum(1, keepdim=True)).square().mean()


def train(network: TrainedNetwork, steps: range) -> list[dict[str, float]]:
    return [network.update(loss_at(network, step), step) for step in steps]


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("stop", [1, 4, 9])
def test_a_network_whose_state_went_through_a_file_goes_on_bit_for_bit(tmp_path, ema, stop):
    whole, first, second = (trained(seed, ema=ema) for seed in (0, 0, 1))
    train(whole, range(10))
    train(first, range(stop))
    save_tensors(tmp_path / "x", first.tensors())
    train(second, range(3))  # whatever it was before
    second.load_tensors(load_tensors(tmp_path / "x"))
    train(second, range(stop, 10))
    assert equal(second.tensors(), whole.tensors())
    assert equal(second.averaged().state_dict(), whole.averaged().state_dict())
    assert not equal(trained().tensors(), whole.tensors())


PARTS = [
    "weights",
    "weights.0.bias",
    "ema",
    "ema.2.weight",
    "optimizer",
    "optimizer.0",
    "optimizer.1.exp_avg_sq",
]


@pytest.mark.parametrize("part", [*PARTS, "skipped"])
def test_a_state_that_lacks_a_part_is_refused_by_its_name(part):
    network = trained()
    train(network, range(3))
    state = {key: value for key, value in network.tensors().items() if not key.startswith(part)}
    with pytest.raises(
        ValueError, match=part.removeprefix("optimizer.").replace("optimizer", "optimiser")
    ) as raised:
        trained().load_tensors(state)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["weights.0.bias", "ema.0.bias", "optimizer.1.exp_avg"])
@pytest.mark.parametrize(
    "change", [lambda value: value[:1], lambda value: value.double(), lambda value: value[None]]
)
def test_a_state_of_another_shape_or_dtype_is_refused_by_its_name(name, change):
    network = trained()
    train(network, range(3))
    state = network.tensors()
    state[name] = change(state[name])
    with pytest.raises(
        ValueError, match=f"expected {name.removeprefix('optimizer.')} of .* to be .*, got"
    ):
        trained().load_tensors(state)


def test_what_a_state_has_too_much_of_is_refused():
    network = trained(ema=False)
    with pytest.raises(ValueError, match="with the unknown ema.0.bias"):
        network.load_tensors(trained().tensors())


def test_the_rate_is_that_of_the_step_and_the_norm_is_reported_before_clipping():
    network = trained(clip_grad_norm=1e-3)
    for step in range(6):
        done = network.update(loss_at(network, step), step)
        assert done["lr"] == network.cfg.lr_at(step, 20) == network.optimizer.param_groups[0]["lr"]
        assert done["grad_norm"] > 1e-3


def test_what_is_averaged_is_a_copy_for_evaluation():
    network = trained()
    network.bare.train()
    train(network, range(4))
    before, average = copy.deepcopy(network.bare.state_dict()), network.averaged()
    assert not average.training and network.bare.training
    assert not torch.equal(average.state_dict()["0.weight"], before["0.weight"])
    with torch.no_grad():
        [p.zero_() for p in average.parameters()]
    assert equal(network.bare.state_dict(), before) and not equal(
        network.averaged().state_dict(), before
    )


def test_the_average_counts_updates_from_one():
    torch.manual_seed(0)
    cfg = EMAConfig(decay=0.8, start_iter=2)
    network = TrainedNetwork(nn.Linear(3, 1), OptimizerConfig(), 20, start_accelerator(1), ema=cfg)
    for step in range(4):
        train(network, range(step, step + 1))
        copied = torch.equal(network.averaged().weight, network.bare.weight)
        assert copied == (step + 1 <= cfg.start_iter)


def test_without_an_average_the_weights_themselves_are_handed_out():
    network = trained(ema=False)
    train(network, range(4))
    assert equal(network.averaged().state_dict(), network.bare.state_dict())


class Rooted(nn.Module):
    """sqrt(w x): at w = 0 its value is finite and its gradient is not."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return (self.w * x).sqrt()


POISONED = {
    "loss": lambda network: loss_at(network, 0) * float("nan"),
    "infinite loss": lambda network: loss_at(network, 0) * float("inf"),
    "gradient alone": lambda network: (
        loss_at(network, 0) + Rooted.forward(network.root, torch.ones(1)).sum()
    ),
}


@pytest.mark.parametrize("poison", POISONED.values(), ids=POISONED.keys())
def test_an_update_that_is_not_finite_leaves_everything_as_it_was_and_is_counted(poison):
    class Both(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x)

    network = trained(network=Both(nn.Linear(3, 1), Rooted()))
    network.root = network.bare[1]
    network.update(
        loss_at(network, 0) + 0.0 * network.root.w.sum(), 0
    )  # a gradient that leaves the root at 0
    train(network, range(1, 3))
    for times, step in ((4, 3), (2, 8)):
        before = copy.deepcopy(network.tensors())
        for skipped in range(times):
            done = network.update(poison(network), step + skipped)
            assert done["lr"] == network.cfg.lr_at(step + skipped, 20)
        after = network.tensors()
        assert after.pop("skipped").tolist() == [times, int(before.pop("skipped")[1]) + times]
        assert equal(after, before)  # weights, moments, average
        train(network, range(step + times, step + times + 1))
        # One that is finite starts the count anew, with gradients of its own.
        assert network.tensors()["skipped"].tolist() == [0, 4 if step == 3 else 6]
        assert not equal(network.tensors(), before)
        assert all(bool(torch.isfinite(value).all()) for value in network.tensors().values())


def test_a_loss_that_is_no_number_is_noticed_though_its_gradient_is_one():
    network = trained()
    train(network, range(3))
    before = copy.deepcopy(network.tensors())
    loss = loss_at(network, 3) + torch.tensor(float("nan"))
    assert all(
        bool(g.isfinite().all())
        for g in torch.autograd.grad(loss, [*network.bare.parameters()], retain_graph=True)
    )
    assert not math.isfinite(network.update(loss, 3)["grad_norm"])
    assert equal({**network.tensors(), "skipped": before["skipped"]}, before)
    assert network.take_skipped() == [Skip(0, 1, 1)]


def test_a_skipped_update_leaves_no_trace_in_running_statistics():
    network = trained(network=nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)))
    train(network, range(2))
    before = copy.deepcopy(network.tensors())
    loss = [lambda: network.network(torch.full((8, 3), float("nan"))).square().mean()]
    network.update(loss, 2)
    after = network.tensors()
    assert after.pop("skipped").tolist() == [1, 1] and before.pop("skipped").tolist() == [0, 0]
    assert equal(after, before)
    train(network, range(2, 3))
    assert not torch.equal(
        network.tensors()["weights.1.running_mean"], before["weights.1.running_mean"]
    )


def test_updates_that_were_skipped_are_counted_on_after_a_resume(tmp_path):
    network, again = trained(), trained()
    train(network, range(3))
    for step in range(3, 6):
        network.update(loss_at(network, step) * float("nan"), step)
    save_tensors(tmp_path / "x", network.tensors())
    again.load_tensors(load_tensors(tmp_path / "x"))
    again.at = 7
    again.update(loss_at(again, 6) * float("nan"), 6)
    assert again.take_skipped() == [Skip(7, 4, 4)] and again.take_skipped() == []


def test_updates_that_were_skipped_are_told_with_what_they_belong_to():
    """Whenever they are asked for, each is told once, and all that came since count."""
    network, told = trained(), []
    broken, asked = {2, 3, 6, 8, 9, 10}, {4, 9, 12}
    for step in range(12):
        network.at = step // 2 + 1
        network.update(loss_at(network, step) * (float("nan") if step in broken else 1.0), step)
        told += network.take_skipped() if step in asked else []
        if step == 10:
            assert network.tensors()["skipped"].tolist() == [3, 6]
    told += network.take_skipped()
    assert told == [
        Skip(2, 1, 1),
        Skip(2, 2, 2),
        Skip(4, 1, 3),
        Skip(5, 1, 4),
        Skip(5, 2, 5),
        Skip(6, 3, 6),
    ]


def test_decay_is_for_the_groups_a_network_asks_for():
    class Grouped(nn.Linear):
        def get_optim_groups(self, weight_decay: float) -> list[dict]:
            return [
                {"params": [self.weight], "weight_decay": weight_decay},
                {"params": [self.bias], "weight_decay": 0},
            ]

    network = trained(network=Grouped(3, 1), weight_decay=0.25)
    assert [group["weight_decay"] for group in network.optimizer.param_groups] == [0.25, 0]
