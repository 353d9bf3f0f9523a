"""Padded data that memory doesn't hold: masks are made as rows are, and nothing ever needs all of
them at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgen._core import made_rows
from fastgen._core.conditions import take_rows
from fastgen._core.made_rows import MadeRows, part_of
from fastgen._core.masks import packed_mask
from fastgen.config import DataConfig
from fastgen.data import build_data, masks, places
from fastgen.data.checks import data_notes
from fastgen.jobs.origin import data_origin
from support import padded
from support.padded import lazily

SETS = Path(__file__).parent / "sets"
WINDOWS = {"obs_horizon": 2, "horizon": 4, "pad_before": 1, "pad_after": 3, "mask_padding": True}


def config(path: Path, **more: Any) -> DataConfig:
    kind = {} if path.name.startswith("walks") else WINDOWS
    return DataConfig(name="file", path=str(path), **kind, **more)


@pytest.fixture(params=["walks.npz", "walks-lengths.npz", "episodes.npz"])
def path(request, tmp_path) -> Path:
    """Trajectories with masks, with lengths, and episodes whose windows are padded."""
    if request.param == "episodes.npz":
        return SETS / request.param
    if request.param == "walks.npz":
        return padded.write(tmp_path / request.param, float("nan"))
    X, Z = (value.numpy() for value in padded.walks(1e3))
    lengths = {"lengths": padded.LENGTHS.numpy(), "cond_lengths": padded.COND_LENGTHS.numpy()}
    np.savez(tmp_path / request.param, X=X, Z=Z, **lengths)
    return tmp_path / request.param


def all_rows(value: Any) -> Any:
    rows = torch.arange(len(value["mask"] if isinstance(value, dict) else value))
    return take_rows(value, rows)


def test_rows_masks_and_what_networks_see_are_the_same(path, monkeypatch):
    held = build_data(config(path)).train
    lazily(monkeypatch)
    made = build_data(config(path)).train
    assert isinstance(made.X, MadeRows) and isinstance(made.masks.mask, MadeRows | Tensor)
    assert torch.equal(all_rows(made.X), held.X) and torch.equal(all_rows(made.Z), held.Z)
    for one, other in zip(made.masks, held.masks, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert torch.equal(all_rows(one), other)
    # The statistics are sums in another order.
    for kind in ("x_normalizer", "z_normalizer"):
        for name in ("mean", "scale"):
            values = [getattr(getattr(data, kind), name) for data in (made, held)]
            torch.testing.assert_close(*values, rtol=1e-13, atol=1e-13)
    x, cond = made.network_inputs()
    expected, given = held.network_inputs()
    torch.testing.assert_close(all_rows(x), expected, rtol=1e-6, atol=1e-6)
    assert cond.keys() == given.keys()
    for name, value in all_rows(cond).items():
        torch.testing.assert_close(value, given[name], rtol=1e-6, atol=1e-6)
    mask = all_rows(cond)["mask"]
    assert (all_rows(x)[~mask] == 0).all()


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("kind", ["mean_std", "min_max", "quantiles", "identity"])
def test_statistics_are_those_of_real_tokens(path, kind, per_step, monkeypatch):
    cfg = config(path, normalize={"kind": kind, "per_step": per_step})
    held = build_data(cfg).train
    lazily(monkeypatch)
    made = build_data(cfg).train
    for name in ("x_normalizer", "z_normalizer"):
        for part in ("mean", "scale"):
            values = [getattr(getattr(data, name), part) for data in (made, held)]
            torch.testing.assert_close(*values, rtol=1e-13, atol=1e-13)


def test_what_training_begins_with_and_scores_are_the_same(path, monkeypatch):
    def sample(cond: Any, noise: Tensor) -> Tensor:
        return (cond["Z"][:, :1, :2] + noise).to(noise.dtype)

    cfg = config(path)
    said = []
    # What is looked at for oddities are fewer numbers: of the walks 264 of 384.
    most = 300 if path.name.startswith("walks") else 1000
    for how in (lambda: None, lambda: lazily(monkeypatch, most)):
        how()
        task = build_data(cfg)
        scores = task.evaluate(sample, quick=True)
        said.append((scores, data_origin(task, cfg, built=True)["data"]["shapes"]))
        assert isinstance(data_notes(task, 8), list)
    assert said[0][1] == said[1][1]
    for name, value in said[0][0].items():
        assert said[1][0][name] == pytest.approx(value, rel=1e-6)


def test_tokens_that_are_real_in_part_are_refused_before_rows_are_taken(monkeypatch):
    mask = torch.ones(50, 4, dtype=torch.bool)
    mask[37, 1:] = False
    lazily(monkeypatch)
    made = made_rows.made_of(torch.clone, mask)
    with pytest.raises(ValueError, match="whole tokens of pack=2"):
        packed_mask(made, 2)
    mask[37, 1] = True
    assert torch.equal(all_rows(packed_mask(made, 2)), mask.unflatten(1, (2, 2)).all(2))


def test_a_row_without_a_real_token_is_found_in_its_block(tmp_path, monkeypatch):
    X, Z = (value.numpy() for value in padded.walks(0.0))
    mask = np.ones((48, 4), bool)
    mask[31] = False
    np.savez(tmp_path / "walks.npz", X=X, Z=Z, mask=mask)
    lazily(monkeypatch)
    with pytest.raises(ValueError, match="real token .* in each row, got none in row 31"):
        build_data(config(tmp_path / "walks.npz"))
    X[30, 2] = np.nan
    mask[31] = True
    np.savez(tmp_path / "walks.npz", X=X, Z=Z, mask=mask)
    with pytest.raises(ValueError, match="NaN or infinity in 1 rows: 30"):
        build_data(config(tmp_path / "walks.npz"))


@pytest.mark.parametrize("step", [None, 2])
def test_real_vectors_are_rows_of_episodes_as_often_as_windows_hold_them(monkeypatch, step):
    lazily(monkeypatch)
    made = build_data(config(SETS / "episodes.npz")).train
    mask = all_rows(made.masks.mask)
    chosen = torch.tensor([0, 3, 4, 9, 30, 31])
    for x in (made.X, made.X.double(), made_rows.channels_of(made.X, [1])):
        whole = all_rows(x)
        for rows in (torch.arange(len(whole)), chosen):
            part, real = part_of(x, rows), part_of(made.masks.mask, rows)
            values, counts = zip(*part.maker.vectors(step, real), strict=True)
            found = torch.cat(values).repeat_interleave(torch.cat(counts), 0)
            at = slice(None) if step is None else step
            expected = whole[rows][:, at][mask[rows][:, at]]
            assert torch.equal(in_order(found), in_order(expected))


def in_order(rows: Tensor) -> Tensor:
    """Rows in one order, whatever theirs."""
    return torch.tensor(sorted(rows.tolist()), dtype=rows.dtype)


@pytest.mark.parametrize("kind", ["mean_std", "min_max"])
def test_statistics_cut_no_window_and_padding_is_filled_once(monkeypatch, kind):
    how = {"kind": kind, "action_channels": {"angle": [1]}}
    cfg = config(SETS / "episodes.npz", normalize=how)
    lazily(monkeypatch)
    task = build_data(cfg)
    cut = []
    take = places.CutRows.take

    def counted(maker: places.CutRows, rows: Tensor) -> Tensor:
        cut.append(len(rows))
        return take(maker, rows)

    with monkeypatch.context() as during:
        during.setattr(places.CutRows, "take", counted)
        data = task.train
    assert sum(cut) <= 2  # to tell the shape
    assert isinstance(data.X, MadeRows) and isinstance(data.X.maker, masks._Filled)
    assert data.X.maker.mask is data.masks.mask
    assert isinstance(data.X.maker.x, places.CutRows)
