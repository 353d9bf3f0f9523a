"""Old spellings of a config's keys: they mean what the new ones do, say so, and contradict
nothing."""

import warnings

import pytest
import torch
import yaml

from fastgen.config import (
    DistillConfig,
    DMDConfig,
    EMAConfig,
    MatchingConfig,
    SampleTimestepConfig,
    StudentConfig,
)
from fastgen.config.base import OldSpelling
from fastgen.config.files import dump_yaml, load_config
from fastgen.jobs.checks import with_method
from fastgen.jobs.command_line import parse_command_line, user_errors

# Old key, its value, the new key.
MOVED = [
    ("student_steps", 4, "steps"),
    ("t_list", [0.9, 0.5, 0.0], "t_list"),
    ("t_list_shift", 3.0, "t_list_shift"),
    ("t_max", 0.9, "t_max"),
    ("pred_type", "x0", "pred_type"),
    ("student_sample_type", "ode", "sample_type"),
    ("ema", {"decay": 0.5}, "ema"),
    ("ema", None, "ema"),
]


def dumped(values: dict) -> dict:
    return DistillConfig.model_validate(values).model_dump()


@pytest.mark.parametrize(("old", "value", "new"), MOVED)
def test_an_old_spelling_means_what_the_new_one_does(tmp_path, old, value, new):
    expected = DistillConfig.model_validate({"student": {new: value}})
    with pytest.warns(OldSpelling, match=rf"dmd\.{old} is now student\.{new};"):
        found = DistillConfig.model_validate({"dmd": {old: value}})
    assert found == expected
    assert found.student.model_fields_set == expected.student.model_fields_set
    file = tmp_path / "config.yaml"
    file.write_text("seed: 0\n")
    text = yaml.safe_dump(value, default_flow_style=True).splitlines()[0]
    with pytest.warns(OldSpelling):
        assert load_config(DistillConfig, file, [f"dmd.{old}={text}"]) == expected
    with pytest.warns(OldSpelling):
        assert DistillConfig(dmd=DMDConfig(**{old: value})) == expected


@pytest.mark.parametrize("law", ["vsd_t", "fake_score_t", "gan_t"])
def test_a_law_of_time_in_a_config_has_no_rungs(law):
    """`t_list` was never used; files that 0.1.0 wrote have it."""
    plain = DistillConfig()
    assert "t_list" not in plain.model_dump()["dmd"][law]
    values = plain.model_dump()
    values["dmd"][law]["t_list"] = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert DistillConfig.model_validate(values) == plain
    values["dmd"][law]["t_list"] = [0.9, 0.0]
    with pytest.warns(OldSpelling, match="t_list of a law of time was never used"):
        assert DistillConfig.model_validate(values) == plain
    given = SampleTimestepConfig(min_t=0.1, max_t=0.5, t_list=(0.9, 0.0))
    assert getattr(DMDConfig(**{law: given}), law) == given


def test_all_of_a_config_is_said_in_one_warning():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        DistillConfig.model_validate({"dmd": {"student_steps": 4, "ema": None, "vsd_norm": "rms"}})
    assert [str(warning.message) for warning in said] == [
        "dmd.student_steps is now student.steps, dmd.ema is now student.ema; "
        "the old spelling goes with the next release"
    ]


def test_what_is_spelled_anew_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DistillConfig()
        DistillConfig(dmd=DMDConfig(), student=StudentConfig(steps=2))
        cfg = DistillConfig.model_validate({"student": {"steps": 2}, "dmd": {"vsd_norm": "rms"}})
        DistillConfig.model_validate(yaml.safe_load(dump_yaml(cfg)))
    assert type(DistillConfig(dmd=DMDConfig(vsd_norm="rms")).dmd) is MatchingConfig


@pytest.mark.filterwarnings("ignore::fastgen.config.base.OldSpelling")
def test_two_spellings_must_say_one_thing():
    for student in ({"steps": 2}, StudentConfig(steps=2)):
        assert dumped({"student": student, "dmd": {"student_steps": 2}}) == dumped(
            {"student": {"steps": 2}}
        )
        with pytest.raises(ValueError, match=r"student\.steps or dmd\.student_steps, .* 2 and 4"):
            dumped({"student": student, "dmd": {"student_steps": 4}})
    rungs = {"t_list": (0.75, 0.5, 0.0)}
    for other in ([0.75, 0.5, 0.0], torch.tensor([0.75, 0.5, 0.0])):
        assert dumped({"student": rungs, "dmd": {"t_list": other}}) == dumped({"student": rungs})
    with pytest.raises(ValueError, match=r"steps == len\(t_list\) - 1 = 2, got steps=4"):
        dumped({"student": rungs, "dmd": {"student_steps": 4}})


def test_a_pipeline_has_the_keys_of_the_student_and_of_the_losses():
    asked = {"student_sample_type": "ode", "pred_type": "x0", "ema": EMAConfig(decay=0.5)}
    losses = {"vsd_norm": "rms", "rung_weights": (1.0, 2.0)}
    cfg = DistillConfig(
        student=StudentConfig(
            steps=2, t_max=0.9, sample_type="ode", pred_type="x0", ema=EMAConfig(decay=0.5)
        ),
        dmd=MatchingConfig(**losses),
    )
    assert cfg.pipeline == DMDConfig(student_steps=2, t_max=0.9, **asked, **losses)


@pytest.mark.parametrize(
    ("student", "dmd", "said"),
    [
        ({"steps": 3}, {"rung_weights": [1, 2]}, "dmd: expected one of rung_weights for each of"),
        (
            {"steps": 2},
            {"real_data_weight": 1, "backward_simulation": False},
            "dmd: expected backward_simulation=true",
        ),
        ({"pred_type": "eps", "t_max": 1.0}, {}, r"student.*expected t_list\[0\] < 1"),
    ],
)
def test_losses_that_contradict_the_student_are_refused(student, dmd, said):
    with pytest.raises(ValueError, match=f"(?s){said}"):
        DistillConfig.model_validate({"student": student, "dmd": dmd})


def test_a_recipe_says_it_in_one_line(tmp_path, capsys):
    file = tmp_path / "config.yaml"
    file.write_text("dmd: {student_steps: 4}\n")
    with user_errors():
        parse_command_line(DistillConfig, default=file, doc="", argv=[])
    assert capsys.readouterr().err.splitlines() == [
        "note: dmd.student_steps is now student.steps; the old spelling goes with the next release"
    ]


@pytest.mark.filterwarnings("ignore::fastgen.config.base.OldSpelling")
@pytest.mark.parametrize("whole", [True, False])
def test_a_copy_with_the_students_keys_under_dmd_is_understood(whole):
    """A copy with changes is not validated when it is made."""
    cfg = DistillConfig()
    dmd = DMDConfig(student_steps=4) if whole else cfg.dmd.model_copy(update={"student_steps": 4})
    assert with_method(cfg.model_copy(update={"dmd": dmd})).student.steps == 4
