"""The networks of a run: teacher, guided teacher, discriminator and a network to pretrain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._core.conditions import cond_text, cond_to, map_tensors, take_rows, tensors_in
from ..config.schemas import DistillConfig, TrainTeacherConfig
from ..data import Data, Task
from ..data.files import load_conditions
from ..data.samples import SampleData
from ..discriminators import discriminator_for
from ..guidance import Guidance
from ..models import build_model
from ..networks import Cond, network_dtype
from ..teachers.guided import GuidedNetwork
from ..teachers.half import Bfloat16Network
from ..training.recompute import recompute_blocks

__all__ = ["build_network", "frozen_teacher", "guided_teacher", "new_discriminator"]


def guided_teacher(cfg: DistillConfig, network: nn.Module, data: Data) -> nn.Module:
    """The teacher that guides itself as `cfg.dmd` says; `network` as it is without a guidance
    scale.

    Raises:
        ValueError: a null condition that can't be read, or that isn't shaped like one row of the
            data's condition.
    """
    dmd = cfg.dmd
    source = cfg.teacher.null_cond
    if dmd.guidance_scale is None or source is None:
        return network
    _, cond = data.network_inputs()
    row = take_rows(cond, slice(1))
    if source == "zeros":
        if not tensors_in(row) or not all(value.is_floating_point() for value in tensors_in(row)):
            raise ValueError(
                "expected a condition of real numbers for teacher.null_cond=zeros, got "
                f"{cond_text(row)}; name a file that holds the null condition as Z"
            )
        null = map_tensors(torch.zeros_like, row)
    else:
        null = load_conditions(source)[:1]
        null = null if data.z_normalizer is None else data.z_normalizer.normalize(null)
        if cond_text(null) != cond_text(row):
            raise ValueError(
                f"expected Z in {source} like one condition, {cond_text(row)}, got "
                f"{cond_text(null)}"
            )
    guidance = Guidance(dmd.guidance_scale, dmd.guidance_interval, dmd.guidance_rescale)
    null = cond_to(null, dtype=network_dtype(network, torch.float32))
    return GuidedNetwork(network, guidance, null, pred_type=dmd.pred_type).eval()


def new_discriminator(cfg: DistillConfig, teacher: nn.Module, x0: Tensor, cond: Cond) -> nn.Module:
    """The discriminator that `cfg.dmd` asks for, untrained."""
    on_samples = cfg.dmd.gan_features == "sample"
    blocks = cfg.dmd.gan_blocks or None
    return discriminator_for(teacher, x0, cond, on_samples=on_samples, blocks=blocks, seed=cfg.seed)


def frozen_teacher(
    cfg: DistillConfig, network: nn.Module
) -> tuple[torch.dtype, nn.Module, nn.Module]:
    """(the dtype it had, the plain network, what is called as the teacher), with `network` changed
    in place as `teacher.dtype` and `train.gradient_checkpointing` ask.

    Raises:
        ValueError: a teacher in float64 that is to be in bfloat16; no blocks to compute twice.
    """
    dtype = network_dtype(network, torch.float32)
    if cfg.teacher.dtype is not None and dtype == torch.float64:
        raise ValueError(
            f"expected teacher.dtype=null for a teacher in float64, got {cfg.teacher.dtype}"
        )
    if cfg.train.gradient_checkpointing:
        recompute_blocks(network)
    return dtype, network, network if cfg.teacher.dtype is None else Bfloat16Network(network).eval()


def build_network(cfg: TrainTeacherConfig, task: Task) -> nn.Module:
    """The network that `cfg.model` asks for, on the task's tokens and with its symmetry."""
    options = cfg.model.model_dump(exclude={"equivariant"})
    data = task.train
    if isinstance(data, SampleData):
        raise ValueError(
            "expected trajectories X (N, T_x, d_x) with Z (N, T_z, d_z) for the networks of this "
            f"package, got X {tuple(data.X.shape)} and Z {cond_text(data.Z)}; train a network of "
            "your own and distil that"
        )
    x0, cond = data.network_inputs()
    options |= {"in_horizon": x0.shape[1], "cond_horizon": cond.shape[1]}
    if not cfg.model.equivariant:
        dims = {"in_dim": x0.shape[2], "out_dim": x0.shape[2], "cond_dim": cond.shape[2]}
        return build_model({"class": "CondTransformerRegressor", **dims, **options})
    if data.symmetry is None:
        raise ValueError(
            "model.equivariant needs data.symmetry (group, in_rep, cond_rep), got none; or set "
            "model.equivariant=false"
        )
    symmetry: dict[str, Any] = dict(data.symmetry)
    for key in ("in_rep", "out_rep"):
        # A token holds `pack` waypoints, each moved by the group in the same way.
        parts = symmetry[key] if isinstance(symmetry[key], list) else [symmetry[key]]
        symmetry[key] = parts * data.pack
    return build_model({"class": "eCondTransformerRegressor", **symmetry, **options})
