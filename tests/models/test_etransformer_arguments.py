"""The equivariant network names a wrong argument and a wrong shape."""

from __future__ import annotations

import pytest
import torch
from escnn import group as escnn_group
from escnn.group import change_basis

from fastgen.models import eCondTransformerRegressor

D4, C4 = escnn_group.dihedral_group(4), escnn_group.cyclic_group(4)
ARGUMENTS = {
    "in_rep": D4.irrep(1, 1),
    "cond_rep": D4.irrep(1, 1),
    "out_rep": D4.irrep(1, 1),
    "in_horizon": 4,
}
ARGUMENTS |= {"cond_horizon": 2, "num_layers": 1, "num_attention_heads": 2, "embedding_dim": 32}
SHEARED = change_basis(D4.irrep(1, 1), torch.tensor([[1.0, 1.0], [0.0, 1.0]]).numpy(), "sheared")


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        (
            {"embedding_dim": 36},
            ValueError,
            "embedding_dim to be a multiple of the order 8 of D4, got 36; .* 32 and 40",
        ),
        ({"embedding_dim": 0}, ValueError, "embedding_dim to be an int >= 1, got 0"),
        ({"embedding_dim": 32.0}, ValueError, "embedding_dim to be an int >= 1, got 32.0"),
        (
            {"num_attention_heads": 3},
            ValueError,
            r"num_attention_heads to divide .* 32 / \|G\| = 32 / 8 = 4, got 3",
        ),
        ({"num_attention_heads": 8}, ValueError, "num_attention_heads to divide"),
        ({"num_attention_heads": 0}, ValueError, "num_attention_heads to be an int >= 1, got 0"),
        (
            {"in_rep": C4.irrep(1)},
            ValueError,
            "cond_rep to be a representation of in_rep's group C4, got D4",
        ),
        (
            {"cond_rep": C4.irrep(1)},
            ValueError,
            "cond_rep to be a representation of in_rep's group D4, got C4",
        ),
        (
            {"out_rep": C4.irrep(1)},
            ValueError,
            "out_rep to be a representation of in_rep's group D4, got C4",
        ),
        (
            {"in_rep": SHEARED},
            ValueError,
            "in_rep to be an orthogonal representation, got .*sheared",
        ),
        ({"cond_rep": SHEARED}, ValueError, "cond_rep to be an orthogonal representation"),
        ({"out_rep": SHEARED}, ValueError, "out_rep to be an orthogonal representation"),
        (
            {"in_rep": escnn_group.so2_group().irrep(1)},
            ValueError,
            r"in_rep .* finite group, got one of SO\(2\)",
        ),
        (
            {"cond_rep": escnn_group.o2_group().irrep(1, 1)},
            ValueError,
            r"cond_rep .* finite group, got one of O\(2\)",
        ),
        ({"in_rep": 2}, TypeError, "in_rep to be an escnn.group.Representation, got int"),
        (
            {"cond_rep": "standard"},
            TypeError,
            "cond_rep to be an escnn.group.Representation, got str",
        ),
        ({"in_horizon": 0}, ValueError, "in_horizon to be an int >= 1, got 0"),
        ({"cond_horizon": -1}, ValueError, "cond_horizon to be an int >= 1, got -1"),
        ({"num_layers": 0}, ValueError, "num_layers to be an int >= 1, got 0"),
        ({"num_cond_layers": -1}, ValueError, "num_cond_layers to be an int >= 0, got -1"),
        ({"p_drop_emb": 1.0}, ValueError, r"p_drop_emb to be a probability in \[0, 1\), got 1.0"),
        (
            {"p_drop_attn": -0.1},
            ValueError,
            r"p_drop_attn to be a probability in \[0, 1\), got -0.1",
        ),
        ({"causal_attn": None}, ValueError, "causal_attn to be a bool, got None"),
        ({"norm_module": "batchnorm"}, ValueError, "unknown norm_module 'batchnorm'"),
        ({"init_scheme": "zeros"}, ValueError, "unknown init_scheme 'zeros'"),
        ({"time_scale": 0}, ValueError, "time_scale to be a finite number > 0, got 0"),
        (
            {"basis": "fourier"},
            ValueError,
            "unknown basis 'fourier', expected .* auto, regular, irrep",
        ),
    ],
)
def test_a_wrong_argument_is_named(changes, kind, words):
    with pytest.raises(kind, match=words):
        eCondTransformerRegressor(**{**ARGUMENTS, **changes})


@pytest.mark.parametrize(
    ("x", "t", "z", "words"),
    [
        ((3, 5, 2), (3,), (3, 2, 2), r"expected X of shape \(B, T_x <= 4, 2\), got \(3, 5, 2\)"),
        ((3, 4, 3), (3,), (3, 2, 2), r"expected X of shape \(B, T_x <= 4, 2\), got \(3, 4, 3\)"),
        ((3, 4, 2), (3,), (3, 3, 2), r"expected Z of shape \(.*, T_z <= 2, 2\), got \(3, 3, 2\)"),
        ((3, 4, 2), (3,), (4, 2, 2), r"expected Z of shape \(.*3, T_z <= 2, 2\), got \(4, 2, 2\)"),
        (
            (3, 4, 2),
            (4,),
            (3, 2, 2),
            r"expected opt_step to be a scalar or of shape \(3,\), got \(4,\)",
        ),
        (
            (3, 4, 2),
            (3, 1),
            (3, 2, 2),
            r"expected opt_step to be a scalar or of shape \(3,\), got \(3, 1\)",
        ),
    ],
)
def test_a_wrong_shape_is_shown_beside_the_expected_one(x, t, z, words):
    with pytest.raises(ValueError, match=words):
        eCondTransformerRegressor(**ARGUMENTS)(torch.zeros(x), torch.zeros(t), torch.zeros(z))


def test_a_width_below_the_order_names_two_widths():
    rep = escnn_group.dihedral_group(4).irrep(1, 1)
    with pytest.raises(ValueError, match="the next ones are 8 and 16"):
        eCondTransformerRegressor(rep, rep, rep, 4, 2, 1, 1, 4)


def test_z_message_has_the_letter():
    rep = escnn_group.dihedral_group(4).irrep(1, 1)
    model = eCondTransformerRegressor(rep, rep, rep, 4, 2, 1, 2, 16)
    with pytest.raises(
        ValueError, match=r"expected Z of shape \(B, T_z <= 2, 2\), got \(3, 5, 2\)"
    ):
        model(torch.zeros(3, 4, 2), 0.5, torch.zeros(3, 5, 2))
