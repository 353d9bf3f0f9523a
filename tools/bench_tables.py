"""What the runs of a row amount to over the seeds, and the tables of the cases."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from bench_budgets import Spent, cpu_seconds, spent


def summary(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each stage and number of calls the median, least and largest scores over the seeds, the
    same of the exported student, and what it took.

    Stages that not all seeds have are left out.
    """
    found: dict[str, Any] = {"selected": [report["selected"] for report in reports]}
    stages = [
        stage
        for stage in reports[0]["validation"]
        if all(stage in report["validation"] for report in reports)
    ]
    for stage in (*stages, "student"):
        found[stage] = {
            calls: {
                score: spread_of([report[stage][calls][score] for report in reports])
                for score in scores
                if all(score in report[stage][calls] for report in reports)
            }
            for calls, scores in reports[0][stage].items()
        }
    found["cpu seconds"] = median_of_parts([cpu_seconds(report) for report in reports])
    found["evaluations"] = median_of_parts([report["teacher_evaluations"] for report in reports])
    found["spent"] = [spent(report)._asdict() for report in reports]
    return found


def median_of_parts(parts: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(part.get(name, 0) for part in parts) for name in parts[0]}


def spread_of(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def show(name: str, scores: tuple[str, ...], case: dict[str, Any]) -> None:
    """Print the table of a case, and what its students differ by from those of KD alone.

    Evaluations of the teacher and CPU seconds are those of pairs, KD and the stage; of the exported
    student those of the whole run without its report.
    """
    print("\n" + line_of(name, scores) + f"{'evaluations':>13}{'CPU s':>9}")
    references = {"fresh data": case["floor"]}
    for calls, values in case["teacher"].items():
        references[f"teacher {calls}"] = values
    for row, values in references.items():
        print(line_of(row, [f"{values.get(score, float('nan')):.4f}" for score in scores]))
    for row, found in case["rows"].items():
        for stage in (*stages_of(found), "student"):
            taken = taken_by(found, stage)
            who = f"chosen ({', '.join(sorted(set(found['selected'])))})"
            for calls, values in found[stage].items():
                label = f"{row}: {stage if stage != 'student' else who}, {calls}"
                cells = [shown_spread(values.get(score)) for score in scores]
                cost = f"{taken.evaluations:>13,.0f}{taken.seconds:>9.0f}"
                print(line_of(label, cells) + cost, flush=True)
    for row, found in case["rows"].items():
        for score in scores:
            if score in found["from KD alone"]:
                by_seed = " ".join(f"{value:+.4f}" for value in found["from KD alone"][score])
                print(f"{row}, {score} less that of KD alone, by seed: {by_seed}")


def stages_of(found: dict[str, Any]) -> list[str]:
    """The trained stages in the summary of a row."""
    return [name for name in found["evaluations"] if name != "pairs" and name in found]


def taken_by(found: dict[str, Any], stage: str) -> Spent:
    """Medians of what a stage of a row took, with its pairs and KD; "student": the whole run."""
    if stage == "student":
        each = [Spent(**run) for run in found["spent"]]
        return Spent(*(statistics.median(values) for values in zip(*each, strict=True)))
    parts = dict.fromkeys(("pairs", "kd", stage))
    return Spent(
        sum(found["evaluations"].get(part, 0) for part in parts),
        sum(found["cpu seconds"].get(part, 0.0) for part in parts),
    )


def shown_spread(cell: dict[str, float] | None) -> str:
    if cell is None:
        return ""
    return f"{cell['median']:.4f}+-{(cell['most'] - cell['least']) / 2:.4f}"


def line_of(label: str, cells: Sequence[str]) -> str:
    return f"{label:<44}" + "".join(f"{cell:>17}" for cell in cells)


def add_measured(report: dict[str, Any], found: dict[str, float]) -> None:
    """Add scores of the exported student to a report, beside those of its most calls."""
    for rows in (report["student"], report[report["selected"]]):
        rows[most_calls(rows)] |= found


def most_calls(rows: dict[str, Any]) -> str:
    return max(rows, key=int)


def gains_over_kd(
    row: str, equal: dict[str, str], reports: dict[str, list[dict[str, Any]]]
) -> dict[str, list[float]]:
    """Of each score, the exported student's less that of KD alone, by seed.

    KD alone is the row that spends as much as this one; where there is none, the KD that this very
    run began with; {} without either.

    Args:
        row: name.
        equal: of the case.
        reports: of each row, by seed.
    """
    alone = next((kd for kd, other in equal.items() if other == row and kd in reports), None)
    if alone is not None:
        before = [report["student"] for report in reports[alone]]
    elif all(report["kd"] and report["selected"] != "kd" for report in reports[row]):
        before = [report["kd"] for report in reports[row]]
    else:
        return {}
    found: dict[str, list[float]] = {}
    for report, kd in zip(reports[row], before, strict=True):
        student = report["student"][most_calls(report["student"])]
        for score, value in kd[most_calls(kd)].items():
            if score in student:
                found.setdefault(score, []).append(student[score] - value)
    return found
