"""Padding of trajectories: what a file says of it, what training sees, and scores without it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastgen.config import DataConfig
from fastgen.data import build_data
from fastgen.data.checks import data_notes
from fastgen.data.files import file_task, load_conditions
from fastgen.data.held_out import HeldOutTask
from fastgen.data.masks import Masks
from fastgen.data.trajectories import fit_normalizers
from fastgen.data.windows import windows_of
from fastgen.metrics import energy_score, min_ade, min_fde
from fastgen.normalizer import Normalizer
from support.padded import COND_LENGTHS, LENGTHS, masks, task, walks, write


@pytest.mark.parametrize("fill", [0.0, 1e6, float("nan")])
def test_a_file_is_trained_on_as_if_its_padding_were_not_there(tmp_path, fill):
    plain = file_task(write(tmp_path / "plain.npz", -1.0))
    found = file_task(write(tmp_path / "found.npz", fill))
    assert plain.train.x_normalizer.state() == found.train.x_normalizer.state()
    assert plain.train.z_normalizer.state() == found.train.z_normalizer.state()
    x, cond = found.train.network_inputs()
    expected, of_plain = plain.train.network_inputs()
    assert torch.equal(x, expected) and cond.keys() == {"Z", "mask", "cond_mask"}
    for name, value in cond.items():
        assert torch.equal(value, of_plain[name])
    assert (x[~cond["mask"]] == 0).all() and (cond["Z"][~cond["cond_mask"]] == 0).all()
    rows = found.rows["train"]
    assert torch.equal(cond["mask"].sum(1), LENGTHS[rows])
    assert torch.equal(cond["cond_mask"].sum(1), COND_LENGTHS[rows])
    assert data_notes(found, 8) == data_notes(plain, 8)


def test_masks_and_lengths_say_the_same(tmp_path):
    X, Z = (value.numpy() for value in walks(0.0))
    mask, cond_mask = (value.numpy() for value in masks())
    np.savez(tmp_path / "masks.npz", X=X, Z=Z, mask=mask, cond_mask=cond_mask)
    lengths = {"lengths": LENGTHS.numpy(), "cond_lengths": COND_LENGTHS.numpy()}
    np.savez(tmp_path / "lengths.npz", X=X, Z=Z, **lengths)
    found = [file_task(tmp_path / f"{name}.npz").train for name in ("masks", "lengths")]
    assert torch.equal(found[0].X, found[1].X)
    for one, other in zip(*(data.masks for data in found), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mask": np.ones((48, 3), bool)}, r"expected mask of shape \(48, 4\).*got \(48, 3\)"),
        ({"mask": np.ones((48, 4))}, r"expected mask to be a bool Tensor"),
        ({"mask": np.arange(48)[:, None] + np.zeros(4) > 0}, "none in row 0"),
        ({"cond_mask": np.ones((48, 4), bool)}, r"expected cond_mask of shape \(48, 3\)"),
        ({"cond_mask": np.zeros((48, 3), bool)}, "expected cond_mask to have a real token"),
        ({"lengths": np.full(48, 5)}, "expected lengths from 1 to 4.*got 5 to 5"),
        ({"lengths": np.arange(48) % 5}, "expected lengths from 1 to 4.*got 0 to 4"),
        ({"lengths": np.ones(48)}, "expected lengths as one whole number for each of the 48 rows"),
        ({"lengths": np.ones(47, int)}, r"\(48,\), got torch.int64 \(47,\)"),
        ({"cond_lengths": np.full(48, 4)}, "expected cond_lengths from 1 to 3"),
        ({"mask": np.ones((48, 4), bool), "lengths": np.ones(48, int)}, "mask or lengths .* both"),
    ],
)
def test_masks_that_do_not_fit_are_refused(tmp_path, arrays, message):
    X, Z = (value.numpy() for value in walks(0.0))
    np.savez(tmp_path / "bad.npz", X=X, Z=Z, **arrays)
    with pytest.raises(ValueError, match=message):
        file_task(tmp_path / "bad.npz")


@pytest.mark.parametrize("name", ["mask", "lengths", "cond_mask", "cond_lengths"])
def test_a_file_without_rows_is_refused_by_name(tmp_path, name):
    tokens = 3 if name.startswith("cond") else 4
    of_none = np.ones((0, tokens), bool) if name.endswith("mask") else np.ones(0, int)
    Z = np.zeros((0, 3, 2))
    np.savez(tmp_path / "none.npz", X=np.zeros((0, 4, 2)), Z=Z, **{name: of_none})
    with pytest.raises(ValueError, match="expected .*, got (an empty|none)"):
        file_task(tmp_path / "none.npz")
    np.savez(tmp_path / "conditions.npz", Z=Z, **{name: of_none})
    with pytest.raises(ValueError, match="expected .*, got"):
        load_conditions(tmp_path / "conditions.npz", tokens=4)


def test_numbers_in_the_real_part_are_still_looked_at(tmp_path):
    X, Z = (value.numpy() for value in walks(0.0))
    X[7, 0, 0] = np.nan
    np.savez(tmp_path / "bad.npz", X=X, Z=Z, lengths=LENGTHS.numpy())
    with pytest.raises(ValueError, match="NaN or infinity in 1 rows: 7"):
        file_task(tmp_path / "bad.npz")


def test_a_token_of_several_waypoints_is_real_as_a_whole(tmp_path):
    with pytest.raises(ValueError, match="whole tokens of pack=2.*multiples of it, or pack=1"):
        file_task(write(tmp_path / "walks.npz", 0.0), pack=2).train  # noqa: B018
    X, Z = walks(9.0)
    even = Masks(torch.arange(4) < 2 * (1 + torch.arange(48) % 2)[:, None])
    whole = HeldOutTask("file", X, Z, torch.arange(48), primary="min_ade", pack=2, masks=even)
    x, cond = whole.train.network_inputs()
    assert x.shape[1:] == (2, 4) and cond["mask"].shape[1:] == (2,)
    assert torch.equal(cond["mask"].sum(1), 1 + whole.rows["train"] % 2)


# ---- Normalisers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mean_std", "min_max", "quantiles"])
def test_normalisers_are_measured_on_real_tokens(kind):
    made = {}
    for fill in (0.0, 1e3):
        data = task(fill)
        data._normalize = tuple(type(one)(kind) for one in data._normalize)
        made[fill] = data.train.x_normalizer.state()
        rows = data.rows["train"]
        real = data._X[rows][masks().mask[rows]]
        assert made[fill] == Normalizer.fit(real, kind=kind).state()
    assert made[0.0] == made[1e3]


def test_normalisers_of_a_group_are_measured_on_real_tokens():
    X, Z = walks(0.0)
    symmetry = task(0.0, equivariant=True).symmetry
    plain = fit_normalizers(X, Z, symmetry, masks=masks())
    filled = fit_normalizers(*walks(1e3), symmetry, masks=masks())
    assert [one.state() for one in plain] == [one.state() for one in filled]


def test_each_time_step_is_measured_on_what_is_real_there():
    X, _ = walks(1e3)
    mask = masks().mask
    found = Normalizer.fit_per_step(X, mask=mask)
    for step in range(4):
        alone = Normalizer.fit(X[:, step][mask[:, step]])
        assert torch.equal(found.mean[step], alone.mean)
        assert torch.equal(found.scale[step], alone.scale)
    with pytest.raises(ValueError, match="something real at each time step, got none at 3"):
        Normalizer.fit_per_step(X, mask=mask & (torch.arange(4) < 3))


# ---- Scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", [min_ade, min_fde, energy_score])
def test_scores_are_those_of_samples_cut_to_their_lengths(score):
    generator = torch.Generator().manual_seed(0)
    fan = torch.randn(48, 3, 4, 2, generator=generator, dtype=torch.float64)
    truth, _ = walks(7.0)
    found = score(fan, truth, masks().mask)
    for row, length in enumerate(LENGTHS):
        alone = score(fan[row : row + 1, :, :length], truth[row : row + 1, :length])
        torch.testing.assert_close(found[row : row + 1], alone, rtol=1e-12, atol=1e-12)


def test_no_score_of_a_task_sees_padding():
    def sampler(fill):
        def sample(cond, noise):
            assert cond.keys() == {"Z", "mask", "cond_mask"}
            x = cond["Z"][:, :1] + noise
            return x.masked_fill(~cond["mask"][..., None], fill).to(noise.dtype)

        return sample

    found = [
        task(fill).evaluate(sampler(fill), quick=quick)
        for quick in (False, True)
        for fill in (0.0, 9.0)
    ]
    assert found[0] == found[1] and found[2] == found[3]


def test_no_comparison_of_two_students_sees_padding():
    data = task(0.0)
    mask = data._masks.rows(data.rows["validation"]).mask.repeat_interleave(6, 0)
    generator = torch.Generator().manual_seed(0)
    pair = [scale * torch.randn(len(mask), 4, 2, generator=generator) for scale in (1.0, 2.0)]
    filled = [x.masked_fill(~mask[..., None], 9.0) for x in pair]
    assert data.compare(*pair) == data.compare(*filled)


# ---- Episodes ------------------------------------------------------------------------------------

EPISODES = {
    "actions": torch.arange(14.0)[:, None],
    "observations": torch.arange(14.0)[:, None],
    "episode_ends": torch.tensor([4, 9, 14]),
}
WINDOWS = {"obs_horizon": 2, "horizon": 3, "pad_before": 1, "pad_after": 2}


def test_repeated_actions_are_padding_where_the_config_says_so():
    plain = windows_of(EPISODES, "here", **WINDOWS)
    masked = windows_of(EPISODES, "here", **WINDOWS, mask_padding=True)
    assert torch.equal(plain.X, masked.X) and torch.equal(plain.is_pad, masked.is_pad)
    assert plain.masks == (None, None)
    assert torch.equal(masked.masks.mask, ~plain.is_pad) and masked.masks.cond_mask is None
    unpadded = windows_of(EPISODES, "here", obs_horizon=2, horizon=3, mask_padding=True)
    assert unpadded.masks == (None, None)


def test_the_key_reaches_the_windows(tmp_path):
    np.savez(tmp_path / "e.npz", **{k: v.numpy() for k, v in EPISODES.items()})
    cfg = DataConfig(name="file", path=str(tmp_path / "e.npz"), **WINDOWS, mask_padding=True)
    assert not build_data(cfg).train.masks.mask.all()
    with pytest.raises(ValueError, match="no padding, for .* which holds windows"):
        file_task(write(tmp_path / "walks.npz", 0.0), mask_padding=True)
    with pytest.raises(ValueError, match="expected no data.mask_padding for the task ring"):
        build_data(DataConfig(name="ring", mask_padding=True))


# ---- Conditions to sample for --------------------------------------------------------------------


def test_conditions_are_read_with_their_masks(tmp_path):
    path = write(tmp_path / "walks.npz", float("nan"))
    cond = load_conditions(path, tokens=4)
    assert torch.equal(cond["mask"], masks().mask)
    assert torch.equal(cond["cond_mask"], masks().cond_mask) and cond["Z"].isfinite().all()
    Z = walks(0.0)[1].numpy()
    np.savez(tmp_path / "z.npz", Z=Z, lengths=LENGTHS.numpy())
    assert torch.equal(load_conditions(tmp_path / "z.npz", tokens=4)["mask"], masks().mask)
    np.savez(tmp_path / "plain.npz", Z=Z)
    assert torch.equal(load_conditions(tmp_path / "plain.npz", tokens=4), torch.from_numpy(Z))
