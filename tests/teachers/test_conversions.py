"""Conversions: called by keywords and kept as JSON; what can't be converted is refused."""

from __future__ import annotations

import json
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen.interpolants import BaseInterpolant, CosineInterpolant
from fastgen.teachers import KeywordNetwork, as_rectified_flow, describe_network, wrap_network
from support.converted import (
    COSINE_EPS,
    DECLARATIONS,
    LABELS,
    NAMES,
    NONSENSE,
    Bare,
    ByKeyword,
    T,
    X,
)


class Quadratic(BaseInterpolant):
    """A path of a user's own."""

    def _alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t * (1 + t) / 2, 0.5 + t

    def _sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t**2, -2 * t


@pytest.mark.parametrize(
    "answer",
    [
        lambda y: SimpleNamespace(sample=y),
        lambda y: {"sample": y},
        lambda y: OrderedDict(other=None, sample=y),
        lambda y: (y, None),
        lambda y: y,
    ],
    ids=["attribute", "key", "ordered", "tuple", "tensor"],
)
def test_a_network_of_keywords_is_called_by_position_whatever_it_answers_with(answer):
    network = KeywordNetwork(ByKeyword(answer), **NAMES)
    assert torch.equal(network(X, T, LABELS), Bare()(X, T, LABELS))
    assert torch.equal(network(X, T), Bare()(X, T)) and torch.equal(
        network(X, T, None), Bare()(X, T)
    )
    assert torch.equal(network(X, T, {"labels": LABELS, "scale": 2.0}), 2 * Bare()(X, T, LABELS))
    flow = as_rectified_flow(network, **COSINE_EPS)
    assert torch.equal(
        flow(X, 0.4, LABELS), as_rectified_flow(Bare(), **COSINE_EPS)(X, 0.4, LABELS)
    )


def test_the_names_are_those_of_transformers_of_diffusers_unless_said():
    class Transformer(nn.Module):
        def forward(
            self, hidden_states: Tensor, encoder_hidden_states: Tensor, timestep: Tensor
        ) -> Any:
            return SimpleNamespace(sample=hidden_states + encoder_hidden_states * timestep[:, None])

    assert torch.equal(KeywordNetwork(Transformer())(X, T, X), X + X * T[:, None])


def test_answers_and_names_that_hold_no_prediction_are_refused():
    for answer in (
        lambda y: SimpleNamespace(eps=y),
        lambda y: {"eps": y},
        lambda y: (),
        lambda y: [y],
    ):
        with pytest.raises(
            TypeError, match="expected an answer with a Tensor 'sample', got .*; say output="
        ):
            KeywordNetwork(ByKeyword(answer), **NAMES)(X, T)
    named = KeywordNetwork(
        ByKeyword(lambda y: SimpleNamespace(eps=y)), **{**NAMES, "output": "eps"}
    )
    assert torch.equal(named(X, T), Bare()(X, T))
    for name in ("", "a b", 3):
        with pytest.raises(ValueError, match="expected cond to be the name of an argument, got"):
            KeywordNetwork(Bare(), cond=name)  # pyright: ignore[reportArgumentType]


# ---- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [None, NAMES], ids=["positional", "keywords"])
@pytest.mark.parametrize("declaration", [None, *DECLARATIONS], ids=str)
def test_a_converted_network_comes_back_from_its_description_in_json(declaration, names):
    bare = Bare() if names is None else ByKeyword()
    network = bare if names is None else KeywordNetwork(bare, **names)
    network = network if declaration is None else as_rectified_flow(network, **declaration)
    inner, description = describe_network(network)
    assert inner is bare and (description is None) == (network is bare)
    description = json.loads(json.dumps(description, allow_nan=False))
    again = wrap_network(bare, description)
    assert type(again) is type(network) and describe_network(again) == (bare, description)
    assert torch.equal(again(X, T / 999, LABELS), network(X, T / 999, LABELS))
    assert wrap_network(network, description) is network


def test_a_path_of_ones_own_comes_back_from_the_converted_network_only():
    network = as_rectified_flow(Bare(), path=Quadratic(), prediction="x0")
    _, description = describe_network(network)
    assert wrap_network(network, description) is network
    with pytest.raises(
        ValueError, match=r"\(network, path=Quadratic\(\), ...\), got the bare network"
    ):
        wrap_network(Bare(), description)


def test_a_network_that_is_converted_otherwise_than_described_is_refused():
    _, description = describe_network(as_rectified_flow(Bare(), **COSINE_EPS))
    for other in (as_rectified_flow(Bare(), path="cosine", prediction="v"), KeywordNetwork(Bare())):
        with pytest.raises(
            ValueError, match="expected a network converted by .*; give the bare network"
        ):
            wrap_network(other, description)
        with pytest.raises(ValueError, match="expected a network converted by None"):
            wrap_network(other, None)


@pytest.mark.parametrize(("description", "message"), NONSENSE)
def test_descriptions_that_are_none_are_refused(description, message):
    with pytest.raises(ValueError, match=message):
        wrap_network(Bare(), description)


# ---- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"prediction": "noise"},
            "unknown prediction 'noise', expected one of: flow, velocity, eps, x0, v, score",
        ),
        (
            {"path": "ddpm"},
            "unknown path 'ddpm', expected one of: linear, cosine, vp, subvp, ve, edm, b",
        ),
        ({"data_at": 0.5}, "expected data_at to be 0 or 1, got 0.5"),
        (
            {"path": CosineInterpolant(), "nearest": True},
            "expected nearest=False for the path 'cosine', which has no",
        ),
        ({"path": [0.1, 0.2], "prediction": "velocity"}, "for a table of betas, got 'velocity'"),
        (
            {"path": [0.1, 0.2], "time_scale": 1000},
            r"expected no time_scale .* counts rows 0..1 already, got 1000;",
        ),
        *(
            ({"time_scale": value}, "expected time_scale > 0, got")
            for value in (0, -1.0, float("inf"), True, "1")
        ),
    ],
)
def test_declarations_that_contradict_themselves_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        as_rectified_flow(Bare(), **arguments)


def test_what_cannot_be_converted_is_refused():
    with pytest.raises(ValueError, match="got one that as_rectified_flow has converted already"):
        as_rectified_flow(as_rectified_flow(Bare(), **COSINE_EPS))
    with pytest.raises(
        TypeError, match=r"expected network as a module or a function of \(x, t, cond\), got str"
    ):
        as_rectified_flow("network")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="expected path as one of"):
        as_rectified_flow(Bare(), path=3)
    network = as_rectified_flow(Bare(), **COSINE_EPS)
    for t, error, message in (
        (1.5, ValueError, "expected t in"),
        (T.bfloat16(), TypeError, "float32/float64 tensor"),
    ):
        for call in (network, network.predict_x0):
            with pytest.raises(error, match=message):
                call(X, t)
