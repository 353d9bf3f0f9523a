"""Draws that are a function of their names."""

import torch

from fastgen._core.seeds import draw_normal, draw_uniform, generator_for


def test_seeded_generators_are_functions_of_their_names_only():
    def first(*names):
        return torch.rand(4, generator=generator_for(*names))

    assert torch.equal(first(0, "noise", 7), first(0, "noise", 7))
    others = [
        first(1, "noise", 7),
        first(0, "eps", 7),
        first(0, "noise", 8),
        first(0, "noise7"),
        first(0, "noise", "7"),
    ]
    assert not any(torch.equal(first(0, "noise", 7), other) for other in others)
    # Fixed for good: a checkpoint written today must make the same draws tomorrow.
    assert generator_for(0, "noise", 7).initial_seed() == 4946164163973049188


def test_draws_follow_the_generator_and_keep_the_dtype():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        a = draw_normal((5, 3), device="cpu", dtype=dtype, generator=generator_for(3))
        assert a.dtype == dtype and torch.equal(
            a, draw_normal((5, 3), device="cpu", dtype=dtype, generator=generator_for(3))
        )
    u = draw_uniform((1000,), device="cpu", generator=generator_for(3))
    assert u.dtype == torch.float64 and 0 <= u.min() and u.max() < 1
