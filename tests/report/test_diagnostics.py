"""A report shows the diagnostics and the warnings of the log."""

import json

import pytest

from fastgen.report import write_report
from fastgen.report.curves import diagnostic_curves, training_curves
from fastgen.report.diagnostics import diagnostics_figure
from fastgen.report.styles import SCORES
from support.reports import STAGES, colour, curves, diagnosed, examples, lines, results


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


def test_warnings_stand_in_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr("fastgen.report.page._png", lambda figure: b"")
    said = {**results(), "warnings": ["dmd update 200: the spread fell"]}
    folder = write_report(
        tmp_path, results=said, curves=diagnosed(), examples=examples(), stages=STAGES
    )
    assert json.loads((folder / "report.json").read_text())["warnings"] == said["warnings"]
    page = (folder / "report.md").read_text()
    assert "- dmd update 200: the spread fell" in page and "](diagnostics.png)" in page
