"""What the whole sampler of a student takes: its tensors by name, with sizes, dtypes and units.

noise, noise_2, ...    (B, *horizon)          noise_k, for k >= 2: of rung k under "sde"
cond, cond.goal, ...   (B, ...)               Z, or each member of it
mask, cond_mask        (B, T_x), (B, T_z)     where the student was trained with them
prefix, prefix_length  (B, k, d_x), (B,)      where it was trained to be given waypoints
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._core.conditions import named_tensors
from .._core.masks import masks_of
from .._core.seeds import draw_normal
from ..networks import unwrap
from ..normalizer import Normalizer, unpack_tokens
from .student import Student

__all__ = [
    "ROWS",
    "SamplerInput",
    "example_inputs",
    "later_noises",
    "sampler_inputs",
    "state_dtype",
]

# The axis of rows; every other named axis is one of a condition.
ROWS = "B"
# Text of a condition in a student's config: "(B, 2, 2)", "integers (B,)".
_CONDITION = re.compile(r"(integers )?\(B,([ \d,]*)\)")


@dataclass(frozen=True)
class SamplerInput:
    """One tensor that a sampler takes.

    Attributes:
        name: such as "noise", "cond", "cond.goal", "mask".
        shape: sizes of the axes; an axis of any size by its name, "B" or "T_z".
        dtype: of the numbers.
        units: what they are, for people.
        limits: {name of an axis: (least, most)} of those with a name but "B".
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype
    units: str
    limits: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def state_dtype(student: Student) -> torch.dtype:
    """The dtype of a sampler's noise."""
    return torch.promote_types(student.dtype, torch.float32)


def later_noises(student: Student, rungs: tuple[float, ...]) -> list[str]:
    """The names of the noises that the rungs after the first draw."""
    count = len(rungs) - 2 if student.sample_type == "sde" else 0
    return [f"noise_{rung}" for rung in range(2, count + 2)]


def sampler_inputs(
    student: Student, rungs: tuple[float, ...], cond: Any = None
) -> list[SamplerInput]:
    """The inputs of a student's sampler, in their order.

    Args:
        rungs: of the number of calls.
        cond: some rows of a condition as `Student.sample` takes it, which tells what a network of
            one's own takes; None: what the student's config says.

    Raises:
        ValueError: a student of whose condition nothing is known.
    """
    shape = (ROWS, *student.horizon)
    units = "standard normal, of normalised channels"
    names = ["noise", *later_noises(student, rungs)]
    found = [SamplerInput(name, shape, state_dtype(student), units) for name in names]
    conditions = _condition_inputs(student, masks_of(cond)[0])
    return [*found, *conditions, *_mask_inputs(student, conditions), *_prefix_inputs(student)]


def _condition_inputs(student: Student, Z: Any) -> list[SamplerInput]:
    """Those of the condition; none for a student without one."""
    said = (student.config.get("description") or {}).get("condition")
    if Z is not None:
        return [_of_tensor(student, name, value) for name, value in named_tensors(Z).items()]
    if student.cond_horizon is not None:
        return [_of_tensor(student, "Z", torch.zeros(1, *student.cond_horizon))]
    if student.cond_sizes == {} or said == "none":
        return []
    parts = _CONDITION.fullmatch(said) if isinstance(said, str) else None
    if parts is None:
        raise ValueError(
            "expected some rows of a condition, of which the student's config doesn't say what it "
            f"looks like (it says {said!r}), got none; give them as cond= (z=FILE)"
        )
    sizes = [int(size) for size in parts[2].replace(",", " ").split()]
    dtype = torch.int64 if parts[1] else torch.float32
    return [_of_tensor(student, "Z", torch.zeros(1, *sizes, dtype=dtype))]


def _of_tensor(student: Student, name: str, value: Tensor) -> SamplerInput:
    """The input that takes tensors such as `value`, of the sizes that the student was trained
    with."""
    ranges = [(size, size) for size in value.shape[1:]]
    if student.cond_horizon is not None:
        ranges[0] = (1, student.cond_horizon[0])
    if student.cond_sizes and name in student.cond_sizes:
        ranges = student.cond_sizes[name]
    # The first axis after the rows is one of tokens. Members have axes of their own.
    member = re.sub(r"\W", "_", name.removeprefix("Z."))
    first = "T_z" if name == "Z" else f"T_{member}"
    axes = [(f"{first}_{place}" if place else first, pair) for place, pair in enumerate(ranges)]
    shape = tuple(low if low == high else axis for axis, (low, high) in axes)
    limits = {axis: (low, high) for axis, (low, high) in axes if low < high}
    dtype = value.dtype
    units = "original"
    if value.is_floating_point():
        wide = student.z_normalizer is not None and student.z_normalizer.needs_float64
        dtype = torch.float64 if wide else state_dtype(student)
    elif value.dtype != torch.bool:
        dtype = torch.int64
        units = "labels"
    return SamplerInput(f"cond{name.removeprefix('Z')}", (ROWS, *shape), dtype, units, limits)


def _mask_inputs(student: Student, conditions: list[SamplerInput]) -> list[SamplerInput]:
    units = "True = real"
    found = []
    if "mask" in student.masks:
        shape = (ROWS, student.horizon[0])
        found.append(SamplerInput("mask", shape, torch.bool, units))
    if "cond_mask" in student.masks:
        tokens = conditions[0].shape[1] if conditions and len(conditions[0].shape) > 1 else 1
        limits = conditions[0].limits if conditions else {}
        found.append(SamplerInput("cond_mask", (ROWS, tokens), torch.bool, units, limits))
    return found


def _prefix_inputs(student: Student) -> list[SamplerInput]:
    most = student.prefix_max
    if not most:
        return []
    wide = student.x_normalizer is not None and student.x_normalizer.needs_float64
    dtype = torch.float64 if wide else state_dtype(student)
    whole = f", a multiple of {student.pack}" if student.pack > 1 else ""
    fewer = ", fewer than are real" if "mask" in student.masks else ""
    units = (
        f"waypoints that are given, 0 to {most}{whole}{fewer}; what stands beyond them does nothing"
    )
    return [
        SamplerInput("prefix", (ROWS, most, student.horizon[1]), dtype, "original"),
        SamplerInput("prefix_length", (ROWS,), torch.int64, units),
    ]


# ---- Examples ------------------------------------------------------------------------------------


def example_inputs(
    student: Student,
    inputs: list[SamplerInput],
    rows: int,
    *,
    sizes: Mapping[str, int] | None = None,
    given: int | None = None,
    cond: Any = None,
    seed: int = 0,
) -> list[Tensor]:
    """Random tensors for a sampler: numbers as its normalisers have seen them, the last token of
    masks padding.

    Args:
        inputs: of `sampler_inputs`.
        rows: B.
        sizes: of the axes with a name; None: the largest.
        given: waypoints of the prefix; None: all.
        cond: rows of it are taken, over and over, in place of random ones.
        seed: of the draws. Those of later rungs are what `Student.sample` draws from
            `torch.Generator().manual_seed(seed)`.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    own = named_tensors(masks_of(cond)[0])
    later = _later_draws(student, inputs, rows, seed)
    found = []
    for each in inputs:
        limits = {axis: most for axis, (_, most) in each.limits.items()}
        axes = {ROWS: rows, **limits, **(sizes or {})}
        shape = tuple(axes[axis] if isinstance(axis, str) else axis for axis in each.shape)
        member = each.name.replace("cond", "Z", 1)
        if each.name in later:
            value = later[each.name]
        elif member in own:
            value = own[member][torch.arange(rows) % len(own[member])]
        elif each.name == "prefix_length":
            most = student.prefix_max if given is None else given
            value = torch.full(shape, most)
        else:
            value = _drawn(student, each, shape, generator)
        found.append(value.to(each.dtype))
    return found


def _drawn(
    student: Student, each: SamplerInput, shape: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    """Random numbers of one input."""
    if each.dtype == torch.bool:
        mask = torch.ones(shape, dtype=torch.bool)
        # Of a trajectory more is real than is given.
        real = student.prefix_max if each.name == "mask" else 0
        mask[:, -student.pack :] = shape[1] <= student.pack + real
        return mask
    if not each.dtype.is_floating_point:
        labels = getattr(unwrap(student.network), "num_labels", 0)
        return torch.randint(0, max(2, labels), shape, generator=generator)
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
    if each.name == "prefix" and student.x_normalizer is not None:
        return _about_mean(student.x_normalizer, numbers, student.horizon[0])
    if each.name.startswith("cond") and student.z_normalizer is not None:
        return _about_mean(student.z_normalizer, numbers, numbers.shape[1])
    return numbers


def _about_mean(normalizer: Normalizer, y: Tensor, tokens: int) -> Tensor:
    """Numbers (B, k, d) as the first of `tokens` in original units."""
    whole = y.new_zeros(len(y), tokens, *y.shape[2:]) if y.ndim == 3 else y
    if y.ndim == 3:
        whole[:, : y.shape[1]] = y
    return normalizer.denormalize(whole)[:, : y.shape[1]]


def _later_draws(
    student: Student, inputs: list[SamplerInput], rows: int, seed: int
) -> dict[str, Tensor]:
    """The noises of later rungs as a student draws them: packed, one after the other."""
    generator = torch.Generator().manual_seed(seed)
    tokens, *rest = student.horizon
    packed = (rows, *student.horizon)
    if student.pack > 1:
        packed = (rows, tokens // student.pack, student.pack * rest[0])
    found = {}
    for each in inputs:
        if each.name.startswith("noise_"):
            dtype = state_dtype(student)
            noise = draw_normal(packed, device="cpu", dtype=dtype, generator=generator)
            found[each.name] = unpack_tokens(noise, student.pack) if student.pack > 1 else noise
    return found
