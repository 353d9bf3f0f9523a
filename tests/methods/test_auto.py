"""`method: auto` decides by what was measured, and never over a key that the config sets."""

from __future__ import annotations

import pytest

from fastgen.config import DistillConfig
from fastgen.methods.auto import Findings, decide

GOOD = Findings(
    score="energy_ratio",
    teacher=1.1,
    data=1.09,
    dependence=None,
    guidance=None,
    conditional=True,
    heads=True,
    parts=1,
)


def auto(**keys) -> DistillConfig:
    return DistillConfig.model_validate({"method": "auto", **keys})


def test_a_good_teacher_is_matched_after_kd_as_configured():
    cfg = auto(dmd={"vsd_norm": "rms"}, train={"steps": 7})
    decided, why = decide(cfg, GOOD)
    assert decided == cfg.model_copy(update={"method": "dmd2"})
    assert "1.1" in why and "1.09" in why and "DMD2" in why


@pytest.mark.parametrize(
    ("found", "says"),
    [(GOOD._replace(dependence=0.97), "no score"), (GOOD._replace(guidance=2.5), "2.5")],
)
def test_what_is_no_score_is_not_matched(found, says):
    decided, why = decide(auto(), found)
    assert decided.method == "kd"
    assert says in why


def test_guidance_of_scale_one_is_none():
    assert decide(auto(), GOOD._replace(guidance=1.0))[0].method == "dmd2"


@pytest.mark.parametrize(
    ("score", "teacher", "data", "weak"),
    [
        ("energy_ratio", 1.36, 1.09, False),
        ("energy_ratio", 1.37, 1.09, True),
        ("energy_ratio", 1e9, None, False),  # nothing to compare with
        ("energy_ratio", None, 1.09, False),
        ("energy_ratio", 5.0, 0.0, False),
        ("energy_distance", 0.016, -0.00003, True),
        ("energy_distance", 0.0006, -0.00003, False),
    ],
)
def test_a_teacher_is_weak_by_more_than_a_sample_can_tell(score, teacher, data, weak):
    found = GOOD._replace(score=score, teacher=teacher, data=data)
    assert found.weak == weak
    assert (decide(auto(), found)[0].dmd.real_data_weight > 0) == weak


@pytest.mark.parametrize("dependence", [None, 0.97])
@pytest.mark.parametrize(
    ("conditional", "heads", "gan", "kernel"),
    [
        (True, True, 1.0, "energy"),
        (True, False, 0.0, "energy"),
        (False, True, 0.0, "mmd"),
    ],
)
def test_a_weak_teacher_is_replaced_by_data(dependence, conditional, heads, gan, kernel):
    found = GOOD._replace(teacher=5.0, dependence=dependence, conditional=conditional, heads=heads)
    decided, why = decide(auto(), found)
    assert decided.method == "dmd2" and "weak" in why
    assert decided.dmd.vsd_weight == 0.0
    assert decided.dmd.real_data_weight == 1.0
    assert decided.dmd.gan_loss_weight_gen == gan
    assert decided.dmd.real_data_kernel == kernel
    assert decided.dmd.real_data_conditional == conditional


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_groups_of_a_kernel_distance_fit_into_a_micro_batch(parts):
    found = GOOD._replace(teacher=5.0, conditional=False, parts=parts)
    decided, _ = decide(auto(), found)
    assert decided.train.batch_size // parts % decided.dmd.real_data_samples == 0


def test_a_key_that_is_set_stays():
    cfg = auto(
        dmd={"vsd_weight": 0.5, "vsd_norm": "rms"},
        train={"steps": 70, "kd_steps": 9},
        student={"ema": {"decay": 0.9}},
    )
    decided, _ = decide(cfg, GOOD._replace(teacher=5.0))
    assert decided.dmd.vsd_weight == 0.5
    assert decided.dmd.vsd_norm == "rms"
    assert (decided.train.steps, decided.train.kd_steps) == (70, 9)
    assert decided.student.ema is not None and decided.student.ema.decay == 0.9
    assert decided.dmd.real_data_weight == 1.0
