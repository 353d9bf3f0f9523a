"""What one-step and few-step students must reach on tasks whose law is known, and whether they
do."""

from __future__ import annotations

from typing import Any, NamedTuple

ENERGY_NOISE = 0.001  # ten standard deviations of `modes`' energy distance between data sets

# Scores of a good law, with the sign of better; spread is best at 1. And what two runs of one
# recipe may differ by at least, however few seeds there are.
_BETTER = {"success": 1.0, "success_near": 1.0, "energy_ratio": -1.0, "energy_distance": -1.0}
_NOISE = {
    "success": 0.003,
    "success_near": 0.006,
    "energy_ratio": 0.02,
    "energy_distance": ENERGY_NOISE,
}
# Of spread: twice the deviation between data sets of `modes`; what two runs of one recipe differ by
# on `ring`.
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
    teacher = result["teacher"]
    floor = result["floor"]
    found: dict[str, Bar] = {}
    if case == "modes":
        student = _medians(rows["KD + DMD"]["kd"]["1"])
        found |= _points(student, teacher["100"])
        found["CPU seconds"] = Bar(_seconds(rows["KD + DMD"], "kd"), 60.0)
    elif case in ("ring", "two rings"):
        names = {"ring": ("KD", "KD, 4 steps"), "two rings": ("1 step", "4 steps")}[case]
        one, four = (rows[name]["kd"] for name in names)
        for stage, calls in ((one, ("1",)), (four, ("2", "4") if case == "ring" else ("4",))):
            for n in calls:
                label = f"{n} call{'s' * (n != '1')}"
                found |= {
                    f"{label}: {k}": b
                    for k, b in _paths(_medians(stage[n]), teacher, floor, n).items()
                }
        for label, name, share in (("1 call", names[0], 0.8), ("4 calls", names[1], 0.35)):
            found[f"{label}: CPU seconds / the teacher's"] = Bar(
                _seconds(rows[name], "kd") / result["teacher seconds"], share
            )
    elif case in ("weak modes", "weak ring"):
        row, energy = (
            ("KD + data", "energy_distance")
            if case == "weak modes"
            else ("KD + GAN + data", "energy_ratio")
        )
        student = _medians(rows[row]["dmd"]["1"])
        full = teacher["100"]
        found["success"] = Bar(student["success"], full["success"], True)
        found[energy] = Bar(student[energy], full[energy])
        if "coverage" in full:
            found["coverage"] = Bar(student["coverage"], full["coverage"], True)
        else:
            found["mode error"] = Bar(student["mode_error"], full["mode_error"] + 0.01)
    elif case == "little data":
        kept = rows["equivariant"]["kd"]["1"]["kept"]["median"]
        found["success kept when turned, equivariant"] = Bar(kept, 1.0, True)
    for name, row in rows.items():
        if case in ("modes", "ring") and "DMD" in name:
            found |= _gains(name, row, _NOISE | {"spread": _SPREAD_NOISE[case]})
    return found


def _points(student: dict[str, float], teacher: dict[str, float]) -> dict[str, Bar]:
    return {
        "energy distance": Bar(
            student["energy_distance"], teacher["energy_distance"] + ENERGY_NOISE
        ),
        "success": Bar(student["success"], teacher["success"] - 0.01, True),
        "coverage": Bar(student["coverage"], teacher["coverage"] - 0.01, True),
        "spread, least": Bar(student["spread"], 0.9, True),
        "spread, most": Bar(student["spread"], 1.15),
        "worst mode share": Bar(student["mode_error"], 0.02),
    }


def _paths(
    student: dict[str, float], teacher: dict[str, Any], floor: dict[str, float], calls: str
) -> dict[str, Bar]:
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
    """DMD after the KD of the same runs: how many scores it improves or worsens by more than the
    seeds differ by, and more than `least`."""
    kd = row["kd"]["1"]
    dmd = row["dmd"]["1"]
    better = worse = 0
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
