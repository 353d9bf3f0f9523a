"""Students in a loop: scenes without the axis of rows, NumPy arrays, and many threads at once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgen._core.row_encoding import RowKind
from fastgen.export import Student, load_student
from fastgen.export.encoders import StudentEncoder
from support.folders import conditions, export_, seeded
from support.networks import dense

WORKERS = 4


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    """Of trajectories (6, 2), with masks and prefixes, in several calls."""
    options = {"prefix_max": 4, "masks": ["mask", "cond_mask"]}
    return load_student(export_(tmp_path_factory.mktemp("arguments") / "s", **options))


def arguments(rows: int = 1) -> dict[str, Tensor]:
    """All that a student can be given, with rows."""
    return {
        "cond": conditions(rows),
        "mask": torch.arange(6).expand(rows, 6) < 4,
        "cond_mask": torch.ones(rows, 2, dtype=torch.bool),
        "noise": torch.randn(rows, 6, 2, generator=seeded(2)),
        "prefix": torch.randn(rows, 2, 2, generator=seeded(3)),
    }


NAMES = [[], ["noise"], ["prefix"], ["mask", "noise"], ["cond_mask", "mask", "noise", "prefix"]]


# ---- One scene -----------------------------------------------------------------------------------


@pytest.mark.parametrize("names", NAMES, ids=" ".join)
def test_one_scene_is_a_batch_of_one_without_its_axis(student, names):
    given = {name: arguments()[name] for name in ["cond", *names]}
    whole = student.sample(**given, generator=seeded())
    one = student.sample(**{name: x[0] for name, x in given.items()}, generator=seeded())
    assert one.shape == (6, 2)
    assert torch.equal(one, whole[0])


def test_one_scene_has_many_samples(student):
    noise = torch.randn(5, 6, 2, generator=seeded(2))
    z = conditions(1)
    whole = student.sample(z, num_samples=5, noise=noise[None], generator=seeded())
    one = student.sample(z[0], num_samples=5, noise=noise, generator=seeded())
    assert torch.equal(one, whole[0])


def test_masks_may_lie_in_one_scene(student):
    given = arguments()
    names = {"cond": "Z", "mask": "mask", "cond_mask": "cond_mask"}
    carried = {inside: given[name][0] for name, inside in names.items()}
    whole = student.sample(**{name: given[name] for name in names}, generator=seeded())
    assert torch.equal(student.sample(carried, generator=seeded()), whole[0])


@pytest.mark.parametrize("name", ["noise", "prefix", "mask", "cond_mask"])
def test_rows_of_some_arguments_alone_are_refused(student, name):
    given = arguments()
    with pytest.raises(ValueError, match=f"expected {name} without the axis of rows, as cond is"):
        student.sample(given["cond"][0], **{name: given[name]})


def test_what_is_no_scene_is_refused_as_ever(student):
    with pytest.raises(ValueError, match=r"expected Z of shape .*, got \(3, 2\)"):
        student.sample(torch.zeros(3, 2))


class Sum(nn.Module):
    """Z (B, 2) of pictures (B, 3, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, rows: Tensor) -> Tensor:
        return self.weight * rows.sum(1)[:, :2]


def test_raw_observations_of_one_scene_are_encoded(tmp_path: Path):
    student = load_student(export_(tmp_path / "s"))
    student.encoder = StudentEncoder(Sum(), ("image",), {"image": RowKind((3, 4), torch.float32)})
    observed = torch.randn(1, 2, 3, 4, generator=seeded(4))
    whole = student.sample(observed, generator=seeded())
    assert torch.equal(student.sample(observed[0], generator=seeded()), whole[0])
    arrays = student.sample({"image": observed[0].numpy()}, generator=seeded())
    assert np.array_equal(arrays, whole[0].numpy())


# ---- Arrays --------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", NAMES, ids=" ".join)
@pytest.mark.parametrize("row", [slice(None), 0], ids=["rows", "one"])
def test_arrays_are_answered_by_arrays(student, names, row):
    given = {name: arguments(3)[name][row] for name in ["cond", *names]}
    tensors = student.sample(**given, generator=seeded())
    arrays = student.sample(**{name: x.numpy() for name, x in given.items()}, generator=seeded())
    assert isinstance(arrays, np.ndarray) and arrays.dtype == np.float32
    assert np.array_equal(arrays, tensors.numpy())


def test_the_condition_decides_what_is_answered(student):
    noise = torch.randn(3, 6, 2, generator=seeded(2))
    x = student.sample(conditions(), noise=noise.numpy(), generator=seeded())
    assert isinstance(x, Tensor)
    free = Student(
        Zero(),
        t_list=[0.5, 0.0],
        steps=[1],
        sample_type="ode",
        pred_type="flow",
        horizon=(6, 2),
        cond_horizon=None,
    )
    assert isinstance(free.sample(), Tensor)
    assert np.array_equal(free.sample(noise=noise.numpy()), 0.5 * noise.numpy())


class Zero(nn.Module):
    def forward(self, x: Tensor, t: Tensor, cond: None) -> Tensor:
        return 0 * x


def test_numpy_has_no_bfloat16(tmp_path: Path):
    student = load_student(export_(tmp_path / "s"), dtype=torch.bfloat16)
    x = student.sample(conditions(), generator=seeded())
    arrays = student.sample(conditions().numpy(), generator=seeded())
    assert arrays.dtype == np.float32 and np.array_equal(arrays, x.float().numpy())


def test_whole_numbers_are_refused_in_arrays_too(student):
    with pytest.raises(TypeError, match="expected noise as a floating-point Tensor"):
        student.sample(conditions(), noise=np.zeros((3, 6, 2), dtype=int))


# ---- Threads -------------------------------------------------------------------------------------


class Edits(nn.Module):
    """A network that writes into its input at the later rungs only."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = dense()

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        y = self.inside(x, t, cond)
        if float(t.flatten()[-1]) < 0.5:
            x.zero_()
        return y


@pytest.mark.parametrize("network", [dense, Edits])
@pytest.mark.parametrize("names", [[], ["prefix"]], ids=["free", "prefix"])
def test_threads_get_what_they_would_get_one_after_the_other(tmp_path, network, names):
    options = {"prefix_max": 4, "horizon": (6, 2), "cond_horizon": (2, 2)}
    folder = export_(tmp_path / "s", network(), **options)
    given: dict[str, Any] = {"network": Edits()} if network is Edits else {}

    def sampled(student: Student, seed: int) -> Tensor:
        z = torch.randn(2, 2, 2, generator=seeded(seed))
        more = {name: arguments(2)[name] for name in names}
        return student.sample(z, **more, generator=seeded(seed))

    alone = load_student(folder, **given)
    expected = [sampled(alone, seed) for seed in range(24)]
    student = load_student(folder, **given)
    with ThreadPoolExecutor(WORKERS) as pool:
        found = list(pool.map(lambda seed: sampled(student, seed), range(24)))
    assert all(map(torch.equal, found, expected))
