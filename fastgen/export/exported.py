"""Exports to other programs: a folder with one file that samples, and `manifest.json` about it.

    model.onnx, model.pt2    the whole sampler, see `WholeSampler`
    manifest.json            what goes in and comes out, and how near that is to `Student.sample`

Before the folder takes its place, the file that was written is run and compared with the student.
What is told of it was measured on that file.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core.checks import check_choice, plain_int
from .._core.copies import copied
from .._core.files import new_folder
from .._core.json_files import write_json
from .._core.messages import brief
from .._core.tensor_files import sha256
from .._core.versions import versions
from .folders import load_student
from .group_action import equivariance_of
from .sampler_inputs import ROWS, SamplerInput, example_inputs
from .student import Student
from .whole_sampler import WholeSampler

__all__ = ["MANIFEST", "WEIGHTS", "FileFormat", "Run", "dynamic_shapes", "write_exported"]

MANIFEST = "manifest.json"
WEIGHTS = ("float32", "float16", "int8")
# Largest difference from `Student.sample`, in standard deviations of the data.
PARITY = 1e-5
# Numbers of rows that are compared.
_ROWS = (1, 3, 17)
_HEAD_BYTES = 4096

Run = Callable[[list[Tensor]], Tensor]


class FileFormat(NamedTuple):
    """How the file of an export is written.

    Attributes:
        name: of the format: "onnx".
        file: its name: "model.onnx".
        weights: which of `WEIGHTS` it can hold.
        write: (sampler, example, file, weights) -> a function that runs the written file.
        facts: what the manifest says of it besides, such as its version.
        owned: names of other files that may lie beside it.
        named: how the file calls the sampler's inputs and its output x.
        finish: (sampler, folder, manifest) -> the manifest in the layout of this format, after
            what else lies in the folder was written; None: the manifest as it is.
    """

    name: str
    file: str
    weights: tuple[str, ...]
    write: Callable[[WholeSampler, list[Tensor], Path, str], Run]
    facts: dict[str, Any]
    owned: tuple[str, ...] = ()
    named: Callable[[str], str] = str
    finish: Callable[[WholeSampler, Path, dict[str, Any]], dict[str, Any]] | None = None


class _Error(NamedTuple):
    """Differences from a student's own samples, in standard deviations of the data."""

    largest: float
    rms: float


def write_exported(
    kind: FileFormat,
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
    """Write a folder of this format; returns its manifest.

    Args:
        student: on the CPU; or its folder.
        path: new, empty, or an earlier export of this format, which is replaced whole.
        steps: network calls, among the student's; None: the most of them.
        weights: how the network's numbers are stored; it computes in float32 all the same, but for
            "int8".
        cond: some rows of a condition, see `WholeSampler`.
        group: whose error is measured; None: the one in the student's config.
        in_rep, cond_rep: of a student with a group, how it acts on the channels of a waypoint and
            of an observation, as in a config; None: copies of `standard`, or `trivial`.

    Raises:
        ValueError: a student that can't be exported, weights that the format doesn't have, a file
            that samples something else than the student, a folder that holds other files.
        OSError: the folder can't be written.
    """
    check_choice(f"weights of {kind.name}", weights, kind.weights)
    if not isinstance(student, Student):
        student = load_student(student)
    if student.device.type != "cpu":
        raise ValueError(
            f"expected a student on the CPU, got one on {student.device}; load it with device='cpu'"
        )
    stored = _rounded(student) if weights == "float16" else student
    sampler = WholeSampler(stored, plain_int(steps), cond).eval()
    example = example_inputs(student, sampler.inputs, 3, cond=cond)
    with torch.no_grad():
        sampler.sampled(example)  # what can't be sampled is refused with the student's own words
    owned = (kind.file, MANIFEST, *kind.owned)
    with new_folder(path, owned, lambda folder: _is_exported(folder, kind.name)) as partial:
        file = partial / kind.file
        run = _written(kind, sampler, example, file, weights)
        manifest = {
            **_head(kind, sampler, weights),
            "file": {"name": file.name, "bytes": file.stat().st_size, "sha256": sha256(file)},
            "parity": None,
        }
        near_stored = _compared(sampler, run, cond)
        if weights != "int8":
            manifest["parity"] = _checked(near_stored)
        error = near_stored
        if stored is not student:
            error = _compared(WholeSampler(student, plain_int(steps), cond), run, cond)
        manifest["error"] = error._asdict()
        manifest["equivariance"] = equivariance_of(
            sampler, run, group=group, in_rep=in_rep, cond_rep=cond_rep
        )
        if kind.finish is not None:
            manifest = kind.finish(sampler, partial, manifest)
        write_json(partial / MANIFEST, manifest)
    return manifest


def _rounded(student: Student) -> Student:
    """The student with the weights that float16 can hold, in its own dtype."""
    rounded = copy.copy(student)
    rounded.network = copied(student.network)
    for name, parameter in rounded.network.named_parameters():
        if parameter.is_floating_point():
            half = parameter.half()
            if not bool(half.isfinite().all()):
                raise ValueError(
                    f"expected weights within 65504 for weights='float16', got larger ones in "
                    f"{name}"
                )
            parameter.data = half.to(parameter.dtype)
    return rounded


def _written(
    kind: FileFormat, sampler: WholeSampler, example: list[Tensor], file: Path, weights: str
) -> Run:
    """Write the file; what fails in the exporter is said in one line."""
    try:
        with torch.no_grad():
            return kind.write(sampler, example, file, weights)
    except ImportError:
        raise
    # Whatever an exporter meets in a network of somebody's own.
    except Exception as error:
        name = type(sampler.network).__name__
        raise ValueError(
            f"{name} can't be written as {kind.name}: {type(error).__name__}: {brief(error)}"
        ) from error


def dynamic_shapes(inputs: list[SamplerInput]) -> tuple[dict[int, Any], ...]:
    """The axes of each input that may have another size than in an example, as `torch.export` takes
    them."""
    # Imported here: it brings torch's compiler, which takes as long to load as torch.
    from torch.export import Dim

    dims: dict[str, Any] = {ROWS: Dim(ROWS, min=1)}
    found = []
    for each in inputs:
        for axis, (least, most) in each.limits.items():
            dims.setdefault(axis, Dim(axis, min=least, max=most))
        places = enumerate(each.shape)
        found.append({place: dims[axis] for place, axis in places if isinstance(axis, str)})
    return tuple(found)


# ---- Checks --------------------------------------------------------------------------------------


def _checked(error: _Error) -> float:
    """The largest difference of the written file from the student that it holds.

    Raises:
        ValueError: it is too large.
    """
    # Written so that an error that is no number fails, too.
    if not error.largest <= PARITY:
        raise ValueError(
            f"expected a file that samples as the student to {PARITY:g} of the data's standard "
            f"deviation, got {error.largest:.2g}; nothing was written"
        )
    return error.largest


def _compared(sampler: WholeSampler, run: Run, cond: Any) -> _Error:
    """Differences of a written file from a student, over all sizes that it takes."""
    largest = 0.0
    squares = []
    for seed, (rows, sizes, given) in enumerate(_cases(sampler)):
        tensors = example_inputs(
            sampler.student,
            sampler.inputs,
            rows,
            sizes=sizes,
            given=given,
            cond=cond if sizes is None else None,
            seed=seed,
        )
        expected = sampler.sampled(tensors, seed).double()
        answer = run(tensors)
        if answer.shape != expected.shape:
            raise ValueError(
                f"expected samples {tuple(expected.shape)} of the file, got {tuple(answer.shape)}"
            )
        off = (answer.double() - expected) / _spread(sampler.student, expected)
        # The largest of numbers of which one is NaN is NaN.
        largest = float(torch.stack([torch.tensor(largest), off.abs().max().float()]).max())
        squares.append(float(off.square().mean()))
    return _Error(largest, (sum(squares) / len(squares)) ** 0.5)


def _cases(sampler: WholeSampler) -> Iterator[tuple[int, dict[str, int] | None, int | None]]:
    """(rows, sizes of the named axes, waypoints of the prefix) that are compared."""
    limits: dict[str, tuple[int, int]] = {}
    for each in sampler.inputs:
        limits |= each.limits
    ends: list[dict[str, int] | None] = [None]
    if limits:
        ends.append({axis: least for axis, (least, _) in limits.items()})
    prefixes = [None, 0] if sampler.student.prefix_max else [None]
    for rows in _ROWS:
        for sizes in ends:
            for given in prefixes:
                yield rows, sizes, given


def _spread(student: Student, samples: Tensor) -> Tensor:
    """Standard deviations of the data, by channel; of the samples where nothing is normalised."""
    if student.x_normalizer is not None:
        return student.x_normalizer.scale.norm(dim=-1)
    return samples.std(unbiased=False).clamp(min=torch.finfo(torch.float32).tiny)


# ---- Manifest ------------------------------------------------------------------------------------


def _head(kind: FileFormat, sampler: WholeSampler, weights: str) -> dict[str, Any]:
    """What the manifest says of an export before it is measured."""
    student = sampler.student
    wide = student.x_normalizer is not None and student.x_normalizer.needs_float64
    dtype = torch.float64 if wide else student.dtype
    output = {"name": kind.named("x"), "shape": [ROWS, *student.horizon], "dtype": _name(dtype)}
    head = {
        "format": f"fastgen-{kind.name}",
        "format_version": 1,
        "inputs": [_described(each, kind.named) for each in sampler.inputs],
        "outputs": [{**output, "units": "original"}],
        "steps": len(sampler.rungs) - 1,
        "rungs": list(sampler.rungs),
        "sample_type": student.sample_type,
        "pred_type": student.pred_type,
        "weights": weights,
        "student": student.config.get("checksum"),
        "group": student.config.get("group"),
        **kind.facts,
    }
    head["versions"] = {**versions(), **kind.facts.get("versions", {})}
    if student.config.get("encoder") is not None:
        encoder = student.config["encoder"]
        columns = ", ".join(encoder["columns"])
        head["encoder"] = f"not inside: cond is what {encoder['name']} makes of {columns}"
    return head


def _described(each: SamplerInput, named: Callable[[str], str]) -> dict[str, Any]:
    described = {
        "name": named(each.name),
        "shape": list(each.shape),
        "dtype": _name(each.dtype),
        "units": each.units,
    }
    if each.limits:
        described["limits"] = {axis: list(pair) for axis, pair in each.limits.items()}
    return described


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_exported(folder: Path, name: str) -> bool:
    """Whether an export of this format stands in `folder`: its manifest says so."""
    try:
        with open(folder / MANIFEST, "rb") as file:
            return f'"fastgen-{name}"'.encode() in file.read(_HEAD_BYTES)
    except OSError:
        return False
