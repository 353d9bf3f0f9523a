"""Elements of a group that act on nothing are named: what acts then is a smaller group."""

import warnings
from typing import Any

import numpy as np
import pytest

from fastgen.models import (
    eCondTransformerRegressor,
    eFourierDiscriminator,
    parse_group,
    parse_representation,
    rep_matrices,
    representation,
)
from fastgen.models.representations import joint_kernel, kernel_note

SIZES: dict[str, Any] = {
    "in_horizon": 2,
    "cond_horizon": 1,
    "num_layers": 1,
    "num_attention_heads": 1,
}
ROTATION_BY_90 = [[[0.0, -1.0], [1.0, 0.0]]]


def rep(group: str, spec):
    return parse_representation(parse_group(group), spec)


def by_matrices(reps) -> list:
    """The slow twin: every matrix beside the identity."""
    tables = [rep_matrices(rep).numpy() for rep in reps]
    return [
        g
        for i, g in enumerate(reps[0].group.elements)
        if g != reps[0].group.identity
        and all(np.allclose(table[i], np.eye(table.shape[1])) for table in tables)
    ]


@pytest.mark.parametrize("group", ["C1", "C2", "C6", "C8", "D3", "D4", "C2xC2", "D4xC2"])
def test_the_kernel_is_where_all_matrices_are_the_identity(group):
    irreps = [
        parse_representation(parse_group(group), f"irrep:{irrep.id}".replace(" ", ""))
        for irrep in parse_group(group).irreps()
    ]
    for a in irreps:
        assert joint_kernel(a) == by_matrices([a])
        for b in irreps:
            assert joint_kernel(a, b) == by_matrices([a, b])
    assert joint_kernel(*irreps) == []
    assert joint_kernel(rep(group, ["regular"]), irreps[0]) == []


def test_the_matrix_of_a_quarter_turn_is_no_eighth():
    group = parse_group("C8")
    quarter = representation(group, ROTATION_BY_90)
    note = kernel_note({"in_rep": quarter, "cond_rep": rep("C8", "trivial")})
    assert note is not None
    assert note.startswith("1 of the 8 elements of C8 act as the identity on all of in_rep, cond_")
    assert "what acts is a group of 4, not C8" in note
    assert str(group.element(4)) in note


@pytest.mark.parametrize(
    ("in_rep", "cond_rep"),
    [("trivial", "standard"), ("standard", "trivial"), ("irrep:2", "irrep:1")],
)
def test_one_faithful_representation_is_enough(in_rep, cond_rep):
    reps = {"in_rep": rep("C8", in_rep), "cond_rep": rep("C8", cond_rep)}
    assert kernel_note(reps) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eCondTransformerRegressor(reps["in_rep"], reps["cond_rep"], None, embedding_dim=8, **SIZES)
        eFourierDiscriminator(reps["in_rep"], reps["cond_rep"])


def test_two_kernels_may_have_nothing_in_common():
    """C6 by its thirds and by its halves acts faithfully, by neither of them alone."""
    third = rep("C6", "irrep:2")
    half = rep("C6", "irrep:3")
    assert len(joint_kernel(third)) == 1 and len(joint_kernel(half)) == 2
    assert joint_kernel(third, half) == []


@pytest.mark.parametrize("make", ["network", "network with another out_rep", "discriminator"])
def test_networks_say_that_a_smaller_group_acts(make):
    quarter = representation(parse_group("C8"), ROTATION_BY_90)
    trivial = rep("C8", "trivial")
    with pytest.warns(UserWarning, match="1 of the 8 elements of C8 act as the identity on all of"):
        if make == "discriminator":
            eFourierDiscriminator(quarter)
        else:
            out_rep = trivial if "out_rep" in make else None
            eCondTransformerRegressor(quarter, trivial, out_rep, embedding_dim=8, **SIZES)
    faithful = rep("C8", "standard")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eCondTransformerRegressor(quarter, trivial, faithful, embedding_dim=8, **SIZES)
