"""The whole sampler of a student as one module of tensors, for programs without this package.

    noise, Z, ...  ->  X        normalisers, packing, all network calls, the last clamp

What `Student.sample` decides anew at each call is fixed here: the number of calls, and with it the
rungs. What it draws is given here: the noise, and under "sde" that of each later rung. The formulas
are those of `sample_in_original_units` and `unroll`; nothing is computed in a second way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._core.masks import with_masks
from ..channel_kinds import KindNormalizer
from ..normalizer import pack_tokens
from ..samplers.student import unroll
from .original_units import sample_in_original_units
from .prefixes import Given, prefix_law
from .sampler_inputs import later_noises, sampler_inputs
from .student import Student

__all__ = ["WholeSampler"]


class WholeSampler(nn.Module):
    """X (B, *horizon) in original units, of the tensors that `inputs` names, in this order.

    Args:
        student: without an encoder, in float32 or float64.
        steps: network calls, among the student's; None: the most of them.
        cond: some rows of a condition as `Student.sample` takes it, which tells what a network of
            one's own takes; None: what the student's config says.

    Attributes:
        student: of which it was made.
        rungs: (t_1, ..., t_K, 0).
        inputs: what it is called with.

    Raises:
        ValueError: `steps` that aren't on offer, a student that carries its encoder, one in half
            precision, one of angles or rotations, or one of whose condition nothing is known.
    """

    def __init__(self, student: Student, steps: int | None = None, cond: Any = None) -> None:
        super().__init__()
        _check_plain(student)
        if student.encoder is not None:
            raise ValueError(
                "expected a student that takes Z, got one that carries its encoder; load it "
                "without encoder=, and export the encoder by itself"
            )
        if student.dtype.itemsize < 4:
            raise ValueError(
                f"expected a student in float32 or float64, got {student.dtype}; load it with "
                "dtype=torch.float32, and choose weights='float16' for a small file"
            )
        self.network = student.network
        self.student = student
        self.rungs = student.rungs(steps)
        self.inputs = sampler_inputs(student, self.rungs, cond)
        self._later = later_noises(student, self.rungs)

    def forward(self, *tensors: Tensor) -> Tensor:
        student = self.student
        names = [each.name for each in self.inputs]
        given = dict(zip(names, tensors, strict=True))
        prefix = Given()
        if "prefix" in given:
            prefix = prefix_law(student).given(given["prefix"], given["prefix_length"])
        later = iter([self._packed(given[name]) for name in self._later])

        def solve(noise: Tensor, cond: Any) -> Tensor:
            network, cond = prefix.around(self.network, cond)
            states = unroll(
                network,
                noise,
                self.rungs,
                cond,
                sample_type=student.sample_type,
                pred_type=student.pred_type,
                draw_noise=lambda: next(later).to(noise.dtype),
            )
            return [*states][-1].to(noise.dtype)

        x = sample_in_original_units(
            self.network,
            solve,
            given["noise"],
            condition_of(given),
            x_normalizer=student.x_normalizer,
            z_normalizer=student.z_normalizer,
            pack=student.pack,
            box=student.box,
        )
        return prefix.beginning(x)

    def _packed(self, noise: Tensor) -> Tensor:
        return pack_tokens(noise, self.student.pack) if self.student.pack > 1 else noise

    def sampled(self, tensors: list[Tensor], seed: int = 0) -> Tensor:
        """What `Student.sample` answers to these tensors of `example_inputs(..., seed=seed)`."""
        names = [each.name for each in self.inputs]
        given = dict(zip(names, tensors, strict=True))
        prefix = None
        if "prefix" in given and int(given["prefix_length"][0]):
            prefix = given["prefix"][:, : int(given["prefix_length"][0])]
        return self.student.sample(
            condition_of(given),
            steps=len(self.rungs) - 1,
            noise=given["noise"],
            prefix=prefix,
            generator=torch.Generator().manual_seed(seed),
        )


def _check_plain(student: Student) -> None:
    """ValueError for angles and rotations: ONNX has no atan2 to make an angle of what a network
    answers."""
    found = {"action": student.x_normalizer, "observation": student.z_normalizer}
    for name, normalizer in found.items():
        if isinstance(normalizer, KindNormalizer):
            kinds = " and ".join(normalizer.kinds.kinds)
            raise ValueError(
                f"expected a student of plain numbers, got one with {name} channels of kind "
                f"{kinds}, which can't be written for other programs yet; use Student.sample, or "
                f"distil without data.normalize.{name}_channels"
            )


def condition_of(given: Mapping[str, Tensor]) -> Any:
    """The condition as `Student.sample` takes it, of tensors by name."""
    members = {name: value for name, value in given.items() if name.split(".")[0] == "cond"}
    Z = _nested(members, "cond")
    return with_masks(Z, given.get("mask"), given.get("cond_mask"))


def _nested(members: Mapping[str, Tensor], name: str) -> Any:
    """The tensor of this name, or the tuple or mapping of the members below it: "cond.0",
    "cond.goal"; None where there is neither."""
    if name in members:
        return members[name]
    below = [member[len(name) + 1 :] for member in members if member.startswith(f"{name}.")]
    keys = list(dict.fromkeys(rest.split(".")[0] for rest in below))
    if not keys:
        return None
    values = {key: _nested(members, f"{name}.{key}") for key in keys}
    return tuple(values.values()) if all(key.isdecimal() for key in keys) else values
