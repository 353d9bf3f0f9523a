"""A report's pictures show the right things in the right colours."""

import math

import pytest
import torch

from fastgen.report import StageStyle, format_table
from fastgen.report.curves import smooth, training_curves, within
from fastgen.report.diagnostics import diagnostics_figure
from fastgen.report.figures import score_figure, training_figure
from fastgen.report.styles import GREY, SCORES
from fastgen.report.trajectories import trajectory_figure
from support.reports import STAGES, colour, curves, diagnosed, examples, lines, results


def test_the_scene_shows_every_sample_over_start_goal_and_block():
    given = examples()
    figure = trajectory_figure(given)
    grid = [ax for ax in figure.axes if ax.get_visible()]
    assert len(grid) == 12
    for i in range(6):
        for ax, who in ((grid[i], "teacher"), (grid[6 + i], "student")):
            paths = [line for line in ax.get_lines() if len(line.get_xdata()) == 6]
            assert len(paths) == 4 and len({colour(line) for line in paths}) == 1
            for line, path in zip(paths, given[who][i], strict=True):
                expected = torch.cat([given["Z"][i, :1], path]).double()
                assert torch.equal(torch.tensor(line.get_xydata()), expected)
            (start,), (goal,) = lines(ax, "start"), lines(ax, "goal")
            assert start.get_xydata()[0].tolist() == given["Z"][i, 0].double().tolist()
            assert goal.get_xydata()[0].tolist() == given["Z"][i, 1].double().tolist()
            assert ax.get_xlim() == (-1.5, 1.5) and len(ax.patches) == 1
    assert [grid[0].get_ylabel(), grid[6].get_ylabel()] == ["teacher, 100 calls", "student, 1 call"]


def test_a_scene_with_a_goal_and_nothing_in_the_way_shows_start_and_goal():
    given = examples(scene={"obstacles": [], "limits": None, "equal": True, "goal": True})
    ax = trajectory_figure(given).axes[0]
    (start,), (goal,) = lines(ax, "start"), lines(ax, "goal")
    assert start.get_xydata()[0].tolist() == given["Z"][0, 0].double().tolist()
    assert goal.get_xydata()[0].tolist() == given["Z"][0, 1].double().tolist()
    assert len(ax.patches) == 0 and not lines(ax, "past (given)")


def test_long_tracks_are_shown_as_fans_with_past_and_future():
    given = examples(scene={"obstacles": [], "limits": None, "equal": True}, length=3)
    for name in ("Z", "X_true", "teacher", "student"):
        given[name] = given[name] * torch.tensor([30.0, 3.0])
    figure = trajectory_figure(given)
    pairs = [ax for ax in figure.axes if ax.get_visible()]
    assert len(pairs) == 12
    for i in range(6):
        for ax in pairs[2 * i : 2 * i + 2]:
            (past,), (future,) = lines(ax, "past (given)"), lines(ax, "what really happened")
            assert torch.equal(torch.tensor(past.get_xydata()), given["Z"][i].double())
            assert len(future.get_xdata()) == 6
        # Both of a pair are drawn to the same scale, around everything that is in them.
        left, right = (ax.get_xlim() + ax.get_ylim() for ax in pairs[2 * i : 2 * i + 2])
        every = torch.cat(
            [given[name][i].reshape(-1, 2) for name in ("Z", "X_true", "teacher", "student")]
        )
        assert left == right and left[0] <= every[:, 0].min() and left[3] >= every[:, 1].max()
    titles = [ax.get_title() for ax in pairs[:4]]
    assert titles == ["teacher, 100 calls", "student, 1 call"] * 2


@pytest.mark.parametrize("channels", [1, 3])
def test_other_numbers_of_channels_can_be_drawn(channels):
    given = examples(n=3, scene={"obstacles": [], "limits": None, "equal": False}, length=4)
    for name in ("Z", "X_true", "teacher", "student"):
        x = given[name]
        given[name] = x[..., :1] if channels == 1 else torch.cat([x, 9 + x[..., :1]], -1)
    ax = trajectory_figure(given).axes[0]
    (past,) = lines(ax, "past (given)")
    if channels == 1:
        assert past.get_xdata().tolist() == [1, 2, 3, 4]
    assert max(past.get_ydata()) < 2


def test_score_panels_hold_the_numbers_of_the_run():
    figure = score_figure(results(), STAGES)
    panels = {ax.get_title().strip(): ax for ax in figure.axes[:3]}
    assert list(panels) == [SCORES[name].title for name in ("energy_ratio", "success", "clearance")]
    ax = panels[SCORES["energy_ratio"].title]
    curve = {line.get_label(): line for line in ax.get_lines()}
    assert curve["teacher, Euler"].get_xdata().tolist() == [1, 4, 100]
    assert curve["teacher, Euler"].get_ydata().tolist() == pytest.approx([1.9, 1.2, 1.01])
    assert curve["teacher, AB2"].get_xdata().tolist() == [4]
    assert curve["student (exported)"].get_ydata().tolist() == pytest.approx([1.05, 1.02])
    assert list(curve["demonstrations"].get_ydata()) == [1.0, 1.0]
    # Near opposition has its own row, without the score that isn't measured there.
    near = figure.axes[3:]
    assert [ax.get_visible() for ax in near] == [True, True, False] and near[
        0
    ].get_ylabel() == "near opposition"
    assert lines(near[0], "KD + DMD")[0].get_ydata().tolist() == pytest.approx([1.12, 1.06])


def test_a_far_off_solver_does_not_flatten_the_others_and_is_still_said():
    given = results()
    given["teacher"]["1"]["clearance"] = -3.0
    ax = score_figure(given, STAGES).axes[2]
    assert ax.get_ylim()[0] > 0 and [
        text.get_text() for text in ax.texts if text.get_text() == "-3"
    ]


def test_a_thing_has_one_colour_in_all_pictures():
    panel = {
        line.get_label(): colour(line)
        for line in score_figure(results(), STAGES).axes[0].get_lines()
    }
    grid = trajectory_figure(examples()).axes
    assert colour(lines(grid[0], "teacher's samples")[0]) == panel["teacher, Euler"]
    assert colour(lines(grid[6], "student's samples")[0]) == panel["student (exported)"]
    kd, dmd, validation = training_figure(results(), curves(), STAGES).axes
    assert (
        colour(lines(kd, "loss")[0])
        == panel["KD only"]
        == colour(lines(validation, "during KD")[0])
    )
    assert (
        colour(lines(dmd, "fake score")[0])
        == panel["KD + DMD"]
        == colour(lines(validation, "during DMD")[0])
    )
    assert len(set(panel.values())) == len(panel)


@pytest.mark.parametrize("stage", ["dmd", "ladd", "progressive_distillation"])
def test_a_stage_is_shown_as_the_caller_says(stage):
    stages = {"kd": STAGES["kd"], stage: StageStyle(title="Mine", colour="#123456", heading="All")}
    given = {**results(), stage: results()["dmd"]}
    log = [{**row, "stage": row["stage"].replace("dmd", stage)} for row in curves() + diagnosed()]
    (line,) = lines(score_figure(given, stages).axes[0], "KD + Mine")
    panel, validation = training_figure(given, log, stages).axes[1:]
    (during,) = lines(validation, "during Mine")
    (began,) = lines(diagnostics_figure(given, log, stages).axes[0], "where Mine began")
    assert [colour(each) for each in (line, panel.get_lines()[0], during, began)] == ["#123456"] * 4
    assert panel.get_title() == "All"
    assert "KD + Mine 2" in format_table(given, stages=stages)


def test_a_stage_without_a_style_is_grey_under_its_own_name():
    rows = [{"stage": "my_stage", "step": i, "loss": 1.0, "energy_ratio": 1.0} for i in (1, 2)]
    panel, validation = training_figure(results(), rows, {}).axes
    assert panel.get_title() == "my stage"
    assert (
        colour(lines(panel, "loss")[0]) == colour(lines(validation, "during my stage")[0]) == GREY
    )
    table = format_table(results())
    assert "student 2" in table and "KD" not in table


def test_training_curves_tell_losses_from_scores_and_bookkeeping():
    losses, validation = training_curves(results(), curves(), STAGES)
    assert {stage: set(part) for stage, part in losses.items()} == {
        "kd": {"loss"},
        "dmd": {"fake_score", "vsd"},
    }
    assert losses["kd"]["loss"][3] == (4, 0.25) and len(losses["dmd"]["vsd"]) == 10
    assert validation == {"kd": [(40, 1.3)], "dmd": [(60, 1.2)]}
    assert training_figure(results(), [], STAGES).axes[0].get_title() == "no training in this run"


def test_smoothing_keeps_an_exponential_and_calms_noise():
    decay = [(x, math.exp(-0.1 * x)) for x in range(200)]
    for (x, y), (sx, sy) in list(zip(decay, smooth(decay), strict=True))[5:-5]:
        assert sx == x and sy == pytest.approx(y)
    rough = [(x, 2.0 if x % 2 else 0.5) for x in range(200)]
    assert all(0.8 < y < 1.25 for _, y in smooth(rough)[5:-5])


def test_a_perfect_success_is_on_the_axis():
    assert 0 < within(0.0, "logit") < within(1.0, "logit") < 1 and within(1.0, "log") == 1.0
    given = results()
    given["student"]["1"]["success"] = 1.0
    (line,) = lines(score_figure(given, STAGES).axes[1], "student (exported)")
    assert all(math.isfinite(y) for y in line.get_ydata())
