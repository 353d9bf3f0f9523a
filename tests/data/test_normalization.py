"""What a config asks for reaches the network: kinds, limits, time steps, and a group that they have
to commute with."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastgen.config import DataConfig
from fastgen.data import build_data, build_task
from fastgen.data.normalization import read_normalization
from fastgen.data.trajectories import fit_normalizers
from fastgen.models.representations import rep_matrices
from fastgen.models.specs import parse_group, parse_representation
from fastgen.normalizer import Normalizer

SETS = Path(__file__).parent / "sets"
STATES = ("observation.state", "observation.environment_state")
WINDOWS: dict[str, Any] = {"name": "file", "obs_horizon": 2, "horizon": 4}
TURNS = {"group": "C4", "in_rep": ["standard"], "cond_rep": ["standard", "trivial"]}
TURNS["out_rep"] = TURNS["in_rep"]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drive(**normalize):
    """The LeRobot data set of the tests."""
    cfg = {"path": str(SETS / "lerobot3"), "normalize": normalize}
    return build_data(DataConfig(**WINDOWS, **cfg)).train


def test_by_default_nothing_is_new():
    X, Z = normal(50, 4, 2) * 3 + 1, normal(50, 2, 3, seed=1)
    for asked in (None, True, "mean_std", {}):
        found = fit_normalizers(X, Z, None, read_normalization(asked))
        for one, x in zip(found, (X, Z), strict=True):
            assert torch.equal(one.mean, Normalizer.fit(x).mean)
            assert torch.equal(one.scale, Normalizer.fit(x).scale)
            assert set(one.state()) == {"mean", "scale"}


def test_actions_and_observations_have_kinds_of_their_own():
    X, Z = normal(50, 4, 2) * 3 + 1, normal(50, 2, 3, seed=1)
    asked = {"kind": "min_max", "observations": "identity"}
    x, z = fit_normalizers(X, Z, None, read_normalization(asked))
    seen = x.normalize(X.double()).reshape(-1, 2)
    assert (seen.amax(0) - 1).abs().max() < 1e-12 and (seen.amin(0) + 1).abs().max() < 1e-12
    assert torch.equal(z.normalize(Z), Z)


def distance(found: torch.Tensor, made: np.ndarray) -> float:
    """How far the rows of trajectories (N, T, d) are at most from the nearest of some rows."""
    rows = found.reshape(-1, found.shape[-1]).double()
    return float(torch.cdist(rows, torch.from_numpy(made).double()).amin(1).max())


def test_a_policy_sees_what_it_was_trained_on():
    seen = np.load(SETS / "policy" / "seen.npz")
    observed = np.concatenate([seen[name] for name in STATES], 1)
    x, z = drive(limits=str(SETS / "policy")).network_inputs()
    # Every row that a network sees is one that the policy's own preprocessor made.
    assert distance(x, seen["action"]) < 1e-5 and distance(z, observed) < 1e-5
    assert distance(drive(kind="mean_std").network_inputs()[0], seen["action"]) > 0.1


def test_limits_are_found_by_other_names_and_of_arrays_without_any(tmp_path):
    arrays = dict(np.load(SETS / "episodes.npz"))
    arrays["observations"] = arrays["observations"][:, :3]
    np.savez(tmp_path / "a.npz", **arrays)
    limits = {"limits": str(SETS / "policy"), "observation_keys": "observation.state"}
    cfg = {"path": str(tmp_path / "a.npz"), "normalize": limits}
    x, _ = build_data(DataConfig(**WINDOWS, **cfg)).train.network_inputs()
    assert distance(x, np.load(SETS / "policy" / "seen.npz")["action"]) < 1e-5
    del limits["observation_keys"]
    with pytest.raises(ValueError, match=r"the 3 channels of Z, got 5 of observation.state, obs"):
        _ = build_data(DataConfig(**WINDOWS, **cfg)).train


def test_each_time_step_may_be_measured_by_itself():
    X = normal(80, 4, 2) * torch.tensor([0.1, 1.0, 2.0, 5.0])[:, None] + torch.arange(4.0)[:, None]
    X[:, 0, 1] = 7.0
    x, _ = fit_normalizers(X, X, None, read_normalization({"per_step": True}))
    y = x.normalize(X.double())
    assert x.steps == 4 and y.mean(0).abs().max() < 1e-6
    spread = y.square().mean(0).sqrt()
    assert spread[0, 1] == 0 and ((spread - 1).abs() < 1e-9).sum() == 7
    assert (x.denormalize(y) - X).abs().max() < 1e-6
    for t in range(4):
        assert torch.equal(x.mean[t], Normalizer.fit(X[:, t]).mean)
    again = Normalizer.from_state(json.loads(json.dumps(x.state())))
    assert torch.equal(again.normalize(X), x.normalize(X))
    with pytest.raises(ValueError, match=r"\(..., 4, 2\), since each time step"):
        x.normalize(X[:, :3])


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("kind", ["mean_std", "min_max", "quantiles", "identity"])
def test_every_kind_commutes_with_the_group(kind, per_step):
    X, Z = normal(90, 3, 2) * 3 + 1, normal(90, 2, 3, seed=1) * torch.tensor([1.0, 4.0, 9.0])
    asked = {"kind": kind, "per_step": per_step}
    found = fit_normalizers(X, Z, TURNS, read_normalization(asked))
    group = parse_group("C4")
    for one, x, key in zip(found, (X, Z), ("out_rep", "cond_rep"), strict=True):
        x = x.double()
        for matrix in rep_matrices(parse_representation(group, TURNS[key])):
            assert (one.normalize(x @ matrix.T) - one.normalize(x) @ matrix.T).abs().max() < 1e-11
    if kind == "min_max" and not per_step:
        y = found[0].normalize(X.double())
        assert float(y.norm(dim=-1).max()) == pytest.approx(1)
    if kind == "quantiles" and not per_step:
        inside = found[0].normalize(X.double()).norm(dim=-1) <= 1
        assert float(inside.double().mean()) == pytest.approx(0.98, abs=0.01)


def stats(tmp_path, **values) -> str:
    file = tmp_path / "stats.json"
    file.write_text(json.dumps(values))
    return str(file)


def test_limits_that_the_group_keeps_are_used_and_others_refused(tmp_path):
    X, Z = normal(90, 3, 2), normal(90, 2, 3, seed=1)
    turning = {"min": [-3.0, -3.0], "max": [3.0, 3.0]}
    state = {"min": [-5.0, -5.0, 0.0], "max": [5.0, 5.0, 2.0]}
    path = stats(tmp_path, **{"action": turning, "observation.state": state})
    asked = {"kind": "min_max", "limits": path}
    x, z = fit_normalizers(X, Z, TURNS, read_normalization(asked))
    assert x.scale.diagonal().tolist() == [3, 3] and z.mean.tolist() == [0, 0, 1]
    state["max"] = [5.0, 5.5, 2.0]
    path = stats(tmp_path, **{"action": turning, "observation.state": state})
    with pytest.raises(
        ValueError, match=r"that the symmetry keeps, got others in channel 0, 1 of Z"
    ):
        fit_normalizers(X, Z, TURNS, read_normalization(asked))


def test_limits_of_other_data_are_refused(tmp_path):
    X, Z = normal(90, 3, 2), normal(90, 2, 1, seed=1)
    path = stats(tmp_path, **{"action": {"min": [0, 0.5], "max": [1, 0.5]},
                              "observation.state": {"min": [0], "max": [1]}})  # fmt: skip
    asked = read_normalization({"kind": "min_max", "limits": path})
    with pytest.raises(ValueError, match="normalised number in channel 1 of X, by action in"):
        fit_normalizers(X, Z, None, asked)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("zscore", "to say mean_std, min_max, quantiles, identity, got 'zscore'"),
        ({"sort": "min_max"}, "with the keys kind, actions"),
        ({"limits": str(SETS / "policy"), "per_step": True}, "per_step beside limits"),
        ({"action_keys": ["action"]}, "limits beside action_keys"),
        ({"limits": str(SETS / "lerobot3")}, "expected data.normalize.kind"),
        (
            {"limits": str(SETS / "policy"), "action_keys": ["actions"]},
            "expected actions among the features of the policy, got action, obs",
        ),
        (
            {"limits": str(SETS / "policy"), "kind": "min_max", "action_keys": ["actions"]},
            "expected statistics of actions, got those of action, obs",
        ),
    ],
)
def test_what_cannot_be_done_is_said(asked, words):
    with pytest.raises(ValueError, match=words):
        read_normalization(asked)


def test_samples_that_are_no_trajectories_have_no_kind(tmp_path):
    np.savez(tmp_path / "a.npz", X=normal(40, 2).numpy())
    cfg = SimpleNamespace(name="file", path=str(tmp_path / "a.npz"), normalize="min_max")
    with pytest.raises(ValueError, match=r"expected no data.normalize but for trajectories"):
        build_task(cfg)
    cfg.normalize = "identity"
    assert len(build_task(cfg).train) > 20
