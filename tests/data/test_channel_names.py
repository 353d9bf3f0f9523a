"""What a config says of angles and rotations reaches the normaliser, and a group acts on it."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from fastgen.channel_kinds import KindNormalizer
from fastgen.config import DataConfig
from fastgen.data import build_data
from fastgen.data.checks import data_notes
from fastgen.data.held_out import HeldOutTask
from fastgen.data.masks import Masks
from fastgen.data.normalization import read_normalization
from fastgen.data.trajectories import fit_normalizers
from fastgen.models.representations import rep_matrices
from fastgen.models.specs import parse_group, parse_representation
from fastgen.normalizer import Normalizer

HEADING = {"action_channels": {"angle": 2}}
PLANAR = {"group": "D4", "in_rep": ["standard"] * 2, "cond_rep": ["standard", "trivial"]}
PLANAR["out_rep"] = PLANAR["in_rep"]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def fitted(asked: Any, X: torch.Tensor, Z: torch.Tensor, symmetry=None, **names) -> KindNormalizer:
    found, _ = fit_normalizers(X, Z, symmetry, read_normalization(asked, **names))
    assert isinstance(found, KindNormalizer)
    return found


@pytest.mark.parametrize("kind", ["mean_std", "min_max", "quantiles", "identity"])
def test_the_other_channels_are_normalised_as_ever(kind):
    X, Z = normal(50, 4, 3) * 3 + 1, normal(50, 2, 3, seed=1)
    asked = {"kind": kind, **HEADING}
    found = fitted(asked, X, Z)
    assert torch.equal(
        found.normalize(X)[..., 2:], torch.stack([X[..., 2].cos(), X[..., 2].sin()], -1)
    )
    expected = Normalizer.fit(X[..., :2], kind=kind).normalize(X[..., :2])
    assert torch.equal(found.normalize(X)[..., :2], expected)
    per_step = fitted({"per_step": True, **HEADING}, X, Z)
    assert per_step.steps == 4


def test_all_channels_may_be_angles():
    X = normal(20, 4, 2)
    found = fitted({"action_channels": {"angle": [0, 1]}}, X, X)
    off = (found.denormalize(found.normalize(X)) - X).remainder(2 * math.pi)
    assert torch.minimum(off, 2 * math.pi - off).max() < 1e-12


@pytest.mark.parametrize("kind", ["mean_std", "min_max"])
@pytest.mark.parametrize("per_step", [False, True])
def test_what_is_measured_commutes_with_a_group(kind, per_step):
    X, Z = normal(50, 4, 3) * 3 + 1, normal(50, 2, 3, seed=1)
    asked = {"kind": kind, "per_step": per_step, **HEADING}
    found = fitted(asked, X, Z, PLANAR)
    group = parse_group("D4")
    for rho in rep_matrices(parse_representation(group, PLANAR["in_rep"])):
        assert (rho @ found.scale - found.scale @ rho).abs().max() < 1e-12
        turned = found.kinds.collapse(found.kinds.expand(X) @ rho.T)
        assert (found.normalize(turned) - found.normalize(X) @ rho.T).abs().max() < 1e-12


def test_a_group_that_mixes_them_with_others_is_refused():
    X, Z = normal(50, 4, 3), normal(50, 2, 2, seed=1)
    symmetry = {"group": "C4", "in_rep": ["regular"], "cond_rep": ["standard"]}
    symmetry["out_rep"] = symmetry["in_rep"]
    with pytest.raises(ValueError, match="acts on angles and rotations of X by themselves"):
        fit_normalizers(X, Z, symmetry, read_normalization(HEADING))
    symmetry = {**PLANAR, "out_rep": ["standard", "trivial"], "cond_rep": ["standard"]}
    with pytest.raises(ValueError, match="out_rep of dimension 4, the channels of X as networks"):
        fit_normalizers(X, Z, symmetry, read_normalization(HEADING))


TURN = {"action_channels": {"rotation_6d": [0, 1, 2, 3, 4, 5]}}


@pytest.mark.parametrize(
    ("asked", "channels", "reps"),
    [
        # The representation of a group permutes the cosines and sines of two angles.
        ({"action_channels": {"angle": [0, 1]}}, 2, ["regular"]),
        ({"action_channels": {"angle": [0, 1]}}, 3, ["regular", "trivial"]),
        # It turns a sine and a plain channel.
        ({"action_channels": {"angle": 0}}, 2, ["trivial", "standard"]),
        ({"action_channels": {"angle": 0}, "kind": "identity"}, 2, ["trivial", "standard"]),
        # It turns x and y of the first column, and not of the second.
        (TURN, 6, ["standard", *["trivial"] * 4]),
        ({**TURN, "kind": "identity"}, 7, ["standard", *["trivial"] * 5]),
    ],
)
def test_a_group_that_takes_them_to_what_is_none_is_refused(asked, channels, reps):
    X, Z = normal(50, 4, channels), normal(50, 2, 2, seed=1)
    symmetry = {"group": "C4", "in_rep": reps, "cond_rep": ["standard"], "out_rep": reps}
    with pytest.raises(ValueError, match="acts on angles and rotations of X by themselves"):
        fit_normalizers(X, Z, symmetry, read_normalization(asked))


@pytest.mark.parametrize(
    ("asked", "channels", "reps"),
    [
        ({"action_channels": {"angle": [0, 1]}}, 2, ["standard", "standard"]),
        ({"action_channels": {"angle": [0, 1]}}, 3, ["standard", "trivial", "trivial", "trivial"]),
        (TURN, 7, [*["standard", "trivial"] * 2, "trivial"]),
        ({"action_channels": {"quaternion": [0, 1, 2, 3]}}, 4, ["standard", "trivial"] * 2),
    ],
)
def test_a_group_that_acts_on_each_as_on_a_vector_is_taken(asked, channels, reps):
    X, Z = normal(50, 4, channels), normal(50, 2, 2, seed=1)
    symmetry = {"group": "C4", "in_rep": reps, "cond_rep": ["standard"], "out_rep": reps}
    found, _ = fit_normalizers(X, Z, symmetry, read_normalization(asked))
    assert isinstance(found, KindNormalizer)


def test_channels_are_named_as_the_data_name_them():
    X, Z = normal(50, 4, 3), normal(50, 2, 3, seed=1)
    names = (["x", "y", "heading"], None)
    found = fitted({"action_channels": {"angle": ["heading"]}}, X, Z, names=names)
    assert found.kinds.kinds == {"angle": ((2,),)}


def test_a_table_names_its_columns(tmp_path):
    lines = ["episode,x,y,heading,state"]
    for episode in range(6):
        lines += [f"{episode},{i},{i % 3},{i - 5},{i * episode}" for i in range(12)]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    cfg: dict[str, Any] = {"path": str(tmp_path / "a.csv"), "actions": ["x", "y", "heading"]}
    cfg |= {"observations": "state", "obs_horizon": 1, "horizon": 4}
    cfg["normalize"] = {"action_channels": {"angle": "heading"}}
    data = build_data(DataConfig(name="file", **cfg)).train
    assert data.network_inputs()[0].shape[-1] == 4 and data.noise_shape == (4, 4)


def test_limits_are_of_the_other_channels(tmp_path):
    numbers = {"mean": [1.0, 2.0, 9.0], "std": [3.0, 4.0, 9.0]}
    (tmp_path / "stats.json").write_text(json.dumps({"action": numbers}))
    asked = {"kind": "mean_std", "limits": str(tmp_path / "stats.json"), **HEADING}
    asked |= {"observations": "identity", "observation_keys": ["action"]}
    X = normal(50, 4, 3)
    found = fitted(asked, X, X)
    assert found.mean.tolist() == [1.0, 2.0, 0.0, 0.0]
    # LeRobot adds 1e-8 to a standard deviation.
    assert (found.scale.diagonal() - torch.tensor([3.0, 4.0, 1.0, 1.0])).abs().max() < 2e-8
    with pytest.raises(ValueError, match="expected limits for the 4 channels of X, got 3"):
        fitted(asked, normal(50, 4, 4), X)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"spin": [0]}, "with the kinds angle, quaternion, rotation_6d, got spin"),
        ({"angle": [7]}, "action_channels, of X: expected angle among the channels 0 to 4, got 7"),
        ({"angle": ["yaw"]}, "channels that are there once, got 'yaw' for none that have names"),
        ({"angle": [1, 1]}, "expected each channel in one kind, once"),
        ({"quaternion": [1, 2, 3]}, "expected 4 channels for each quaternion"),
        ({"quaternion": [[1, 2, 3, 4], 0]}, "channels of one rotation or a list of such"),
    ],
)
def test_what_does_not_fit_is_refused(asked, message):
    X = normal(50, 4, 5)
    with pytest.raises(ValueError, match=message):
        fit_normalizers(X, X, None, read_normalization({"action_channels": asked}))


@pytest.mark.parametrize("part", ["train", "validation", "test", "all"])
@pytest.mark.parametrize("name", ["X", "Z"])
def test_what_is_no_rotation_is_refused_in_every_part(name, part):
    """Before training, wherever it lies."""
    tensors = {"X": normal(60, 4, 5), "Z": normal(60, 2, 5, seed=1)}
    for x in tensors.values():
        x[..., 1:] /= x[..., 1:].norm(dim=-1, keepdim=True)
    asked = {f"{key}_channels": {"quaternion": [1, 2, 3, 4]} for key in ("action", "observation")}

    def task() -> HeldOutTask:
        how = read_normalization(asked)
        episodes = torch.arange(60)
        return HeldOutTask("turns", **tensors, episodes=episodes, primary="min_ade", normalize=how)

    rows = task().rows
    tensors[name][rows[part][1] if part != "all" else slice(None), 1, 1:] = 0
    message = f"expected a unit quaternion x, y, z, w in channels 1, 2, 3, 4 of {name}, .* of 0;"
    with pytest.raises(ValueError, match=message):
        task()


def test_padding_is_no_rotation_that_is_refused():
    X, Z = normal(60, 4, 4), normal(60, 2, 4, seed=1)
    X, Z = (x / x.norm(dim=-1, keepdim=True) for x in (X, Z))
    mask = torch.ones(60, 4, dtype=torch.bool)
    mask[:, 2:] = False
    X[:, 2:] = 0
    how = read_normalization({"action_channels": {"quaternion": [0, 1, 2, 3]}})
    episodes = torch.arange(60)
    options: dict[str, Any] = {"primary": "min_ade", "normalize": how}
    task = HeldOutTask("turns", X, Z, episodes, masks=Masks(mask), **options)
    assert bool(torch.isfinite(task.train.network_inputs()[0]).all())
    with pytest.raises(ValueError, match="expected a unit quaternion"):
        HeldOutTask("turns", X, Z, episodes, **options)


@pytest.mark.parametrize(
    ("largest", "noticed"),
    [(math.pi, False), (2 * math.pi, False), (6.5, True), (90.0, True), (360.0, True)],
)
def test_degrees_and_turns_are_noticed(tmp_path, largest, noticed):
    """Where an angle goes beyond a whole turn."""
    X, Z = normal(60, 4, 3), normal(60, 2, 3)
    X[..., 2] *= largest / X[..., 2].abs().max()
    np.savez(tmp_path / "a.npz", X=X.numpy(), Z=Z.numpy())
    asked: Any = {"name": "file", "path": str(tmp_path / "a.npz"), "normalize": HEADING}
    notes = data_notes(build_data(DataConfig(**asked)), 1)
    found = [note for note in notes if "X looks like degrees in channel 2" in note]
    assert bool(found) == noticed
    assert all("within [-pi, pi]" in note for note in found)
