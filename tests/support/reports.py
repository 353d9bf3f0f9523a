"""A run to report on: its scores, its curves and its samples."""

import torch
from matplotlib.colors import to_hex

from fastgen.report import StageStyle

__all__ = [
    "BLOCK",
    "RING",
    "STAGES",
    "colour",
    "curves",
    "diagnosed",
    "examples",
    "lines",
    "results",
    "scores",
]

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
