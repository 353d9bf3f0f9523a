"""From a teacher of any shape, conditional or not, to its student: the whole recipe, in seconds."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastgen._core.tensor_files import load_tensors
from fastgen.config import DistillConfig
from fastgen.data.samples import SampleTask
from fastgen.distillation import distill
from fastgen.export.folders import load_student
from fastgen.jobs.evaluation import student_sampler, teacher_sampler
from fastgen.methods.kd import KnowledgeDistillation
from support.toy import (
    LabelTeacher,
    PointTeacher,
    ToyTask,
    ToyTeacher,
    toy_config,
    without_pictures,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class MappedTeacher(nn.Module):
    """v of sequences (B, 3, 2) whose condition is a label, and a vector beside it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.label, self.linear = nn.Embedding(3, 4), nn.Linear(6 + 1 + 4 + 2, 6)

    def forward(self, x_t: Tensor, t: Tensor, cond: dict) -> Tensor:
        parts = [
            x_t.flatten(1),
            t.to(x_t.dtype)[:, None],
            self.label(cond["label"]),
            cond["rest"][0],
        ]
        return self.linear(torch.cat(parts, 1)).view_as(x_t)


LABELS = torch.arange(60) % 3
CASES = {
    "images with labels": (LabelTeacher, normal(60, 4, 6, 6), LABELS),
    "points": (PointTeacher, normal(60, 2), None),
    "vectors": (lambda: PointTeacher(5), normal(60, 5), None),
    "sequences with a mapping": (
        MappedTeacher,
        normal(60, 3, 2),
        {"label": LABELS, "rest": (normal(60, 2, seed=1),)},
    ),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@pytest.mark.slow
@cases
def test_samples_of_any_shape_are_distilled_by_the_same_recipe(tmp_path, case):
    make, X, Z = case
    task = SampleTask("mine", X, Z)
    run = distill(toy_config(tmp_path / "run"), teacher=make(), task=task)
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["primary"] == task.primary and {"1", "2"} == set(report["student"])
    assert all(
        math.isfinite(value)
        for rows in ("teacher", "student")
        for row in report[rows].values()
        for value in row.values()
    )
    assert (run / "report" / "samples.png").read_bytes().startswith(b"\x89PNG")
    states = load_tensors(run / "pairs.safetensors")["states"]
    assert states.shape == (40, 3, *X.shape[1:])

    student = load_student(run / "student", network=make())
    assert student.horizon == tuple(X.shape[1:])
    scores = task.evaluate(lambda z, noise: student.sample(z, noise=noise, steps=1))
    assert scores == pytest.approx(report["student"]["1"], rel=1e-4, abs=1e-5)
    if Z is None:
        assert student.sample(None, num_samples=7).shape == (1, 7, *X.shape[1:])
        assert (
            "condition" in student.config["description"]
            and student.config["description"]["condition"] == "none"
        )
    else:
        _, z = task.split("validation")
        n = len(task.rows["validation"])
        assert student.sample(z, num_samples=2).shape == (n, 2, *X.shape[1:])
        assert student.sample(z).shape == (n, *X.shape[1:])


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_conditions_of_any_kind(tmp_path, monkeypatch):
    make, X, Z = CASES["sequences with a mapping"]

    def run(name: str, **changes):
        cfg = toy_config(tmp_path / name).model_copy(update=changes)
        with without_pictures():
            return distill(cfg, teacher=make(), task=SampleTask("mine", X, Z))

    whole, update = run("whole"), KnowledgeDistillation.update

    def stopped(self: KnowledgeDistillation, step: int) -> dict:
        if step == 5:
            raise KeyboardInterrupt
        return update(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(KnowledgeDistillation, "update", stopped)
        with pytest.raises(KeyboardInterrupt):
            run("again")
    again = run("again", resume=True)
    one, two = (load_file(folder / "student" / "student.safetensors") for folder in (whole, again))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_a_file_of_latents_with_labels_is_distilled_from_its_config(tmp_path):
    import numpy as np

    np.savez(tmp_path / "latents.npz", X=normal(60, 4, 6, 6).numpy(), Z=LABELS.numpy())
    values = toy_config(tmp_path / "run").model_dump(exclude={"data"})
    values["data"] = {"name": "file", "path": str(tmp_path / "latents.npz")}
    with without_pictures():
        run = distill(DistillConfig.model_validate(values), teacher=LabelTeacher())
    card = (run / "student" / "README.md").read_text()
    assert (
        "z integers (B,) -> x (B, 4, 6, 6)" in card
        and "Samples of shape (4, 6, 6) in 2 network calls" in card
    )
    assert "waypoints" not in card and "network=LabelTeacher(...)" in card


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_conditions_are_cast_to_the_teachers_dtype(tmp_path, dtype):
    run = distill(toy_config(tmp_path / "run"), teacher=ToyTeacher().to(dtype), task=ToyTask())
    # A student of a teacher in half precision is trained and kept in float32.
    trained_in = torch.promote_types(dtype, torch.float32)
    assert load_student(run / "student", network=ToyTeacher()).dtype == trained_in


@cases
@pytest.mark.parametrize("chunk", [7, 100])
def test_samplers_take_any_condition_in_any_chunks(monkeypatch, case, chunk):
    make, X, Z = case
    network, data = make().double(), SampleTask("mine", X, Z).train
    sampler = [teacher_sampler(network, data, 2), student_sampler(network, data, [0.9, 0.0])]
    noise = normal(len(data), *X.shape[1:], seed=3)
    whole = [sample(data.Z, noise) for sample in sampler]
    # In samples of 2 numbers and more, so that both bounds are met.
    monkeypatch.setattr("fastgen.jobs.evaluation.MOST_NUMBERS", chunk)
    for sample, x in zip(sampler, whole, strict=True):
        assert x.shape == X[: len(data)].shape and torch.allclose(
            sample(data.Z, noise), x, atol=1e-12
        )


@pytest.mark.parametrize(
    ("teacher", "task", "words"),
    [
        (ToyTeacher(), SampleTask("a", normal(60, 2)), "cond None, got: "),
        (
            LabelTeacher(),
            SampleTask("a", normal(60, 3, 6, 6), LABELS),
            r"x_t \(2, 3, 6, 6\), .* cond integers \(2,\)",
        ),
        (
            LabelTeacher(labels=2),
            SampleTask("a", normal(60, 4, 6, 6), torch.full((60,), 7)),
            "index out of range",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_before_anything_is_written(
    tmp_path, teacher, task, words
):
    with pytest.raises(ValueError, match=words):
        distill(toy_config(tmp_path / "run"), teacher=teacher, task=task)
    assert not (tmp_path / "run").exists()
