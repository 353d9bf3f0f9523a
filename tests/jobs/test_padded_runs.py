"""Runs on trajectories of unequal length: what stands in the padding of their data changes no
weight, no score and no sample; nor do two processes, a resumed run or an export.

As a script it makes the run of two processes: python test_padded_runs.py FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgen
from fastgen._core.processes import leave_together
from fastgen.config import TrainTeacherConfig
from fastgen.distillation import distill
from fastgen.jobs.distillation import score_student
from fastgen.jobs.planning import plan_distillation
from fastgen.methods.kd import KnowledgeDistillation
from fastgen.methods.matching import DistributionMatching
from fastgen.pretraining import train_teacher
from support.agreement import assert_equal_runs, tensors_of
from support.launching import forked
from support.padded import SYMMETRY, distillation, masks, network, task, walks, write
from support.recipes import once
from support.runs import weights
from support.toy import plug_pulled, without_pictures

UNIFORM = {"time_dist_type": "uniform", "min_t": 0.02, "max_t": 0.98}
EVERYTHING: dict[str, Any] = {
    "fake_score_warmup_steps": 2,
    "vsd_norm": "batch",
    "f_divergence": "forward_kl",
    "gan_loss_weight_gen": 0.1,
    "gan_disc_warmup_steps": 2,
    "gan_t": UNIFORM,
    "gan_r1_reg_weight": 0.1,
    "gan_r2_reg_weight": 0.1,
    "real_data_weight": 0.5,
    "kd_weight": 0.2,
    "guidance_scale": 1.5,
    "guidance_rescale": 0.3,
}
SETS: dict[str, Any] = {
    "fake_score_warmup_steps": 1,
    "set_weight": 0.5,
    "set_samples": 2,
    "set_target": "teacher",
}
OF_SAMPLES: dict[str, Any] = {
    **SETS,
    "gan_features": "sample",
    "gan_loss_weight_gen": 0.1,
    "gan_disc_warmup_steps": 2,
}
# (method, equivariant, changes of the config)
RUNS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "kd": ("kd", False, {}),
    "prefixes": (
        "dmd2",
        True,
        {
            "dmd": {"fake_score_warmup_steps": 1, "guidance_scale": 1.5, "kd_weight": 0.2},
            "teacher": {"null_cond": "zeros"},
            "train": {"prefix_max": 2},
        },
    ),
    "dmd2": ("dmd2", False, {"dmd": EVERYTHING, "teacher": {"null_cond": "zeros"}}),
    "equivariant": ("dmd2", True, {"dmd": OF_SAMPLES, "train": {"kd_noises_per_condition": 2}}),
    "sets": ("dmd2", True, {"dmd": SETS, "train": {"kd_noises_per_condition": 2}}),
    "drift": ("drift", False, {"dmd": {"set_conditional": False, "set_samples": 2}}),
    "consistency": ("consistency", True, {}),
}


def run(folder: Path, name: str, fill: float, *, wide: bool = False, **more: Any) -> Path:
    """One of `RUNS`, on data whose padding holds `fill`; `wide`: in float64."""
    method, equivariant, changes = RUNS[name]
    before = torch.get_default_dtype()
    try:
        if wide:
            torch.set_default_dtype(torch.float64)
        teacher = network(equivariant=equivariant)
        cfg = distillation(folder, method, **changes).model_copy(update=more)
        with without_pictures():
            return distill(
                cfg, teacher=teacher, task=task(fill, equivariant=equivariant, wide=wide)
            )
    finally:
        torch.set_default_dtype(before)


def report(run_dir: Path) -> dict[str, Any]:
    """Scores of all students and of the teacher."""
    found = json.loads((run_dir / "report" / "report.json").read_text())
    return {key: found[key] for key in ("student", "teacher", "validation", "floor")}


def sample(student: fastgen.export.Student, fill: float) -> Tensor:
    """Samples for the walks' own conditions and lengths; all padding holds `fill`."""
    mask, cond_mask = masks()
    _, z = walks(fill)
    noise = torch.randn(len(mask), 4, 2, generator=torch.Generator().manual_seed(1))
    noise = noise.masked_fill(~mask[..., None], fill)
    generator = torch.Generator().manual_seed(2)
    options = {"mask": mask, "cond_mask": cond_mask, "generator": generator}
    return student.sample(z, noise=noise, **options)


@pytest.fixture
def plain(tmp_path_factory) -> Callable[[str], Path]:
    """One of `RUNS` on data whose padding holds 0, made once for all tests."""

    def made(name: str) -> Path:
        def make(folder: Path) -> None:
            run(folder / "run", name, 0.0)

        return once(tmp_path_factory, f"padded-{name}", make) / "run"

    return made


SLOW = ("equivariant", "consistency", "sets")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in RUNS]
)
def test_what_stands_in_the_padding_changes_no_run(tmp_path, plain, name):
    empty = plain(name)
    filled = run(tmp_path / "filled", name, float("nan"))
    expected = tensors_of(empty)
    found = tensors_of(filled)
    assert expected.keys() == found.keys() and any("student" in key for key in expected)
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key
    assert report(empty) == report(filled)
    students = [fastgen.load_student(folder / "student") for folder in (empty, filled)]
    x = sample(students[0], 0.0)
    assert torch.equal(x, sample(students[1], 1e6))
    assert (x[~masks().mask] == 0).all() and x[masks().mask].abs().min() > 0


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "step"), [(KnowledgeDistillation, 3), (DistributionMatching, 4)])
def test_a_resumed_run_is_the_whole_one(tmp_path, plain, stage, step):
    with plug_pulled(stage, step):
        run(tmp_path / "halved", "dmd2", 0.0)
    resumed = run(tmp_path / "halved", "dmd2", 5.0, resume=True)
    expected = weights(plain("dmd2"))
    found = weights(resumed)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dmd2", "sets", "prefixes"])
def test_two_processes_make_the_run_of_one(tmp_path, name):
    for done in forked(Path(__file__), tmp_path / "two", name, processes=2):
        assert done.returncode == 0, done.stderr
    whole = run(tmp_path / "one", name, 0.0, wide=True)
    assert_equal_runs(whole, tmp_path / "two")


def test_from_a_file_of_lengths_to_samples(tmp_path):
    """Teacher, plan, student, its scores and its samples, by configs alone."""
    samples = []
    for fill in (0.0, float("nan")):
        folder = tmp_path / str(fill)
        folder.mkdir()
        data = {
            "name": "file",
            "path": str(write(folder / "walks.npz", fill)),
            "symmetry": SYMMETRY,
        }
        teacher = TrainTeacherConfig.model_validate(
            {
                "name": "teacher",
                "run_dir": str(folder / "teacher"),
                "data": data,
                "model": {"embedding_dim": 16, "num_layers": 1, "num_attention_heads": 2},
                "train": {"steps": 4, "batch_size": 8, "cond_dropout": 0.2, "threads": 1},
                "calls": [1],
                "ab2_calls": [4],
            }
        )
        with without_pictures():
            trained = train_teacher(teacher) / "teacher"
            options = {"data": data, "teacher": {"folder": str(trained)}}
            cfg = distillation(folder / "student", "kd", **options)
            assert "student" in plan_distillation(cfg)
            done = distill(cfg)
        student = fastgen.load_student(done / "student")
        assert student.masks == ("mask", "cond_mask")
        assert student.cond_sizes == {"Z": [(1, 3), (2, 2)]}
        scores = score_student(done)
        assert scores.keys() == {"1", "2"}
        samples.append((sample(student, fill), scores))
    assert torch.equal(samples[0][0], samples[1][0]) and samples[0][1] == samples[1][1]


def test_a_padded_sample_goes_on_from_given_waypoints(plain):
    student = fastgen.load_student(plain("prefixes") / "student")
    mask, cond_mask = masks()
    rows = mask.sum(1) >= 3
    X, Z = (value[rows] for value in walks(0.0))
    options: dict[str, Any] = {"mask": mask[rows], "cond_mask": cond_mask[rows]}
    samples = []
    for fill in (0.0, 1e6):
        noise = torch.randn(len(X), 4, 2, generator=torch.Generator().manual_seed(1))
        noise = noise.masked_fill(~options["mask"][..., None], fill)
        generator = torch.Generator().manual_seed(2)
        made = student.sample(Z, noise=noise, prefix=X[:, :2], generator=generator, **options)
        samples.append(made)
    assert torch.equal(*samples) and torch.equal(samples[0][:, :2], X[:, :2].float())
    assert (samples[0][~options["mask"]] == 0).all()
    for k, row in ((1, 1), (2, 2)):
        short = mask[mask.sum(1) == row][:1]
        with pytest.raises(ValueError, match=f"the first {k} waypoints .* {row} real ones in row"):
            student.sample(Z[:1], prefix=X[:1, :k], mask=short)


class Unmasked(nn.Module):
    """A network that takes Z alone."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(2, 2)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.map(x_t) + cond.mean(1, keepdim=True)


def test_a_network_that_takes_no_mask_is_refused_before_work(tmp_path):
    with pytest.raises(ValueError, match="the data are padded, so that the condition is a mapping"):
        distill(distillation(tmp_path, "kd"), teacher=Unmasked(), task=task(0.0))


class Masked(nn.Module):
    """A network of a user that reads the masks."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(2, 2)

    def forward(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        seen = cond["cond_mask"][..., None]
        mean = (cond["Z"] * seen).sum(1) / seen.sum(1)
        real = cond["mask"][..., None]
        middle = (x_t * real).sum(1) / real.sum(1)
        # What it answers at padding, it leaves to whoever calls it.
        return self.map(x_t + (mean + middle)[:, None]) + 1.0 + t[:, None, None]


def test_a_network_that_reads_the_masks_is_distilled(tmp_path):
    found = []
    for fill in (0.0, 9.0):
        with without_pictures():
            cfg = distillation(tmp_path / str(fill), "dmd2", dmd={"fake_score_warmup_steps": 1})
            torch.manual_seed(0)
            done = distill(cfg, teacher=Masked(), task=task(fill))
        student = fastgen.load_student(done / "student", network=Masked())
        found.append(sample(student, fill))
    assert torch.equal(*found) and (found[0][~masks().mask] == 0).all()


# ---- Masks of a student -------------------------------------------------------------------------


@pytest.fixture
def student(plain) -> fastgen.export.Student:
    return fastgen.load_student(plain("kd") / "student")


def test_masks_may_come_in_the_condition_or_beside_it(student):
    mask, cond_mask = masks()
    _, z = walks(0.0)
    noise = torch.randn(48, 2, 4, 2, generator=torch.Generator().manual_seed(0))

    def drawn(*cond: Any, **options: Any) -> Any:
        generator = torch.Generator().manual_seed(0)
        return student.sample(*cond, noise=noise, num_samples=2, generator=generator, **options)

    x = drawn(z, mask=mask, cond_mask=cond_mask)
    assert torch.equal(x, drawn({"Z": z, "mask": mask, "cond_mask": cond_mask}))
    arrays = drawn(z.numpy(), mask=mask.numpy(), cond_mask=cond_mask.numpy())
    assert torch.equal(x, torch.from_numpy(arrays))
    assert x.shape == (48, 2, 4, 2) and (x.transpose(1, 2)[~mask] == 0).all()
    # A row by itself, its condition cut to its length.
    row = int(cond_mask.sum(1).argmin())
    alone = student.sample(
        z[row : row + 1, : int(cond_mask[row].sum())],
        mask=mask[row : row + 1],
        noise=noise[row : row + 1, 0],
        steps=1,
    )
    many = student.sample(z, mask=mask, cond_mask=cond_mask, noise=noise[:, 0], steps=1)
    torch.testing.assert_close(alone[0], many[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": torch.ones(48, 3, dtype=torch.bool)}, r"mask of shape \(48, 4\).*got \(48, 3\)"),
        ({"mask": torch.ones(48, 4)}, "expected mask to be a bool Tensor"),
        ({"mask": torch.zeros(48, 4, dtype=torch.bool)}, "none in row 0"),
        ({"cond_mask": torch.ones(48, 4, dtype=torch.bool)}, r"cond_mask of shape \(48, 3\)"),
    ],
)
def test_masks_that_do_not_fit_are_refused(student, options, message):
    with pytest.raises(ValueError, match=message):
        student.sample(walks(0.0)[1], **options)


def test_a_mask_is_given_once(student):
    mask, _ = masks()
    with pytest.raises(ValueError, match="expected mask in cond or beside it, got both"):
        student.sample({"Z": walks(0.0)[1], "mask": mask}, mask=mask)


@pytest.mark.parametrize(("name", "of"), [("mask", "samples"), ("cond_mask", "conditions")])
def test_a_student_of_one_length_takes_no_mask(tmp_path, name, of):
    fastgen.export.export_student(tmp_path / "student", network(), t_list=[0.9, 0.0])
    plain = fastgen.load_student(tmp_path / "student")
    mask, cond_mask = masks()
    given = {"mask": mask, "cond_mask": cond_mask}[name]
    with pytest.raises(ValueError, match=f"trained on {of} of one length"):
        plain.sample(walks(0.0)[1], **{name: given})


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], 3.0, wide=True)
    leave_together()
