"""Laws that users can ask of their networks: right networks obey them, and each kind of broken one
is told what is wrong."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fastgen.export import export_student, load_student
from fastgen.models import fold
from fastgen.normalizer import Normalizer
from fastgen.teachers import as_rectified_flow
from fastgen.testing import assert_equivariant, check_distills
from support.exact import normal
from support.networks import dense, equivariant
from support.toy import LabelTeacher, PointTeacher, ToyTask, ToyTeacher

TURNED = Normalizer([0.0, 0.0], [[2.0, 0.0], [0.0, 2.0]])


# ---- Symmetry ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("group", ["C2", "D4"])
def test_an_equivariant_network_is_one_in_every_dtype(group, dtype):
    assert_equivariant(equivariant(group).to(dtype))


def test_a_poked_weight_is_seen_and_the_worst_element_named():
    model = equivariant()
    twin = fold(model)
    twin.in_rep = model.in_rep
    twin.cond_rep = model.cond_rep
    twin.out_rep = model.out_rep
    assert_equivariant(twin)
    with torch.no_grad():
        next(p for p in twin.parameters() if p.ndim == 2)[0, 0] += 0.1
    with pytest.raises(AssertionError, match=r"at most 1e-05 under every .* of 8$"):
        assert_equivariant(twin)
    assert_equivariant(twin, tolerance=10.0)


def test_an_error_that_is_no_number_is_an_error():
    model = equivariant()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(AssertionError, match="got nan"):
        assert_equivariant(model)


def student(tmp_path, network: nn.Module, **changes):
    options = {"t_list": [0.999, 0.5, 0.0], "sample_type": "sde", "pack": 2, "x_normalizer": TURNED}
    export_student(tmp_path / "s", network, **{**options, **changes})
    return load_student(tmp_path / "s")


def test_a_loaded_student_has_the_symmetry_of_its_network(tmp_path):
    loaded = student(tmp_path, equivariant(pack=2))
    assert_equivariant(loaded)
    assert loaded.sample_type == "sde"
    with torch.no_grad():
        loaded.network.head.weight[0, 0] += 0.1
    with pytest.raises(AssertionError, match="relative error"):
        assert_equivariant(loaded)


def test_a_student_in_units_that_the_group_does_not_respect_is_not_equivariant(tmp_path):
    squeezed = Normalizer([0.0, 0.0], [[2.0, 0.0], [0.0, 1.0]])
    with pytest.raises(AssertionError, match="relative error"):
        assert_equivariant(student(tmp_path, equivariant(pack=2), x_normalizer=squeezed))


def test_representations_are_given_where_they_cannot_be_known(tmp_path):
    loaded = student(tmp_path, equivariant("C2", pack=2))
    with pytest.raises(ValueError, match=r"expected in_rep for 2 channels, got none; give in_rep"):
        assert_equivariant(loaded)
    acting = {"in_rep": ["trivial", "sign"], "cond_rep": ["trivial", "sign"]}
    assert_equivariant(loaded, **acting)
    with pytest.raises(AssertionError):
        assert_equivariant(loaded, **acting | {"in_rep": ["sign", "trivial"]})
    with pytest.raises(ValueError, match="expected cond_rep of size 2, .* got 3"):
        assert_equivariant(loaded, **acting | {"cond_rep": ["trivial", "sign", "sign"]})
    with pytest.raises(ValueError, match="expected no in_rep and cond_rep for a module"):
        assert_equivariant(equivariant(), in_rep=["standard"])


def test_what_has_no_symmetry_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a student with a group in its config"):
        assert_equivariant(student(tmp_path, dense()))
    with pytest.raises(TypeError, match="expected an equivariant regressor, got Linear without"):
        assert_equivariant(nn.Linear(2, 2))


# ---- Distillation --------------------------------------------------------------------------------

X0, COND = ToyTask().train.network_inputs()
X0 = X0[:6]
COND = COND[:6]
LABELS = torch.arange(6) % 3


@pytest.mark.parametrize(
    ("network", "x0", "cond", "pred_type"),
    [
        (ToyTeacher(), X0, COND, "flow"),
        (ToyTeacher(), X0, COND, "x0"),
        (ToyTeacher(), X0, COND, "eps"),
        (PointTeacher(), normal(6, 2).float(), None, "flow"),
        (LabelTeacher(), normal(6, 4, 4, 4).float(), LABELS, "flow"),
        (dense(), normal(6, 3, 4).float(), normal(6, 2, 2).float(), "flow"),
        (equivariant(pack=1), normal(6, 3, 2).float(), normal(6, 2, 2).float(), "flow"),
        (ToyTeacher().double(), X0.double(), COND.double(), "flow"),
        (as_rectified_flow(ToyTeacher(), path="vp", prediction="eps"), X0, COND, "flow"),
    ],
    ids=["flow", "x0", "eps", "points", "labels", "dense", "equivariant", "float64", "converted"],
)
def test_a_network_that_can_be_distilled_passes_and_stays_as_it_was(network, x0, cond, pred_type):
    before = copy.deepcopy(network.state_dict())
    mode = network.training
    state = torch.get_rng_state()
    check_distills(network, x0, cond, pred_type=pred_type)
    assert torch.equal(torch.get_rng_state(), state) and network.training == mode
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


class Broken(ToyTeacher):
    """A toy's teacher with another linear map beside its own, and one fault."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.other = nn.Linear(4, 4)

    def __deepcopy__(self, memo):
        if self.fault == "no copy":
            raise RuntimeError("cannot be copied")
        if self.fault == "the same copy":
            return self
        clone = Broken(self.fault)
        clone.load_state_dict(self.state_dict())
        return clone

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        answer = super().forward(x_t, t, cond)
        other = self.other(x_t)
        match self.fault:
            case "an idle part":
                other = torch.zeros_like(answer)
            case "a detached part":
                other = other.detach()
            case "another shape":
                return answer[:, :1]
            case "no tensor":
                return {"sample": answer}
            case "not finite":
                return answer / 0.0
            case "a root of zero":
                other = (other - other).abs().sqrt()
            case "a rounded answer":
                return (answer + other).round()
            case "three arguments":
                raise TypeError("forward() got an unexpected argument")
        return answer + other


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("no copy", "copying the network failed: RuntimeError: cannot be copied"),
        ("the same copy", "to have parameters of its own, got 4 that it shares"),
        ("three arguments", r"calling network\(x_t, t, cond\) failed: TypeError: forward"),
        ("another shape", r"in the shape of x_t, \(6, 2, 4\), got \(6, 1, 4\)"),
        ("no tensor", "in the shape of x_t, .* got dict"),
        ("not finite", "to answer finite numbers"),
        (
            "an idle part",
            r"a gradient of KD in every parameter, got none in other.bias, other.weig",
        ),
        ("a detached part", r"a gradient of KD in every parameter, got none in other"),
        ("a root of zero", r"expected finite gradients of KD, got NaN or inf in"),
        ("a rounded answer", "a gradient of KD that is not 0 everywhere"),
    ],
)
def test_a_network_that_cannot_is_told_what_failed(fault, said):
    with pytest.raises(ValueError, match=said):
        check_distills(Broken(fault), X0, COND)


def test_parts_that_are_meant_to_be_idle_are_frozen():
    network = Broken("an idle part")
    network.other.requires_grad_(False)
    check_distills(network, X0, COND)


class Forgetful(ToyTeacher):
    """Scales its answer by a number that its state does not hold."""

    scale = 1.0

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        self.scale = self.scale * 1.01
        return self.scale * super().forward(x_t, t, cond)


def test_a_network_whose_state_is_not_all_of_it_does_not_come_back_from_an_export():
    with pytest.raises(ValueError, match="expected the loaded student to sample as the network"):
        check_distills(Forgetful(), X0, COND)


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match=r"expected x0 of shape \(B, ...\) with B >= 2"):
        check_distills(ToyTeacher(), X0[:1], COND[:1])
    with pytest.raises(ValueError, match="on the CPU"):
        check_distills(ToyTeacher().to("meta"), X0, COND)
    with pytest.raises(ValueError, match="pred_type"):
        check_distills(ToyTeacher(), X0, COND, pred_type="v")
