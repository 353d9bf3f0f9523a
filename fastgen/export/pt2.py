"""PT2: the whole sampler of a student as a program of `torch.export`, without this package.

    model.pt2    manifest.json

`torch.export.load("model.pt2").module()` needs torch alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .exported import FileFormat, Run, dynamic_shapes, write_exported
from .student import Student
from .whole_sampler import WholeSampler

__all__ = ["export_pt2"]


def export_pt2(
    student: Student | str | Path,
    path: str | Path,
    *,
    steps: int | None = None,
    weights: str = "float32",
    cond: Any = None,
    group: str | None = None,
    in_rep: Any = None,
    cond_rep: Any = None,
) -> dict[str, Any]:
    """Write a student's sampler as `model.pt2`, beside `manifest.json`, which is returned.

    Arguments, inputs and errors are those of :func:`fastgen.export.export_onnx`, but for "int8",
    which this format doesn't have. The program takes its inputs by position, in the order of the
    manifest.
    """
    kind = FileFormat("pt2", "model.pt2", ("float32", "float16"), _write, {})
    return write_exported(
        kind,
        student,
        path,
        steps=steps,
        weights=weights,
        cond=cond,
        group=group,
        in_rep=in_rep,
        cond_rep=cond_rep,
    )


class _HalfStored(nn.Module):
    """A sampler whose parameters are stored in float16, and cast whenever it is called."""

    def __init__(self, sampler: WholeSampler) -> None:
        super().__init__()
        self._inside = (sampler,)  # in a tuple, its own parameters are none of this module
        self._dtypes = {name: value.dtype for name, value in sampler.named_parameters()}
        self._stored = nn.ParameterDict(
            {
                name.replace(".", "/"): nn.Parameter(value.half(), requires_grad=False)
                for name, value in sampler.named_parameters()
            }
        )

    def forward(self, *tensors: Tensor) -> Tensor:
        weights = {
            name: self._stored[name.replace(".", "/")].to(dtype)
            for name, dtype in self._dtypes.items()
        }
        return torch.func.functional_call(self._inside[0], weights, tensors)


def _write(sampler: WholeSampler, example: list[Tensor], file: Path, weights: str) -> Run:
    module = _HalfStored(sampler) if weights == "float16" else sampler
    program = torch.export.export(
        module, tuple(example), dynamic_shapes=(dynamic_shapes(sampler.inputs),)
    )
    for tensors in (program.state_dict, program.constants):
        _give_own_memory(tensors)
    torch.export.save(program, file)
    loaded = torch.export.load(file).module()
    return lambda tensors: loaded(*tensors)


def _give_own_memory(tensors: dict[str, Any]) -> None:
    """Copy those that see a part of their memory, or see it transposed: the format stores memories
    whole, and warns of one that no tensor covers in order."""
    whole = {_memory(value) for value in _tensors(tensors) if _covers(value)}
    for name, value in tensors.items():
        if isinstance(value, Tensor) and _memory(value) not in whole:
            copy = value.detach().clone(memory_format=torch.contiguous_format)
            is_parameter = isinstance(value, nn.Parameter)
            tensors[name] = nn.Parameter(copy, value.requires_grad) if is_parameter else copy


def _tensors(values: dict[str, Any]) -> list[Tensor]:
    return [value for value in values.values() if isinstance(value, Tensor)]


def _memory(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


def _covers(value: Tensor) -> bool:
    """Whether a tensor is all of its memory, in order."""
    if not value.is_contiguous():
        return False
    return value.numel() * value.element_size() == value.untyped_storage().nbytes()
