"""What a run is begun with beside its config, gathered from its task and its teacher.

A config names files, functions and folders; here is what they hold. Nothing is kept but a few
numbers and checksums (:mod:`fastgen.records.origin`).

Numbers that were read from a file are told to the last bit. What was computed, be it data or a
teacher's answers, may differ in its last digits on another machine.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._core.conditions import take_rows, tensors_in
from .._core.files import read_bytes
from .._core.json_files import plain_json
from .._core.made_rows import MadeRows, evenly
from .._core.modules import bare_names, state_of
from .._core.seeds import draws_apart
from ..config.schemas import DataConfig
from ..data import Task
from ..data.encoded import RowEncoder
from ..networks import coats, network_device, time_range
from ..records.origin import Near, digest, fingerprint, wide_numbers
from ..teachers.answer import answer_of
from ..teachers.descriptions import describe_network
from ..teachers.guided import GuidedNetwork
from .setup import Setup

__all__ = ["data_origin", "encoder_origin", "student_origin", "teacher_origin"]

# How far a network's answers may be off on another machine, relative to their size: where all is
# float64, where all is float32 on a CPU, and anywhere else (half precision, TF32).
_NEAR_64 = 1e-8
_NEAR_32 = 1e-4
_NEAR_HALF = 3e-2
# How far means may be off, in units of the spread or of the mean, whichever is larger.
_NEAR_MEAN = 1e-6
# Where in the teacher's range of times its answers are compared.
_TIMES = (0.1, 0.5, 0.9)
_MOST_MADE = 1024  # rows of data that are made when they are taken
_ROWS = 4  # of the data, evenly spread
_CHUNK = 1 << 20
_MOST_FILE_BYTES = 1 << 30
_MOST_DEPTH = 3


# ---- Data ----------------------------------------------------------------------------------------


def data_origin(task: Task, cfg: DataConfig, *, built: bool) -> dict[str, dict[str, Any]]:
    """The groups "data" and "evaluation data" of an origin.

    Args:
        task: of the run.
        cfg: that it was built from.
        built: whether it was, rather than handed in.
    """
    train = task.train
    x0, cond = train.network_inputs()
    exact = built and cfg.name == "file"
    conditions = getattr(train, "cond", train.Z)
    given = {"X": train.X}
    given |= {f"Z {i}": value for i, value in enumerate(tensors_in(conditions))}
    inputs = [x0, *tensors_in(cond)]
    shapes = [tuple(value.shape) for value in (*given.values(), *inputs)]
    # The rest of what is made when it is taken follows from the numbers in original units.
    inputs = [evenly(value, _MOST_MADE) for value in inputs]
    data: dict[str, Any] = {
        "shapes": _checksum([str(value.dtype) for value in given.values()], shapes, train.pack),
        "what a network sees": fingerprint(inputs),
        "normalizers": fingerprint(_scales(train)),
        "symmetry": _symmetry(train.symmetry, cfg),
        "score": task.primary,
        # The rest stands in what a network sees.
        **_told(given, "original units", exact=exact, numbers=False),
    }
    held: dict[str, Tensor] = {}
    for name, value in getattr(task, "__dict__", {}).items():
        # What is made on first use may be there or not.
        lazy = isinstance(getattr(type(task), name, None), functools.cached_property)
        if name != "train" and not lazy:
            held |= dict(_tensors(value, name, 0))
    evaluation = {"name": task.name, **_told(held, "", exact=exact)}
    return {"data": data, "evaluation data": evaluation}


def _tensors(value: Any, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors and arrays in a value, by where they are."""
    if isinstance(value, Tensor):
        if not value.is_meta:
            yield name, value if value.layout == torch.strided else value.detach().to_dense()
    elif type(value).__module__ == "numpy" and getattr(value, "dtype", None) is not None:
        if value.dtype.kind in "fiub" and value.ndim > 0:
            # Whatever its byte order, strides and size of numbers, of which torch knows some.
            yield name, torch.from_numpy(value.astype("float64", order="C"))
    elif depth < _MOST_DEPTH:
        for key, part in _parts(value):
            yield from _tensors(part, f"{name}.{key}", depth + 1)


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield field.name, getattr(value, field.name, None)


def _told(
    tensors: Mapping[str, Tensor], prefix: str, *, exact: bool, numbers: bool = True
) -> dict[str, Any]:
    """Aspects of tensors (N, ..., d): a checksum if `exact`; otherwise means and spreads of their
    channels and, if `numbers`, the numbers about the mean and in units of the spread.

    A number far from the origin hides what is added to it.
    """
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        where = name
        if prefix:
            where = f"{prefix} of {name}"
        if exact or tensor.numel() == 0 or isinstance(tensor, MadeRows):
            found[where] = digest([tensor])
            continue
        real = _real(tensor.detach())
        rows = real.reshape(-1, real.shape[-1] if real.ndim > 1 else 1)
        mean, spread = _moments(rows)
        # Of a constant channel what differs from its mean is rounding.
        inverse = torch.where(spread > 0, 1.0 / spread, 0.0)
        if numbers:
            found[where] = fingerprint((part - mean) * inverse for part in _split(rows))
        found[f"spread of {where}"] = fingerprint([spread])
        unit = torch.where(spread > 0, spread, mean.abs().clamp(min=1e-30))
        means = fingerprint([mean / unit, torch.ones(1)])
        found[f"mean of {where}"] = Near(means, _NEAR_MEAN)
    return found


def _split(rows: Tensor) -> Iterator[Tensor]:
    """The rows in float64, in parts that take little memory, on the CPU."""
    for part in rows.split(max(1, _CHUNK // max(1, rows.shape[1]))):
        yield wide_numbers(part)


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation) of each column (d,) in float64; 0 for one without spread."""
    count = max(1, len(rows))
    # About a row of theirs, near the rest: squares of what is far from 0 lose their digits.
    middle = torch.zeros(rows.shape[1], dtype=torch.float64)
    for part in _split(rows[:1]):
        middle = part[0]
    first = torch.zeros_like(middle)
    second = torch.zeros_like(middle)
    for part in _split(rows):
        off = part - middle
        first += off.sum(0) / count
        second += off.square().sum(0) / count
    spread = (second - first.square()).clamp(min=0.0).sqrt()
    mean = middle + first
    return mean, torch.where(spread > 1e-9 * mean.abs(), spread, 0.0)


def _scales(train: Any) -> list[Tensor]:
    """Mean and scale of the normalisers."""
    normalizers = (train.x_normalizer, train.z_normalizer)
    return [value for one in normalizers if one is not None for value in (one.mean, one.scale)]


def _symmetry(symmetry: Any, cfg: DataConfig) -> str:
    """A checksum of how a group acts, with the content of the files that say so."""
    files = []
    declared = {} if cfg.symmetry is None else cfg.symmetry.model_dump()
    for rep in declared.values():
        if isinstance(rep, dict) and "matrices" in rep:
            content = read_bytes(Path(rep["matrices"]), _MOST_FILE_BYTES, "name one that is there")
            files.append(hashlib.sha256(content).hexdigest())
    return _checksum(_json(symmetry), files)


# ---- The teacher ---------------------------------------------------------------------------------


def teacher_origin(setup: Setup) -> dict[str, dict[str, Any]]:
    """The group "teacher" of an origin, and "null condition" of a guided one.

    Weights alone don't make a network: heads, causality or a time scale change none of them. So
    what it is built from and what it answers are noted, too.
    """
    groups = {"teacher": {**_weights(setup.source), **_answers(setup)}}
    if isinstance(setup.teacher, GuidedNetwork):
        null = setup.teacher.null_cond
        groups["null condition"] = {
            f"tensor {i}": fingerprint([value]) for i, value in enumerate(tensors_in(null))
        }
    return groups


def student_origin(setup: Setup) -> dict[str, dict[str, Any]]:
    """The group "student" of an origin where a factory builds the student; {} for a copy of the
    teacher, of which the config says all."""
    if setup.cfg.student.factory is None:
        return {}
    return {"student": _weights(setup.student())}


def encoder_origin(encoder: RowEncoder | None) -> dict[str, dict[str, Any]]:
    """The group "encoder" of an origin; {} without one."""
    return {} if encoder is None else {"encoder": _weights(encoder.module)}


def _weights(network: nn.Module) -> dict[str, Any]:
    """What a network is built from and what it holds."""
    state = state_of(network)
    tensors = [value for value in state.values() if not value.is_meta]
    norms = [_norm(value) for value in tensors]
    units = (
        value.detach().cpu().double() / (norm or 1.0)
        for value, norm in zip(map(_real, tensors), norms, strict=True)
    )
    kinds = [(name, str(v.dtype), tuple(v.shape)) for name, v in sorted(state.items())]
    return {
        "weights": fingerprint(map(_real, tensors)),
        "each of the weights": fingerprint(units),
        "sizes of the weights": fingerprint([torch.tensor(norms, dtype=torch.float64).log1p()]),
        "names of the weights": _checksum(kinds),
        "settings": _settings(network),
        **_tables(network, state),
    }


def _real(value: Tensor) -> Tensor:
    return torch.view_as_real(value) if value.is_complex() else value


def _norm(value: Tensor) -> float:
    real = wide_numbers(_real(value.detach())).reshape(-1)
    return float(real @ real) ** 0.5


def _settings(network: nn.Module) -> str:
    """A checksum of what the network and its coats say that they were built from."""
    said: list[Any] = [_json(describe_network(network)[1]), *time_range(network)]
    for coat in coats(network):
        config = getattr(coat, "config", None)
        if isinstance(config, Mapping):
            # What begins with an underscore says where a network came from, and by which version.
            said.append(_json({k: v for k, v in config.items() if not str(k).startswith("_")}))
    return _checksum(*said)


def _tables(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Buffers that are no part of the state, such as tables that are computed."""
    buffers = {name: x for name, x in network.named_buffers() if not x.is_meta}
    names = bare_names(network, buffers)
    return {
        f"table {names[name]} {tuple(value.shape)}": Near(fingerprint([_real(value)]), _NEAR_32)
        for name, value in buffers.items()
        if name in names and names[name] not in state
    }


def _answers(setup: Setup) -> dict[str, Any]:
    """What the teacher answers to a few rows of the data at a few times."""
    network = setup.unguided
    low, high = time_range(network)
    device = network_device(network, setup.x0.device).type
    rows = torch.linspace(0, len(setup.x0) - 1, _ROWS).round().long()
    found = {}
    for share in _TIMES:
        time = low + share * (high - low)
        numbers = _answer(setup, network, rows, time)
        again = _answer(setup, network, rows, time)
        # One that draws where nobody can seed it answers otherwise each time.
        if numbers is not None and numbers == again:
            found[f"answers at t = {time:.3g} on {device}"] = Near(numbers, _near(setup))
    return found


def _answer(setup: Setup, network: nn.Module, rows: Tensor, time: float) -> list[float] | None:
    """The fingerprint of what `network` answers to some rows of the data at `time`; None where it
    can't be called so: where the run calls it, the run says why."""
    parts = []
    device = network_device(network, setup.x0.device)
    try:
        with draws_apart(device):
            for pair in rows.split(2):
                cond = take_rows(setup.cond, pair)
                parts.append(answer_of(network, setup.x0[pair], cond, time))
    except ValueError:
        return None
    return fingerprint(parts)


def _near(setup: Setup) -> float:
    dtypes = {p.dtype for p in setup.unguided.parameters() if p.is_floating_point()}
    on_cpu = all(p.device.type == "cpu" for p in setup.unguided.parameters())
    if dtypes <= {torch.float64}:
        return _NEAR_64
    if on_cpu and dtypes <= {torch.float64, torch.float32} and setup.cfg.teacher.dtype is None:
        return _NEAR_32
    return _NEAR_HALF


# ---- Words ---------------------------------------------------------------------------------------


def _json(value: Any) -> Any:
    """`value` as JSON, None where it can't be."""
    try:
        return plain_json(value, "value")
    except (TypeError, ValueError, RecursionError):
        return None


def _checksum(*values: Any) -> str:
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
