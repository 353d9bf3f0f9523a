"""Policy packages: a student in the layout of LeRobot's exported policies.

    manifest.json    model.onnx    stats.safetensors    README.md

What is LeRobot's: the manifest, format "policy_package" 1.0, whose sections are `policy`, `model`
(runner, artifacts, processors), `hardware` and `metadata`; names of features ("observation.state",
"action"); "feature/statistic" as names in stats.safetensors. That layout is a proposal of LeRobot's
(huggingface/lerobot, pull request 3493), not in a release when this was written; OpenVINO's
`physicalai` 0.3 reads it. A student is a runner of the type `single_pass`: all its calls are in the
graph, which is run once.

What is ours:
- The files lie side by side, as `physicalai` looks for them. LeRobot's proposal keeps the graph in
  a folder `artifacts`.
- `runner` has its type alone: `physicalai` takes nothing else there, and LeRobot's reader takes the
  length of a chunk from the chunk.
- The normalisers are in the graph, so its processors are `identity`. The statistics are for people,
  and for programs that want to know in which range the data were.
- Noise may be left out: it is drawn in the graph then (`onnx_optional`), and a runner of policies,
  which gives observations alone, samples. So may masks and a prefix.
- `fastgen`, a section of the manifest: what `manifest.json` of the format onnx says, with the
  difference from `Student.sample` and the equivariance error of each group element.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._core.checks import plain_int
from .._core.files import write_file
from .._core.tensor_files import write_safetensors
from .._core.versions import package_version
from ..normalizer import Normalizer
from .exported import WEIGHTS, FileFormat, Run, write_exported
from .folders import load_student
from .onnx_graph import OPSET, check_installed, runner, versions_of_onnx, write_graph
from .onnx_optional import NORMAL, make_optional
from .policy_page import policy_page
from .sampler_inputs import sampler_inputs
from .student import Student
from .whole_sampler import WholeSampler

__all__ = ["export_policy"]

_GRAPH = "model.onnx"
_STATS = "stats.safetensors"
_PAGE = "README.md"
_STATE = "observation.state"
_ACTION = "action"


def export_policy(
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
    """Write a student as a policy package; returns its manifest.

    The graph takes `observation.state` (B, T_z, d_z) in original units, or `observation.<member>`
    of each member of a condition, and answers `action` (B, T_x, d_x) in original units. What else
    a student takes may be left out: noise is drawn, nothing is masked, no waypoint is given.

    Arguments and errors are those of :func:`fastgen.export.export_onnx`.

    Raises:
        ValueError: besides, a student whose samples are no trajectories, or one without a
            condition.
    """
    check_installed()
    if not isinstance(student, Student):
        student = load_student(student)
    if len(student.horizon) != 2:
        raise ValueError(
            "expected a student of trajectories (T_x, d_x) for a policy, got one of samples "
            f"{student.horizon}; use to=onnx"
        )
    inputs = sampler_inputs(student, student.rungs(plain_int(steps)), cond)
    if not any(each.name.startswith("cond") for each in inputs):
        raise ValueError("expected a student with a condition, got one without; use to=onnx")
    kind = FileFormat(
        "policy",
        _GRAPH,
        WEIGHTS,
        _write,
        {"opset": OPSET, "versions": versions_of_onnx()},
        owned=("model.onnx.data", _STATS, _PAGE),
        named=_named,
        finish=_finished,
    )
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


def _named(name: str) -> str:
    """How policies call an input of the sampler, or its output x."""
    if name == "x":
        return _ACTION
    if name == "cond":
        return _STATE
    return name.replace("cond.", "observation.", 1) if name.startswith("cond.") else name


def _write(sampler: WholeSampler, example: list[Tensor], file: Path, weights: str) -> Run:
    names = [each.name for each in sampler.inputs]
    observation = next(name for name in names if name.startswith("cond"))
    write_graph(sampler, example, file, weights, _named)
    make_optional(file, _fills(sampler), _named(observation))
    return runner(file, [_named(name) for name in names], _ACTION)


def _fills(sampler: WholeSampler) -> dict[str, str | float]:
    """What stands in the place of inputs that are left out. A mask over observations of any number
    isn't one of them."""
    fills: dict[str, str | float] = {}
    for each in sampler.inputs:
        if each.name.startswith("noise"):
            fills[each.name] = NORMAL
        elif each.name in ("mask", "cond_mask") and not each.limits:
            fills[each.name] = True
        elif each.name.startswith("prefix"):
            fills[each.name] = 0
    return fills


# ---- What lies beside the graph ------------------------------------------------------------------


def _finished(sampler: WholeSampler, folder: Path, own: dict[str, Any]) -> dict[str, Any]:
    """Write statistics and page; returns the manifest of the package."""
    student = sampler.student
    for described in own["inputs"]:
        if described["name"] in _fills(sampler):
            described["optional"] = True
    write_safetensors(folder / _STATS, _statistics(student))
    features = [each["name"] for each in own["inputs"] if each["name"].startswith("observation.")]
    manifest = {
        "format": "policy_package",
        "version": "1.0",
        "policy": {"name": "fastgen", "source": {"class_path": "fastgen.export.Student"}},
        "model": {
            "n_obs_steps": _observations(own, features[0]),
            "runner": {"type": "single_pass"},
            "artifacts": {"onnx": _GRAPH, "model": _GRAPH},
            "preprocessors": [_identity("normalize", features)],
            "postprocessors": [_identity("denormalize", [_ACTION])],
        },
        "hardware": {"robots": [_robot(student)]},
        "metadata": {"created_by": f"fastgen-distill {package_version()}"},
        "fastgen": own,
    }
    write_file(folder / _PAGE, policy_page(manifest).encode())
    return manifest


def _identity(kind: str, features: list[str]) -> dict[str, Any]:
    return {"type": kind, "mode": "identity", "artifact": _STATS, "features": features}


def _observations(own: Mapping[str, Any], feature: str) -> int:
    """How many observations the graph takes at most."""
    for each in own["inputs"]:
        if each["name"] == feature and len(each["shape"]) == 3:
            tokens = each["shape"][1]
            return tokens if isinstance(tokens, int) else each["limits"][tokens][1]
    return 1


def _robot(student: Student) -> dict[str, Any]:
    robot = {"name": "main", "action": {"shape": [student.horizon[1]], "dtype": "float32"}}
    if student.cond_horizon is not None:
        robot["state"] = {"shape": [student.cond_horizon[1]], "dtype": "float32"}
    return robot


def _statistics(student: Student) -> dict[str, Tensor]:
    """Mean and standard deviation of each channel, and the matrix `scale` of the map that the graph
    applies, x = mean + scale y."""
    found: dict[str, Tensor] = {}
    sizes = {_ACTION: student.horizon[1]}
    normalizers = {_ACTION: student.x_normalizer, _STATE: student.z_normalizer}
    if student.cond_horizon is not None:
        sizes[_STATE] = student.cond_horizon[1]
    for feature, size in sizes.items():
        normalizer = normalizers[feature] or Normalizer.identity(size)
        found[f"{feature}/mean"] = normalizer.mean
        found[f"{feature}/std"] = normalizer.scale.norm(dim=-1)
        found[f"{feature}/scale"] = normalizer.scale
    return {name: value.to(torch.float32).contiguous() for name, value in found.items()}
