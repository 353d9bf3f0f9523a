"""A fake score of low rank: the teacher at the start, corrections alone trained, its memory
shared."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastgen.distillation import distill
from fastgen.dmd import create_fake_score
from fastgen.jobs.checks import check_plan
from fastgen.methods.fake_scores import (
    LowRankFakeScore,
    LowRankLinear,
    RungConditioned,
    check_pull,
    pull,
)
from fastgen.methods.matching import DistributionMatching
from fastgen.models import build_model
from fastgen.models.transformer import CondTransformerRegressor
from fastgen.records.checkpoints import load_newest_checkpoint
from support.pipeline import Net
from support.toy import ToyTask, ToyTeacher, plug_pulled, setup_of, toy_config

X = torch.ones(6, 3, 4).double()
T = torch.linspace(0.1, 0.9, 6).double()
Z = torch.ones(6, 2, 2).double()


def teacher() -> nn.Module:
    torch.manual_seed(0)
    return CondTransformerRegressor(4, 4, 2, 3, 2, 2, 2, 16, 0.0, 0.0).double().eval()


def trained(fake: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in fake.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return fake


def test_at_the_start_it_is_the_teacher():
    net = teacher()
    fake = LowRankFakeScore(net, 3)
    assert torch.equal(fake(X, T, Z), net(X, T, Z))
    assert not torch.equal(trained(fake)(X, T, Z), net(X, T, Z))


def test_a_map_is_the_frozen_one_plus_alpha_over_r_times_b_a():
    linear = nn.Linear(5, 4).double()
    low = LowRankLinear(linear, 2, 3.0 / 2, torch.Generator().manual_seed(0))
    nn.init.normal_(low.up)
    x = torch.randn(7, 5).double()
    expected = x @ linear.weight.T + linear.bias + 1.5 * (x @ low.down.T @ low.up.T)
    torch.testing.assert_close(low(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(x @ low.weight.T + low.bias, expected, rtol=0, atol=1e-12)
    assert torch.linalg.matrix_rank(low.weight - linear.weight) == 2


class Shared(nn.Module):
    """One map in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"one": nn.Linear(4, 4), "two": nn.Linear(4, 4)})
        self.tied = self.net["one"]

    def forward(self, x_t, t, cond=None):
        return self.tied(self.net["two"](self.net["one"](x_t)))


def test_a_map_in_two_places_has_one_correction():
    net = Shared().double()
    fake = LowRankFakeScore(net, 2)
    assert {*fake.corrections} == {
        f"{path}/{part}" for path in ("tied", "net/two") for part in ("up", "down")
    }
    inner = fake.network
    assert inner.tied is inner.net["one"] and isinstance(inner.tied, LowRankLinear)
    assert torch.equal(fake(X, T), net(X, T)) and not torch.equal(trained(fake)(X, T), net(X, T))


def test_a_map_that_one_module_holds_twice_has_one_correction():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4)
            self.two = self.one

        def forward(self, x_t, t, cond=None):
            return self.one(self.two(x_t))

    net = Twice().double()
    fake = LowRankFakeScore(net, 2)
    assert {*fake.corrections} == {"one/up", "one/down"}
    assert isinstance(fake.network.one, LowRankLinear)
    assert fake.network.two is fake.network.one
    assert torch.equal(fake(X, T), net(X, T))


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("num_rungs", [1, 2])
def test_what_no_prediction_uses_has_no_gradient_in_any_kind_of_fake_score(rank, num_rungs):
    net = Shared().double()
    net.idle = nn.Linear(4, 4).double()
    fake = create_fake_score(net, rank=rank, num_rungs=num_rungs)
    fake(X, T, None).sum().backward()
    names = {name for name, parameter in fake.named_parameters() if parameter.grad is None}
    assert len(names) == 2 and all("idle" in name for name in names)


def test_gradients_reach_the_corrections_alone_and_the_teacher_stays():
    net = teacher()
    before = copy.deepcopy(net.state_dict())
    fake = create_fake_score(net, rank=2, num_rungs=2)
    assert isinstance(fake, RungConditioned)
    for _ in range(2):  # at the start B = 0 keeps the gradient from A
        optimizer = torch.optim.SGD(fake.get_optim_groups()[0]["params"], lr=0.1)
        fake(X, T, Z, rung=1).square().mean().backward()
        assert all(p.grad is None for p in net.parameters()) and all(
            p.grad is not None for p in fake.parameters()
        )
        optimizer.step()
    own = {id(p) for p in fake.parameters()}
    assert not any(p.requires_grad for p in fake.network.network.parameters() if id(p) not in own)
    assert any(
        p.grad.abs().max() > 0 for name, p in fake.named_parameters() if name.endswith("down")
    )
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    # Its memory is the teacher's: what changes there changes here.
    answer = fake(X, T, Z)
    with torch.no_grad():
        net.head.bias.add_(1.0)
    torch.testing.assert_close(fake(X, T, Z), answer + 1.0, rtol=0, atol=1e-12)


def test_its_state_is_the_corrections_alone():
    fake = trained(LowRankFakeScore(teacher(), 2))
    numbers = sum(value.numel() for value in fake.state_dict().values())
    linears = [m for m in fake.network.modules() if isinstance(m, LowRankLinear)]
    assert (
        numbers == sum(2 * (m.in_features + m.out_features) for m in linears) and len(linears) > 10
    )
    other = LowRankFakeScore(teacher(), 2, seed=5)
    other.load_state_dict(fake.state_dict())
    assert torch.equal(other(X, T, Z), fake(X, T, Z))


def test_an_equivariant_teacher_is_refused():
    rep = {"group": "C2", "in_rep": ["regular"], "cond_rep": ["regular"], "out_rep": ["regular"]}
    sizes = {
        "in_horizon": 2,
        "cond_horizon": 1,
        "num_layers": 2,
        "num_attention_heads": 2,
        "embedding_dim": 32,
    }
    net = build_model({"class": "eCondTransformerRegressor", **rep, **sizes})
    with pytest.raises(
        ValueError,
        match="most of its weights in nn.Linear modules .* got eCondTransformerRegressor",
    ):
        LowRankFakeScore(net, 2)


def test_a_rank_without_a_fake_score_is_refused():
    x0, cond = ToyTask().train.network_inputs()
    check_plan(setup_of(toy_config("unused", fake_score_rank=2), ToyTeacher(), x0, cond))
    for changes in ({"steps": 0}, {}):
        cfg = toy_config("unused", fake_score_rank=2, **changes)
        if not changes:
            cfg = cfg.model_copy(update={"method": "consistency"})
        with pytest.raises(
            ValueError,
            match="expected train.fake_score_rank=null where no fake score is trained, got 2",
        ):
            check_plan(setup_of(cfg, ToyTeacher(), x0, cond))


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.slow
def test_a_run_trains_and_saves_the_corrections(tmp_path):

    cfg = toy_config(tmp_path / "run", fake_score_rank=2)
    with plug_pulled(DistributionMatching, 7):
        distill(cfg, teacher=ToyTeacher(), task=ToyTask())
    tensors, _ = load_newest_checkpoint(tmp_path / "run") or ({}, {})
    saved = {name: v for name, v in tensors.items() if name.startswith("fake_score.weights")}
    assert {name.rpartition("/")[2] for name in saved} == {"up", "down"}
    assert all(bool(v.abs().max() > 0) for v in saved.values())
    distill(cfg.model_copy(update={"resume": True}), teacher=ToyTeacher(), task=ToyTask())
    assert (tmp_path / "run" / "student").exists()


# ---- A pull towards the student ------------------------------------------------------------------


def test_a_pull_takes_a_share_of_the_way_to_the_student():
    student = Net(1)
    fake_score = create_fake_score(Net(2))
    frozen = dict(fake_score.named_parameters())["last.bias"].requires_grad_(False)
    before = {name: weight.detach().clone() for name, weight in fake_score.named_parameters()}
    check_pull(fake_score, student)
    pull(fake_score, student, 0.25)
    theirs = dict(student.named_parameters())
    for name, weight in fake_score.named_parameters():
        expected = 0.75 * before[name] + 0.25 * theirs[name]
        if weight is frozen:
            expected = before[name]
        torch.testing.assert_close(weight, expected, rtol=1e-12, atol=1e-15)


def test_a_fake_score_unlike_the_student_is_not_pulled():
    student = Net(1)
    with pytest.raises(ValueError, match="fake_score_pull, got RungConditioned"):
        check_pull(create_fake_score(Net(2), num_rungs=2), student)
    with pytest.raises(ValueError, match="fake_score_pull, got LowRankFakeScore"):
        check_pull(create_fake_score(Net(2), rank=2), student)
    other = Net(2)
    other.last = torch.nn.Linear(16, 5).double()
    with pytest.raises(ValueError, match=r"another shape of last.bias: \(5,\) and \(3,\)"):
        check_pull(create_fake_score(other), student)
