"""The method's times and rungs follow those of its teacher."""

from __future__ import annotations

import pytest

from fastgen.jobs.checks import fit_to_teacher
from fastgen.teachers import as_rectified_flow
from fastgen.teachers.clocks import beta_table
from support.sources import config
from support.toy import PointTeacher, toy_config

VP = as_rectified_flow(PointTeacher(), path="vp")
EPS = as_rectified_flow(PointTeacher(), path="cosine", prediction="eps")
TABLE = as_rectified_flow(
    PointTeacher(), path=beta_table("scaled_linear", 1000, 0.00085, 0.012), prediction="v"
)


def test_nothing_changes_for_networks_of_rectified_flow():
    for cfg in (toy_config("unused"), config(), config(t_max=1.0, steps=3)):
        assert fit_to_teacher(cfg, PointTeacher()) == (cfg, [])
    cfg, notes = fit_to_teacher(
        config(), as_rectified_flow(PointTeacher(), path="cosine", prediction="v")
    )
    assert len(notes) == 1 and notes[0] == "teacher: cosine, v, time_scale=1, t in [0, 1]"
    assert cfg.student.t_list == config().student.t_list


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_student_starts_where_its_teacher_does(steps):
    cfg, notes = fit_to_teacher(config(steps=steps), VP)
    assert cfg.student.t_list == pytest.approx(
        [VP.t_max * (1 - i / steps) for i in range(steps)] + [0.0], rel=1e-12
    )
    assert "the student starts at t = 0.993471 (the teacher is defined up to 0.993471)" in notes
    cfg, notes = fit_to_teacher(config(steps=steps, t_list_shift=2.0), EPS)
    assert (
        cfg.student.t_list[0] == 0.5
        and cfg.student.t_list_shift == 2.0
        and len(cfg.student.t_list) == steps + 1
    )
    assert "the student starts at t = 0.5 (the teacher predicts noise)" in notes
    again = fit_to_teacher(cfg, EPS)[0]
    assert (again.student, again.dmd) == (cfg.student, cfg.dmd)


def test_rungs_that_were_asked_for_are_kept_or_refused():
    for asked in (config(t_list=(0.9, 0.4, 0.0)), config(t_max=0.9, steps=2)):
        cfg, notes = fit_to_teacher(asked, EPS)
        assert cfg.student.t_list == asked.student.t_list and not any(
            "starts" in note for note in notes
        )
    for asked, key in (
        (config(t_list=(0.999, 0.0)), "student.t_list"),
        (config(t_max=0.999), "student.t_max"),
    ):
        with pytest.raises(
            ValueError, match=f"expected {key} to begin at most at 0.993471, .*, got 0.999"
        ):
            fit_to_teacher(asked, VP)


def test_drawn_times_stay_within_the_range_of_the_teacher():
    law = {"time_dist_type": "logitnormal", "p_mean": 0.3, "min_t": 0.1, "max_t": 0.5}
    cfg, notes = fit_to_teacher(config(gan_t=law, fake_score_t={"min_t": 0.0}), TABLE)
    low, high = TABLE.t_min, TABLE.t_max
    assert 0.02 < low < 0.03 and 0.93 < high < 0.94
    for name in ("vsd_t", "fake_score_t"):
        drawn = getattr(cfg.dmd, name)
        assert (drawn.min_t, drawn.max_t, drawn.time_dist_type) == (low, high, "uniform")
        assert f"dmd.{name} is drawn within {low:.6g}..{high:.6g}" in notes
    assert cfg.dmd.gan_t == config(gan_t=law).dmd.gan_t and not any(
        "gan_t" in note for note in notes
    )
    with pytest.raises(
        ValueError,
        match=r"expected dmd.vsd_t to reach into the teacher's RF times .*, got 0.95..0.99",
    ):
        fit_to_teacher(config(vsd_t={"min_t": 0.95, "max_t": 0.99}), TABLE)


def test_a_fake_score_with_a_clock_that_ends_is_not_told_its_rung_unless_asked():
    assert not fit_to_teacher(config(), EPS)[0].dmd.fake_score_rung_conditioned
    assert fit_to_teacher(config(fake_score_rung_conditioned=True), EPS)[
        0
    ].dmd.fake_score_rung_conditioned
    assert fit_to_teacher(config(), PointTeacher())[0].dmd.fake_score_rung_conditioned
