"""Images of clothes: the embedded data are what they should be, and each score sees its own
failure."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastgen.comparisons import Comparison
from fastgen.data import Task, build_task
from fastgen.data.tasks import fashion
from fastgen.data.tasks.fashion import FashionTask, beyond
from support.exact import normal


@pytest.fixture(scope="module")
def task() -> FashionTask:
    return FashionTask()


def drawn(first: int, count: int = 1000) -> torch.Tensor:
    """Training images whose classes are those that a sampler is asked for."""
    x, _ = fashion.images("train")
    return x[first : first + count].clone()


def quick(task: FashionTask, x: torch.Tensor) -> dict[str, float]:
    return task.evaluate(lambda Z, noise: x, quick=True)


@pytest.fixture(scope="module")
def of_data(task) -> dict[str, float]:
    return quick(task, drawn(2000))


def test_classes_are_equally_often_and_images_in_their_range(task):
    assert isinstance(task, Task) and isinstance(build_task(SimpleNamespace(name="fashion")), Task)
    for part, each in {"train": 1200, "held_out": 200}.items():
        x, labels = fashion.images(part)
        assert x.shape == (10 * each, 1, 16, 16) and x.dtype == torch.float32
        assert (float(x.min()), float(x.max())) == (-1.0, 1.0)
        assert labels.dtype == torch.int64
        assert torch.equal(labels.bincount(), torch.tensor([0] + [each] * 10))


def test_no_held_out_image_is_trained_on():
    train, _ = fashion.images("train")
    held_out, _ = fashion.images("held_out")
    seen = set(map(bytes, train.flatten(1).numpy()))
    assert not seen & set(map(bytes, held_out.flatten(1).numpy()))


def test_the_data_score_as_data(of_data):
    assert of_data["frechet"] < 0.5
    assert of_data["coverage"] == pytest.approx(1 - 2**-5, abs=0.03)
    assert min(of_data["precision"], of_data["recall"]) > 0.9
    assert of_data["class_accuracy"] > 0.85
    assert of_data["spread"] == pytest.approx(1.0, abs=0.05)


def test_each_score_sees_its_own_failure(task, of_data):
    x = drawn(2000)
    blurred = quick(task, torch.nn.functional.avg_pool2d(x, 3, 1, 1))
    assert blurred["frechet"] > 3 * of_data["frechet"]
    assert blurred["precision"] < of_data["precision"] - 0.05
    wrong = quick(task, x.roll(1, 0))
    assert wrong["class_accuracy"] < 0.05
    assert wrong["frechet"] == pytest.approx(of_data["frechet"], rel=1e-4)
    few = quick(task, drawn(2000, 20).repeat(50, 1, 1, 1))
    assert few["coverage"] < 0.2 and few["recall"] < 0.2 and few["precision"] > 0.9
    assert few["spread"] < 0.95 * of_data["spread"]


def test_what_lies_outside_the_range_of_the_data_is_clamped(task, of_data):
    x = drawn(2000)
    beyond = torch.where(x.abs() == 1.0, 1.5 * x, x)
    assert quick(task, beyond) == of_data


def test_the_nearest_training_image_of_one_is_itself(task):
    x = drawn(0, 20)
    assert torch.equal(task.nearest(x + 0.01 * normal(*x.shape).float()), x)


def test_the_floor_has_every_score(task):
    floor = task.floor()
    assert set(floor) == set(quick(task, drawn(0)))
    assert floor["frechet"] < 0.3 and floor["coverage"] > 0.94


def test_options_that_images_do_not_have_are_refused():
    with pytest.raises(ValueError, match=r"expected no data\.symmetry for the task fashion"):
        FashionTask(symmetry={"group": "C2"})
    with pytest.raises(ValueError, match="pack"):
        FashionTask(pack=2)


def test_two_sets_of_data_are_not_told_apart_and_a_worse_one_is(task):
    first = drawn(6000)
    copies = task.compare(first, drawn(7000))
    assert set(copies) == {"frechet", "outside", "missed", "class_error"}
    assert not any(found.better or found.worse for found in copies.values())
    generator = torch.Generator().manual_seed(0)
    noisy = (first + 0.4 * torch.randn(first.shape, generator=generator)).clamp(-1, 1)
    worse = task.compare(first, noisy)
    assert all(worse[name].worse for name in ("frechet", "outside", "class_error"))
    fewer = first[torch.arange(1000) % 20]
    assert task.compare(first, fewer)["missed"].worse
    more = task.compare(fewer, first)["missed"]
    assert more.high < 0 and not more.better


def test_fewer_errors_than_the_data_have_are_no_merit():
    def compared(a: float, b: float) -> list[float]:
        found = beyond(Comparison(b - a, b - a - 0.02, b - a + 0.02), a, b, least=0.12)
        return [found.difference, found.low, found.high]

    assert compared(0.05, 0.12) == pytest.approx([0.0, -0.02, 0.02])
    assert compared(0.12, 0.05) == pytest.approx([0.0, -0.02, 0.02])
    assert compared(0.05, 0.20) == pytest.approx([0.08, 0.06, 0.10])
    assert compared(0.20, 0.15) == pytest.approx([-0.05, -0.07, -0.03])
