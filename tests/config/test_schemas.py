"""What a user can set: the defaults that are promised, what is refused, the learning rate's law,
round trips."""

from __future__ import annotations

import inspect
import itertools
from typing import get_args

import pytest
import torch
import yaml
from pydantic import BaseModel, ValidationError

from fastgen import config as configs
from fastgen.config import (
    DataConfig,
    DistillConfig,
    DMDConfig,
    EMAConfig,
    MatchingConfig,
    OptimizerConfig,
    SampleTimestepConfig,
    StudentConfig,
    SymmetryConfig,
    TrainTeacherConfig,
)
from fastgen.config.dmd import STUDENT_KEYS
from fastgen.config.files import dump_yaml

SCHEMAS = [
    schema
    for _, schema in inspect.getmembers(configs, inspect.isclass)
    if issubclass(schema, BaseModel)
]
REQUIRED = {
    SymmetryConfig: {"group": "D4", "in_rep": ["standard"], "cond_rep": ["standard", "trivial"]}
}
# Values that are no default, of every kind of field: nested groups, tuples, optional ones, a dict
# beside a list.
CHANGED = [
    SampleTimestepConfig(
        time_dist_type="lognormal", min_t=0.1, max_t=0.3, p_mean=-1.2, t_list=(0.9, 0.1, 0.0)
    ),
    EMAConfig(type="halflife", rampup_ratio=None, dtype="float64"),
    DMDConfig(
        t_list=(0.95, 1 / 3, 0.0), pred_type="x0", fake_score_pred_type="flow", guidance_scale=1.5
    ),
    DMDConfig(ema=None),
    DMDConfig(
        student_steps=4,
        t_list_shift=3.0,
        vsd_t=SampleTimestepConfig(min_t=0.25),
        ema=EMAConfig(decay=0.5),
    ),
    SymmetryConfig(
        group="C2xC2", in_rep={"matrices": "x.npz"}, cond_rep=["regular"], out_rep=["irrep:1"]
    ),
    DataConfig(
        name="file",
        path="x.npz",
        symmetry=SymmetryConfig(**REQUIRED[SymmetryConfig]),
        normalize=False,
    ),
    DataConfig(name="file", path="x.npz", normalize="min_max"),
    DataConfig(name="file", normalize={"limits": "policy", "observation_keys": "state"}),
    StudentConfig(
        steps=4, t_list_shift=3.0, pred_type="x0", sample_type="ode", ema=EMAConfig(decay=0.5)
    ),
    StudentConfig(t_list=(0.95, 1 / 3, 0.0), ema=None),
    MatchingConfig(fake_score_pred_type="flow", vsd_t=SampleTimestepConfig(min_t=0.25)),
    DistillConfig(name="é", run_dir="runs/ü", student=StudentConfig(steps=2), keep="kd"),
    TrainTeacherConfig(seed=7, calls=(3,), ab2_calls=()),
]


def default(schema: type[BaseModel]) -> BaseModel:
    return schema(**REQUIRED.get(schema, {}))


# ---- Every schema --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [*map(default, SCHEMAS), *CHANGED], ids=lambda c: type(c).__name__
)
def test_json_and_yaml_read_back_equal(config):
    schema = type(config)
    assert schema.model_validate_json(config.model_dump_json()) == config
    assert schema.model_validate(yaml.safe_load(dump_yaml(config))) == config
    assert schema.model_validate(config.model_dump()) == config


@pytest.mark.parametrize("schema", SCHEMAS)
def test_nothing_can_be_changed_and_unknown_keys_are_refused(schema):
    config = default(schema)
    for name in schema.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(config, name, getattr(config, name))
    with pytest.raises(ValidationError, match="studentsteps"):
        schema(**REQUIRED.get(schema, {}), studentsteps=3)
    assert config == default(schema)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_number_is_no_yes_or_no_and_neither_nan_nor_infinite(schema):
    values = {name: getattr(default(schema), name) for name in schema.model_fields}
    numbers = [
        name
        for name, value in values.items()
        if isinstance(value, int | float) and value not in (True, False)
    ]
    for name, wrong in itertools.product(
        numbers, (float("nan"), float("inf"), float("-inf"), True, "many", None)
    ):
        if wrong is None and type(None) in get_args(schema.model_fields[name].annotation):
            continue  # a number that may be left out
        with pytest.raises(ValidationError, match=name):
            schema(**REQUIRED.get(schema, {}), **{name: wrong})


@pytest.mark.parametrize("schema", SCHEMAS)
def test_values_may_be_given_in_order(schema):
    config = default(schema)
    assert schema(*(getattr(config, name) for name in schema.in_order())) == config
    with pytest.raises(TypeError, match="expected at most"):
        schema(*range(99))


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_field_says_what_it_means(schema):
    assert all(field.description for field in schema.model_fields.values())


# ---- Promised defaults ---------------------------------------------------------------------------


def test_default_law_of_a_training_time():
    cfg = SampleTimestepConfig()
    assert cfg.model_dump() == {
        "time_dist_type": "shifted",
        "min_t": 0.001,
        "max_t": 0.999,
        "shift": 5.0,
        "p_mean": 0.0,
        "p_std": 1.0,
        "t_list": None,
    }


def test_default_average_is_exponential_in_float32_from_the_first_update():
    cfg = EMAConfig()
    assert (cfg.type, cfg.start_iter, cfg.dtype) == ("constant", 0, "float32")
    assert 0 < cfg.decay < 1


def test_default_method():
    cfg = DMDConfig()
    assert (cfg.pred_type, cfg.student_steps, cfg.t_list) == ("flow", 1, (0.999, 0.0))
    assert cfg.backward_simulation and cfg.guidance_scale is None
    # The VSD gradient says nothing at either end of time; the fake score must know all of it.
    assert (cfg.vsd_t.min_t, cfg.vsd_t.max_t) == (0.02, 0.98)
    full = SampleTimestepConfig()
    assert (cfg.fake_score_t.min_t, cfg.fake_score_t.max_t) == (full.min_t, full.max_t)


@pytest.mark.parametrize("pred_type", ["flow", "x0", "eps"])
def test_the_space_of_the_fake_scores_loss_is_left_to_the_networks_unless_told(pred_type):
    assert DMDConfig(pred_type=pred_type).fake_score_pred_type is None
    assert DMDConfig(pred_type=pred_type, fake_score_pred_type="x0").fake_score_pred_type == "x0"


def test_v_is_refused_with_what_to_say_instead():
    # The letter stands for two quantities in the literature.
    for name in ("pred_type", "fake_score_pred_type"):
        with pytest.raises(
            ValueError, match=f"{name} 'v': say 'flow' for eps - x0.*as_rectified_flow"
        ):
            DMDConfig(**{name: "v"})


def test_a_dtype_may_be_torchs_own():
    assert EMAConfig(dtype=torch.float64) == EMAConfig(dtype="float64")
    with pytest.raises(ValueError, match="dtype"):
        EMAConfig(dtype=torch.bfloat16)


# ---- The student's rungs -------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_default_rungs_are_evenly_spaced_from_0_999(steps):
    rungs = DMDConfig(student_steps=steps).t_list
    gaps = [a - b for a, b in zip(rungs, rungs[1:], strict=False)]
    assert len(rungs) == steps + 1 and rungs[0] == 0.999 and rungs[-1] == 0.0
    assert gaps == pytest.approx([0.999 / steps] * steps, abs=1e-12)


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_a_shift_multiplies_the_odds_of_the_inner_rungs(shift):
    plain, shifted = (
        DMDConfig(student_steps=5).t_list,
        DMDConfig(student_steps=5, t_list_shift=shift).t_list,
    )
    odds = [[t / (1 - t) for t in rungs[1:-1]] for rungs in (plain, shifted)]
    assert odds[1] == pytest.approx([shift * o for o in odds[0]], rel=1e-12)
    assert (shifted[0], shifted[-1]) == (plain[0], plain[-1])


def test_rungs_and_number_of_steps_follow_from_each_other():
    assert DMDConfig(t_list=None) == DMDConfig(t_list=()) == DMDConfig()
    assert DMDConfig(t_list=torch.tensor([0.75, 0.5, 0.0])) == DMDConfig(t_list=(0.75, 0.5, 0.0))
    for rungs in ((0.9, 0.0), (0.9, 0.5, 0.0), DMDConfig(student_steps=6).t_list):
        assert DMDConfig(t_list=rungs) == DMDConfig(t_list=rungs, student_steps=len(rungs) - 1)
        for wrong in {1, 2, 6} - {len(rungs) - 1}:
            with pytest.raises(
                ValueError,
                match=f"student_steps == .*= {len(rungs) - 1}, got student_steps={wrong}",
            ):
                DMDConfig(t_list=rungs, student_steps=wrong)


@pytest.mark.parametrize(
    ("t_list", "said"),
    [
        ((0.5, 0.7, 0.0), "strictly decreasing"),
        ((0.5, 0.5, 0.0), "strictly decreasing"),
        ((0.5, 0.2), "end at 0.0"),
        ((0.0,), r"start in \(0, 1\]"),
        ((1.5, 0.0), r"start in \(0, 1\]"),
        ((0.5, -0.1, 0.0), "strictly decreasing"),
        ("0.5", "list of numbers"),
        ([0.5, "a", 0.0], "list of numbers"),
    ],
)
def test_rungs_that_no_student_can_walk_are_refused(t_list, said):
    with pytest.raises(ValueError, match=said):
        DMDConfig(t_list=t_list)


def test_only_a_student_that_predicts_noise_may_not_start_at_one():
    for pred_type in ("flow", "x0"):
        assert DMDConfig(pred_type=pred_type, t_list=(1.0, 0.0)).t_list[0] == 1.0
    for rungs in ({"t_list": (1.0, 0.0)}, {"t_max": 1.0}):
        with pytest.raises(ValueError, match=r"t_list\[0\] < 1"):
            DMDConfig(pred_type="eps", **rungs)
    assert DMDConfig(pred_type="eps").t_list[0] < 1


# ---- Learning rate -------------------------------------------------------------------------------

RATES = [
    OptimizerConfig(lr=1e-3, warmup_steps=50, final_lr_ratio=0.01),
    OptimizerConfig(lr=3e-3, warmup_steps=0, final_lr_ratio=0.0),
    OptimizerConfig(lr=0.5, warmup_steps=1, final_lr_ratio=1.0),
]


@pytest.mark.parametrize("cfg", RATES)
@pytest.mark.parametrize("total", [51, 200, 1000])
def test_the_rate_rises_linearly_to_its_peak_and_falls_to_its_final_share(cfg, total):
    rates = [cfg.lr_at(step, total) for step in range(total + 1)]
    warm = cfg.warmup_steps
    up = [0.0, *rates[:warm]]
    assert [b - a for a, b in zip(up, up[1:], strict=False)] == pytest.approx(
        [cfg.lr / max(1, warm)] * warm
    )
    assert rates[max(0, warm - 1)] == pytest.approx(cfg.lr) and rates[warm] == pytest.approx(cfg.lr)
    down = rates[warm:]
    assert all(a >= b for a, b in zip(down, down[1:], strict=False))
    assert down[-1] == pytest.approx(cfg.lr * cfg.final_lr_ratio, abs=1e-15)
    assert (
        cfg.lr_at(10 * total, total) == down[-1]
    )  # a longer run than planned goes on at the last rate


@pytest.mark.parametrize("cfg", RATES)
def test_the_fall_is_half_done_half_way_and_flat_at_both_ends(cfg):
    total = cfg.warmup_steps + 1000
    rates = [cfg.lr_at(cfg.warmup_steps + step, total) for step in (0, 1, 499, 500, 501, 999, 1000)]
    assert rates[3] == pytest.approx((rates[0] + rates[-1]) / 2)
    steepest = rates[2] - rates[4]
    assert rates[0] - rates[1] <= 0.01 * steepest and rates[5] - rates[6] <= 0.01 * steepest


@pytest.mark.parametrize("cfg", RATES)
@pytest.mark.parametrize("total", [1, 2, 30])
def test_a_run_shorter_than_its_warm_up_has_rates_between_zero_and_the_peak(cfg, total):
    assert all(0 < cfg.lr_at(step, total) <= cfg.lr for step in range(total))


@pytest.mark.parametrize("betas", [(0.9, 1.5), (-0.1, 0.99), (0.9, 1.0)])
def test_decays_that_adam_would_refuse_are_refused_before_any_work(betas):
    with pytest.raises(ValueError, match="betas"):
        OptimizerConfig(betas=betas)


@pytest.mark.parametrize(
    ("schema", "part", "kept"),
    [
        (
            DistillConfig,
            {"train": {"student_optimizer": {"lr": 5e-5}}},
            ("train.student_optimizer.betas", (0.0, 0.99)),
        ),
        (
            DistillConfig,
            {"train": {"kd_optimizer": {"warmup_steps": 10}}},
            ("train.kd_optimizer.lr", 3e-3),
        ),
        (
            DistillConfig,
            {"dmd": {"vsd_t": {"time_dist_type": "shifted"}}},
            ("dmd.vsd_t.max_t", 0.98),
        ),
        (
            TrainTeacherConfig,
            {"train": {"optimizer": {"weight_decay": 0.01}}},
            ("train.optimizer.lr", 2e-3),
        ),
    ],
)
def test_a_group_given_in_part_keeps_the_rest_of_its_place_s_own_defaults(schema, part, kept):
    value: object = schema.model_validate(part)
    for name in kept[0].split("."):
        value = getattr(value, name)
    assert value == kept[1]


def test_a_run_may_be_named_by_a_number():
    assert DistillConfig.model_validate({"name": 5, "run_dir": 2024}).run_dir == "2024"


def test_a_student_has_the_same_keys_in_a_run_and_in_a_pipeline():
    """Their defaults, ranges and meanings stand in two classes."""
    for ours, theirs in STUDENT_KEYS.items():
        here = DMDConfig.model_fields[ours]
        there = StudentConfig.model_fields[theirs]
        assert (here.default, here.metadata) == (there.default, there.metadata)
        assert here.annotation == there.annotation


def test_a_pipeline_takes_its_prediction_first_as_it_always_did():
    assert DMDConfig("x0") == DMDConfig(pred_type="x0")
    assert set(DMDConfig.in_order()) == set(DMDConfig.model_fields)


# ---- The range of VSD's times --------------------------------------------------------------------


def test_the_range_of_vsd_times_widens_in_a_straight_line_and_then_stays():
    cfg = MatchingConfig(vsd_widen_from=0.62, vsd_widen_updates=6)
    laws = [cfg.vsd_t_at(update) for update in range(9)]
    assert [law.min_t for law in laws] == pytest.approx(
        [0.62, 0.52, 0.42, 0.32, 0.22, 0.12, *3 * [0.02]]
    )
    assert all(law.model_copy(update={"min_t": 0.02}) == cfg.vsd_t for law in laws)
    assert all(MatchingConfig().vsd_t_at(update) == MatchingConfig().vsd_t for update in (0, 7))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"vsd_widen_from": 0.5},
            "vsd_widen_updates > 0 together, got 0.5 and 0",
        ),
        (
            {"vsd_widen_updates": 5},
            "vsd_widen_updates > 0 together, got None and 5",
        ),
        (
            {"vsd_widen_from": 0.99, "vsd_widen_updates": 5},
            "vsd_widen_from within vsd_t, 0.02..0.98, got 0.99",
        ),
        ({"vsd_norm": "none", "vsd_norm_min": 0.1}, "vsd_norm_min=0 with vsd_norm=none"),
        ({"vsd_norm_min": -0.1}, "vsd_norm_min"),
    ],
)
def test_keys_of_vsd_that_contradict_each_other_are_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        MatchingConfig(**keys)
