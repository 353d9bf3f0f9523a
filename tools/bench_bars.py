"""Bars: what one-step and few-step students must reach on tasks whose law is known."""

from __future__ import annotations

from typing import Any, NamedTuple

# Ten standard deviations of the energy distance between data sets of `modes`.
ENERGY_NOISE = 0.001
# Scores, with the sign of better; spread is best at 1.
_BETTER = {"success": 1.0, "success_near": 1.0, "energy_ratio": -1.0, "energy_distance": -1.0}
# By how much two runs of one recipe may differ at least, however few seeds there are.
_NOISE = {
    "success": 0.003,
    "success_near": 0.006,
    "energy_ratio": 0.02,
    "energy_distance": ENERGY_NOISE,
}
# The same of spread: on `modes` twice the deviation between data sets, on `ring` what two runs of
# one recipe differ by.
_SPREAD_NOISE = {"modes": 0.02, "ring": 0.04}


class Bar(NamedTuple):
    """A score that must be at least (`least`) or at most `bar`."""

    got: float
    bar: float
    least: bool = False

    def met(self) -> bool:
        return self.got >= self.bar if self.least else self.got <= self.bar


def bars_of(case: str, result: dict[str, Any]) -> dict[str, Bar]:
    """name -> bar, of what `run_quality` found for a case."""
    rows = result["rows"]
    found: dict[str, Bar] = {}
    if case == "modes":
        student = _medians(rows["KD + DMD"]["kd"]["1"])
        found |= _points(student, result["teacher"]["100"])
        found["CPU seconds"] = Bar(_seconds(rows["KD + DMD"], "kd"), 60.0)
    elif case == "ring":
        found |= _one_and_four(result, "KD", "KD, 4 steps", calls_of_four=("2", "4"))
    elif case == "two rings":
        found |= _one_and_four(result, "1 step", "4 steps", calls_of_four=("4",))
    elif case == "weak modes":
        found |= _beyond_the_teacher(result, "KD + data", "energy_distance")
    elif case == "weak ring":
        found |= _beyond_the_teacher(result, "KD + GAN + data", "energy_ratio")
    elif case == "little data":
        kept = rows["equivariant"]["kd"]["1"]["kept"]["median"]
        found["success kept when turned, equivariant"] = Bar(kept, 1.0, True)
    for name, row in rows.items():
        if case in ("modes", "ring") and "DMD" in name:
            found |= _gains(name, row, _NOISE | {"spread": _SPREAD_NOISE[case]})
    return found


def _one_and_four(
    result: dict[str, Any], one: str, four: str, *, calls_of_four: tuple[str, ...]
) -> dict[str, Bar]:
    """Bars of students by KD of one and of four calls: their scores, and what they cost.

    Args:
        result: of a case of paths.
        one, four: the rows of the two students.
        calls_of_four: the numbers of calls of the second student that have bars.
    """
    rows = result["rows"]
    found = {}
    for row, numbers in ((one, ("1",)), (four, calls_of_four)):
        for calls in numbers:
            student = _medians(rows[row]["kd"][calls])
            label = "1 call" if calls == "1" else f"{calls} calls"
            bars = _paths(student, result["teacher"], result["floor"], calls)
            for name, bar in bars.items():
                found[f"{label}: {name}"] = bar
    for label, row, share in (("1 call", one, 0.8), ("4 calls", four, 0.35)):
        cost = _seconds(rows[row], "kd") / result["teacher seconds"]
        found[f"{label}: CPU seconds / the teacher's"] = Bar(cost, share)
    return found


def _beyond_the_teacher(result: dict[str, Any], row: str, energy: str) -> dict[str, Bar]:
    """Bars of a student that may be better than its weak teacher, by real data."""
    student = _medians(result["rows"][row]["dmd"]["1"])
    teacher = result["teacher"]["100"]
    found = {
        "success": Bar(student["success"], teacher["success"], True),
        energy: Bar(student[energy], teacher[energy]),
    }
    if "coverage" in teacher:
        found["coverage"] = Bar(student["coverage"], teacher["coverage"], True)
    else:
        found["mode error"] = Bar(student["mode_error"], teacher["mode_error"] + 0.01)
    return found


def _points(student: dict[str, float], teacher: dict[str, float]) -> dict[str, Bar]:
    """Bars of a student of points of the plane."""
    energy = teacher["energy_distance"] + ENERGY_NOISE
    return {
        "energy distance": Bar(student["energy_distance"], energy),
        "success": Bar(student["success"], teacher["success"] - 0.01, True),
        "coverage": Bar(student["coverage"], teacher["coverage"] - 0.01, True),
        "spread, least": Bar(student["spread"], 0.9, True),
        "spread, most": Bar(student["spread"], 1.15),
        "worst mode share": Bar(student["mode_error"], 0.02),
    }


def _paths(
    student: dict[str, float], teacher: dict[str, Any], floor: dict[str, float], calls: str
) -> dict[str, Bar]:
    """Bars of a student of paths with so many calls."""
    slack = 0.01 if calls == "1" else 0.0
    success = "success_near" if calls == "1" and "success_near" in student else "success"
    found = {
        success.replace("_", " "): Bar(student[success], teacher["100"][success] - slack, True),
        "mode error": Bar(student["mode_error"], floor["mode_error_floor"] + 0.01),
        "energy ratio": Bar(student["energy_ratio"], teacher["ab2-8"]["energy_ratio"]),
        "|clearance - 1|": Bar(abs(student["clearance"] - 1.0), 0.03),
    }
    if calls == "1":
        found["|spread - 1|"] = Bar(abs(student["spread"] - 1.0), 0.1)
    if "share_error" in student:
        found["worst class share"] = Bar(student["share_error"], 0.03)
    return found


def _gains(name: str, row: dict[str, Any], least: dict[str, float]) -> dict[str, Bar]:
    """Bars of DMD after the KD of the same runs: how many scores it improves and how many it
    worsens, by more than the seeds differ and by more than `least`."""
    kd = row["kd"]["1"]
    dmd = row["dmd"]["1"]
    better = 0
    worse = 0
    for score in (*_BETTER, "spread"):
        if score not in kd:
            continue
        before = kd[score]
        after = dmd[score]
        ranges = before["most"] - before["least"] + after["most"] - after["least"]
        noise = max(ranges / 2, least[score])
        if score == "spread":
            gain = abs(before["median"] - 1.0) - abs(after["median"] - 1.0)
        else:
            gain = _BETTER[score] * (after["median"] - before["median"])
        better = better + (gain > noise)
        worse = worse + (gain < -noise)
    return {
        f"{name}: scores better than KD's": Bar(better, 1, True),
        f"{name}: scores worse than KD's": Bar(worse, 0),
    }


def _medians(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    return {name: score["median"] for name, score in scores.items()}


def _seconds(row: dict[str, Any], stage: str) -> float:
    return sum(row["cpu seconds"].get(name, 0.0) for name in ("pairs", stage))
