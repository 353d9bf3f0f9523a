"""Numbers far from the origin keep their digits from the file to the network and back."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgen.data import Task, build_task
from fastgen.data.checks import constant_channels, data_notes
from fastgen.data.files import load_conditions
from fastgen.data.precision import floats
from fastgen.export import export_student, load_student
from fastgen.jobs.evaluation import student_sampler
from fastgen.models.transformer import CondTransformerRegressor
from fastgen.normalizer import Normalizer, unpack_tokens

F64 = torch.float64
# Origin of the channels, and the size of a step.
PLACES = {
    "utm": ((448_251.7, 5_411_932.3), 1.0),
    "ecef": ((4_201_792.3, 172_541.1, 4_780_012.9), 1.0),
    "degrees": ((8.40366, 49.01395), 1e-5),
    "seconds": ((1.7e9, 1.7e9), 0.1),
}


def walks(place: str, n: int = 60, length: int = 4) -> np.ndarray:
    """Walks (n, length, d) around an origin."""
    origin, step = PLACES[place]
    rng = np.random.default_rng(0)
    return np.array(origin) + step * rng.normal(size=(n, length, len(origin))).cumsum(1)


def file_task(path, **options) -> Task:
    return build_task(SimpleNamespace(name="file", path=str(path), **options))


def saved(folder, **arrays):
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


@pytest.fixture(params=PLACES)
def place(request) -> str:
    return request.param


def step_error(seen: Tensor, truth: np.ndarray) -> float:
    """Largest error of a step, over the typical step."""
    steps = torch.from_numpy(np.diff(truth, axis=1))
    return float((seen.double().diff(dim=1) - steps).abs().max() / steps.square().mean().sqrt())


# ---- From the file to the network ----------------------------------------------------------------


@pytest.mark.parametrize("pack", [1, 2])
def test_the_network_sees_steps_right_to_1e_6(tmp_path, place, pack):
    walk = walks(place, length=6)
    task = file_task(saved(tmp_path, X=walk[:, 2:], Z=walk[:, :2]), pack=pack)
    assert constant_channels(task.train) == {}
    assert not [line for line in data_notes(task, 8) if "constant" in line or "loses" in line]
    x, z = task.train.network_inputs()
    assert x.dtype == z.dtype == torch.float32
    parts = ((unpack_tokens(x, pack), task.train.x_normalizer), (z, task.train.z_normalizer))
    truth = walk[task.rows["train"]]
    for (seen, normalizer), steps in zip(parts, (truth[:, 2:], truth[:, :2]), strict=True):
        assert normalizer.needs_float64
        assert step_error(seen.double() @ normalizer.scale.T, steps) < 1e-6


def test_windows_of_episodes_keep_their_steps(tmp_path, place):
    rows = walks(place, n=8, length=20)
    path = saved(
        tmp_path,
        actions=rows.reshape(160, -1),
        observations=rows.reshape(160, -1),
        episode_ends=np.arange(20, 161, 20),
    )
    data = file_task(path, obs_horizon=2, horizon=4).train
    assert data.X.dtype == data.Z.dtype == F64
    x, _ = data.network_inputs()
    truth = (x.double() @ data.x_normalizer.scale.T).diff(dim=1)
    assert float((truth - data.X.diff(dim=1)).abs().max()) < 1e-6 * float(data.X.std(0).max())


def test_whole_numbers_keep_their_steps(tmp_path):
    rng = np.random.default_rng(0)
    # Milliseconds and nanoseconds of today.
    for unit in (1_000, 1_000_000_000):
        ticks = rng.integers(0, 30, size=(60, 6, 1)) * (unit // 10) + 1_700_000_000 * unit
        task = file_task(saved(tmp_path, X=ticks[:, 2:], Z=ticks[:, :2]))
        x, _ = task.train.network_inputs()
        truth = ticks[task.rows["train"], 2:] - ticks.min()
        assert step_error(x.double() * task.train.x_normalizer.scale, truth.astype(float)) < 1e-6
        assert constant_channels(task.train) == {}


def test_whole_numbers_beyond_float64_are_refused(tmp_path):
    ticks = 2**62 + np.random.default_rng(0).integers(0, 9000, size=(60, 6, 1))
    with pytest.raises(ValueError, match="X in numbers that float64 tells apart.* off it"):
        file_task(saved(tmp_path, X=ticks[:, 2:], Z=ticks[:, :2]))


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.int64, torch.float16])
def test_ordinary_numbers_are_held_in_float32_as_ever(dtype):
    ordinary = (3 + 100 * torch.randn(50, 4, 2)).to(dtype)
    assert torch.equal(floats("X", ordinary), ordinary.float())
    assert floats("X", ordinary).dtype == torch.float32


def test_numbers_that_float32_holds_exactly_are_held_there_wherever_they_are():
    far = (1e5 + torch.randn(50, 4, 2)).float()
    assert torch.equal(floats("X", far.double()), far)
    assert floats("X", far.double()).dtype == torch.float32
    assert floats("X", torch.full((50, 2), 100.1, dtype=F64)).dtype == torch.float32


def test_a_channel_that_was_in_float32_stays_constant_beside_others_in_float64():
    rng = np.random.default_rng(0)
    sensor = np.float32(0.3) + np.float32(3e-8) * rng.integers(-1, 2, size=500).astype(np.float32)
    mixed = torch.from_numpy(np.column_stack([rng.normal(size=500), sensor]))
    held = floats("Z", mixed)
    assert mixed.dtype == F64 and held.dtype == torch.float32
    assert torch.equal(Normalizer.fit(held).scale, Normalizer.fit(mixed.float()).scale)
    assert float(Normalizer.fit(held).scale[1, 1]) == 1.0


def test_numbers_beyond_float32_are_held_and_rows_that_are_no_numbers_still_named(tmp_path):
    X = np.random.default_rng(0).normal(size=(60, 4, 2)) * 1e60
    x, _ = file_task(saved(tmp_path, X=X, Z=X)).train.network_inputs()
    assert float(x.std()) == pytest.approx(1, abs=0.1)
    X[[4, 7], 0, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity in 2 rows: 4, 7"):
        file_task(saved(tmp_path, X=X, Z=X))


@pytest.mark.parametrize("options", [{"normalize": False}, {}])
def test_where_nothing_takes_the_mean_off_it_is_said(tmp_path, options):
    walk = walks("seconds")
    X = walk if options else walk[:, 0]
    arrays = {"X": X, "Z": walk} if options else {"X": X}
    task = file_task(saved(tmp_path, **arrays), **options)
    assert constant_channels(task.train) == {}
    lines = [line for line in data_notes(task, 8) if "loses digits" in line]
    assert len(lines) == len(arrays) and "X loses digits in channels 0, 1" in lines[0]


# ---- From the network back -----------------------------------------------------------------------


class Nowhere(nn.Module):
    """v = 0: a sample is its noise, and the condition it was given is kept."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=dtype))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        self.seen.append(cond)
        return 0 * x


@pytest.fixture
def task(tmp_path, place) -> Task:
    walk = walks(place, length=6)
    return file_task(saved(tmp_path, X=walk[:, 2:], Z=walk[:, :2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, F64])
def test_samples_have_the_digits_of_the_network(task, dtype):
    data = task.train
    noise = torch.randn(5, *data.X.shape[1:], dtype=F64)
    sampler = student_sampler(Nowhere(dtype), data, [1.0, 0.0])
    x = sampler(data.Z[:5], noise)
    assert x.dtype == F64
    state = noise if dtype == F64 else noise.float().double()
    expected = data.x_normalizer.mean + state @ data.x_normalizer.scale.T
    assert torch.equal(x, expected)


def test_scores_are_of_all_digits(task):
    truth = task.split("test")[0].repeat_interleave(6, 0)
    assert task.evaluate(lambda Z, noise: truth)["min_ade"] == 0
    step = float(truth.diff(dim=1).square().mean().sqrt())
    off = task.evaluate(lambda Z, noise: truth + 0.001 * step)["min_ade"]
    assert off == pytest.approx(0.001 * step * truth.shape[-1] ** 0.5, rel=1e-2)


def test_a_student_of_a_folder_keeps_them_too(task, place, tmp_path):
    """Its own normaliser, observations in float64, as a Tensor or from NumPy."""
    data = task.train
    T_x, d = data.X.shape[1:]
    options: Any = {"num_layers": 1, "num_attention_heads": 2, "embedding_dim": 8}
    network = CondTransformerRegressor(d, d, d, T_x, 2, **options)
    export_student(
        tmp_path / "student",
        network,
        t_list=[1.0, 0.0],
        x_normalizer=data.x_normalizer,
        z_normalizer=data.z_normalizer,
    )
    student = load_student(tmp_path / "student")
    assert student.x_normalizer is not None
    assert torch.equal(student.x_normalizer.mean, data.x_normalizer.mean)
    z = data.Z[:3]
    noise = torch.randn(3, T_x, d)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = student.sample(z, noise=noise)
    assert x.dtype == F64 and student.dtype == torch.float32
    assert torch.equal(x, torch.from_numpy(student.sample(z.numpy(), noise=noise)))
    scored = student_sampler(student.network, data, [1.0, 0.0])(z, noise)
    assert torch.equal(scored, x)
    with pytest.warns(UserWarning, match=r"expected Z in float64, got torch\.float32"):
        student.sample(z.float(), noise=torch.randn(3, T_x, d))
    # A step of the observations moves the samples as it does in normalised units.
    network = Nowhere()
    student.network = network
    step = PLACES[place][1]
    student.sample(z, noise=noise)
    student.sample(z + step, noise=noise)
    moved = network.seen[1].double() - network.seen[0].double()
    moved = moved @ data.z_normalizer.scale.T
    assert float((moved - step).abs().max()) < 1e-6 * float(data.z_normalizer.scale.max())


def test_ordinary_samples_stay_in_the_networks_dtype():
    data: Any = SimpleNamespace(
        x_normalizer=Normalizer([3.0, -2.0], [[2.0, 0.5], [0.0, 0.5]]),
        z_normalizer=None,
        pack=1,
        X=torch.zeros(4, 4, 2),
    )
    noise = torch.randn(4, 4, 2)
    for dtype in (torch.float32, torch.bfloat16, F64):
        x = student_sampler(Nowhere(dtype), data, [1.0, 0.0])(None, noise)
        assert x.dtype == dtype


def test_conditions_of_a_file_keep_their_digits(tmp_path):
    Z = walks("seconds")[:1]
    np.savez(tmp_path / "z.npz", Z=Z)
    assert torch.equal(load_conditions(tmp_path / "z.npz"), torch.from_numpy(Z))
    np.savez(tmp_path / "z.npz", Z=Z.astype(np.int64))
    assert load_conditions(tmp_path / "z.npz").dtype == torch.int64
    np.savez(tmp_path / "z.npz", Z=Z.astype(np.float32))
    assert load_conditions(tmp_path / "z.npz").dtype == torch.float32
