"""A report's numbers are those of the run, and its pictures show the right things in the right
colours."""

import json
import math
import os
import struct
import sys

import pytest
import torch
from matplotlib.colors import to_hex

from fastgen.report import StageStyle, format_table, write_report
from fastgen.report.curves import diagnostic_curves, smooth, training_curves, within
from fastgen.report.diagnostics import diagnostics_figure
from fastgen.report.figures import score_figure, training_figure
from fastgen.report.styles import GREY, SCORES
from fastgen.report.tables import by_solver
from fastgen.report.trajectories import trajectory_figure
from support.toy import without_pictures

STAGES = {
    "kd": StageStyle(title="KD", colour="#E69F00", heading="KD: regression on teacher pairs"),
    "dmd": StageStyle(title="DMD", colour="#009E73"),
    "ladd": StageStyle(title="LADD", colour="#009E73"),
    "consistency": StageStyle(title="consistency", colour="#009E73"),
}

BLOCK = [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]
RING = {"obstacles": [BLOCK], "limits": (-1.5, 1.5, -1.5, 1.5), "equal": True}


def scores(error: float) -> dict[str, float]:
    near = {"energy_ratio_near": 1 + 2 * error, "success_near": 1 - error}
    return {"success": 1 - error / 2, "energy_ratio": 1 + error, "clearance": 1 - error, **near}


def results() -> dict:
    teacher = {"1": scores(0.9), "4": scores(0.2), "100": scores(0.01), "ab2-4": scores(0.1)}
    return {
        "teacher": teacher,
        "student": {"1": scores(0.05), "2": scores(0.02)},
        "kd": {"1": scores(0.05), "2": scores(0.02)},
        "dmd": {"1": scores(0.06), "2": scores(0.03)},
        "floor": {**scores(0.0), "success_floor": 0.9995},
        "seconds": {"kd": 101.5, "dmd": 55.0},
        "latency": {"student, ms": 2.5},
        "selected": "kd",
        "primary": "energy_ratio",
    }


def examples(n: int = 6, k: int = 4, scene: dict = RING, length: int = 2) -> dict:
    generator = torch.Generator().manual_seed(0)
    z = torch.rand(n, length, 2, generator=generator)
    paths = {who: torch.rand(n, k, 5, 2, generator=generator) for who in ("teacher", "student")}
    labels = {"teacher": "teacher, 100 calls", "student": "student, 1 call"}
    return {
        "Z": z,
        "X_true": torch.rand(n, 5, 2, generator=generator),
        **paths,
        "scene": scene,
        "labels": labels,
    }


def curves() -> list[dict]:
    kd = [
        {"iteration": i, "stage": "kd", "step": i, "loss": 1 / i, "lr": 1e-3, "grad_norm": 2.0}
        for i in range(1, 41)
    ]
    kd[-1]["energy_ratio"] = 1.3
    dmd = [
        {"stage": "dmd", "step": i, "iteration": 40 + i, "fake_score": 0.5, "loss": 0.5}
        for i in range(1, 21)
    ]
    for row in dmd[10:]:
        row |= {"vsd": 0.1, "total": 0.1, "loss": 0.1, "fake_grad_norm": 1.0}
    dmd[-1]["energy_ratio"] = 1.2
    return kd + dmd


def lines(ax, label: str) -> list:
    return [line for line in ax.get_lines() if line.get_label() == label]


def colour(line) -> str:
    return to_hex(line.get_color())


def test_the_folder_holds_numbers_pages_and_pictures(tmp_path):
    folder = write_report(
        tmp_path, results=results(), curves=curves(), examples=examples(), stages=STAGES
    )
    names = [
        "diagnostics.png",
        "report.json",
        "report.md",
        "score_vs_nfe.png",
        "training.png",
        "trajectories.png",
    ]
    assert folder == tmp_path / "report" and sorted(os.listdir(folder)) == names
    assert json.loads((folder / "report.json").read_text()) == results()
    page = (folder / "report.md").read_text()
    assert format_table(results(), stages=STAGES) in page and all(
        f"]({name})" in page for name in names if name.endswith(".png")
    )
    for name in (name for name in names if name.endswith(".png")):
        data = (folder / name).read_bytes()
        width, height = struct.unpack(">II", data[16:24])
        assert data.startswith(b"\x89PNG") and width >= 700 and height >= 300
    with without_pictures():
        # A second report takes the place of the first, and one that fails leaves it.
        write_report(
            tmp_path,
            results={**results(), "seconds": {}},
            curves=[],
            examples=examples(),
            stages=STAGES,
        )
        before = (folder / "report.json").read_text()
        with pytest.raises(TypeError, match="results.selected to hold"):
            write_report(
                tmp_path,
                results={**results(), "selected": {1, 2}},
                curves=[],
                examples=examples(),
                stages=STAGES,
            )
        assert (folder / "report.json").read_text() == before


def test_numbers_that_are_none_become_null_with_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "fastgen.report.page.training_figure",
        lambda *_: (_ for _ in ()).throw(ImportError("no plots")),
    )
    broken = results()
    broken["student"]["1"] = {
        "success": float("nan"),
        "energy_ratio": torch.tensor(float("inf")),
        "clearance": 1,
    }
    with pytest.raises(ImportError, match="no plots; .*report.json and report.md are written"):
        write_report(tmp_path, results=broken, curves=[], examples=examples(), stages=STAGES)
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    assert numbers["student"]["1"] == {"success": None, "energy_ratio": None, "clearance": 1}
    assert set(numbers["null_reasons"]) == {"student.1.success", "student.1.energy_ratio"}
    assert numbers["null_reasons"]["student.1.energy_ratio"].startswith("the value was inf")


def test_without_matplotlib_the_numbers_are_kept_and_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'fastgen-distill\[viz\]'"):
        write_report(
            tmp_path, results=results(), curves=curves(), examples=examples(), stages=STAGES
        )
    assert sorted(os.listdir(tmp_path / "report")) == ["report.json", "report.md"]


# ---- Table ---------------------------------------------------------------------------------------


def test_the_table_has_every_sampler_in_both_blocks():
    table = format_table(results(), stages=STAGES)
    everyone, near, *rest = table.split("\n\n")
    assert everyone.split("\n")[0].split() == [
        "all",
        "conditions",
        "energy_ratio",
        "success",
        "clearance",
    ]
    assert near.split("\n")[0].split() == ["near", "opposition", "energy_ratio", "success"]
    labels = [line.split("  ")[0] for line in everyone.split("\n")[2:]]
    assert labels[:5] == [
        "demonstrations",
        "teacher Euler 100",
        "teacher Euler 4",
        "teacher Euler 1",
        "teacher AB2 4",
    ]
    assert labels[5:] == ["KD only 2", "KD only 1", "KD + DMD 2", "KD + DMD 1"]
    assert everyone.count("<- exported") == 2 and "KD only 1  <- exported" in everyone
    assert (
        "demonstrations                1.0000   0.9995     1.0000" in everyone
    )  # the exact floor, not the measured one
    assert "seconds: kd 101.5; dmd 55.0" in rest[0] and "latency: student, ms 2.500" in rest[1]


def test_the_table_copes_with_what_a_run_did_not_measure():
    table = format_table(
        {"student": {"1": {"min_fde": float("nan"), "min_ade": 2.0}}, "floor": {"cv_min_fde": 6.2}}
    )
    assert (
        "constant velocity   6.2000        -" in table
        and "student 1              n/a   2.0000" in table
    )
    assert format_table({}) == ""


def test_rows_are_sorted_by_solver_and_calls():
    found = by_solver({"100": {"a": 1}, "ab2-4": {"a": 2}, "rk4-8": {"a": 3}, "best": {"a": 4}})
    assert found == {"euler": {100: {"a": 1}}, "ab2": {4: {"a": 2}}, "rk4": {8: {"a": 3}}}


# ---- Pictures ------------------------------------------------------------------------------------


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


# ---- Diagnostics ---------------------------------------------------------------------------------


def diagnosed(*, gan: bool = True) -> list[dict]:
    """A log with a start, scores and diagnostics of three validations, one of which found no
    number."""
    rows = [
        {
            "iteration": 60,
            "stage": "dmd",
            "step": 0,
            "energy_ratio": 1.3,
            "spread": 1.06,
            "mode_error": 0.02,
        }
    ]
    for step in (10, 20, 30):
        found = {
            "t": [0.02, 0.5, 0.98],
            "gap": [0.1 * step, 0.5],
            "lag": [1.2, 0.8],
            "vsd_grad": 0.3,
        }
        if gan:
            found |= {
                "gan_t": [0.02, 0.3, 0.6],
                "gan_accuracy": [0.6, None if step == 20 else 0.5],
                "gan_grad": 0.1,
            }
        row = {
            "iteration": 60 + step,
            "stage": "dmd",
            "step": step,
            "loss": 0.1,
            "diagnostics": found,
        }
        rows.append(
            row
            | {"energy_ratio": 1.3 - 0.01 * step, "spread": 1.06 - 0.01 * step, "mode_error": 0.02}
        )
    return rows


def test_diagnostic_curves_are_the_rows_of_the_log():
    scores, found = diagnostic_curves(results(), curves() + diagnosed())
    assert list(scores) == ["energy_ratio", "spread", "mode_error"]
    assert scores["energy_ratio"] == {
        "kd": [(40, 1.3)],
        "dmd": [(60, 1.2), (60, 1.3), (70, 1.2), (80, 1.1), (90, 1.0)],
    }
    assert set(found) == {"gap", "lag", "vsd_grad", "gan_accuracy", "gan_grad"}
    assert found["gap"]["t 0.02 to 0.50"] == [(70, 1.0), (80, 2.0), (90, 3.0)]
    assert (
        found["gan_accuracy"]["GAN, t 0.30 to 0.60"] == [(70, 0.5), (90, 0.5)]
        and len(found["vsd_grad"][""]) == 3
    )
    # They are no losses.
    plain = [{k: v for k, v in row.items() if k != "diagnostics"} for row in diagnosed()]
    assert training_curves(results(), diagnosed(), STAGES) == training_curves(
        results(), plain, STAGES
    )


def test_the_diagnostics_are_drawn_with_where_each_stage_began():
    figure = diagnostics_figure(results(), diagnosed(), STAGES)
    panels = {ax.get_title().strip(): ax for ax in figure.axes if ax.get_visible()}
    assert len(panels) == 3 + 4
    spread = panels[SCORES["spread"].title]
    (curve,), (start,) = lines(spread, "during DMD"), lines(spread, "where DMD began")
    assert curve.get_ydata().tolist() == pytest.approx([1.06, 0.96, 0.86, 0.76]) and set(
        start.get_ydata()
    ) == {1.06}
    assert len(lines(panels["teacher-fake gap"], "t 0.02 to 0.50")) == 1
    gradients = panels["gradients at the sample"]
    assert lines(gradients, "gradient of the GAN, weighted")[
        0
    ].get_ydata().tolist() == pytest.approx([0.1] * 3)
    assert len({colour(line) for line in panels["teacher-fake gap"].get_lines()}) == 3
    assert (
        len(
            [
                ax
                for ax in diagnostics_figure(results(), diagnosed(gan=False), STAGES).axes
                if ax.get_visible()
            ]
        )
        == 3 + 3
    )
    assert diagnostics_figure({}, [], STAGES).axes[0].get_title() == "no validation in this run"


def test_warnings_stand_in_the_report(tmp_path):
    said = {**results(), "warnings": ["dmd update 200: the spread fell"]}
    with without_pictures():
        folder = write_report(
            tmp_path, results=said, curves=diagnosed(), examples=examples(), stages=STAGES
        )
    assert json.loads((folder / "report.json").read_text())["warnings"] == said["warnings"]
    page = (folder / "report.md").read_text()
    assert "- dmd update 200: the spread fell" in page and "](diagnostics.png)" in page
