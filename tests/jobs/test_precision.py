"""Teachers of any precision, wholly or partly frozen: what is trained and exported of them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastgen.config import DistillConfig
from fastgen.distillation import distill
from fastgen.export import load_student
from fastgen.methods.matching import DistributionMatching
from fastgen.teachers import as_rectified_flow
from support.agreement import tensors_of
from support.toy import FAR, ToyTask, plug_pulled, with_everything, without_pictures

BF16 = torch.bfloat16
NOISE = torch.randn(5, 4, 2, generator=torch.Generator().manual_seed(0))
Z = torch.randn(5, 1, 2, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """An encoder, registered first, and a body.

    Args:
        casts: where the forward casts: "nowhere", to the dtypes of its "weights", "fixed" to
            bfloat16, or around the "norm" alone.
    """

    table: Tensor
    turns: Tensor

    def __init__(self, casts: str = "nowhere") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.casts = casts
        self.encoder = nn.Linear(2, 8)
        self.body = nn.Linear(17, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 8)
        self.register_buffer("table", torch.linspace(0, 1, 8))
        self.register_buffer("turns", torch.full((8,), 1j), persistent=False)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        assert self.turns.is_complex()
        z = cond.flatten(1)
        tokens = x.flatten(1)
        inner = BF16 if self.casts == "fixed" else self.body.weight.dtype
        if self.casts == "weights":
            z = z.to(self.encoder.weight.dtype)
        elif self.casts == "fixed":
            z = z.bfloat16()
        z = self.encoder(z)
        if self.casts in ("weights", "fixed"):
            z = z.to(inner)
            tokens = tokens.to(inner)
        times = t[:, None].to(z.dtype)
        h = self.body(torch.cat([tokens + self.table.to(tokens.dtype), z, times], 1))
        if self.casts == "norm":
            h = self.norm(h.to(self.norm.weight.dtype)).to(h.dtype)
        else:
            h = self.norm(h)
        return self.head(h).view(x.shape)


def frozen_encoder() -> Net:
    net = Net("weights")
    net.encoder.bfloat16().requires_grad_(False)
    return net


def half_with_norm_in(dtype: torch.dtype) -> Net:
    net = Net("norm").bfloat16()
    net.norm.to(dtype)
    return net


def half_table() -> Net:
    net = Net()
    net.table = net.table.to(BF16)
    return net


def partly_frozen() -> Net:
    net = Net()
    net.encoder.requires_grad_(False)
    net.norm.weight.requires_grad_(False)
    return net


def half(casts: str = "nowhere", dtype: torch.dtype = BF16) -> Net:
    net = Net(casts)
    for parameter in net.parameters():
        parameter.data = parameter.data.to(dtype)
    net.table = net.table.to(dtype)
    return net


TEACHERS = {
    "bfloat16": half,
    "float16, frozen": lambda: half(dtype=torch.float16).requires_grad_(False),
    "casts to its weights": lambda: half("weights"),
    "casts to bfloat16": lambda: half("fixed"),
    "a frozen bfloat16 encoder first": frozen_encoder,
    "bfloat16 with a float32 norm": lambda: half_with_norm_in(torch.float32),
    "bfloat16 with a float64 norm": lambda: half_with_norm_in(torch.float64),
    "float32 with a bfloat16 table": half_table,
    "partly frozen": partly_frozen,
}


def config(
    run_dir: Path, *, rank: int | None = None, block: str = "norm", **dmd: object
) -> DistillConfig:
    train = {**FAR, "kd_optimizer": {"lr": 1e-3, "warmup_steps": 0}, "fake_score_rank": rank}
    values = with_everything(run_dir, **train).model_dump()
    values["dmd"] |= {"gan_blocks": [block], "guidance_rescale": 0.0, **dmd}
    values["student"] = {"steps": 2, "sample_type": "ode"}
    return DistillConfig.model_validate(values)


def distilled(cfg: DistillConfig, teacher: nn.Module) -> Path:
    with without_pictures():
        return distill(cfg, teacher=teacher, task=ToyTask())


def last_state(run: Path) -> dict[str, Tensor]:
    """What the last checkpoint within a stage holds."""
    saved = {key: x for key, x in tensors_of(run).items() if key.startswith("checkpoints")}
    last = max(saved).split()[0]
    return {key.split()[1]: x for key, x in saved.items() if key.startswith(last)}


def frozen_names(teacher: nn.Module) -> set[str]:
    """The parameters that stay frozen: none of a teacher that is wholly so."""
    frozen = {name for name, p in teacher.named_parameters() if not p.requires_grad}
    return frozen if len(frozen) < len(list(teacher.parameters())) else set()


def wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TEACHERS)
def test_all_that_is_trained_of_a_teacher_is_in_full_precision(tmp_path, kind):
    teacher = TEACHERS[kind]()
    before = copy.deepcopy(teacher)
    run = distilled(config(tmp_path / "run"), teacher)
    for name, x in before.state_dict().items():
        assert x.dtype == teacher.state_dict()[name].dtype and x.equal(teacher.state_dict()[name])
    ours = list(teacher.parameters())
    theirs = list(before.parameters())
    assert [p.requires_grad for p in ours] == [p.requires_grad for p in theirs]

    found = last_state(run)
    moments = [value for key, value in found.items() if ".exp_avg" in key]
    assert moments and all(value.element_size() >= 4 for value in moments)
    for part in ("student.weights", "student.ema", "fake_score.weights"):
        prefix = f"{part}.network." if f"{part}.network.head.bias" in found else f"{part}."
        for name, start in teacher.named_parameters():
            value = found[prefix + name]
            assert value.dtype == wide(start), (part, name)
            # Ones of a norm, too, move by less than half precision knows.
            assert value.equal(start.to(value.dtype)) == (name in frozen_names(teacher)), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["casts to bfloat16", "a frozen bfloat16 encoder first"])
def test_a_student_is_exported_in_float32_and_samples_as_in_training(tmp_path, kind):
    teacher = TEACHERS[kind]()
    run = distilled(config(tmp_path / "run").model_copy(update={"keep": "kd"}), teacher)
    student = load_student(run / "student", network=copy.deepcopy(teacher))
    assert {p.dtype for p in student.network.parameters()} == {torch.float32}
    shipped = dict(student.network.named_parameters())
    for name in frozen_names(teacher):
        assert shipped[name].equal(dict(teacher.named_parameters())[name].float())
    # The network of the author, in float32 from the start, with the weights of the stage.
    plain = Net("weights")
    state = {
        key.split()[1]: value
        for key, value in tensors_of(run).items()
        if key.startswith("stages/kd")
    }
    plain.load_state_dict({name.removeprefix("weights."): x for name, x in state.items()})
    tokens = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(3))
    t = torch.tensor([0.1, 0.5, 0.999])
    with torch.no_grad():
        expected = plain(tokens, t, Z[:3])
        found = student.network(tokens, t, Z[:3])
    rounding = 2**-6 if kind == "casts to bfloat16" else 1e-6
    assert (found - expected).abs().max() < rounding * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["casts to bfloat16", "partly frozen"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, kind):
    whole = distilled(config(tmp_path / "whole"), TEACHERS[kind]())
    cfg = config(tmp_path / "resumed")
    with plug_pulled(DistributionMatching, 4):
        distilled(cfg, TEACHERS[kind]())
    resumed = distilled(cfg.model_copy(update={"resume": True}), TEACHERS[kind]())
    ours = last_state(whole)
    theirs = last_state(resumed)
    assert ours and ours.keys() == theirs.keys()
    assert all(ours[key].equal(theirs[key]) for key in ours)


@pytest.mark.slow
def test_corrections_of_low_rank_are_in_float32_and_leave_what_is_frozen_alone(tmp_path):
    teacher = half()
    teacher.encoder.requires_grad_(False)
    found = last_state(distilled(config(tmp_path / "run", rank=2), teacher))
    dtypes = {key: x.dtype for key, x in found.items() if key.startswith("fake_score.weights")}
    assert {name.split("/")[-2] for name in dtypes if "/" in name} == {"body", "head"}
    assert set(dtypes.values()) == {torch.float32}


class Rows(nn.Module):
    """A network that was trained on a DDPM's path: eps of (x, row, condition)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(11, 16)
        self.head = nn.Linear(16, 8)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        rows = (t / 100).to(x.dtype)[:, None]
        h = torch.tanh(self.body(torch.cat([x.flatten(1), rows, cond.flatten(1)], 1)))
        return self.head(h).view(x.shape)


@pytest.mark.slow
def test_a_converted_teacher_in_half_precision_keeps_its_conversion_and_what_is_frozen(tmp_path):
    betas = torch.linspace(1e-4, 0.05, 100, dtype=torch.float64)
    inner = Rows().bfloat16()
    inner.head.bias.requires_grad_(False)
    teacher = as_rectified_flow(inner, path=betas, prediction="eps")
    options = {"block": "network.body", "fake_score_rung_conditioned": False}
    run = distilled(config(tmp_path / "run", **options), teacher)
    student = load_student(run / "student", network=Rows().bfloat16())
    assert student.dtype == torch.float32
    shipped = dict(student.network.named_parameters())
    assert shipped["network.head.bias"].equal(inner.head.bias.float())
    assert bool(student.sample(Z, noise=NOISE).isfinite().all())


class Stubborn(Net):
    """It multiplies by a weight itself, in bfloat16 whatever that is in."""

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        z = nn.functional.linear(cond.flatten(1).bfloat16(), self.head.weight[:2, :2])
        return super().forward(x, t, cond) + z.sum()


def test_a_teacher_that_cannot_run_in_float32_is_refused_before_any_training(tmp_path):
    with pytest.raises(ValueError, match="copy can be trained in float32, got one in torch.bfloat"):
        distilled(config(tmp_path / "run"), Stubborn().bfloat16())
    assert not (tmp_path / "run" / "config.yaml").exists()
