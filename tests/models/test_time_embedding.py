"""Time features are an MLP of sinusoids, in any precision."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fastgen.models import (
    TimeEmbedding,
)

EXACT = {"rtol": 0, "atol": 1e-12}


def test_time_features_are_an_mlp_of_sinusoids(shaken):
    embedding, t = (
        shaken(TimeEmbedding(8).double()),
        torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64),
    )
    frequencies = [10 ** (-3 + k * (3 - math.log10(16)) / 3) for k in range(4)]  # 1/1000 to 1/16
    rows = [
        [f(1000 * s * w) for f in (math.cos, math.sin) for w in frequencies] for s in t.tolist()
    ]
    waves = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(
        embedding(t), F.silu(embedding.out(F.silu(embedding.hidden(waves)))), **EXACT
    )


def test_time_scale_multiplies_the_time(shaken):
    embedding, steps = shaken(TimeEmbedding(8).double()), TimeEmbedding(8, time_scale=1.0).double()
    steps.load_state_dict(embedding.state_dict())
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(steps(1000 * t), embedding(t), **EXACT)


def test_half_precision_weights_do_not_round_the_time():
    """bfloat16 rounds 0.999 to 1; the phase is computed before anything is rounded."""
    embedding = TimeEmbedding(64).bfloat16()
    near, end = embedding(torch.tensor([0.999])), embedding(torch.tensor([1.0]))
    assert near.dtype == torch.bfloat16 and not torch.equal(near, end)


@pytest.mark.parametrize("dim", [2, 3, 64])
def test_every_number_of_features_has_its_width(dim):
    assert TimeEmbedding(dim)(torch.zeros(5)).shape == (5, dim)
