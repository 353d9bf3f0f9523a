"""The order of a file's rows means nothing: sorted by class or shuffled, each subset of them stands
for all, and scores agree but for their noise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastgen.data import build_task
from fastgen.data.checks import data_notes
from fastgen.jobs.pairs import pairs_of_run
from fastgen.jobs.setup import Setup
from fastgen.methods.kd import pair_rows
from fastgen.teachers.declarations import denoising_errors
from fastgen.training.accelerator import start_accelerator
from support.toy import LabelTeacher, ToyTeacher, toy_config

CLASSES = 4
N = 1200
LABEL = np.arange(N) % CLASSES


def arrays(kind: str) -> dict[str, np.ndarray]:
    """Rows of four classes, in turn, that lie far from each other."""
    rng = np.random.default_rng(0)
    if kind == "points":
        return {"X": 10.0 * LABEL[:, None] + rng.normal(size=(N, 2))}
    if kind == "labels":
        X = 10.0 * LABEL[:, None, None, None] + rng.normal(size=(N, 4, 2, 2))
        return {"X": X, "Z": LABEL % 3}
    Z = 10.0 * LABEL[:, None, None] + rng.normal(size=(N, 1, 2))
    return {"X": Z + rng.normal(size=(N, 4, 2)), "Z": Z}


ORDERS = {
    "in turn": np.arange(N),
    "sorted": np.argsort(LABEL, kind="stable"),
    "shuffled": np.random.default_rng(1).permutation(N),
}


def task_of(folder, kind: str, order: str) -> Any:
    path = folder / f"{order}.npz"
    np.savez(path, **{name: value[ORDERS[order]] for name, value in arrays(kind).items()})
    return build_task(SimpleNamespace(name="file", path=str(path)))


def label_of(X: torch.Tensor) -> torch.Tensor:
    """The class of each row, as its numbers tell it."""
    return (X.flatten(1).mean(1) / 10).round().long()


def assert_representative(labels: torch.Tensor) -> None:
    """Each class has its share, to five standard deviations."""
    shares = torch.bincount(labels, minlength=CLASSES).double() / len(labels)
    noise = (1 / CLASSES * (1 - 1 / CLASSES) / len(labels)) ** 0.5
    assert len(shares) == CLASSES and float((shares - 1 / CLASSES).abs().max()) < 5 * noise


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["points", "labels", "trajectories"])
def test_every_part_is_representative(tmp_path, kind, order):
    task = task_of(tmp_path, kind, order)
    for part in ("train", "validation", "test"):
        assert_representative(label_of(task.split(part)[0]))
    _, X = task.examples(40)
    assert_representative(label_of(X))


@pytest.mark.parametrize("order", ORDERS)
def test_demonstrations_are_at_no_distance_from_the_test_rows(tmp_path, order):
    floor = task_of(tmp_path, "points", order).floor()
    assert abs(floor["energy_distance"]) < 0.03
    assert floor["mean_error"] < 0.2 and abs(floor["std_ratio"] - 1) < 0.1


def test_demonstrations_are_the_same_each_time(tmp_path):
    task = task_of(tmp_path, "points", "sorted")
    assert task.floor() == task.floor() == task_of(tmp_path, "points", "sorted").floor()


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("kind", ["points", "trajectories"])
def test_scores_agree_but_for_their_noise(tmp_path, kind, quick):
    def sampler(Z, noise):
        if Z is None:
            return 15 + 11 * noise
        return Z + 1.5 * noise

    scores = {
        order: task_of(tmp_path, kind, order).evaluate(sampler, quick=quick) for order in ORDERS
    }
    for name, value in scores["shuffled"].items():
        size = 0.25 * abs(value) + 0.05
        if name in ("outside", "missed"):
            size = 0.2  # shares of some dozens of rows: three standard deviations of a difference
        for order in ORDERS:
            assert abs(scores[order][name] - value) < size, (order, name)


@pytest.mark.parametrize("order", ORDERS)
def test_a_teacher_is_tried_on_rows_of_all_classes(tmp_path, order):
    x0, cond = task_of(tmp_path, "trajectories", order).train.network_inputs()
    errors = denoising_errors(ToyTeacher(4, 2), x0, cond)
    reference, cond = task_of(tmp_path, "trajectories", "shuffled").train.network_inputs()
    expected = denoising_errors(ToyTeacher(4, 2), reference, cond)
    assert errors == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("kind", ["points", "labels", "trajectories"])
def test_the_notes_are_the_same(tmp_path, kind):
    notes = {order: data_notes(task_of(tmp_path, kind, order), 8) for order in ORDERS}
    assert notes["sorted"] == notes["shuffled"] == notes["in turn"]


# ---- Pairs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["labels", "trajectories"])
def test_a_few_pairs_have_conditions_of_all_rows(tmp_path, kind, order):
    task = task_of(tmp_path, kind, order)
    teacher = LabelTeacher() if kind == "labels" else ToyTeacher(4, 2)
    setup = Setup(toy_config(tmp_path, kd_pairs=120), teacher.eval(), task.train)
    (tmp_path / "run").mkdir()
    processes = start_accelerator(1)
    states, cond = pairs_of_run(setup, tmp_path / "run", processes, chunk=50)
    again, kept = pairs_of_run(setup, tmp_path / "run", processes, chunk=50)
    assert torch.equal(again, states) and torch.equal(kept, cond) and len(cond) == 120
    if kind == "trajectories":
        cond = label_of(task.train.z_normalizer.denormalize(cond))
        assert_representative(cond)
    else:
        # Of the labels 0, 1, 2 the first has two classes.
        shares = torch.bincount(cond, minlength=3).double() / 120
        assert float((shares - torch.tensor([0.5, 0.25, 0.25])).abs().max()) < 5 * 0.046


@pytest.mark.parametrize(("pairs", "rows"), [(7, 20), (20, 20), (60, 20), (50, 20), (1, 1)])
def test_all_rows_take_their_turn(pairs, rows):
    found = pair_rows(pairs, rows, 0, True)
    counts = torch.bincount(found, minlength=rows)
    assert len(found) == pairs and int(counts.max() - counts.min()) <= 1
    whole = pairs // rows * rows
    assert torch.equal(found[:whole], torch.arange(whole) % rows)
    assert torch.equal(found, pair_rows(pairs, rows, 0, True))
    # Independent draws need no drawing.
    assert torch.equal(pair_rows(pairs, rows, 0, False), torch.arange(pairs) % rows)


@pytest.mark.parametrize("name", ["ring", "two_rings", "weave", "modes"])
def test_the_rows_of_embedded_tasks_are_independent_draws(name):
    assert not build_task(SimpleNamespace(name=name, size=60)).train.in_order
