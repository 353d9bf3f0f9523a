"""A run goes on with what it was begun with, and with nothing else: data, what it is scored on,
teacher, files of its own. What changes nothing that is computed may differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgen.config import DataConfig, DistillConfig
from fastgen.data.held_out import HeldOutTask
from fastgen.data.samples import SampleTask
from fastgen.jobs.checks import fit_to_teacher
from fastgen.jobs.distillation import Distillation
from fastgen.jobs.origin import data_origin, teacher_origin
from fastgen.jobs.setup import Setup
from fastgen.models import build_model
from fastgen.normalizer import Normalizer
from fastgen.records.folder import claim_run, open_run
from fastgen.teachers import as_rectified_flow
from fastgen.training.accelerator import start_accelerator
from support.toy import PointTeacher, ToyTask, ToyTeacher, toy_config

SIZES = {"in_dim": 4, "out_dim": 4, "cond_dim": 2, "in_horizon": 2, "cond_horizon": 1}
WIDTHS = {"embedding_dim": 16, "num_layers": 1, "num_attention_heads": 2}


def begin(folder: Path, teacher: nn.Module, task: Any, cfg: DistillConfig | None = None) -> None:
    """Begin the run in `folder`, or go on with it, up to its first update."""
    cfg, _ = fit_to_teacher(toy_config(folder) if cfg is None else cfg, teacher)
    job = Distillation(cfg, folder, start_accelerator(1), teacher=teacher, task=task)
    claim_run(folder, cfg, job.origin())


def arrays(n: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(n, 1, 2, generator=generator)
    return z + 0.1 * torch.randn(n, 4, 2, generator=generator), z


def recorded(X: Tensor, Z: Tensor, **options: Any) -> HeldOutTask:
    options = {"primary": "energy_score", "pack": 2, **options}
    return HeldOutTask("file", X, Z, torch.arange(len(X)), **options)


def held_out_changed(part: str, name: str) -> HeldOutTask:
    X, Z = arrays()
    row = recorded(X, Z).rows[part][-1]
    {"X": X, "Z": Z}[name][row] *= -1.0
    return recorded(X, Z)


def permuted() -> HeldOutTask:
    X, Z = arrays()
    order = torch.arange(len(X))
    rows = recorded(X, Z).rows["train"]
    order[rows[:2]] = rows[:2].flip(0)
    return recorded(X[order], Z[order])


OTHER_DATA: dict[str, Callable[[], HeldOutTask]] = {
    "scaled": lambda: recorded(3.0 * arrays()[0], arrays()[1]),
    "scaled a little": lambda: recorded(1.001 * arrays()[0], arrays()[1]),
    "conditions scaled": lambda: recorded(arrays()[0], 0.5 * arrays()[1]),
    "shifted": lambda: recorded(arrays()[0] + 5.0, arrays()[1]),
    "a test row": lambda: held_out_changed("test", "X"),
    "a validation row": lambda: held_out_changed("validation", "X"),
    "a condition of the test": lambda: held_out_changed("test", "Z"),
    "the order of rows": permuted,
    "the score": lambda: recorded(*arrays(), primary="min_fde"),
    "the split": lambda: recorded(*arrays(), seed=1),
    "the units": lambda: recorded(*arrays(), normalize=False),
}


@pytest.mark.parametrize("other", OTHER_DATA.values(), ids=OTHER_DATA.keys())
def test_other_data_are_refused_by_name(tmp_path, other):
    begin(tmp_path, ToyTeacher(), recorded(*arrays()))
    begin(tmp_path, ToyTeacher(), recorded(*arrays()))
    with pytest.raises(ValueError, match="begun with another (evaluation )?data: resume with its"):
        begin(tmp_path, ToyTeacher(), other())


def test_data_whose_last_digits_another_machine_computed_are_the_same(tmp_path):
    begin(tmp_path, ToyTeacher(), recorded(*arrays()))
    generator = torch.Generator().manual_seed(0)
    X, Z = ((1 + 6e-8 * torch.randn(x.shape, generator=generator)) * x for x in arrays())
    begin(tmp_path, ToyTeacher(), recorded(X, Z))


@pytest.mark.parametrize("part", ["test", "validation"])
def test_samples_of_any_shape_that_are_held_out_count_too(tmp_path, part):
    X = torch.randn(60, 2, generator=torch.Generator().manual_seed(3)) + 1e4
    cfg = DistillConfig.model_validate({**toy_config(tmp_path).model_dump()})
    begin(tmp_path, PointTeacher(), SampleTask("x", X), cfg)
    begin(tmp_path, PointTeacher(), SampleTask("x", X.clone()), cfg)
    X[SampleTask("x", X).rows[part][0]] += 0.5
    with pytest.raises(ValueError, match="another evaluation data"):
        begin(tmp_path, PointTeacher(), SampleTask("x", X), cfg)


def test_a_file_is_told_to_the_last_bit(tmp_path):
    def write(X: Tensor) -> None:
        np.savez(tmp_path / "data.npz", X=X.double().numpy() + 4e5, Z=arrays()[1].double().numpy())

    X = arrays()[0]
    write(X)
    values = toy_config(tmp_path / "run").model_dump()
    values["data"] = {"name": "file", "path": str(tmp_path / "data.npz"), "pack": 2}
    cfg = DistillConfig.model_validate(values)
    (tmp_path / "run").mkdir()
    begin(tmp_path / "run", ToyTeacher(), None, cfg)
    write(X)
    begin(tmp_path / "run", ToyTeacher(), None, cfg)
    X[recorded(X, arrays()[1]).rows["test"][0], 0, 0] += 0.5
    write(X)
    with pytest.raises(ValueError, match="another evaluation data"):
        begin(tmp_path / "run", ToyTeacher(), None, cfg)


class Counting(ToyTask):
    """A task that counts its evaluations and keeps what they made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.seen: Tensor | None = None

    def evaluate(self, sample: Any, *, quick: bool = False) -> dict[str, float]:
        self.calls += 1
        self.seen = torch.full((3,), float(self.calls))
        return super().evaluate(sample, quick=quick)


def test_a_task_that_keeps_what_it_made_is_the_same(tmp_path):
    task = Counting()
    begin(tmp_path, ToyTeacher(), task)
    task.evaluate(lambda z, noise: noise)
    begin(tmp_path, ToyTeacher(), task)


@pytest.mark.parametrize("kind", ["windows", "samples"])
def test_data_are_the_same_before_and_after_they_were_evaluated(kind):
    X, Z = (torch.randn(600, 2, 2, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    task = SampleTask("x", X, Z)
    if kind == "windows":
        task = HeldOutTask("x", X, Z, torch.arange(600), primary="energy_score", pack=2)
    before = data_origin(task, DataConfig(), built=True)
    task.evaluate(lambda z, noise: noise)
    assert data_origin(task, DataConfig(), built=True) == before


ODD: dict[str, Callable[[], Any]] = {
    "no obstacles": lambda: torch.empty(0, 3),
    "no columns": lambda: torch.empty(3, 0),
    "a sparse matrix": lambda: torch.eye(3).to_sparse(),
    "from the back": lambda: np.arange(6.0)[::-1],
    "another byte order": lambda: np.arange(6.0).astype(">f8"),
    "long numbers": lambda: np.arange(6).astype(np.longdouble),
    "read only": lambda: np.frombuffer(bytes(range(48)), dtype="f8"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("make", ODD.values(), ids=ODD.keys())
def test_a_task_may_hold_arrays_of_any_kind(tmp_path, make):
    task = ToyTask()
    task.scenery = make()  # pyright: ignore[reportAttributeAccessIssue]
    first = data_origin(task, toy_config(tmp_path).data, built=False)
    assert data_origin(task, toy_config(tmp_path).data, built=False) == first
    assert any("scenery" in name for name in first["evaluation data"])


# ---- The teacher ---------------------------------------------------------------------------------


def transformer(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_model({"class": "CondTransformerRegressor", **SIZES, **WIDTHS, **changes}).eval()


class Foreign(ToyTeacher):
    """A network that says nothing of what it was built from."""

    def __init__(self, scale: float = 1.0, *, causal: bool = False, table: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.causal = causal
        self.register_buffer("table", torch.tensor([table, 0.0, 0.0]), persistent=False)
        self.calls = 0

    def forward(self, x_t: Tensor, t: Tensor | float, cond: Tensor) -> Tensor:
        self.calls += 1
        out = self.scale * super().forward(x_t, t, cond)
        return out.cumsum(1) if self.causal else out


class Rounding(Foreign):
    """The same on a machine with other kernels."""

    def forward(self, x_t: Tensor, t: Tensor | float, cond: Tensor) -> Tensor:
        return super().forward(x_t, t, cond) * (1 + 1e-6 * torch.sin(1e3 * x_t))


class Drawing(Foreign):
    """One that draws where nobody can seed it."""

    def forward(self, x_t: Tensor, t: Tensor | float, cond: Tensor) -> Tensor:
        noise = np.random.default_rng().normal(size=x_t.shape)
        return super().forward(x_t, t, cond) + torch.as_tensor(noise, dtype=x_t.dtype)


def with_changed(name: str) -> nn.Module:
    network = Foreign()
    state = network.state_dict()
    state[name].view(-1)[0] += 0.01
    network.load_state_dict(state)
    return network


OTHER_TEACHERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "heads": (transformer, lambda: transformer(num_attention_heads=4)),
    "causality": (transformer, lambda: transformer(causal_attn=True)),
    "time scale": (transformer, lambda: transformer(time_scale=10.0)),
    "an attribute": (Foreign, lambda: Foreign(1.01)),
    "causality of its own": (Foreign, lambda: Foreign(causal=True)),
    "a table that isn't saved": (Foreign, lambda: Foreign(table=1.1)),
    "one weight": (Foreign, lambda: with_changed("linear.weight")),
    "one bias": (Foreign, lambda: with_changed("linear.bias")),
    "the declared path": (
        lambda: as_rectified_flow(Foreign(), path="cosine", prediction="v"),
        lambda: as_rectified_flow(Foreign(), path="vp", prediction="v"),
    ),
}


@pytest.mark.parametrize("pair", OTHER_TEACHERS.values(), ids=OTHER_TEACHERS.keys())
def test_another_teacher_with_the_same_weights_is_refused(tmp_path, pair):
    one, other = pair
    begin(tmp_path, one(), ToyTask())
    begin(tmp_path, one(), ToyTask())
    with pytest.raises(ValueError, match=r"begun with another teacher: resume .*what differs: "):
        begin(tmp_path, other(), ToyTask())


def test_a_teacher_is_the_same_whatever_the_machine_rounds_and_however_often_it_was_called(
    tmp_path,
):
    teacher = Foreign()
    begin(tmp_path, teacher, ToyTask())
    begin(tmp_path, teacher, ToyTask())
    begin(tmp_path, Rounding(), ToyTask())
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        begin(tmp_path, Foreign(), ToyTask())
    finally:
        torch.set_num_threads(threads)


def test_a_teacher_that_draws_for_itself_can_be_gone_on_with(tmp_path):
    cfg = toy_config(tmp_path)
    for _ in range(2):
        claim_run(tmp_path, cfg, teacher_origin(Setup(cfg, Drawing(), ToyTask().train)))


def test_another_content_of_the_null_condition_is_refused(tmp_path):
    def write(value: float) -> None:
        np.savez(tmp_path / "null.npz", Z=np.full((1, 1, 2), value, dtype="f4"))

    values = toy_config(tmp_path / "run").model_dump()
    values["dmd"] |= {"guidance_scale": 1.5}
    values["teacher"]["null_cond"] = str(tmp_path / "null.npz")
    cfg = DistillConfig.model_validate(values)
    (tmp_path / "run").mkdir()
    write(0.25)
    begin(tmp_path / "run", ToyTeacher(), ToyTask(), cfg)
    begin(tmp_path / "run", ToyTeacher(), ToyTask(), cfg)
    write(0.26)
    with pytest.raises(ValueError, match="begun with another null condition"):
        begin(tmp_path / "run", ToyTeacher(), ToyTask(), cfg)


def test_normalizers_of_the_users_own_count(tmp_path):
    task = ToyTask()
    begin(tmp_path, ToyTeacher(), task)
    other = ToyTask()
    object.__setattr__(other.train, "x_normalizer", Normalizer([1.0, 0.0], [[2.0, 0], [0, 2.0]]))
    with pytest.raises(ValueError, match="begun with another data"):
        begin(tmp_path, ToyTeacher(), other)


# ---- Versions ------------------------------------------------------------------------------------


def test_another_version_is_said_and_gone_on_with(tmp_path, monkeypatch, capsys):
    begin(tmp_path, ToyTeacher(), ToyTask())
    begin(tmp_path, ToyTeacher(), ToyTask())
    assert "note" not in capsys.readouterr().err
    monkeypatch.setattr(torch, "__version__", "9.9.0")
    begin(tmp_path, ToyTeacher(), ToyTask())
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "note: the run was begun with torch" in said[0]
    assert "now 9.9.0" in said[0]


def test_a_run_that_noted_less_is_gone_on_with_and_this_is_said(tmp_path, capsys):
    begin(tmp_path, ToyTeacher(), ToyTask())
    path = tmp_path / "origin.json"
    found = json.loads(path.read_text())
    weights = found["teacher"]["weights"]
    old = {"data": [3.0, 1.0, 0.1, 0.2, 0.3], "teacher": weights, "mixed precision": "no"}
    path.write_text(json.dumps(old))
    begin(tmp_path, ToyTeacher(), ToyTask())
    assert "begun by an earlier version, which noted less" in capsys.readouterr().err
    path.write_text(json.dumps({**old, "mixed precision": "bf16"}))
    with pytest.raises(ValueError, match=r"another mixed precision \(bf16 then, no now\)"):
        begin(tmp_path, ToyTeacher(), ToyTask())


def test_a_run_killed_before_its_config_was_there_can_begin_again(tmp_path):
    cfg = toy_config(tmp_path / "run")
    with open_run(cfg) as folder:
        begin(folder, ToyTeacher(), ToyTask(), cfg)
    (folder / "config.yaml").unlink()
    with open_run(cfg) as folder:
        begin(folder, ToyTeacher(), ToyTask(), cfg)
    assert (folder / "config.yaml").exists()


def test_a_run_has_the_same_name_wherever_it_lies_and_another_with_another_seed(tmp_path):
    names = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / folder).mkdir()
        cfg = toy_config(tmp_path / folder).model_copy(update={"seed": seed})
        begin(tmp_path / folder, ToyTeacher(), ToyTask(), cfg)
        names.append(json.loads((tmp_path / folder / "origin.json").read_text())["run"])
    assert names[0] == names[1] != names[2]
