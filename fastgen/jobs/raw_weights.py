"""Students with the raw weights of a run, beside those with their average.

A run exports an average of weights. The raw ones lie in its checkpoints, as they were at the last
update that a checkpoint was taken of: at the end of a stage only its average is kept.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from .._core.modules import load_state, state_of
from ..config.files import load_config
from ..config.schemas import DistillConfig
from ..data import Task
from ..export.folders import export_student
from ..export.schema import read_t_lists
from ..records.checkpoints import check_parts, checkpoint_folders, read_checkpoint, with_prefix
from ..records.folder import RUN_CONFIG
from .checks import fit_to_teacher, with_method
from .encoders import encoder_of, encoder_of_student, task_of
from .setup import Setup
from .sources import load_run_student, load_teacher

logger = logging.getLogger(__name__)

__all__ = ["RAW", "WEIGHTS", "student_folder", "student_with"]

AVERAGE, RAW = WEIGHTS = ("average", "raw")
STUDENT = "student"
# The folder of the student with raw weights, in that of its run.
RAW_STUDENT = "student-raw"


class _Found(NamedTuple):
    """The student of a checkpoint: after so many updates of a stage."""

    weights: dict[str, Tensor]
    has_average: bool
    stage: str
    updates: int


def student_folder(folder: Path) -> Path:
    """The student's folder: `folder` itself, or that of the run in `folder`."""
    return folder / STUDENT if (folder / RUN_CONFIG).exists() else folder


def student_with(
    weights: str,
    folder: Path,
    factory: str | None = None,
    *,
    teacher: nn.Module | None = None,
    task: Task | None = None,
) -> Path:
    """The folder of a run's student with these weights; of raw ones it is written,
    `student-raw` beside `student`.

    Args:
        weights: one of `WEIGHTS`.
        folder: of the run, or of its student.
        factory: of a network of one's own, as for `load_run_student`.
        teacher, task: as for `fastgen.distillation.distill`, of a run that was made with them.

    Raises:
        ValueError: they aren't there: not a run's student, no checkpoint of the stage that was
            exported, or a stage without an average; or teacher or data are no longer there.
    """
    student = student_folder(folder)
    run = student.parent
    if not (run / RUN_CONFIG).exists():
        raise ValueError(
            f"expected the folder of a run, which holds its weights, for weights={weights}, got "
            f"{folder} without {RUN_CONFIG} beside it; leave weights={weights} out"
        )
    exported = load_run_student(student, factory)
    stage = (exported.config.get("description") or {}).get("method")
    found = _newest(run)
    if weights == AVERAGE:
        if found is not None and found.stage == stage and not found.has_average:
            raise ValueError(
                f"expected a run whose {stage} keeps an average, got one without (student.ema: "
                "null): its student has raw weights; leave weights=average out"
            )
        return student
    if found is None:
        raise ValueError(
            f"expected a checkpoint with a student's weights in {run / 'checkpoints'}, got none; "
            "only an average is kept at the end: distil with a smaller train.checkpoint_every"
        )
    if found.stage != stage:
        raise ValueError(
            f"expected a checkpoint of {stage}, whose student was exported, got one of "
            f"{found.stage} alone; keep={found.stage} exports that"
        )
    networks = _networks(run, teacher, task)
    network = networks.student()
    check_parts(found.weights, state_of(network), "a student")
    load_state(network, found.weights)
    description = {
        **exported.config["description"],
        "weights": f"raw, after {found.updates} updates of {stage}",
    }
    description.pop("scores", None)  # they are those of the average
    export_student(
        run / RAW_STUDENT,
        network.eval(),
        t_list=list(exported.t_list),
        steps=list(exported.steps),
        t_lists=read_t_lists(exported.config),
        sample_type=exported.sample_type,
        pred_type=exported.pred_type,
        x_normalizer=exported.x_normalizer,
        z_normalizer=exported.z_normalizer,
        pack=exported.pack,
        prefix_max=exported.prefix_max,
        box=exported.box,
        horizon=exported.horizon,
        cond_horizon=exported.cond_horizon,
        cond_sizes=exported.cond_sizes,
        masks=exported.masks,
        encoder=networks.encoder,
        description=description,
    )
    return run / RAW_STUDENT


def _newest(run: Path) -> _Found | None:
    """The student of the newest intact checkpoint that has one; between stages none has."""
    for folder in reversed(checkpoint_folders(run)):
        try:
            checkpoint = read_checkpoint(folder)
        except (OSError, ValueError) as error:
            logger.warning("checkpoint %s is damaged (%s): trying the one before", folder, error)
            continue
        weights = with_prefix(checkpoint.tensors, f"{STUDENT}.weights")
        stages = list(checkpoint.meta.get("progress", {}))
        position = checkpoint.meta.get("position")
        if weights and isinstance(position, int) and position < len(stages):
            average = with_prefix(checkpoint.tensors, f"{STUDENT}.ema")
            updates = checkpoint.meta.get("step", 0)
            return _Found(weights, bool(average), stages[position], updates)
    return None


def _networks(run: Path, teacher: nn.Module | None, task: Task | None) -> Setup:
    """The networks of a run as it built them."""
    cfg = with_method(load_config(DistillConfig, run / RUN_CONFIG))
    teacher = load_teacher(cfg, teacher)
    cfg, _ = fit_to_teacher(cfg, teacher)
    encoder = encoder_of(cfg)
    if task is None:
        task = task_of(cfg, encoder)
    networks = Setup(cfg, teacher.eval(), task.train)
    networks.encoder = encoder_of_student(encoder)
    return networks
