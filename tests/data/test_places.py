"""Windows that are cut when they are taken: the same numbers as those that are cut at once."""

from __future__ import annotations

import pytest
import torch

from fastgen._core.made_rows import MadeRows, part_of
from fastgen.config.schemas import DataConfig
from fastgen.data import windows
from fastgen.data.checks import data_notes
from fastgen.data.files import file_task
from fastgen.data.task import build_data
from fastgen.data.windows import cut_windows
from fastgen.jobs.origin import data_origin
from fastgen.normalizer import KINDS, Normalizer

CASES = [
    {"stride": 1},
    {"stride": 3},
    {"stride": 2, "pad_before": 1, "pad_after": 2},
    {"stride": 5, "pad_before": 0, "pad_after": 0},
    {"stride": 1, "actions_from": "first_observation", "pad_before": 2, "pad_after": 1},
]
ENDS = torch.tensor([4, 5, 30, 33, 61])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def both(monkeypatch, dtype=torch.float32, **how):
    """Windows of two columns, cut at once and when they are taken."""
    rows = (normal(61, 2).to(dtype) + 3, normal(61, 3, seed=1).to(dtype), ENDS)
    how = {"obs_horizon": 3, "horizon": 4, **how}
    at_once = cut_windows(*rows, **how)
    monkeypatch.setattr(windows, "MOST_NUMBERS", 0)
    made = cut_windows(*rows, **how)
    assert isinstance(made.X, MadeRows) and isinstance(made.Z, MadeRows)
    return at_once, made


@pytest.mark.parametrize("how", CASES)
def test_windows_are_the_same_whenever_they_are_cut(monkeypatch, how):
    at_once, made = both(monkeypatch, **how)
    for expected, found in zip(at_once, made, strict=True):
        if expected is None:
            assert found is None
            continue
        assert found.shape == expected.shape and found.dtype == expected.dtype
        assert torch.equal(found[:], expected)


@pytest.mark.parametrize("how", CASES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalisers_are_the_same_but_for_the_rounding_of_sums(monkeypatch, how, kind, dtype):
    at_once, made = both(monkeypatch, dtype, **how)
    turn = torch.tensor([[0.6, -0.8, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]]).double()
    blocks = (turn, [(0, 2, False), (2, 3, True)])
    rows = torch.arange(len(at_once.X) // 2)
    for expected, found, basis in (
        (at_once.X, made.X, None),
        (at_once.Z, made.Z, None),
        (at_once.Z, made.Z, blocks),
    ):
        for fit in (Normalizer.fit, Normalizer.fit_per_step):
            one = fit(expected[rows], blocks=basis, kind=kind)
            other = fit(part_of(found, rows), blocks=basis, kind=kind)
            tolerance = 1e-13 if kind == "mean_std" or basis else 0.0
            torch.testing.assert_close(other.mean, one.mean, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(other.scale, one.scale, rtol=tolerance, atol=tolerance)
            assert other.needs_float64 == one.needs_float64


def test_a_constant_stays_one(monkeypatch):
    rows = (torch.full((61, 2), 0.1), normal(61, 3), ENDS)
    monkeypatch.setattr(windows, "MOST_NUMBERS", 0)
    X = cut_windows(*rows, obs_horizon=3, horizon=4, stride=1).X
    for kind in ("mean_std", "min_max"):
        assert Normalizer.fit(X, kind=kind).scale.tolist() == [[1.0, 0.0], [0.0, 1.0]]


@pytest.fixture
def large(monkeypatch, tmp_path):
    """A file of episodes, and the same where memory holds no windows."""
    import numpy as np

    rng = np.random.default_rng(0)
    path = tmp_path / "e.npz"
    ends = np.arange(20, 401, 20)
    actions = rng.normal(size=(400, 2)).astype(np.float32)
    observations = rng.normal(size=(400, 3)) + 1.7e9
    np.savez(path, actions=actions, observations=observations, episode_ends=ends)
    cfg = DataConfig(name="file", path=str(path), obs_horizon=2, horizon=4)
    small = build_data(cfg)
    monkeypatch.setattr(windows, "MOST_NUMBERS", 0)
    return cfg, small, build_data(cfg)


def test_a_task_trains_and_scores_on_the_same_numbers(large):
    _, small, made = large
    assert isinstance(made.train.X, MadeRows) and not isinstance(small.train.X, MadeRows)
    rows = torch.randperm(len(small.train), generator=torch.Generator().manual_seed(1))[:64]
    for one, other in zip(small.train.network_inputs(), made.train.network_inputs(), strict=True):
        assert other.shape == one.shape and torch.equal(other[rows], one[rows])
    for part in ("validation", "test"):
        for one, other in zip(small.split(part), made.split(part), strict=True):
            assert torch.equal(other, one)
    scores = [task.evaluate(lambda Z, noise: noise, quick=True) for task in (small, made)]
    assert scores[0] == scores[1]


def test_what_is_looked_at_is_said(large):
    _, small, made = large
    notes = data_notes(made, 8)
    assert notes[0].startswith("note: 224 of 224 training windows, evenly spread, are looked at")
    assert notes[1:] == data_notes(small, 8)


def test_other_rows_are_another_origin(large, tmp_path):
    import numpy as np

    cfg, _, made = large
    origin = data_origin(made, cfg, built=True)
    assert origin == data_origin(build_data(cfg), cfg, built=True)
    arrays = dict(np.load(tmp_path / "e.npz"))
    arrays["actions"][399, 0] += 1e-3
    np.savez(tmp_path / "e.npz", **arrays)
    changed = data_origin(build_data(cfg), cfg, built=True)
    assert changed["data"]["original units of X"] != origin["data"]["original units of X"]
    assert changed["data"]["original units of Z 0"] == origin["data"]["original units of Z 0"]


def test_a_row_that_is_no_number_is_named(large, tmp_path):
    import numpy as np

    arrays = dict(np.load(tmp_path / "e.npz"))
    arrays["actions"][33, 1] = np.nan
    np.savez(tmp_path / "e.npz", **arrays)
    with pytest.raises(ValueError, match="in actions, got NaN or infinity in 1 rows: 33"):
        file_task(tmp_path / "e.npz", obs_horizon=2, horizon=4)


def test_a_range_holds_for_all_windows(large):
    cfg, _, _ = large
    with pytest.raises(ValueError, match=r"got \d+ of \d+ rows outside it"):
        build_data(cfg.model_copy(update={"range": (-2.0, 2.0)}))
    assert build_data(cfg.model_copy(update={"range": (-9.0, 9.0)})).train
