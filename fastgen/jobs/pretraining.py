"""Flow matching of a transformer on trajectories or images: the job behind
recipes/train_teacher.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._core.conditions import cond_text
from .._core.copies import copied
from .._core.json_files import read_json, write_json
from .._core.masks import cond_without_masks
from .._core.modules import load_state
from .._core.processes import together
from .._core.room import naming_what_to_lower
from .._core.sizes import trained_sizes_of
from .._core.streams import lasting_streams
from .._core.threads import using_threads
from ..config.files import validate
from ..config.groups import EMAConfig
from ..config.prefix import prefix_tokens
from ..config.schemas import DataConfig, TrainTeacherConfig
from ..data import Task, build_data
from ..data.checks import data_notes
from ..data.samples import SampleData
from ..export.networks import SCORES_FILE, load_network, save_network
from ..methods.pretraining import FlowMatchingTraining
from ..models import build_model
from ..records.folder import claim_run, open_run
from ..training.accelerator import start_accelerator
from ..training.choice import Validation, validate_by
from ..training.draws import Draws, check_batch_room
from ..training.processes import Processes
from ..training.recompute import recompute_blocks
from ..training.stage import Stage
from ..training.trained_network import TrainedNetwork, check_compiler
from ..training.trainer import Trainer
from .evaluation import evaluate_teacher, teacher_sampler
from .origin import data_origin
from .threads import threads_of_training

# Of the network, in a validation.
_CALLS = 8


@lasting_streams()
@naming_what_to_lower("train.batch_size", "model.embedding_dim", "model.num_layers", "data.size")
def train_teacher(cfg: TrainTeacherConfig) -> Path:
    """Train the network of `cfg`, save it in ``<run folder>/teacher`` with its scores; returns the
    run folder."""
    processes = start_accelerator(cfg.train.threads, tracker=cfg.train.tracker)
    check_compiler(processes.device, wanted=cfg.train.compile)
    with open_run(cfg, main_process=processes.is_main_process) as run_dir:
        task = build_data(cfg.data)
        torch.manual_seed(cfg.seed)
        prefix_tokens(cfg.train.prefix_max, task.train)
        initial = build_network(cfg, task)
        parts = cfg.train.gradient_accumulation_steps
        draws = Draws(cfg.seed, "teacher", processes, cfg.train.batch_size, accumulation=parts)
        with together():
            if processes.is_main_process:
                _claim(cfg, run_dir, task, processes)

        x0, cond = task.train.network_inputs()

        def stage() -> Stage:
            ema = EMAConfig(decay=cfg.train.ema_decay)
            train = cfg.train
            # A copy: preparing changes a network for good (autocast, shards), and `initial` is what
            # is handed over.
            network = copied(initial)
            trained = TrainedNetwork(
                recompute_blocks(network) if train.gradient_checkpointing else network,
                train.optimizer,
                train.steps,
                processes,
                ema=ema,
                ema_on_cpu=train.ema_on_cpu,
                compiled=train.compile,
            )
            tokens = prefix_tokens(train.prefix_max, task.train)
            return FlowMatchingTraining(trained, x0, cond, cfg.train, draws, prefix_tokens=tokens)

        def evaluate(network: nn.Module) -> Validation:
            sampler = teacher_sampler(network, task.train, _CALLS, "ab2", box=cfg.data.box)
            return validate_by(task, sampler)

        trainer = Trainer(
            {"flow_matching": stage},
            run_dir,
            cfg.train,
            processes,
            evaluate=evaluate,
            compare=getattr(task, "compare", None),
            primary=task.primary,
            seed=cfg.seed,
            resume=cfg.resume,
            remedies={"flow_matching": "stop earlier, or lower train.optimizer.lr"},
        )
        threads = threads_of_training(cfg.train, lambda: initial, x0, cond, processes)
        with using_threads(threads):
            trainer.run()
        with together():
            if processes.is_main_process:
                load_state(initial, trainer.result("flow_matching"))
                hand_over(cfg, run_dir, initial.eval(), task, trainer.seconds)
    return run_dir


def _claim(cfg: TrainTeacherConfig, run_dir: Path, task: Task, processes: Processes) -> None:
    """Say what should be known of the data, and take the folder for this run."""
    for line in data_notes(task, cfg.train.batch_size):
        print(line, file=sys.stderr, flush=True)
    origin: dict[str, Any] = dict(data_origin(task, cfg.data, built=True))
    origin["mixed precision"] = str(processes.mixed_precision)
    claim_run(run_dir, cfg, origin)


def hand_over(
    cfg: TrainTeacherConfig,
    run_dir: Path,
    network: nn.Module,
    task: Task,
    seconds: dict[str, float],
) -> None:
    """Save the network with what it was trained on and how long that took, then its scores beside
    it."""
    folder = run_dir / "teacher"
    x0, cond = task.train.network_inputs()
    trained: Any = network
    trained.trained_sizes = trained_sizes_of(x0, cond)
    if cfg.train.prefix_max:
        trained.prefix_tokens = prefix_tokens(cfg.train.prefix_max, task.train)
    description = {
        "task": task.name,
        "path": "linear",
        "prediction": "flow",
        "data": cfg.data.model_dump(mode="json"),
        "seed": cfg.seed,
        "steps": cfg.train.steps,
        "seconds": round(seconds["flow_matching"], 1),
        "seconds_cpu": round(seconds["flow_matching_cpu"], 1),
    }
    save_network(folder, network, description=description)
    score_teacher(folder, calls=cfg.calls, ab2_calls=cfg.ab2_calls)
    print(f"teacher: {folder}")


def score_teacher(
    folder: Path, *, calls: Sequence[int], ab2_calls: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Score a saved teacher on the data it names, write ``scores.json`` beside its weights, return
    its rows."""
    _check_scores_file(folder / SCORES_FILE)
    network, description = load_network(folder)
    if "data" not in description:
        raise ValueError(
            f"expected {folder} to name its data (a folder of recipes/train_teacher.py), got none"
        )
    data = validate(DataConfig, description["data"])
    task = build_data(data)
    rows = evaluate_teacher(
        network.eval(),
        task,
        calls,
        ab2_calls,
        box=data.box,
        progress=lambda row: print(f"scoring: {row}", flush=True),
    )
    write_json(
        folder / SCORES_FILE, {"data": description["data"], "teacher": rows, "floor": task.floor()}
    )
    for name, scores in rows.items():
        print(f"{name:>8}  " + "  ".join(f"{key} {value:.4f}" for key, value in scores.items()))
    return rows


def _check_scores_file(path: Path) -> None:
    """Refuse to write over a file that holds something else than scores."""
    if not os.path.lexists(path):
        return
    try:
        found = set(read_json(path))
    except ValueError:
        found = set()
    if not {"data", "teacher"} <= found:
        raise ValueError(
            f"expected no file or earlier scores at {path}, got something else, which would be "
            "lost: move it away"
        )


def build_network(cfg: TrainTeacherConfig, task: Task) -> nn.Module:
    """The network that `cfg.model` asks for, on the task's tokens and with its symmetry."""
    options = cfg.model.model_dump(exclude={"equivariant", "patch_size"})
    data = task.train
    if isinstance(data, SampleData):
        return _image_network(cfg, data)
    x0, cond = data.network_inputs()
    check_batch_room(cfg.train.batch_size, x0)
    cond = cond_without_masks(cond)
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


# What the patch transformer doesn't have, with the values that ask for nothing.
_NOT_OF_IMAGES = {
    "equivariant": False,
    "num_cond_layers": 0,
    "causal_attn": False,
    "p_drop_emb": 0.0,
    "p_drop_attn": 0.0,
}


def _image_network(cfg: TrainTeacherConfig, data: SampleData) -> nn.Module:
    """The patch transformer that `cfg.model` asks for, on square images with class labels or
    without a condition."""
    shape = tuple(data.X.shape[1:])
    labels = data.Z
    least, most = _label_range(labels)
    known = labels is None or most is not None
    if len(shape) != 3 or shape[1] != shape[2] or not known:
        raise ValueError(
            "expected trajectories X (N, T_x, d_x) with Z (N, T_z, d_z), or square images X (N, C, "
            "S, S) with labels Z (N,) or alone, for the networks of this package, got X "
            f"{tuple(data.X.shape)} and Z {cond_text(labels)}; train a network of your own and "
            "distil that"
        )
    for key, neutral in _NOT_OF_IMAGES.items():
        value = getattr(cfg.model, key)
        if value != neutral:
            raise ValueError(
                f"expected model.{key}={str(neutral).lower()} for images, whose network has no "
                f"such thing, got {str(value).lower()}"
            )
    if least is not None and least < 1:
        raise ValueError(f"expected labels Z from 1 on (0 stands for no label), got {least}")
    check_batch_room(cfg.train.batch_size, data.X)
    model = cfg.model
    return build_model(
        {
            "class": "PatchTransformer",
            "channels": shape[0],
            "image_size": shape[1],
            "patch_size": model.patch_size,
            "num_labels": most or 0,
            "num_layers": model.num_layers,
            "num_attention_heads": model.num_attention_heads,
            "embedding_dim": model.embedding_dim,
            "norm_module": model.norm_module,
        }
    )


def _label_range(labels: Any) -> tuple[int | None, int | None]:
    """The least and the largest of integer labels (N,); None, None for anything else."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim != 1:
        return None, None
    return int(labels.min()), int(labels.max())
