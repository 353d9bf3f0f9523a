"""Where dense and equivariant networks could part: no samples, no memory, other derivatives, copies
and files."""

from __future__ import annotations

import copy
import itertools
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.models import (
    CondTransformerRegressor,
    build_model,
    check_equivariance,
    eCondTransformerRegressor,
    eMLP,
    fold,
    parse_group,
    parse_representation,
    representation,
)
from fastgen.models.fourier import fourier_stack
from fastgen.models.norms import NORM_EPS, rms_norm
from support.exact import normal

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

WAYS = pytest.mark.parametrize("way", ["dense", "regular", "irrep"])


def network(way: str, **changes) -> nn.Module:
    torch.manual_seed(0)
    group = parse_group("D4")
    rep = parse_representation(group, ["standard"])
    options = {
        "num_layers": 1,
        "num_attention_heads": 2,
        "p_drop_emb": 0.0,
        "p_drop_attn": 0.0,
        **changes,
    }
    if way == "dense":
        return CondTransformerRegressor(2, 2, 2, 4, 3, embedding_dim=32, **options)
    return eCondTransformerRegressor(rep, rep, rep, 4, 3, embedding_dim=32, basis=way, **options)


def inputs(batch: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return (
        normal(batch, 4, 2).to(dtype),
        torch.linspace(0.1, 0.9, batch),
        normal(batch, 3, 2, seed=1).to(dtype),
    )


@WAYS
@pytest.mark.parametrize("batch", [0, 1])
def test_a_batch_may_be_empty(way, batch):
    y = network(way)(*inputs(batch))
    assert y.shape == (batch, 4, 2)
    y.sum().backward()


@WAYS
def test_without_memory_shapes_and_gradients_come_out_all_the_same(way):
    with torch.device("meta"):
        model = network(way)
    X, t, Z = (v.to("meta") for v in inputs())
    model(X, t, Z).sum().backward()
    assert all(p.grad is not None and p.grad.is_meta for p in model.parameters())


@WAYS
def test_forward_mode_derivatives_are_finite_differences(way):
    model, (X, t, Z) = network(way).double(), inputs(dtype=torch.float64)
    t = t.double()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(X, torch.ones_like(X))
            slope = torch.autograd.forward_ad.unpack_dual(model(dual, t, Z)).tangent
        difference = (model(X + 1e-6, t, Z) - model(X - 1e-6, t, Z)) / 2e-6
    assert torch.allclose(slope, difference, atol=1e-6)


def test_half_precision_takes_torchs_own_norm_to_the_bit():
    x, weight = normal(5, 16).bfloat16().requires_grad_(), normal(16).bfloat16()
    ours, theirs = rms_norm(x, weight), F.rms_norm(x, (16,), weight, NORM_EPS)
    assert torch.equal(ours, theirs)
    for a, b in zip(
        torch.autograd.grad(ours.sum(), x), torch.autograd.grad(theirs.sum(), x), strict=True
    ):
        assert torch.equal(a, b)


# ---- Copies and files ----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["regular", "irrep"])
def test_copies_share_the_constants_and_files_leave_the_groups_tables_out(way, distance):
    model = network(way)
    clone = copy.deepcopy(model)
    buffers = dict(model.named_buffers())
    assert buffers and all(
        value is dict(clone.named_buffers())[name] for name, value in buffers.items()
    )
    assert not any(a is b for a, b in zip(model.parameters(), clone.parameters(), strict=True))

    file = pickle.dumps(model)
    again = pickle.loads(file)
    assert torch.equal(again.eval()(*inputs()), model.eval()(*inputs()))
    tables = sum(
        b.numel() * b.element_size() for b in {id(b): b for b in buffers.values()}.values()
    )
    numbers = sum(p.numel() * p.element_size() for p in model.parameters())
    assert len(file) < 1.3 * numbers + 40_000 + tables / 4
    model.double()
    assert all(p.dtype == torch.float32 for p in clone.parameters())
    assert (
        distance(clone.double()(*inputs(dtype=torch.float64)), model(*inputs(dtype=torch.float64)))
        < 1e-14
    )


@pytest.mark.parametrize("way", ["regular", "irrep"])
def test_folding_leaves_the_random_state_alone(way):
    model = network(way)
    torch.manual_seed(4)
    state = torch.get_rng_state()
    fold(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_of_the_hidden_copies_obeys_its_own_mode():
    stack = fourier_stack(parse_group("D4"), 4)
    mlp = eMLP(stack, dropout=0.5).train()
    mlp.hidden_dropout.eval()
    mlp.out_dropout.eval()
    x = normal(3, 2, stack.size).float()
    assert torch.equal(mlp(x), mlp.eval()(x))


def test_tables_made_in_inference_mode_can_be_trained_with():
    group = parse_group("C11")  # of no other test: its tables are made here
    with torch.inference_mode():
        stack = fourier_stack(group, 2)
        mlp = eMLP(stack)
    mlp(torch.randn(3, stack.size, requires_grad=True)).sum().backward()


# ---- Matrices of a user's ------------------------------------------------------------------------


def test_the_pair_that_is_named_is_one_that_does_not_multiply():
    group = parse_group("D4")
    turn, mirror = (np.array(m, dtype=float) for m in ([[0, -1], [1, 0]], [[1, 0], [0, -1]]))
    swapped = {str(g): m for g, m in zip(group.generators, (mirror, turn), strict=True)}
    with pytest.raises(ValueError, match="got a product for the pair") as caught:
        representation(group, np.stack(list(swapped.values())))
    named = re.search(r"for the pair (.+) that is off", str(caught.value))
    assert named is not None
    elements = {str(g): g for g in group.elements}
    pairs = [(a, b) for a, b in itertools.product(elements, repeat=2) if f"{a}, {b}" == named[1]]
    assert (
        len(pairs) == 1 and pairs[0][0] in swapped
    )  # a generator, and an element that it was multiplied with


def signed_permutation(permutation: list[int], signs: list[int]) -> np.ndarray:
    return np.eye(len(permutation))[permutation] * np.array(signs)[:, None]


def test_joints_of_a_quadruped_are_permuted_and_change_sign(tmp_path):
    """C2xC2 of a robot with four legs of three joints: left-right and front-back mirrors swap legs;
    the first joint of a leg turns the other way under one, the others under the other."""
    legs = np.arange(12).reshape(4, 3)  # front left, front right, hind left, hind right
    across, along = legs[[1, 0, 3, 2]].ravel().tolist(), legs[[2, 3, 0, 1]].ravel().tolist()
    matrices = np.stack(
        [signed_permutation(across, [-1, 1, 1] * 4), signed_permutation(along, [1, -1, -1] * 4)]
    )
    np.savez(tmp_path / "joints.npz", matrices=matrices)
    config = {
        "class": "eCondTransformerRegressor",
        "group": "C2xC2",
        "in_rep": {"matrices": str(tmp_path / "joints.npz")},
        "cond_rep": [{"matrices": str(tmp_path / "joints.npz")}, "trivial"],
        "out_rep": None,
        "in_horizon": 4,
        "cond_horizon": 3,
        "num_layers": 1,
        "num_attention_heads": 2,
        "embedding_dim": 32,
    }
    for basis in ("regular", "irrep"):
        model = build_model({**config, "basis": basis}).double()
        assert max(check_equivariance(model).values()) < 1e-12  # pyright: ignore[reportArgumentType]
        got = np.stack([model.in_rep(g) for g in model.in_rep.group.generators])  # pyright: ignore[reportCallIssue]
        np.testing.assert_allclose(got, matrices, atol=1e-12)


@pytest.mark.parametrize(
    ("matrices", "words"),
    [
        ([[[1, 5j], [0, -1]]], "all of real numbers, got complex"),
        ([[[1, 0], [0]]], "all of real numbers"),
        (np.zeros((1, 0, 0)), r"got \(1, 0, 0\)"),
        (np.eye(2), r"got \(2, 2\)"),
    ],
)
def test_matrices_that_are_none_are_refused(matrices, words):
    with pytest.raises(ValueError, match=words):
        representation(parse_group("C2"), matrices)


def test_matrices_may_be_tensors_rounded_or_of_the_trivial_group():
    mirror = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.bfloat16)).requires_grad_()
    assert representation(parse_group("C2"), mirror[None]).size == 2
    assert representation(parse_group("C1"), np.zeros((0, 3, 3))).size == 3
    angle = 2 * np.pi / 100
    turn = np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], dtype=np.float32
    )
    assert representation(parse_group("C100"), turn[None]).size == 2


# ---- What training keeps -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("config", ["C4 D=128", "D4 D=128"])
def test_the_benchmarks_sizes_meet_their_bars(config, capsys):
    import bench_backbone

    result = bench_backbone.backbone([config], [1], 1, ["size"])
    rows = {row["name"].split(": ")[1]: row for row in result["rows"] if "regular" in row["name"]}
    for name in (
        "parameters / degrees of freedom",
        "saved for backward / dense, B=64",
        "state / degrees of freedom",
    ):
        assert rows[name]["met"], rows[name]
    assert "bars met" in capsys.readouterr().out and result["median seconds"]
