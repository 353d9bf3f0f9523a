"""Converted networks at work: distilled and exported."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen.config import DMDConfig
from fastgen.data.mixtures import GaussianMixture
from fastgen.dmd import DMDPipeline, create_fake_score
from fastgen.export import export_student, load_student, schema
from fastgen.guidance import Guidance
from fastgen.models.etransformer import eCondTransformerRegressor
from fastgen.models.specs import parse_group, parse_representation
from fastgen.models.transformer import CondTransformerRegressor
from fastgen.networks import NetworkWrapper
from fastgen.samplers import sample_student, teacher_velocity
from fastgen.teachers import (
    KeywordNetwork,
    as_rectified_flow,
    check_prediction,
    loss_space,
    translated,
)
from fastgen.teachers.clocks import beta_table
from fastgen.teachers.guided import GuidedNetwork
from fastgen.teachers.half import Bfloat16Network
from support.converted import COSINE_EPS, DECLARATIONS, LABELS, NAMES, NONSENSE, Bare, ByKeyword
from support.exact import GaussianTeacher, normal
from support.exact_mixture import ExactTeacher
from support.rounding import MULTIPLE, sway

F64 = torch.float64


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
