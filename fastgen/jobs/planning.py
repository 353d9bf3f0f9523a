"""What is found out before work starts: whether config, teacher and data fit together, and what a
run will take."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._core.conditions import cond_to, take_rows, tensors_in
from ..config.files import dump_yaml
from ..config.groups import EMAConfig
from ..config.schemas import DistillConfig, TrainTeacherConfig
from ..config.training import LoopConfig
from ..data import Data, build_data
from ..data.checks import data_notes
from ..ema import SHADOW_DTYPES
from ..flow_matching import add_noise
from ..losses import dsm_loss
from ..methods.consistency import consistency_loss, consistency_times
from ..methods.dmd import DMDPipeline
from ..methods.fake_scores import create_fake_score
from ..methods.kd import kd_loss
from ..networks import Cond, network_dtype, parameters_to
from ..teachers.declarations import judge_declaration
from ..training.launching import Launch, launch_of
from ..training.memory import Footprint, activation_bytes, footprint, memory_table
from ..training.recompute import recompute_blocks
from .checks import STAGE_OF_METHOD, check_plan, fit_to_teacher, with_method
from .setup import build_network, frozen_teacher, guided_teacher, new_discriminator
from .sources import load_teacher

__all__ = ["plan_distillation", "plan_teacher"]


def plan_distillation(cfg: DistillConfig, *, launch: Launch | None = None) -> str:
    """The resolved config, the memory that each stage takes in a process with what its losses keep
    for one micro-batch, measured, and how well the teacher denoises the data, after everything was
    seen to fit together.

    Args:
        launch: None: the one that this process is of.
    """
    teacher = load_teacher(cfg)
    cfg, notes = fit_to_teacher(with_method(cfg), teacher)
    task = build_data(cfg.data)
    launch = launch or _launch()
    x0, cond = task.train.network_inputs()
    cond = cond_to(cond, dtype=network_dtype(teacher, x0.dtype))
    check_plan(cfg, teacher, x0, cond, processes=launch.processes)
    notes += data_notes(task, cfg.train.batch_size)
    notes += judge_declaration(teacher, x0, cond, pred_type=cfg.student.pred_type, search=True)
    tables: list[str] = []
    for stage, rows in distillation_footprints(cfg, teacher, task.train, launch=launch).items():
        tensors = {"data": _bytes(x0, cond)}
        if stage == "kd" or (stage != "consistency" and cfg.dmd.kd_weight):
            tensors["teacher pairs"] = pair_bytes(cfg, x0, cond)
        tables.append(memory_table(rows, tensors, title=stage, device=launch.device))
    return "\n".join(
        [dump_yaml(cfg) + "\n".join(tables), _process_note(cfg.train, launch), "", *notes]
    )


def pair_bytes(cfg: DistillConfig, x0: Tensor, cond: Cond) -> int:
    """Bytes of the teacher's pairs: states in the dtype that noise is drawn in, and a row of `cond`
    for each."""
    states = len(cfg.student.t_list) * x0[0].numel() * torch.get_default_dtype().itemsize
    return cfg.train.kd_pairs * (states + _bytes(x0[:0], take_rows(cond, slice(1))))


def distillation_footprints(
    cfg: DistillConfig, teacher: nn.Module, data: Data, *, launch: Launch | None = None
) -> dict[str, list[Footprint]]:
    """What teacher, student and the networks trained or kept beside it take in a process, by stage;
    without a launch in the only one, on a CPU. `teacher` is changed as `frozen_teacher` says."""
    train = cfg.train
    dmd = cfg.dmd
    asked = cfg.student
    launch = launch or Launch()
    x0, cond = data.network_inputs()
    cond = cond_to(cond, dtype=network_dtype(teacher, x0.dtype))
    dtype, plain, frozen = frozen_teacher(cfg, teacher)
    student = parameters_to(copy.deepcopy(plain), dtype).requires_grad_(True)
    guided = guided_teacher(cfg, frozen, data)
    size = micro_batch(train, launch.processes)
    rows = torch.arange(size) % len(x0)
    x0 = x0[rows]
    cond = take_rows(cond, rows)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    method = STAGE_OF_METHOD[cfg.method] if train.steps else None

    def kd() -> Tensor:
        states = torch.stack([noise] * len(asked.t_list), 1)
        rungs = torch.zeros(size, dtype=torch.int64)
        kind = asked.sample_type
        options = {"pred_type": asked.pred_type, "huber_c": train.kd_huber_c, "sample_type": kind}
        return kd_loss(student, states, asked.t_list, cond, rungs, **options)

    def consistent() -> Tensor:
        kind = asked.sample_type
        t, s, end = consistency_times(
            size, 0.0, asked.t_list, sample_type=kind, first=4, last=16, generator=generator
        )
        options = {"pred_type": asked.pred_type, "huber_c": train.kd_huber_c}
        return consistency_loss(student, guided, x0, noise, t, s, cond, end=end, **options)

    def stage(
        activations: int, ema: EMAConfig | None, others: Sequence[Footprint] = ()
    ) -> list[Footprint]:
        shadow = None if ema is None else SHADOW_DTYPES[ema.dtype]
        on_cpu = train.ema_on_cpu and launch.device != "cpu"
        kept = {
            "ema": shadow,
            "ema_on_cpu": on_cpu,
            "activations": activations,
            "shards": launch.shards,
        }
        return [
            footprint("teacher", frozen, trained=False),
            footprint("student", student, **kept),
            *others,
        ]

    found: dict[str, list[Footprint]] = {}
    if train.kd_steps:
        found["kd"] = stage(activation_bytes(kd, [student]), EMAConfig())
    if method == "consistency":
        # A whole copy even of a sharded student, on its device.
        target = [] if asked.ema is None else [footprint("target", student, trained=False)]
        found[method] = stage(activation_bytes(consistent, [student, guided]), asked.ema, target)
    elif method is not None:
        fake: nn.Module | None = None
        discriminator: nn.Module | None = None
        if dmd.vsd_weight:
            rungs = asked.steps if dmd.fake_score_rung_conditioned else 1
            rank = train.fake_score_rank
            fake = create_fake_score(
                student if rank is None else frozen, num_rungs=rungs or 1, rank=rank
            )
        if dmd.trains_discriminator:
            discriminator = new_discriminator(cfg, student, x0, cond)
        unguided = cfg.pipeline.model_copy(update={"guidance_scale": None})
        pipeline = DMDPipeline(student, guided, fake, unguided, discriminator=discriminator)
        networks = [
            network for network in (student, guided, fake, discriminator) if network is not None
        ]

        def matched() -> Tensor:
            total = pipeline.compute_student_loss(x0, noise, cond, generator=generator)["total"]
            return total + kd() if dmd.kd_weight else total

        judges: list[Footprint] = []
        losses = {
            "fake score": pipeline.compute_fake_score_loss,
            "discriminator": pipeline.compute_discriminator_loss,
        }
        for (name, loss), network in zip(losses.items(), (fake, discriminator), strict=True):
            if network is not None:
                run = functools.partial(loss, x0, noise, cond, generator=generator)
                kept = activation_bytes(run, networks)
                judges.append(footprint(name, network, activations=kept, shards=launch.shards))
        found[method] = stage(activation_bytes(matched, networks), asked.ema, judges)
    return found


def plan_teacher(cfg: TrainTeacherConfig, *, launch: Launch | None = None) -> str:
    """Memory of the training of a teacher, with what its loss keeps for one micro-batch; and notes
    on its data."""
    task = build_data(cfg.data)
    train = cfg.train
    launch = launch or _launch()
    x0, cond = task.train.network_inputs()
    data = _bytes(x0, cond)
    network = build_network(cfg, task)
    if train.gradient_checkpointing:
        recompute_blocks(network)
    rows = torch.arange(micro_batch(train, launch.processes)) % len(x0)
    x0 = x0[rows]
    cond = take_rows(cond, rows)
    t = torch.full((len(rows),), 0.5)
    eps = torch.ones_like(x0)

    def loss() -> Tensor:
        return dsm_loss("flow", network(add_noise(x0, eps, t), t, cond), x0=x0, eps=eps, t=t)

    row = footprint(
        "network",
        network,
        ema=SHADOW_DTYPES[EMAConfig().dtype],
        ema_on_cpu=train.ema_on_cpu and launch.device != "cpu",
        activations=activation_bytes(loss, [network]),
        shards=launch.shards,
    )
    plan = [memory_table([row], {"data": data}, device=launch.device), _process_note(train, launch)]
    return "\n".join([*plan, "", *data_notes(task, train.batch_size)]).rstrip()


def micro_batch(train: LoopConfig, processes: int) -> int:
    """Samples whose losses are differentiated at once in a process."""
    return max(1, train.batch_size // (processes * train.gradient_accumulation_steps))


def _process_note(train: LoopConfig, launch: Launch) -> str:
    size = micro_batch(train, launch.processes)
    note = f"in each of {launch.processes} process(es); activations of one loss at a time, measured on {size} samples"
    return (
        note + "; what is gathered of sharded networks while they run comes on top" * launch.sharded
    )


def _launch() -> Launch:
    there = torch.accelerator.is_available()
    return launch_of(os.environ, torch.accelerator.current_accelerator() if there else None)


def _bytes(x0: Tensor, cond: Cond) -> int:
    return sum(value.numel() * value.element_size() for value in (x0, *tensors_in(cond)))
