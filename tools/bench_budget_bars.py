"""Bars of students at a budget of teacher evaluations, beside KD alone with as much of them and of
CPU seconds."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from typing import Any

from bench_bars import NOISE, NOISE_OF_PATHS, Bar, gain_bars, gains, medians

# Evaluations of a whole run, its report included, that a user with a large teacher would have.
MOST_EVALUATIONS = 100_000
# By how much two budgets that count as equal may differ.
EQUAL = 0.1
# By how much the total variation of mode weights may exceed the teacher's.
WEIGHTS_OFF = 0.005


def budget_bars(case: str, equal: dict[str, str], result: dict[str, Any]) -> dict[str, Bar]:
    """name -> bar, of what `run_quality` found for a case.

    Args:
        case: its name.
        equal: row of KD alone -> the row that it spends as much as.
        result: of all its rows.
    """
    rows = result["rows"]
    found: dict[str, Bar] = {}
    if case == "fashion":
        found |= _images(result)
    elif case in ("weave", "ring auto", "two rings auto"):
        kd = chosen(rows["KD alone"])
        found |= gain_bars("auto", gains(kd, chosen(rows["auto"]), NOISE | NOISE_OF_PATHS))
        found["auto: teacher evaluations"] = Bar(evaluations(rows["auto"]), MOST_EVALUATIONS)
    elif case == "ring, any budget":
        student = medians(chosen(rows["KD, 6 layers"]))
        found["success near opposition"] = Bar(student["success_near"], 0.988, True)
        found["energy ratio"] = Bar(student["energy_ratio"], 1.12)
    elif case == "ring, 4 calls":
        found |= _two_ways(rows["ode"], rows["sde"])
    elif case == "guided":
        found |= _guided(chosen(rows["KD + DMD"]), chosen(rows["KD"]))
    elif case == "modes, unequal weights":
        found |= _weights(rows, teacher_row(result, "ab2-24"))
    elif case == "flights":
        student = medians(chosen(rows["KD + DMD"]))
        teacher = teacher_row(result, "100")
        found["minFDE of six, the teacher's by 100 calls"] = Bar(
            student["min_fde"], teacher["min_fde"]
        )
    elif case == "peer":
        ours = medians(chosen(rows["KD + DMD"]))
        theirs = medians(chosen(rows["modelopt"]))
        found["Frechet distance, modelopt's"] = Bar(ours["frechet"], theirs["frechet"])
    for kd, other in equal.items():
        found |= _equal_budgets(kd, rows[kd], other, rows[other])
    return found


def chosen(row: dict[str, Any]) -> dict[str, Any]:
    """Scores of the exported student of a row with all of its calls, by medians and ranges."""
    return row["student"][max(row["student"], key=int)]


def teacher_row(result: dict[str, Any], name: str) -> dict[str, float]:
    """Scores of the teacher; of a row that reports left out each is NaN, which meets no bar."""
    return defaultdict(lambda: math.nan, result["teacher"].get(name, {}))


def evaluations(row: dict[str, Any]) -> float:
    """Teacher evaluations of whole runs, reports included."""
    return row["evaluations"]["total"]


def _images(result: dict[str, Any]) -> dict[str, Bar]:
    rows = result["rows"]
    teacher = teacher_row(result, "ab2-12")
    scores = {name: medians(chosen(row)) for name, row in rows.items()}
    one = scores["KD + DMD"]
    kd = scores["KD, as many evaluations"]
    few = scores["500 pairs + DMD"]
    four = scores["4 calls"]
    return {
        "1 call: Frechet distance": Bar(one["frechet"], 0.45),
        "1 call: Frechet distance, below the teacher's by AB2-12": Bar(
            one["frechet"], teacher["frechet"]
        ),
        "1 call: Frechet distance over that of KD alone": Bar(one["frechet"] / kd["frechet"], 0.6),
        "1 call: coverage, the teacher's by AB2-12": Bar(
            one["coverage"], teacher["coverage"], True
        ),
        "1 call: teacher evaluations": Bar(evaluations(rows["KD + DMD"]), MOST_EVALUATIONS),
        "500 pairs: Frechet distance": Bar(few["frechet"], 0.65),
        "500 pairs: teacher evaluations": Bar(evaluations(rows["500 pairs + DMD"]), 30_000),
        "4 calls: Frechet distance": Bar(four["frechet"], 0.34),
        "4 calls: coverage": Bar(four["coverage"], 0.85, True),
        "4 calls: teacher evaluations": Bar(evaluations(rows["4 calls"]), MOST_EVALUATIONS),
    }


def _two_ways(ode: dict[str, Any], sde: dict[str, Any]) -> dict[str, Bar]:
    """Bars of a student whose rungs are joined by the ODE, beside one that draws fresh noise."""
    by_ode = medians(ode["dmd"]["4"])
    by_sde = medians(sde["dmd"]["4"])
    return {
        "ode: energy ratio": Bar(by_ode["energy_ratio"], by_sde["energy_ratio"] + 0.02),
        "ode: success near opposition": Bar(
            by_ode["success_near"], by_sde["success_near"] - 0.005, True
        ),
        "ode: numbers of calls offered": Bar(len(ode["dmd"]), 2, True),
    }


def _guided(dmd: dict[str, Any], kd: dict[str, Any]) -> dict[str, Bar]:
    """Bars of a student of a guided teacher, beside KD alone."""
    student = medians(dmd)
    alone = medians(kd)
    return {
        "Frechet distance to the guided teacher, KD's": Bar(
            student["guided_frechet"], alone["guided_frechet"]
        ),
        "coverage of the guided teacher, KD's": Bar(
            student["guided_coverage"], alone["guided_coverage"], True
        ),
        "pixels out of range": Bar(dmd["pixels_outside"]["most"], 0.0),
    }


def _weights(rows: dict[str, Any], teacher: dict[str, float]) -> dict[str, Bar]:
    """Bars of a student whose modes had wrong weights before its distribution was matched."""
    start = medians(chosen(rows["weak KD"]))
    student = medians(chosen(rows["KD + DMD"]))
    most = teacher["weights_off"] + WEIGHTS_OFF
    return {
        "weights of the start, off by": Bar(start["weights_off"], 0.1, True),
        "weights after DMD, off by": Bar(student["weights_off"], most),
    }


def _equal_budgets(
    kd: str, of_kd: dict[str, Any], other: str, of_other: dict[str, Any]
) -> dict[str, Bar]:
    """Bars that KD alone has spent as much as another row, by seed: the median of |ratio - 1|."""
    found = {}
    for what in ("evaluations", "seconds"):
        pairs = zip(of_kd["spent"], of_other["spent"], strict=True)
        off = statistics.median(abs(mine[what] / its[what] - 1.0) for mine, its in pairs)
        label = "teacher evaluations" if what == "evaluations" else "CPU seconds"
        found[f"{kd}: {label} as those of {other}, off by"] = Bar(off, EQUAL)
    return found
