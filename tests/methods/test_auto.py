"""`method: auto` decides by what was measured, and never over a key that the config sets."""

from __future__ import annotations

import pytest
import yaml

from fastgen.config import DistillConfig
from fastgen.config.files import dump_yaml
from fastgen.jobs.checks import with_method
from fastgen.methods.auto import Findings, carried_out, decide

GOOD = Findings(
    quality="the teacher's energy_ratio is 1.1, that of fresh data 1.09",
    weak="",
    dependence=None,
    guidance=None,
    conditional=True,
    heads=True,
)
WEAK = GOOD._replace(weak="energy_ratio 5.02, 1.09 for fresh data")


def auto(**keys) -> DistillConfig:
    return DistillConfig.model_validate({"method": "auto", **keys})


def test_a_good_teacher_is_matched_after_kd_as_configured():
    cfg = auto(dmd={"vsd_norm": "rms"}, train={"steps": 7})
    decision = decide(cfg, GOOD)
    train = cfg.train.model_copy(update={"patience": 3, "cooldown": 0.2})
    expected = cfg.model_copy(update={"method": "dmd2", "train": train})
    assert carried_out(cfg, decision) == expected
    assert "1.1" in decision.why and "1.09" in decision.why and "DMD2" in decision.why


@pytest.mark.parametrize(
    ("found", "says"),
    [(GOOD._replace(dependence=0.97), "no score"), (GOOD._replace(guidance=2.5), "2.5")],
)
def test_what_is_no_score_is_not_matched(found, says):
    decision = decide(auto(), found)
    assert decision.method == "kd"
    assert says in decision.why


@pytest.mark.parametrize(
    ("train", "expected", "says"),
    [
        (
            {},
            (3, 0.2),
            "after 3 validations in a row that are no better by more than noise, and 20%",
        ),
        ({"patience": 7}, (7, 0.2), "after 7 validations"),
        ({"cooldown": 0.5}, (3, 0.5), "and 50% more updates"),
    ],
)
@pytest.mark.parametrize("found", [GOOD, WEAK, GOOD._replace(dependence=0.97)])
def test_a_stage_without_gain_ends_unless_the_config_says_when(found, train, expected, says):
    cfg = auto(train=train)
    decision = decide(cfg, found)
    decided = carried_out(cfg, decision).train
    assert (decided.patience, decided.cooldown) == expected
    assert says in decision.why
    assert "dmd.set_weight" in decision.why and "drift" in decision.why


def test_guidance_of_scale_one_is_none():
    assert decide(auto(), GOOD._replace(guidance=1.0)).method == "dmd2"


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
    found = WEAK._replace(dependence=dependence, conditional=conditional, heads=heads)
    decision = decide(auto(), found)
    assert decision.method == "dmd2" and found.weak in decision.why
    dmd = carried_out(auto(), decision).dmd
    assert dmd.vsd_weight == 0.0
    assert dmd.real_data_weight == 1.0
    assert dmd.gan_loss_weight_gen == gan
    assert dmd.real_data_kernel == kernel
    assert dmd.real_data_conditional == conditional


@pytest.mark.parametrize(("batch", "samples"), [(None, 64), (100, 50), (97, 97), (64, 64)])
def test_groups_of_a_kernel_distance_divide_the_batch(batch, samples):
    cfg = auto(train={} if batch is None else {"batch_size": batch})
    decided = carried_out(cfg, decide(cfg, WEAK._replace(conditional=False)))
    assert decided.train.batch_size == (batch or 256)
    assert decided.dmd.real_data_samples == samples


def test_a_key_that_is_set_stays():
    cfg = auto(
        dmd={"vsd_norm": "rms", "gan_t": {"min_t": 0.3}},
        train={"steps": 70, "kd_steps": 9},
        student={"ema": {"decay": 0.9}},
    )
    decided = carried_out(cfg, decide(cfg, WEAK))
    assert decided.dmd.vsd_norm == "rms" and decided.dmd.gan_t.min_t == 0.3
    assert (decided.train.steps, decided.train.kd_steps) == (70, 9)
    assert decided.student.ema is not None and decided.student.ema.decay == 0.9
    assert decided.dmd.real_data_weight == 1.0


@pytest.mark.parametrize("found", [WEAK, WEAK._replace(conditional=False), GOOD])
def test_a_config_that_was_written_out_is_decided_alike(found):
    """It then names every key, with the value that it has by default."""
    cfg = auto(dmd={"vsd_norm": "rms"}, train={"kd_steps": 9})
    again = DistillConfig.model_validate(yaml.safe_load(dump_yaml(cfg)))
    assert carried_out(again, decide(again, found)) == carried_out(cfg, decide(cfg, found))


@pytest.mark.parametrize("found", [WEAK, GOOD._replace(dependence=0.97), GOOD])
@pytest.mark.parametrize(
    "keys",
    [
        {"dmd": {"real_data_weight": 1.0, "vsd_weight": 0.0}},
        {"dmd": {"kd_weight": 0.2}},
        {"dmd": {"fake_score_pull": 0.1}},
        {"train": {"fake_score_rank": 4}},
        {"train": {"kd_steps": 0}},
        {"keep": "dmd"},
    ],
)
def test_a_config_that_chooses_losses_is_taken_at_its_word(keys, found):
    cfg = auto(**keys)
    decision = decide(cfg, found)
    assert (decision.method, decision.changes) == ("dmd2", {})
    assert "as configured" in decision.why
    with_method(carried_out(cfg, decision))
