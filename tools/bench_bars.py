"""Bars: what one-step and few-step students must reach on tasks whose law is known."""

from __future__ import annotations

from typing import Any, NamedTuple

# Ten standard deviations of the energy distance between data sets of `modes`.
ENERGY_NOISE = 0.001
# Scores, with the sign of better, and those that are best at 1.
_BETTER = {
    "success": 1.0,
    "success_near": 1.0,
    "energy_ratio": -1.0,
    "energy_distance": -1.0,
    "coverage": 1.0,
    "mode_error": -1.0,
    "share_error": -1.0,
    "off_sine": -1.0,
    "off_seam": -1.0,
}
_BEST_AT_ONE = (
    "spread",
    "spread_near",
    "clearance",
    "amplitude",
    "amplitude_spread",
    "periods_spread",
)
# By how much two runs of one recipe may differ at least, however few seeds there are.
NOISE = {
    "success": 0.003,
    "success_near": 0.006,
    "energy_ratio": 0.02,
    "energy_distance": ENERGY_NOISE,
}
# The same of the scores of paths that are compared beside these.
NOISE_OF_PATHS = {
    "mode_error": 0.004,
    "share_error": 0.01,
    "clearance": 0.01,
    "amplitude": 0.005,
    "amplitude_spread": 0.01,
    "periods_spread": 0.005,
    "off_sine": 0.0005,
    "off_seam": 0.001,
    "spread": 0.04,
    "spread_near": 0.06,
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
        student = medians(rows["KD + DMD"]["kd"]["1"])
        found |= _points(student, result["teacher"]["100"])
        found["CPU seconds"] = Bar(_seconds(rows["KD + DMD"], "kd"), 60.0)
    elif case == "ring, prefixes":
        student = medians(rows["prefixes"]["kd"]["1"])
        for given in ("4", "8"):
            name = f"success with {given} waypoints given"
            found[name] = Bar(student[f"success_{given}"], student["success"] - 0.01, True)
            found[f"{given} waypoints kept"] = Bar(student[f"kept_{given}"], 1.0, True)
    elif case in ("ring, any number", "fashion, any number"):
        score = "energy_ratio" if case.startswith("ring") else "frechet"
        for calls in ("1", "2", "4"):
            alone = rows[f"{calls} alone"]["kd"][calls][score]["median"]
            got = rows["any"]["kd"][calls][score]["median"]
            found[f"{calls} calls, {score} within 2 % of a student of its own"] = Bar(
                got, 1.02 * alone
            )
    elif case == "ring":
        found |= _one_and_four(result, "KD", "KD, 4 steps", calls_of_four=("2", "4"))
    elif case == "two rings":
        found |= _one_and_four(result, "1 step", "4 steps", calls_of_four=("4",))
    elif case == "weak modes":
        found |= _beyond_the_teacher(result, "KD + data", "energy_distance")
        found |= _auto_beside(rows, "KD + data")
    elif case == "weak ring":
        found |= _beyond_the_teacher(result, "KD + GAN + data", "energy_ratio")
        found |= _auto_beside(rows, "KD + GAN + data")
    elif case == "little data":
        kept = rows["equivariant"]["kd"]["1"]["kept"]["median"]
        found["success kept when turned, equivariant"] = Bar(kept, 1.0, True)
    for name, row in rows.items():
        if case in ("modes", "ring") and "DMD" in name:
            noise = NOISE | {"spread": _SPREAD_NOISE[case]}
            found |= gain_bars(name, gains(row["kd"]["1"], row["dmd"]["1"], noise))
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
            student = medians(rows[row]["kd"][calls])
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
    student = medians(result["rows"][row]["dmd"]["1"])
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


def _auto_beside(rows: dict[str, Any], best: str) -> dict[str, Bar]:
    """The bar of what `auto` chooses for a weak teacher: no score is worse than the `best` row's by
    more than noise."""
    auto = rows["auto"]["student"]["1"]
    found = gains(rows[best]["dmd"]["1"], auto, NOISE | NOISE_OF_PATHS | {"coverage": 0.01})
    worse = sum(gain < 0 for gain in found.values())
    return {f"auto: scores worse than those of {best}": Bar(worse, 0)}


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


def gains(kd: dict[str, Any], dmd: dict[str, Any], noise: dict[str, float]) -> dict[str, float]:
    """By how much scores are better than KD's beyond noise: 0 within it, negative where worse.

    Noise is half of both ranges over the seeds, and at least `noise`.

    Args:
        kd, dmd: score -> its median, least and most over the seeds.
        noise: score -> by how much two runs of one recipe may differ; only these are compared.
    """
    found = {}
    for score, least in noise.items():
        if score not in kd or score not in dmd:
            continue
        before = kd[score]
        after = dmd[score]
        ranges = before["most"] - before["least"] + after["most"] - after["least"]
        if score in _BEST_AT_ONE:
            gain = abs(before["median"] - 1.0) - abs(after["median"] - 1.0)
        else:
            gain = _BETTER[score] * (after["median"] - before["median"])
        found[score] = gain if abs(gain) > max(ranges / 2, least) else 0.0
    return found


def gain_bars(name: str, found: dict[str, float]) -> dict[str, Bar]:
    """Bars of what `gains` found: one score is better than KD's at least, and none is worse."""
    return {
        f"{name}: scores better than KD's": Bar(sum(gain > 0 for gain in found.values()), 1, True),
        f"{name}: scores worse than KD's": Bar(sum(gain < 0 for gain in found.values()), 0),
    }


def medians(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    return {name: score["median"] for name, score in scores.items()}


def _seconds(row: dict[str, Any], stage: str) -> float:
    return sum(row["cpu seconds"].get(name, 0.0) for name in ("pairs", stage))
