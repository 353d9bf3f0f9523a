"""Plans: the resolved config and the memory that a run will take, measured before it starts."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from .._core.conditions import take_rows, tensors_in
from .._core.made_rows import MadeRows
from .._core.prefixes import cond_without_prefix
from .._core.room import naming_what_to_lower
from ..config.files import dump_yaml
from ..config.groups import EMAConfig
from ..config.schemas import DistillConfig, TrainTeacherConfig
from ..config.training import LoopConfig
from ..data import build_data
from ..data.checks import data_notes
from ..data.encoded import RowEncoder
from ..ema import SHADOW_DTYPES
from ..methods.pretraining import flow_matching_loss
from ..methods.registry import stages_of
from ..networks import Cond
from ..teachers.declarations import declaration_notes
from ..training.launching import Launch, launch_of
from ..training.memory import Footprint, activation_bytes, footprint, memory_table
from ..training.recompute import recompute_blocks
from .budgets import check_budget, evaluation_notes, planned_evaluations
from .checks import check_plan, coupling_notes, fit_to_teacher, with_method
from .decisions import foreseen
from .encoders import encoder_of, encoder_of_student, task_of
from .pretraining import build_network
from .setup import Setup
from .sources import load_teacher
from .trial import try_network

__all__ = [
    "distillation_footprints",
    "encoder_memory",
    "pair_bytes",
    "plan_distillation",
    "plan_teacher",
]


@naming_what_to_lower("train.batch_size", "train.kd_pairs", "data.size")
def plan_distillation(cfg: DistillConfig, *, launch: Launch | None = None) -> str:
    """What a run will be, after everything was seen to fit together.

    Args:
        launch: the processes that it is planned for; None: those that this one is of.

    Returns:
        the resolved config, a table of memory for each stage in a process, activations measured on
        one micro-batch, and notes on the data and on how well the teacher denoises them.
    """
    cfg = with_method(cfg)
    teacher = load_teacher(cfg)
    cfg, notes = fit_to_teacher(cfg, teacher)
    encoder = encoder_of(cfg)
    task = task_of(cfg, encoder)
    launch = launch or _launch()
    setup = Setup(cfg, teacher, task.train)
    setup.encoder = encoder_of_student(encoder)
    asked = cfg
    cfg, decisions, _ = foreseen(setup, task)
    setup.cfg = cfg
    check_plan(setup, processes=launch.processes, sharded=launch.sharded)
    try_network(setup, export=True)
    notes += setup.notes()
    notes += data_notes(task, cfg.train.batch_size)
    notes += declaration_notes(
        setup.unguided,
        setup.x0,
        cond_without_prefix(setup.cond),
        pred_type=cfg.student.pred_type,
        search=True,
        coupled=setup.coupled,
    )
    notes += coupling_notes(setup)
    notes += decisions
    planned = planned_evaluations(setup, processes=launch.processes)
    check_budget(setup, planned)
    notes += evaluation_notes(setup, planned)
    footprints = distillation_footprints(setup, launch=launch)
    tables = [] if encoder is None else [encoder_memory(encoder, setup.cond, launch)]
    for method in stages_of(cfg):
        tensors = {"data": _bytes(setup.x0, setup.cond)}
        if method.uses_pairs(cfg):
            tensors["teacher pairs"] = pair_bytes(setup)
        rows = footprints[method.stage]
        tables.append(memory_table(rows, tensors, title=method.stage, device=launch.device))
    parts = [dump_yaml(asked) + "\n".join(tables), _process_note(cfg.train, launch), "", *notes]
    return "\n".join(parts)


def encoder_memory(encoder: RowEncoder, cond: Cond, launch: Launch) -> str:
    """The table of the memory that observations are encoded in, before the first stage: weights,
    the rows of a batch and, of all rows, what is made of them."""
    rows = encoder.batch_bytes
    on_device = 0 if launch.device == "cpu" else rows
    row = footprint("encoder", encoder.module, trained=False, activations=on_device)
    held = {f"{encoder.batch_size} raw rows": rows, "observations": _bytes(torch.empty(0), cond)}
    return memory_table([row], held, title="encoder", device=launch.device)


def pair_bytes(setup: Setup) -> int:
    """Bytes of the teacher's pairs: states in the dtype that noise is drawn in, and a row of the
    condition for each."""
    numbers = len(setup.cfg.student.t_list) * setup.x0[0].numel()
    states = numbers * torch.get_default_dtype().itemsize
    row = _bytes(setup.x0[:0], take_rows(setup.cond, slice(1)))
    return setup.cfg.train.kd_pairs * (states + row)


def distillation_footprints(
    setup: Setup, *, launch: Launch | None = None
) -> dict[str, list[Footprint]]:
    """What the teacher and the networks trained or kept beside it take in a process, by stage;
    without a launch in the only one, on a CPU."""
    launch = launch or Launch()
    train = setup.cfg.train
    batch = setup.batch(train.micro_batch(launch.processes))
    found: dict[str, list[Footprint]] = {}
    for method in stages_of(setup.cfg):
        planned = method.plan(setup, batch)
        networks = [setup.teacher, *(row.network for row in planned)]
        found[method.stage] = [footprint("teacher", setup.teacher, trained=False)]
        if setup.encoder is not None:
            # It stays where it is until the student is exported.
            module = setup.encoder.module
            found[method.stage].append(footprint("encoder", module, trained=False))
        for row in planned:
            found[method.stage].append(
                footprint(
                    row.name,
                    row.network,
                    trained=row.trained,
                    ema=None if row.ema is None else SHADOW_DTYPES[row.ema.dtype],
                    ema_on_cpu=train.ema_on_cpu and launch.device != "cpu",
                    activations=activation_bytes(row.loss, networks) if row.loss else 0,
                    shards=launch.shards if row.trained else None,
                )
            )
    return found


@naming_what_to_lower("train.batch_size", "model.embedding_dim", "model.num_layers", "data.size")
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
    rows = torch.arange(train.micro_batch(launch.processes)) % len(x0)
    x0 = x0[rows]
    cond = take_rows(cond, rows)
    t = torch.full((len(rows),), 0.5)

    def loss() -> Tensor:
        return flow_matching_loss(network, x0, torch.ones_like(x0), t, cond)

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


def _process_note(train: LoopConfig, launch: Launch) -> str:
    size = train.micro_batch(launch.processes)
    note = (
        f"in each of {launch.processes} process(es); activations of one loss at a time, measured "
        f"on {size} samples"
    )
    if launch.sharded:
        note += "; what is gathered of sharded networks while they run comes on top"
    return note


def _launch() -> Launch:
    there = torch.accelerator.is_available()
    return launch_of(os.environ, torch.accelerator.current_accelerator() if there else None)


def _bytes(x0: Tensor, cond: Cond) -> int:
    """Of data that are held; those that are made when they are taken take none."""
    held = (value for value in (x0, *tensors_in(cond)) if not isinstance(value, MadeRows))
    return sum(value.numel() * value.element_size() for value in held)
