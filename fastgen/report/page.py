"""The page of a run's report: its tables, numbers and pictures, written as one folder.

report/report.json        every number; NaN and infinity as null, with the reason beside
report/report.md          the table, what its columns mean, the pictures
report/trajectories.png   samples of teacher and student for the same conditions and noise
report/samples.png        the same, of what are no trajectories
report/score_vs_nfe.png   each score against the number of network calls
report/score_vs_evaluations.png  the validation score against the teacher evaluations so far
report/training.png       losses of each stage, and the validation score
report/diagnostics.png    what shows a collapse; of runs whose log holds validations
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._core.files import new_folder, write_file
from .._core.json_files import plain_json, write_json
from .curves import diagnostic_curves, evaluation_curves
from .diagnostics import diagnostics_figure
from .figures import evaluations_figure, score_figure, training_figure
from .pictures import sample_figure
from .styles import MATPLOTLIB, SCORES, Stages
from .tables import format_table, score_blocks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_report"]

# The first line of the page.
_TITLE = "# Report"
# Picture -> what the page says above it.
_CAPTIONS = {
    "trajectories.png": "Samples of teacher and student for the same conditions, from the same "
    "noise.",
    "samples.png": "Samples of the data, and of teacher and student from the same noise.",
    "score_vs_nfe.png": "Quality against cost: each dot is a sampler, its cost the number of "
    "network calls (NFE).",
    "training.png": "Losses of each stage, and the score on a small validation set during "
    "training.",
    "score_vs_evaluations.png": "The validation score against what was asked of the teacher: rows "
    "through its network, for pairs and training.",
    "diagnostics.png": "What shows a collapse: validation scores against where each stage began "
    "(dashed), and how far teacher and fake score (and discriminator) agree about fresh samples "
    "of the student.",
}


def write_report(
    run_dir: str | Path,
    *,
    results: Mapping[str, Any],
    curves: Sequence[Mapping[str, Any]],
    examples: Mapping[str, Any],
    stages: Stages,
) -> Path:
    """Write the folder `report/` in `run_dir`, whole or not at all; returns its path.

    Args:
        run_dir: folder of the run.
        results: `{"teacher": {"100": {score: value}, "ab2-4": {...}}, "student": {"1": {...}},
            "kd": ..., "dmd": ..., "floor": {score: value}, "networks": {"teacher": {"numbers": n,
            "layers": n}, "student": {...}}, "seconds": {...}, "latency": {...}, "selected": stage,
            "choice": text, "primary": score, "decisions": [text], "warnings": [text],
            "teacher_evaluations": {"pairs": count, stage: count, "validation": count, "report":
            count, "total": count}}`.
            Keys of rows are network calls, after the solver and a dash where it isn't Euler. What
            is missing is left out of tables and pictures.
        curves: rows of metrics.jsonl: `iteration`, `stage`, `step`, losses and, in some rows,
            validation scores and `diagnostics`.
        examples: `Z` (n, T_z, d_z), `X_true` (n, T_x, d_x), `teacher` and `student`
            (n, K, T_x, d_x) in original units, `scene` as a task's `scene()` returns it, `labels`
            {"teacher": text, "student": text}. Samples of other shapes have a `kind` in their
            scene, and `Z` isn't drawn. With images there may be `nearest` (n, K, C, H, W), the
            training image that is nearest to each of the student's samples.
        stages: {stage: style} of the stages whose students the report compares, in the order of
            training. "kd" is the warm start of the others.

    Raises:
        TypeError: results that JSON can't hold.
        OSError: the folder can't be written.
        ImportError: matplotlib is not installed; report.json and report.md are written all the
            same.
    """
    folder = Path(run_dir) / "report"
    reasons: dict[str, str] = {}
    numbers = plain_json(_without_nan(results, "", reasons), "results")
    if reasons:
        numbers["null_reasons"] = reasons
    pictures: dict[str, bytes] = {}
    failure: ImportError | None = None
    try:
        pictures = _pictures(results, curves, examples, stages)
    except ImportError as error:
        failure = error
    with new_folder(folder, ("report.json", "report.md", *_CAPTIONS), _is_report) as partial:
        write_json(partial / "report.json", numbers)
        write_file(partial / "report.md", _page(results, list(pictures), stages).encode())
        for name, data in pictures.items():
            write_file(partial / name, data)
    if failure is not None:
        # Only now: a run of hours must not lose its numbers for want of a plotting library.
        written = f"{folder / 'report.json'} and report.md are written"
        raise ImportError(f"{failure}; {written}") from failure
    return folder


def _is_report(folder: Path) -> bool:
    """Whether an earlier report stands in `folder`."""
    try:
        with open(folder / "report.md", encoding="utf-8") as page:
            return page.readline() == _TITLE + "\n" and (folder / "report.json").is_file()
    except (OSError, UnicodeDecodeError):
        return False


def _pictures(
    results: Mapping[str, Any],
    curves: Sequence[Mapping[str, Any]],
    examples: Mapping[str, Any],
    stages: Stages,
) -> dict[str, bytes]:
    """The PNG files of a report by name."""
    samples = "samples.png" if "kind" in (examples.get("scene") or {}) else "trajectories.png"
    figures = {
        samples: sample_figure(examples),
        "score_vs_nfe.png": score_figure(results, stages),
        "training.png": training_figure(results, curves, stages),
    }
    by_evaluations = evaluation_curves(results, curves)
    if by_evaluations:
        figure = evaluations_figure(by_evaluations, str(results.get("primary")), stages)
        figures["score_vs_evaluations.png"] = figure
    if any(diagnostic_curves(results, curves)):
        figures["diagnostics.png"] = diagnostics_figure(results, curves, stages)
    return {name: _png(figure) for name, figure in figures.items()}


def _png(figure: Figure) -> bytes:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context(MATPLOTLIB):
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _page(results: Mapping[str, Any], pictures: Sequence[str], stages: Stages) -> str:
    """report.md: the table, what its columns mean, the pictures."""
    parts = [_TITLE, f"```text\n{format_table(results, stages=stages)}\n```"]
    columns = [name for name in score_blocks(results, stages)[""] if name in SCORES]
    if columns:
        lines = [f"- `{name}`: {SCORES[name].title}; {SCORES[name].meaning}." for name in columns]
        parts.append("\n".join(lines))
    selected = results.get("selected")
    if selected:
        parts.append(f"Exported: the student of stage `{selected}`.")
    choice = results.get("choice")
    if choice:
        parts.append(f"Why: {choice}.")
    parts += results.get("decisions") or []
    warnings = results.get("warnings")
    if warnings:
        parts.append("Warnings of the training:")
        parts.append("\n".join(f"- {text}" for text in warnings))
    parts += [f"{_CAPTIONS[name]}\n\n![{name}]({name})" for name in pictures]
    return "\n\n".join(parts) + "\n"


def _without_nan(value: Any, path: str, reasons: dict[str, str]) -> Any:
    """A copy of `value` with None for NaN and infinity, whose path and value go to `reasons`."""
    if isinstance(value, Mapping):
        return {
            str(key): _without_nan(entry, f"{path}.{key}" if path else str(key), reasons)
            for key, entry in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_nan(entry, f"{path}[{i}]", reasons) for i, entry in enumerate(value)]
    if hasattr(value, "tolist"):
        return _without_nan(value.tolist(), path, reasons)
    if isinstance(value, float) and not math.isfinite(value):
        reasons[path] = f"the value was {value}, which JSON can't hold"
        return None
    return value
