"""The report of a run: pictures, tables and numbers in one folder."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._core.files import new_folder, write_file
from .._core.json_files import plain_json, write_json
from .pictures import (
    STYLE,
    sample_figure,
)
from .tables import (
    diagnostic_curves,
    report_page,
    without_nan,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from .figures import diagnostics_figure, score_figure, training_figure

__all__ = ["write_report"]


_PICTURES = (
    "trajectories.png",
    "samples.png",
    "score_vs_nfe.png",
    "training.png",
    "diagnostics.png",
)


def write_report(
    run_dir: str | Path,
    *,
    results: Mapping[str, Any],
    curves: Sequence[Mapping[str, Any]],
    examples: Mapping[str, Any],
) -> Path:
    """Write the folder `report/` in `run_dir`, whole or not at all; returns its path.

    Args:
        run_dir: folder of the run.
        results: `{"teacher": {"100": {score: value}, "ab2-4": {...}}, "student": {"1": {...}},
            "kd": ..., "dmd": ..., "floor": {score: value}, "seconds": {...}, "latency": {...},
            "selected": "kd" | "dmd", "primary": score, "warnings": [text]}`.
            Keys of rows are network calls, after the solver and a dash where it isn't Euler. What
            is missing is left out of tables and pictures.
        curves: rows of metrics.jsonl: `iteration`, `stage`, `step`, losses and, in some rows,
            validation scores and `diagnostics`.
        examples: `Z` (n, T_z, d_z), `X_true` (n, T_x, d_x), `teacher` and `student` (n, K, T_x,
            d_x) in original units, `scene` as a task's `scene()` returns it, `labels` {"teacher":
            text, "student": text}. Samples of other shapes have a `kind` in their scene, and `Z`
                isn't drawn.

    Raises:
        TypeError: results that JSON can't hold.
        OSError: the folder can't be written.
        ImportError: matplotlib is not installed; report.json and report.md are written all the
            same.
    """
    folder = Path(run_dir) / "report"
    reasons: dict[str, str] = {}
    numbers = plain_json(without_nan(results, "", reasons), "results")
    if reasons:
        numbers["null_reasons"] = reasons
    pictures: dict[str, bytes] = {}
    failure: ImportError | None = None
    try:
        first = "samples.png" if "kind" in (examples.get("scene") or {}) else "trajectories.png"
        figures = {first: sample_figure(examples), "score_vs_nfe.png": score_figure(results)}
        figures["training.png"] = training_figure(results, curves)
        if any(diagnostic_curves(results, curves)):
            figures["diagnostics.png"] = diagnostics_figure(results, curves)
        pictures = {name: _png(figure) for name, figure in figures.items()}
    except ImportError as error:
        failure = error
    with new_folder(folder, ("report.json", "report.md", *_PICTURES)) as partial:
        write_json(partial / "report.json", numbers)
        write_file(partial / "report.md", report_page(results, list(pictures)).encode())
        for name, data in pictures.items():
            write_file(partial / name, data)
    if failure is not None:
        # Only now: a run of hours must not lose its numbers for want of a plotting library.
        raise ImportError(
            f"{failure}; {folder / 'report.json'} and report.md are written"
        ) from failure
    return folder


def _png(figure: Figure) -> bytes:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="png")
    return buffer.getvalue()
