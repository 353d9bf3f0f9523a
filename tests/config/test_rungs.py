"""Rungs of a student: of one number of calls, and of several that share them."""

import pytest
import yaml

from fastgen.config import DistillConfig, DMDConfig, StudentConfig
from fastgen.config.files import dump_yaml, load_config
from fastgen.config.rungs import ANY_CALLS, default_rungs, parse_calls

SEVERAL = [(1, 2), (1, 2, 4), (2, 3), ANY_CALLS, (5, 7)]


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("calls", SEVERAL)
def test_each_of_several_numbers_has_the_rungs_it_would_have_alone(calls, shift):
    student = StudentConfig(steps=calls, t_list_shift=shift)
    assert student.steps == calls and tuple(student.t_lists) == calls
    for k, t_list in student.t_lists.items():
        alone = StudentConfig(steps=k, t_list_shift=shift).t_list
        assert t_list == pytest.approx(alone, rel=1e-15, abs=0) and len(t_list) == k + 1
        assert (t_list[0], t_list[-1]) == (student.t_max, 0.0)


@pytest.mark.parametrize(("t_max", "shift"), [(0.999, 1.0), (0.999, 3.0), (0.7, 1.0), (1.0, 0.5)])
@pytest.mark.parametrize("calls", SEVERAL)
def test_several_numbers_share_every_float_that_can_be_shared(calls, t_max, shift):
    """3/6, 2/4 and 1/2 are one rung: otherwise the network would learn times an ulp apart."""
    student = StudentConfig(steps=calls, t_max=t_max, t_list_shift=shift)
    parts = {(i * 840) // k for k in calls for i in range(1, k + 1)}
    assert len(student.t_list) == len(parts) + 1
    assert set(student.t_list) == {t for own in student.t_lists.values() for t in own}
    assert list(student.t_list) == sorted(student.t_list, reverse=True)


def test_the_fewest_calls_are_judged_by():
    assert StudentConfig(steps="any").judged == (0.999, 0.0)
    assert StudentConfig(steps=[4, 2]).judged == StudentConfig(steps=2).t_list
    assert StudentConfig(steps=4).judged == StudentConfig(steps=4).t_list
    assert DMDConfig(student_steps=[2, 3]).judged == default_rungs(2, 0.999, 1.0)


@pytest.mark.parametrize(
    ("value", "calls"),
    [
        (3, 3),
        (4.0, 4),
        ("4", 4),
        ([4], 4),
        ([4, 1, 2], (1, 2, 4)),
        ("any", ANY_CALLS),
        ((1, 1000 - 1), (1, 999)),
    ],
)
def test_calls_are_a_number_or_different_numbers(value, calls):
    assert parse_calls(value) == calls
    assert StudentConfig(steps=value).steps == DMDConfig(student_steps=value).student_steps == calls


@pytest.mark.parametrize(
    "value", [0, -1, 1001, 2.5, "all", "", None, [], [1, 1], [1, 0], [1, True], [[1]], [1.5], {}]
)
def test_other_calls_are_refused(value):
    with pytest.raises(ValueError, match="expected a number of calls in 1..1000, different ones"):
        parse_calls(value)
    with pytest.raises(ValueError, match="expected a number of calls in 1..1000, different ones"):
        StudentConfig(steps=value)


def test_what_several_numbers_exclude_is_refused():
    with pytest.raises(ValueError, match="that add up to at most 1000, got 1100"):
        StudentConfig(steps=[500, 600])
    with pytest.raises(ValueError, match="expected sample_type=sde with several numbers of calls"):
        StudentConfig(steps="any", sample_type="ode")
    with pytest.raises(ValueError, match="expected student_sample_type=sde with several numbers"):
        DMDConfig(student_steps=[1, 2], student_sample_type="ode")
    with pytest.raises(ValueError, match="expected no t_list beside several numbers of calls"):
        StudentConfig(steps=[1, 2], t_list=(0.9, 0.5, 0.0))
    of_one = {
        "rung_weights": [1.0, 1.0, 1.0],
        "first_rung": "regress",
        "vsd_guidance_from_rung": True,
    }
    for key, value in of_one.items():
        dmd = {key: value, "kd_weight": 1.0}
        with pytest.raises(ValueError, match=f"expected one number in student.steps with {key}"):
            DistillConfig.model_validate({"student": {"steps": [1, 3]}, "dmd": dmd})
        DistillConfig.model_validate({"student": {"steps": 3}, "dmd": dmd})


def test_a_shift_beyond_the_first_rung_that_all_share_is_refused():
    with pytest.raises(ValueError, match=r"all rungs below t_max=0.7, got 3.0, .* to 0.8258"):
        StudentConfig(steps=[1, 8], t_max=0.7, t_list_shift=3.0)


def test_several_numbers_come_back_from_a_file(tmp_path):
    cfg = DistillConfig.model_validate({"student": {"steps": "any", "t_max": 0.9}})
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(cfg))
    assert yaml.safe_load(file.read_text())["student"]["steps"] == list(ANY_CALLS)
    assert load_config(DistillConfig, file) == cfg
    assert load_config(DistillConfig, file).pipeline.t_lists == cfg.student.t_lists
    file.write_text("student: {steps: [1, 2, 3, 4, 6, 8], t_max: 0.9}")
    assert load_config(DistillConfig, file) == load_config(
        DistillConfig, file, ["student.steps=any"]
    )
