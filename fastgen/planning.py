"""What a run will train and how much memory that takes: the text of ``--dry-run``."""

from __future__ import annotations

from torch import nn

from .config import DistillConfig, TrainTeacherConfig
from .distillation import build_data, check_fit, load_teacher
from .pretraining import build_network

# Copies of each weight that training holds: the weight, its gradient, two Adam moments; an EMA adds a fifth.
_TRAINED, _TRAINED_EMA, _FROZEN = 4, 5, 1


def plan_distillation(cfg: DistillConfig) -> str:
    """Parameters and memory of the networks of a distillation, after teacher, data and config were seen to fit
    together."""
    task, teacher = build_data(cfg.data), load_teacher(cfg)
    x0, cond = task.train.network_inputs()
    check_fit(teacher.eval(), x0, cond)
    parts = [("teacher", teacher, _FROZEN), ("student", teacher, _TRAINED_EMA)]
    if cfg.train.steps:
        parts.append(("fake score", teacher, _TRAINED))
    pair_bytes = cfg.train.kd_pairs * (len(cfg.dmd.t_list)) * x0[0].numel() * 4 if cfg.train.kd_steps else 0
    return _plan(parts, {"data": (x0.numel() + cond.numel()) * 4, "teacher pairs": pair_bytes})


def plan_teacher(cfg: TrainTeacherConfig) -> str:
    """Parameters and memory of the training of a teacher."""
    task = build_data(cfg.data)
    x0, cond = task.train.network_inputs()
    return _plan([("network", build_network(cfg, task), _TRAINED_EMA)], {"data": (x0.numel() + cond.numel()) * 4})


def _plan(parts: list[tuple[str, nn.Module, int]], tensors: dict[str, int]) -> str:
    lines, total = (
        ["", f"{'':<14}{'parameters':>12}{'memory, MB':>12}   weights, gradients, Adam, EMA; activations come on top"],
        0,
    )
    for name, network, copies in parts:
        numbers = sum(p.numel() for p in network.parameters())
        size = copies * sum(p.numel() * p.element_size() for p in network.parameters())
        total += size
        lines.append(f"{name:<14}{numbers:>12,}{size / 1e6:>12.2f}")
    for name, size in tensors.items():
        total += size
        lines.append(f"{name:<14}{'':>12}{size / 1e6:>12.2f}")
    lines.append(f"{'total':<14}{'':>12}{total / 1e6:>12.2f}")
    return "\n".join(lines)
