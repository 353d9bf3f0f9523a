"""The numbers of a report: as text, and as its pictures need them. Plots nothing itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ..records.log import CLOCKED

__all__ = [
    "METHOD_TITLES",
    "SCORES",
    "box_around",
    "by_solver",
    "demonstrations_score",
    "diagnostic_curves",
    "drawable",
    "format_table",
    "report_page",
    "score_blocks",
    "score_curves",
    "smooth",
    "trained_stages",
    "training_curves",
    "within",
    "with_aspect",
    "without_nan",
    "xy_points",
]

# Stages after the warm start by KD.
METHOD_TITLES = {"dmd": "DMD", "ladd": "LADD", "consistency": "consistency"}
# Score -> (what a person calls it, which way is good, scale of its axis).
SCORES = {
    "success": ("success", "higher is better", "logit"),
    "mode_error": ("mode error", "lower is better", "log"),
    "energy_ratio": ("energy distance to the data", "1 = demonstrations, lower is better", "log"),
    "clearance": ("clearance / that of the data", "1 = demonstrations", "linear"),
    "spread": ("spread within a mode / data's", "1 = demonstrations", "linear"),
    "share_error": ("error of class shares", "lower is better", "log"),
    "coverage": ("share of the data covered", "higher is better", "logit"),
    "mismatch": ("mismatch to the data", "not covered + energy distance", "log"),
    "min_ade": ("minADE, best of 6 samples", "lower is better", "log"),
    "min_fde": ("minFDE, best of 6 samples", "lower is better", "log"),
    "energy_distance": ("energy distance to the data", "0 = same law, lower is better", "linear"),
    "energy_score": ("energy score", "lower is better", "log"),
    "mean_error": ("error of the mean / spread of the data", "lower is better", "log"),
    "std_ratio": ("spread / that of the data", "1 = the data's", "linear"),
}
# Columns of a log row that are neither losses nor scores.
_BOOKKEEPING = {"iteration", "step", "stage", "lr", *CLOCKED}

Rows = Mapping[str, Mapping[str, Any]]


def score_blocks(results: Mapping[str, Any]) -> dict[str, list[str]]:
    """{suffix: score names without it}: all conditions under "", harder ones under "_near"; the
    primary score first."""
    found: dict[str, None] = {}
    for name in ("student", "kd", *METHOD_TITLES, "teacher"):
        for scores in (results.get(name) or {}).values():
            found |= dict.fromkeys(scores)
    primary = results.get("primary")
    names = sorted(found, key=lambda name: name.removesuffix("_near") != primary)
    near = [name.removesuffix("_near") for name in names if name.endswith("_near")]
    return {"": [name for name in names if not name.endswith("_near")]} | (
        {"_near": near} if near else {}
    )


def by_solver(rows: Rows | None) -> dict[str, dict[int, Mapping[str, Any]]]:
    """{"1": scores, "ab2-4": scores} -> {"euler": {1: scores}, "ab2": {4: scores}}; other keys are
    left out."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for key, scores in (rows or {}).items():
        solver, _, calls = str(key).rpartition("-")
        if calls.isdigit():
            found.setdefault(solver or "euler", {})[int(calls)] = scores
    return found


def trained_stages(results: Mapping[str, Any]) -> dict[str, str]:
    """Stage -> what its student is called, of the stages that the results have rows of."""
    after = "KD + " if results.get("kd") else ""
    titles = {"kd": "KD only"} | {stage: after + title for stage, title in METHOD_TITLES.items()}
    return {stage: title for stage, title in titles.items() if results.get(stage)}


def demonstrations_score(floor: Mapping[str, Any] | None, name: str) -> float | None:
    """The demonstrations' own score: exact where the task knows it (`mode_error_floor_near`), else
    measured."""
    base = name.removesuffix("_near")
    near = "_near" if name.endswith("_near") else ""
    return (floor or {}).get(f"{base}_floor{near}", (floor or {}).get(name))


def score_curves(
    results: Mapping[str, Any], name: str, scale: str
) -> list[tuple[str, dict[int, float]]]:
    """(label, {calls: value}) in drawing order."""
    rows = [
        (f"teacher, {'Euler' if solver == 'euler' else solver.upper()}", points)
        for solver, points in by_solver(results.get("teacher")).items()
    ]
    rows.append(("student (exported)", by_solver(results.get("student")).get("euler", {})))
    rows += [
        (title, by_solver(results[stage]).get("euler", {}))
        for stage, title in trained_stages(results).items()
    ]
    return [
        (
            label,
            {
                k: within(points[k][name], scale)
                for k in sorted(points)
                if drawable(points[k].get(name), scale)
            },
        )
        for label, points in rows
    ]


def drawable(value: Any, scale: str) -> TypeGuard[float]:
    """Whether a score is a finite number that an axis of that scale can show."""
    return (
        isinstance(value, int | float)
        and math.isfinite(value)
        and not (scale == "log" and value <= 0)
    )


def within(value: float, scale: str) -> float:
    """The score, moved inside the open interval that a logit axis shows."""
    # A success of 1 is at infinity on a logit axis; no evaluation here can tell 0.9999 from it.
    return min(max(value, 0.02), 0.9999) if scale == "logit" else value


def format_table(results: Mapping[str, Any]) -> str:
    """The scores as plain text for a terminal.

    One row per sampler and number of network calls, one block of columns per set of conditions;
    seconds; latency.

    Args:
        results: as for :func:`fastgen.report.page.write_report`.
    """
    rows = _rows(results)
    blocks = []
    titles = (
        {"": "all conditions", "_near": "near opposition"}
        if len(score_blocks(results)) > 1
        else {"": ""}
    )
    for suffix, names in score_blocks(results).items():
        if not names:
            continue
        lines = [[titles[suffix], *names]]
        lines += [
            [label, *(_number(scores.get(name + suffix)) for name in names)]
            for label, scores in rows
        ]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
            for row in lines
        ]
        blocks.append("\n".join([text[0], "-" * len(text[0]), *text[1:]]))
    for name, title in (("seconds", "seconds"), ("latency", "latency")):
        if pairs := [
            f"{key} {_number(value, 3)}" for key, value in (results.get(name) or {}).items()
        ]:
            blocks.append(f"{title}: " + "; ".join(pairs))
    return "\n\n".join(blocks)


def _rows(results: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(label, scores) of the table: references first, then the teacher from many calls to few, then
    the students."""
    floor = results.get("floor") or {}
    names = [name + suffix for suffix, part in score_blocks(results).items() for name in part]
    demonstrations = {name: demonstrations_score(floor, name) for name in names}
    constant_velocity = {name: floor.get(f"cv_{name}") for name in names}
    rows: list[tuple[str, Mapping[str, Any]]] = [
        (label, scores)
        for label, scores in (
            ("demonstrations", demonstrations),
            ("constant velocity", constant_velocity),
        )
        if any(value is not None for value in scores.values())
    ]
    for solver, points in by_solver(results.get("teacher")).items():
        title = "Euler" if solver == "euler" else solver.upper()
        rows += [
            (f"teacher {title} {calls}", scores)
            for calls, scores in sorted(points.items(), reverse=True)
        ]
    students = trained_stages(results) or {"student": "student"}
    for key, title in students.items():
        mark = "  <- exported" if key == results.get("selected") else ""
        points = by_solver(results.get(key)).get("euler", {})
        rows += [
            (f"{title} {calls}{mark}", scores)
            for calls, scores in sorted(points.items(), reverse=True)
        ]
    return rows


def _number(value: Any, digits: int = 4) -> str:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "-" if value is None else "n/a"
    return f"{value:.{digits}f}" if abs(value) < 10 else f"{value:.1f}"


def without_nan(value: Any, path: str, reasons: dict[str, str]) -> Any:
    """`value` with NaN and infinity as None, and in `reasons` the path of each and what stood
    there."""
    if isinstance(value, Mapping):
        return {
            str(k): without_nan(v, f"{path}.{k}" if path else str(k), reasons)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_nan(v, f"{path}[{i}]", reasons) for i, v in enumerate(value)]
    if hasattr(value, "tolist"):
        return without_nan(value.tolist(), path, reasons)
    if isinstance(value, float) and not math.isfinite(value):
        reasons[path] = f"the value was {value}, which JSON can't hold"
        return None
    return value


def report_page(results: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """report.md: the table, what its columns mean, the pictures."""
    captions = {
        "trajectories.png": "Samples of teacher and student for the same conditions, from the same noise.",
        "samples.png": "Samples of the data, and of teacher and student from the same noise.",
        "score_vs_nfe.png": "Quality against cost: each dot is a sampler, its cost the number of network calls (NFE).",
        "training.png": "Losses of each stage, and the score on a small validation set during training.",
        "diagnostics.png": "What shows a collapse: validation scores against where each stage began (dashed), and how "
        "far teacher and fake score (and discriminator) agree about fresh samples of the student.",
    }
    parts = ["# Report", "```text\n" + format_table(results) + "\n```"]
    if known := [name for name in score_blocks(results)[""] if name in SCORES]:
        parts.append(
            "\n".join(f"- `{name}`: {SCORES[name][0]}; {SCORES[name][1]}." for name in known)
        )
    if selected := results.get("selected"):
        parts.append(f"Exported: the student of stage `{selected}`.")
    if warnings := results.get("warnings"):
        parts.append("Warnings of the training:\n\n" + "\n".join(f"- {text}" for text in warnings))
    parts += [f"{captions[name]}\n\n![{name}]({name})" for name in pictures]
    return "\n\n".join(parts) + "\n"


Curve = list[tuple[float, float]]
Box = tuple[float, float, float, float]


def training_curves(
    results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, dict[str, Curve]], dict[str, Curve]]:
    """What a log holds: ({stage: {loss: [(step, value)]}}, {stage: [(iteration, primary score)]}).

    Args:
        results: `primary`, and the names of scores, which are told from losses by them.
        rows: of metrics.jsonl. Losses that are not above zero are left out, since their axis is
            logarithmic.
    """
    primary = results.get("primary")
    scores = {primary}
    for part in ("teacher", "student", "kd", *METHOD_TITLES):
        scores |= {name for row in (results.get(part) or {}).values() for name in row}
    losses: dict[str, dict[str, Curve]] = {}
    validation: dict[str, Curve] = {}
    for count, row in enumerate(rows):
        stage = str(row.get("stage", "training"))
        step = row.get("step", count)
        found = {
            k: v
            for k, v in row.items()
            if k not in scores | _BOOKKEEPING and not k.endswith("grad_norm")
        }
        found = {k: v for k, v in found.items() if drawable(v, "log")}
        # `loss` and `total` repeat the named losses where there are any.
        for name, value in (
            {k: v for k, v in found.items() if k not in ("loss", "total")} or found
        ).items():
            losses.setdefault(stage, {}).setdefault(name, []).append((step, value))
        score = row.get(primary) if primary is not None else None
        if drawable(score, "linear"):
            validation.setdefault(stage, []).append((row.get("iteration", step), float(score)))
    return losses, validation


def diagnostic_curves(
    results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, dict[str, Curve]], dict[str, dict[str, Curve]]]:
    """Validation scores and diagnostics of a log, over the updates of all stages.

    Args:
        results: `primary`.
        rows: of metrics.jsonl. Values that aren't finite numbers are left out.

    Returns:
        ({score: {stage: [(iteration, value)]}}, {diagnostic: {bin of t, or "": [(iteration,
        value)]}}): the primary score, spreads and mode errors; and what stages found by `diagnose`,
        one curve for each entry of a list.
    """
    scores: dict[str, dict[str, Curve]] = {}
    found: dict[str, dict[str, Curve]] = {}
    for count, row in enumerate(rows):
        x = row.get("iteration", count)
        for name in dict.fromkeys((results.get("primary"), "spread", "std_ratio", "mode_error")):
            if name is not None and drawable(value := row.get(name), "linear"):
                scores.setdefault(name, {}).setdefault(
                    str(row.get("stage", "training")), []
                ).append((x, float(value)))
        diagnostics = row.get("diagnostics") or {}
        for name, value in diagnostics.items():
            if name in ("t", "gan_t"):
                continue
            # The GAN has its own range of t.
            key, prefix = ("gan_t", "GAN, ") if name.startswith("gan_") else ("t", "")
            bounds = diagnostics.get(key) or []
            for k, entry in enumerate(value if isinstance(value, list) else [value]):
                label = ""
                if isinstance(value, list):
                    label = (
                        f"t {bounds[k]:.2f} to {bounds[k + 1]:.2f}"
                        if len(bounds) > len(value)
                        else f"bin {k + 1}"
                    )
                    label = prefix + label
                if drawable(entry, "linear"):
                    found.setdefault(name, {}).setdefault(label, []).append((x, float(entry)))
    return scores, found


def smooth(points: Curve) -> Curve:
    """Geometric means over windows of about a twentieth of the curve: what a noisy loss does in the
    long run."""
    half = max(1, len(points) // 40)
    windows = [points[max(0, i - half) : i + half + 1] for i in range(len(points))]
    means = [math.exp(sum(math.log(y) for _, y in window) / len(window)) for window in windows]
    return [(x, mean) for (x, _), mean in zip(points, means, strict=True)]


def xy_points(values: Tensor | Sequence) -> list:
    """(..., T, d) as nested lists of (x, y): the first two channels, or the index and the only
    channel."""
    x = torch.as_tensor(values).detach().cpu().double()
    if x.shape[-1] == 1:
        time = torch.arange(1, x.shape[-2] + 1, dtype=x.dtype).expand(x.shape[:-1])
        x = torch.stack([time, x[..., 0]], dim=-1)
    return x[..., :2].tolist()


def box_around(
    scene: Mapping[str, Any], paths: Sequence[Sequence[Sequence[float]]]
) -> tuple[float, float, float, float]:
    """The scene's limits, or a box with a margin around everything that will be drawn."""
    if scene.get("limits") is not None:
        x0, x1, y0, y1 = scene["limits"]
        return x0, x1, y0, y1
    xs, ys = (
        [p[k] for path in paths for p in path if math.isfinite(p[k])] or [0.0] for k in (0, 1)
    )
    margin = 0.05 * max(max(xs) - min(xs), max(ys) - min(ys), 1e-9)
    return min(xs) - margin, max(xs) + margin, min(ys) - margin, max(ys) + margin


def with_aspect(box: Sequence[float], aspect: float) -> Box:
    """The smallest box around `box`, with the same centre, that is `aspect` times as wide as
    high."""
    x0, x1, y0, y1 = box
    width = max(x1 - x0, aspect * (y1 - y0))
    height = max(y1 - y0, (x1 - x0) / aspect)
    x = (x0 + x1) / 2
    y = (y0 + y1) / 2
    return x - width / 2, x + width / 2, y - height / 2, y + height / 2
