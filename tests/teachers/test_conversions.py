"""Converted networks at work: called by keywords, kept as JSON, distilled and exported; what can't
be converted is refused."""

from __future__ import annotations

import json
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen.config import DMDConfig
from fastgen.data.mixtures import GaussianMixture
from fastgen.dmd import DMDPipeline, create_fake_score
from fastgen.export import export_student, load_student, schema
from fastgen.guidance import Guidance
from fastgen.interpolants import BaseInterpolant, CosineInterpolant
from fastgen.models.etransformer import eCondTransformerRegressor
from fastgen.models.specs import parse_group, parse_representation
from fastgen.models.transformer import CondTransformerRegressor
from fastgen.networks import NetworkWrapper
from fastgen.samplers import sample_student, teacher_velocity
from fastgen.teachers import (
    KeywordNetwork,
    as_rectified_flow,
    check_prediction,
    describe_network,
    loss_space,
    translated,
    wrap_network,
)
from fastgen.teachers.clocks import beta_table
from fastgen.teachers.guided import GuidedNetwork
from fastgen.teachers.half import Bfloat16Network
from support.exact import GaussianTeacher, normal
from support.exact_mixture import ExactTeacher
from support.rounding import MULTIPLE, sway

F64 = torch.float64
COSINE_EPS: dict[str, Any] = {
    "path": "cosine",
    "prediction": "eps",
    "data_at": 1,
    "time_scale": 1000.0,
}
NAMES = {"x": "sample", "t": "timestep", "cond": "labels", "output": "sample"}
DECLARATIONS: list[dict[str, Any]] = [
    {},
    COSINE_EPS,
    {"path": {"name": "vp", "sigma_min": 0.2, "sigma_max": 9.0}, "prediction": "score"},
    {"path": "edm", "prediction": "x0"},
    {"path": {"name": "betas", "betas": [0.25, 0.5, 1.0]}, "prediction": "v", "nearest": True},
]


class Bare(nn.Module):
    """A small network of a user's own, on vectors (B, 3) and labels (B,) or nothing."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(4, 3, dtype=dtype)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        y = self.map(torch.cat([x, t.to(x.dtype)[:, None] / 1000], 1))
        return y if cond is None else y + 0.1 * cond[:, None]


class ByKeyword(Bare):
    """The same, as diffusers would have it."""

    def __init__(self, answer: Any = None) -> None:
        super().__init__()
        self.answer = answer or (lambda y: SimpleNamespace(sample=y))

    def forward(
        self, *, sample: Tensor, timestep: Tensor, labels: Tensor | None = None, scale: float = 1.0
    ) -> Any:
        return self.answer(scale * super().forward(sample, timestep, labels))


class Quadratic(BaseInterpolant):
    """A path of a user's own."""

    def _alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t * (1 + t) / 2, 0.5 + t

    def _sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t**2, -2 * t


# ---- Keywords ------------------------------------------------------------------------------------

X = normal(5, 3, dtype=torch.float32)
T = torch.linspace(0, 999, 5)
LABELS = torch.arange(5)


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
    for name in ("", "a b", None):
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


def flow(**changes: Any) -> dict[str, Any]:
    path = {"name": "cosine"}
    return {"rectified_flow": {"path": path, "prediction": "eps", **changes}, "keywords": None}


NONSENSE = [
    ({}, r"expected rectified_flow and keywords, got \[\]"),
    ({**flow(), "more": 1}, "expected rectified_flow and keywords, got "),
    (
        {"rectified_flow": 3, "keywords": None},
        "expected the arguments of as_rectified_flow and KeywordNetwork",
    ),
    (
        {"rectified_flow": None, "keywords": [1]},
        "expected the arguments of as_rectified_flow and KeywordNetwork",
    ),
    (
        {"rectified_flow": None, "keywords": {"y": "x"}},
        "expected the arguments of as_rectified_flow",
    ),
    (flow(path="cosine"), "expected the arguments of as_rectified_flow"),
    (flow(path={"name": "cubic"}), "unknown path 'cubic'"),
    (
        flow(path={"name": "custom", "class": "Own"}),
        r"expected as_rectified_flow\(network, path=Own\(\), ...\)",
    ),
    (flow(prediction="noise"), "unknown prediction 'noise'"),
    (flow(time_scale=-1.0), "expected time_scale > 0, got -1.0"),
    (flow(data_at="end"), "expected data_at to be 0 or 1, got 'end'"),
    (flow(clock=1), "unexpected keyword argument 'clock'"),
]


@pytest.mark.parametrize(("description", "message"), NONSENSE)
def test_descriptions_that_are_none_are_refused(description, message):
    with pytest.raises(ValueError, match=message):
        wrap_network(Bare(), description)


# ---- Distillation --------------------------------------------------------------------------------


def test_the_loss_of_a_converted_network_lives_where_it_was_trained():
    spaces = {
        "flow": "flow",
        "velocity": "flow",
        "v": "flow",
        "eps": "eps",
        "score": "eps",
        "x0": "x0",
    }
    for prediction, space in spaces.items():
        assert loss_space(as_rectified_flow(Bare(), prediction=prediction)) == space
    assert loss_space(Bare()) is None and loss_space(KeywordNetwork(Bare())) is None


def test_a_conversion_is_known_whatever_a_run_has_put_around_it():
    named = KeywordNetwork(ByKeyword(), **NAMES)
    flow = as_rectified_flow(named, **COSINE_EPS)
    for network, conversion in ((Bare(), None), (named, named), (flow, flow)):
        guided = GuidedNetwork(Bfloat16Network(network), Guidance(2.0), LABELS[:1])
        for around in (network, guided, nn.DataParallel(guided)):
            assert translated(around) is (network if conversion is None else conversion)
            assert loss_space(around) == ("eps" if conversion is flow else None)
            if conversion is not flow:
                check_prediction(around, "x0")
                continue
            with pytest.raises(ValueError, match="expected pred_type='flow', got 'x0'"):
                check_prediction(around, "x0")
            with pytest.raises(ValueError, match="converted already"):
                as_rectified_flow(around)


def test_a_wrapper_of_ones_own_is_a_part_of_the_network():
    class Scaled(NetworkWrapper):
        def forward(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
            return 2.0 * self.network(x_t, t, cond)

    own = Scaled(Bare())
    fake_score = create_fake_score(Bfloat16Network(own), num_rungs=2)
    assert isinstance(translated(fake_score), Scaled)
    assert translated(GuidedNetwork(own, Guidance(2.0), LABELS[:1])) is own


def test_a_fake_score_that_predicts_noise_is_measured_by_its_noise():
    """With a network that answers 0 everywhere, E |0 - eps|^2 = 1; a flow would be measured up to
    1e6-fold."""
    network = Bare(F64).requires_grad_(False)
    network.map.weight.zero_()
    network.map.bias.zero_()
    teacher = as_rectified_flow(network, **COSINE_EPS)
    losses = {}
    for space in (None, "eps", "flow"):
        config = DMDConfig(fake_score_pred_type=space, t_list=(0.5, 0.0))
        method = DMDPipeline(teacher, teacher, create_fake_score(teacher), config)
        seed = torch.Generator().manual_seed(0)
        losses[space] = method.compute_fake_score_loss(None, normal(2000, 3), generator=seed)[
            "total"
        ].item()
    assert (
        losses[None] == losses["eps"] == pytest.approx(1, abs=4 * (2 / 6000) ** 0.5)
        and losses["flow"] > 100
    )


@pytest.mark.parametrize("pred_type", ["x0", "eps"])
def test_a_converted_network_answers_nothing_but_the_flow(pred_type):
    network = as_rectified_flow(Bare(), **COSINE_EPS)
    plain = Bare()
    message = rf"expected pred_type='flow', got '{pred_type}': .*\(prediction='eps'\)"
    for networks in ((network, plain, plain), (plain, network, plain), (plain, plain, network)):
        with pytest.raises(ValueError, match=message):
            DMDPipeline(*networks, DMDConfig(pred_type=pred_type, t_list=(0.9, 0.0)))
    check_prediction(plain, pred_type)
    check_prediction(network, "flow")


@pytest.mark.parametrize(
    "declaration",
    [
        {"path": "vp", "prediction": "score"},
        COSINE_EPS,
        {"path": beta_table("squared_cosine"), "prediction": "v"},
    ],
    ids=["vp", "cosine", "betas"],
)
def test_a_converted_teacher_gives_the_vsd_loss_of_the_native_one(declaration):
    law = GaussianMixture(normal(4, 3), stds=0.3)
    converted = as_rectified_flow(ExactTeacher(law, **declaration), **declaration)
    losses = []
    for teacher in (ExactTeacher(law), converted):
        method = DMDPipeline(Bare(F64), teacher, GaussianTeacher(), DMDConfig(student_steps=2))
        seed = torch.Generator().manual_seed(0)
        losses.append(method.compute_student_loss(None, normal(64, 3), generator=seed)["vsd"])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-9, atol=0)


def test_guidance_of_a_converted_teacher_is_that_of_the_native_one():
    law = GaussianMixture(normal(4, 3), stds=0.3)
    c = normal(16, 3, seed=2)
    u = normal(16, 3, seed=3)
    x_t = normal(16, 3, seed=4)
    noise = normal(16, 3)
    converted = as_rectified_flow(ExactTeacher(law, **COSINE_EPS), **COSINE_EPS)
    guided = (
        teacher_velocity(GuidedNetwork(net, Guidance(2.5), u), c, dtype=F64)(x_t, 0.6)
        for net in (converted, ExactTeacher(law))
    )
    torch.testing.assert_close(next(guided), next(guided), rtol=0, atol=1e-11)
    losses = []
    for teacher in (ExactTeacher(law), converted):
        method = DMDPipeline(Bare(F64), teacher, ExactTeacher(law), DMDConfig(guidance_scale=2.5))
        method.student.forward = lambda x, t, cond: 0.5 * x  # the condition here is a vector
        seed = torch.Generator().manual_seed(0)
        losses.append(
            method.compute_student_loss(None, noise, c, negative_cond=u, generator=seed)["vsd"]
        )
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-9, atol=0)


# ---- Export --------------------------------------------------------------------------------------

T_LIST = [0.5, 0.25, 0.0]


@pytest.mark.parametrize("declaration", DECLARATIONS, ids=str)
def test_a_converted_student_comes_back_bit_for_bit_around_the_bare_network(tmp_path, declaration):
    network = as_rectified_flow(Bare(), **declaration)
    export_student(tmp_path / "s", network, t_list=T_LIST, sample_type="sde", horizon=[3])
    noise = normal(5, 3, dtype=torch.float32)
    seed = torch.Generator().manual_seed
    expected: Any = sample_student(
        network, noise, T_LIST, LABELS, sample_type="sde", generator=seed(1)
    )
    for given in (Bare(), as_rectified_flow(Bare(), **declaration)):
        student = load_student(tmp_path / "s", network=given)
        assert torch.equal(student.sample(LABELS, noise=noise, generator=seed(1)), expected)
    with pytest.raises(ValueError, match="parameterization: expected a network converted by"):
        load_student(
            tmp_path / "s", network=as_rectified_flow(Bare(), path="cosine", prediction="v")
        )


@pytest.mark.kernels
def test_an_equivariant_network_keeps_its_symmetry_through_conversion_and_is_folded_at_export(
    tmp_path,
):
    torch.manual_seed(0)
    group = parse_group("D4")
    rep = parse_representation(group, ["standard"])
    inside = eCondTransformerRegressor(rep, rep, rep, 3, 1, 1, 2, 16).eval()
    network = as_rectified_flow(inside, **{**COSINE_EPS, "time_scale": 1.0})
    x = normal(6, 3, 2, dtype=torch.float32)
    z = normal(6, 1, 2, seed=1, dtype=torch.float32)
    flow = network(x, 0.7, z)
    allowed = MULTIPLE * sway(lambda x, z: network(x, 0.7, z), network, x, z)
    for element in group.elements:
        turn = torch.as_tensor(rep(element), dtype=torch.float32)
        error = network(x @ turn.T, 0.7, z @ turn.T) - flow @ turn.T
        assert error.norm() <= allowed * flow.norm()
    export_student(tmp_path / "s", network, t_list=T_LIST)
    student = load_student(tmp_path / "s")
    assert (
        student.config["group"] == "D4"
        and student.config["network"]["class"] == "CondTransformerRegressor"
    )
    expected: Any = sample_student(network, x, T_LIST, z)
    allowed = MULTIPLE * sway(lambda x, z: sample_student(network, x, T_LIST, z), network, x, z)
    assert (student.sample(z, noise=x) - expected).norm() <= allowed * expected.norm()


def test_a_built_in_network_that_was_converted_needs_no_network_to_load(tmp_path):
    torch.manual_seed(0)
    inside = CondTransformerRegressor(
        2, 2, 2, 3, 1, num_layers=1, num_attention_heads=2, embedding_dim=8
    ).eval()
    network = as_rectified_flow(inside, **{**COSINE_EPS, "time_scale": 1.0})
    export_student(tmp_path / "s", network, t_list=T_LIST)
    noise = normal(4, 3, 2, dtype=torch.float32)
    cond = normal(4, 1, 2, seed=1, dtype=torch.float32)
    x: Any = load_student(tmp_path / "s").sample(cond, noise=noise)
    expected: Any = [sample_student(net, noise, T_LIST, cond) for net in (network, inside)]
    assert torch.equal(x, expected[0]) and not torch.equal(x, expected[1])


@pytest.mark.parametrize(
    ("parameterization", "message"),
    [
        *NONSENSE,
        ("cosine", "expected parameterization as an object or null, got parameterization='cosine'"),
    ],
)
def test_a_parameterization_that_makes_no_sense_is_refused_in_one_line(
    tmp_path, parameterization, message
):
    export_student(
        tmp_path / "s", as_rectified_flow(Bare(), **COSINE_EPS), t_list=T_LIST, horizon=[3]
    )
    config = json.loads((tmp_path / "s" / "config.json").read_text())
    schema.write_config(
        tmp_path / "s", {**config, "parameterization": parameterization}
    )  # the checksum agrees
    with pytest.raises(ValueError, match=message) as caught:
        load_student(tmp_path / "s", network=Bare())
    assert "\n" not in str(caught.value) and str(tmp_path / "s") in str(caught.value)


# ---- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"prediction": "noise"},
            "unknown prediction 'noise', expected one of: flow, velocity, eps, x0, v, score",
        ),
        ({"path": "ddpm"}, "unknown path 'ddpm', expected one of: linear, cosine, vp, edm, betas"),
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
