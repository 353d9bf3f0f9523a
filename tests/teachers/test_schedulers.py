"""A scheduler's config says how its network was trained; what it can't say here is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fastgen.config import DistillConfig
from fastgen.config.files import dump_anywhere, load_config
from fastgen.jobs.sources import is_changed, load_teacher
from fastgen.teachers import RectifiedFlow, as_rectified_flow, read_scheduler
from fastgen.teachers.clocks import TableClock, beta_table
from fastgen.teachers.paths import parse_clock
from support.converted import Bare

DDPM = {"_class_name": "DDPMScheduler", "_diffusers_version": "0.30.0"}
POLICY = {
    **DDPM,
    "num_train_timesteps": 100,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "epsilon",
    "clip_sample": True,
}
STABLE = {
    "_class_name": "PNDMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "clip_sample": False,
}


def written(folder: Path, values: Any, name: str = "scheduler_config.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(values if isinstance(values, str) else json.dumps(values))
    return file


def betas(**arguments: Any) -> dict[str, Any]:
    return {"name": "betas", **arguments}


LINEAR = betas(schedule="linear", rows=1000, beta_start=1e-4, beta_end=0.02)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            POLICY,
            {
                "path": betas(schedule="squared_cosine", rows=100),
                "prediction": "eps",
                "clip_sample": [-1.0, 1.0],
                "spacing": "leading",
            },
        ),
        (
            STABLE,
            {
                "path": betas(
                    schedule="scaled_linear", rows=1000, beta_start=0.00085, beta_end=0.012
                ),
                "prediction": "eps",
                "spacing": {"name": "leading", "offset": 1},
            },
        ),
        # A file that is silent has the defaults of its class.
        (
            DDPM,
            {
                "path": LINEAR,
                "prediction": "eps",
                "clip_sample": [-1.0, 1.0],
                "spacing": "leading",
            },
        ),
        (
            {
                "_class_name": "DDIMScheduler",
                "clip_sample_range": 2.5,
                "prediction_type": "v_prediction",
                "timestep_spacing": "trailing",
            },
            {
                "path": LINEAR,
                "prediction": "v",
                "clip_sample": [-2.5, 2.5],
                "spacing": "trailing",
            },
        ),
        (
            {
                "_class_name": "DPMSolverMultistepScheduler",
                "prediction_type": "sample",
                "timestep_spacing": "linspace",
                "lambda_min_clipped": -math.inf,
                "use_karras_sigmas": True,
                "variance_type": None,
            },
            {"path": LINEAR, "prediction": "x0"},
        ),
        # Their thresholding with its own default is a clip to [-1, 1].
        (
            {"_class_name": "UniPCMultistepScheduler", "thresholding": True},
            {"path": LINEAR, "prediction": "eps", "clip_sample": [-1.0, 1.0]},
        ),
        (
            {"_class_name": "HeunDiscreteScheduler", "trained_betas": [0.1, 0.2, 1.0]},
            {"path": betas(betas=[0.1, 0.2, 1.0]), "prediction": "eps"},
        ),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
            {"path": "linear", "prediction": "flow", "data_at": 0, "time_scale": 1000.0},
        ),
        (
            {
                "_class_name": "UniPCMultistepScheduler",
                "prediction_type": "flow_prediction",
                "use_flow_sigmas": True,
                "num_train_timesteps": 500,
            },
            {"path": "linear", "prediction": "flow", "data_at": 0, "time_scale": 500.0},
        ),
        # lerobot
        (
            {
                "type": "diffusion",
                "noise_scheduler_type": "DDIM",
                "num_train_timesteps": 50,
                "prediction_type": "sample",
                "clip_sample": True,
                "clip_sample_range": 1.5,
                "beta_schedule": "squaredcos_cap_v2",
                "horizon": 16,
            },
            {
                "path": betas(schedule="squared_cosine", rows=50),
                "prediction": "x0",
                "clip_sample": [-1.5, 1.5],
                "spacing": "leading",
            },
        ),
    ],
    ids=lambda value: str(value.get("_class_name", "")) if isinstance(value, dict) else "",
)
def test_a_file_is_read_as_the_arguments_of_a_conversion(tmp_path, values, expected):
    found = read_scheduler(written(tmp_path, values))
    assert found == expected
    assert isinstance(as_rectified_flow(Bare(), **found), RectifiedFlow)


@pytest.mark.parametrize(
    ("place", "name"),
    [("", "scheduler_config.json"), ("scheduler", "scheduler_config.json"), ("", "config.json")],
)
def test_a_folder_is_looked_through(tmp_path, place, name):
    values = POLICY
    if name == "config.json":
        values = {"noise_scheduler_type": "DDPM"}
    written(tmp_path / place, values, name)
    assert read_scheduler(tmp_path)["path"] == betas(schedule="squared_cosine", rows=100)


def test_betas_without_a_signal_at_the_end(tmp_path):
    values = {**POLICY, "beta_schedule": "linear", "rescale_betas_zero_snr": True}
    path = read_scheduler(written(tmp_path, values))["path"]
    abar = (1 - torch.tensor(path["betas"], dtype=torch.float64)).cumprod(0)
    plain = (1 - beta_table("linear", 100)).cumprod(0)
    assert abar[-1] == 0.0 and abar[0] == pytest.approx(float(plain[0]), rel=1e-12)
    # sqrt(abar) is shifted and scaled: its steps keep their proportions.
    steps, own = (value.sqrt().diff() for value in (abar, plain))
    torch.testing.assert_close(steps / steps[0], own / own[0], rtol=1e-9, atol=0)


def refusals() -> list[tuple[Any, str]]:
    return [
        ({}, "expected a scheduler of diffusers among DDPM, "),
        ({"_class_name": "LCMScheduler"}, "got _class_name='?LCMScheduler"),
        ({"_class_name": "EDMEulerScheduler"}, "a network that is preconditioned itself"),
        ({"_class_name": 3}, "expected _class_name as text"),
        ({"noise_scheduler_type": "Karras"}, "expected a scheduler of diffusers among"),
        ({**DDPM, "beta_schedule": "laplace"}, "expected beta_schedule linear, scaled_linear"),
        ({**DDPM, "beta_schedule": ["linear"]}, "expected beta_schedule as text"),
        ({**DDPM, "prediction_type": "noise"}, "expected prediction_type epsilon, sample"),
        ({**DDPM, "clip_sample": "yes"}, "expected clip_sample as true or false"),
        ({**DDPM, "clip_sample_range": -1}, "expected clip_sample_range > 0"),
        ({**DDPM, "clip_sample_range": "1"}, "expected clip_sample_range as a number"),
        ({**DDPM, "num_train_timesteps": 10**9}, "num_train_timesteps as a whole number in 2..1"),
        ({**DDPM, "num_train_timesteps": 1}, "num_train_timesteps as a whole number in 2..100000"),
        ({**DDPM, "num_train_timesteps": True}, "num_train_timesteps as a whole number"),
        ({**DDPM, "beta_end": 2.0}, "expected 0 < beta_start <= beta_end < 1"),
        ({**DDPM, "beta_end": math.nan}, "expected beta_end as a finite number"),
        ({**DDPM, "trained_betas": [0.1, "x"]}, "expected trained_betas as two or more numbers"),
        ({**DDPM, "trained_betas": 0.1}, "expected trained_betas as two or more numbers"),
        ({**DDPM, "variance_type": "learned_range"}, "the second half of the channels"),
        (
            {**DDPM, "thresholding": True, "sample_max_value": 1.5},
            "no dynamic thresholding, whose limits vary",
        ),
        ({**DDPM, "timestep_spacing": "karras"}, "expected timestep_spacing leading, linspace"),
        ({**DDPM, "steps_offset": -1}, "expected steps_offset as a whole number in 0"),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True},
            "expected invert_sigmas false",
        ),
        (
            {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True},
            "expected prediction_type flow_prediction for flow sigmas",
        ),
        ("[1, 2]", "expected a JSON object"),
        ("{", "expected JSON"),
        ('{"a": 1, "a": 2}', "a repeated key"),
        ("[" * 100_000, "expected JSON"),
    ]


@pytest.mark.parametrize(("values", "said"), refusals(), ids=lambda value: str(value)[:40])
def test_what_cannot_be_honoured_is_refused_with_its_file_and_key(tmp_path, values, said):
    file = written(tmp_path, values)
    with pytest.raises(ValueError, match=said) as raised:
        read_scheduler(file)
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a file, found none"):
        read_scheduler(tmp_path / "scheduler_config.json")
    with pytest.raises(ValueError, match=r"expected scheduler_config.json in it or in its sched"):
        read_scheduler(tmp_path)


# ---- Names of others in a path -------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        {"name": "squaredcos_cap_v2", "rows": 100},
        {"name": "squaredcos_cap_v2", "num_train_timesteps": 100},
        {"name": "squared_cosine", "rows": 100},
        {"name": "betas", "schedule": "squaredcos_cap_v2", "rows": 100},
        {"name": "betas", "beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100},
    ],
    ids=str,
)
def test_a_path_may_be_spelt_as_diffusers_spells_it(path):
    clock = parse_clock(path)
    assert isinstance(clock, TableClock)
    assert torch.equal(clock.betas, beta_table("squared_cosine", 100))


def test_a_schedule_alone_has_a_thousand_rows_and_linear_stays_the_straight_path():
    clock = parse_clock("squaredcos_cap_v2")
    assert isinstance(clock, TableClock) and len(clock.betas) == 1000
    assert parse_clock("linear").describe() == {"name": "linear"}


# ---- In a config ---------------------------------------------------------------------------------


def config(folder: Path, **teacher: Any) -> DistillConfig:
    file = folder / "run.yaml"
    file.write_text(json.dumps({"teacher": teacher}))
    return load_config(DistillConfig, file)


def test_a_config_names_the_file_beside_it_and_keys_of_its_own_win(tmp_path):
    written(tmp_path / "model" / "scheduler", POLICY)
    cfg = config(tmp_path, scheduler="model")
    assert is_changed(cfg.teacher)
    teacher = load_teacher(cfg, Bare())
    assert isinstance(teacher, RectifiedFlow)
    assert teacher.prediction == "eps" and teacher.clip_sample == (-1.0, 1.0)
    # As a resumed run reads it, with every key written out.
    file = tmp_path / "elsewhere" / "config.yaml"
    file.parent.mkdir()
    file.write_text(dump_anywhere(cfg))
    again = load_teacher(load_config(DistillConfig, file), Bare())
    assert isinstance(again, RectifiedFlow) and again.describe() == teacher.describe()
    own = config(tmp_path, scheduler="model", clip_sample=[-2, 2], spacing="trailing")
    other = load_teacher(own, Bare())
    assert isinstance(other, RectifiedFlow) and other.clip_sample == (-2.0, 2.0)
    assert other.spacing is not None and other.spacing.name == "trailing"
    assert other.prediction == "eps"


FLUX = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}


@pytest.mark.parametrize(
    ("values", "keys", "expected"),
    [
        (POLICY, {"clip_sample": "unclipped"}, {}),
        (
            POLICY,
            {"prediction": "flow", "path": "linear", "spacing": "time"},
            {"prediction": "flow"},
        ),
        (FLUX, {"time_scale": 1.0}, {"time_scale": 1.0}),
        (POLICY, {"spacing": "time"}, {"spacing": "time"}),
    ],
)
def test_keys_win_over_a_file_with_the_very_values_that_they_have_without_one(
    tmp_path, values, keys, expected
):
    written(tmp_path / "model", values)
    cfg = config(tmp_path, scheduler="model", **keys)
    teacher = load_teacher(cfg, Bare())
    assert isinstance(teacher, RectifiedFlow)
    found = teacher.describe()
    assert found | expected == found
    assert ("clip_sample" in found) == ("clip_sample" not in keys and values is POLICY)
    file = tmp_path / "elsewhere.yaml"
    file.write_text(dump_anywhere(cfg))
    again = load_teacher(load_config(DistillConfig, file), Bare())
    assert isinstance(again, RectifiedFlow) and again.describe() == found


def test_a_plain_flow_that_is_spelt_out_stays_as_it_is(tmp_path):
    keys = {"path": "linear", "prediction": "flow", "data_at": 0, "time_scale": 1}
    cfg = config(tmp_path, **keys, clip_sample="unclipped", spacing="time")
    network = Bare()
    assert load_teacher(cfg, network) is network and not is_changed(cfg.teacher)


def test_a_config_that_clips_needs_no_file(tmp_path):
    path = {"name": "squaredcos_cap_v2", "num_train_timesteps": 100}
    cfg = config(tmp_path, path=path, prediction="eps", clip_sample=[-1, 1])
    teacher = load_teacher(cfg, Bare())
    assert isinstance(teacher, RectifiedFlow) and teacher.clip_sample == (-1.0, 1.0)
    with pytest.raises(ValueError, match="teacher: expected clip_sample as two numbers"):
        load_teacher(config(tmp_path, path=path, prediction="eps", clip_sample=[1, -1]), Bare())
