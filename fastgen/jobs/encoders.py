"""The encoder of a run: built once, for the data that it makes and for the student that is given
raw observations."""

from __future__ import annotations

import json

import torch

from .._core.precision import is_uniform
from ..config.schemas import DistillConfig
from ..data import Task, build_data
from ..data.encoded import RowEncoder
from ..export.encoders import StudentEncoder
from ..teachers.weights import load_weights
from .sources import built_by

__all__ = ["encoder_of", "encoder_of_student", "task_of"]


def encoder_of(cfg: DistillConfig) -> RowEncoder | None:
    """The encoder that a config names, with its weights, frozen and where it computes; None if it
    names none.

    Raises:
        ValueError: data that have no columns, a factory or weights that can't be used, an encoder
            of several dtypes.
        TypeError: a factory that returns something else than a module.
    """
    how = cfg.teacher.encoder
    if how is None:
        return None
    if cfg.data.name != "file":
        raise ValueError(
            f"expected data.name=file for teacher.encoder, got {cfg.data.name}, whose observations "
            "are what they are"
        )
    # Weights that a factory draws are drawn alike each time, and the caller's generator stays.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        module = built_by(how.factory, how.arguments, key="teacher.encoder.factory")
    if how.weights is not None:
        load_weights(module, how.weights, key="teacher.encoder.weights")
    if not is_uniform(module):
        raise ValueError("expected teacher.encoder of one dtype, got weights of several")
    module.eval().requires_grad_(False)
    if torch.accelerator.is_available():
        module.to(torch.accelerator.current_accelerator())
    told = json.dumps([how.factory, how.arguments], sort_keys=True)
    return RowEncoder(module, tuple(how.columns), how.batch_size, how.cache, told)


def task_of(cfg: DistillConfig, encoder: RowEncoder | None = None) -> Task:
    """The task of a config, whose observations its encoder makes, if it has one.

    Args:
        encoder: of the config, if it was built before.
    """
    return build_data(cfg.data, encoder_of(cfg) if encoder is None else encoder)


def encoder_of_student(encoder: RowEncoder | None) -> StudentEncoder | None:
    """The same, as a student's folder holds it."""
    if encoder is None:
        return None
    return StudentEncoder(encoder.module, encoder.columns, encoder.rows)
