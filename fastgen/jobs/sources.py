"""Sources of networks: the teacher that a config names, and the student of an earlier run.

A teacher is read from a folder of this package, built by a factory of the user's, or handed in as a
module. What the config declares of its training (`teacher.path`, `prediction`, `data_at`,
`time_scale`, `clip_sample`, `spacing`, `scheduler`, `keywords`) is applied here.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._core.messages import brief, first_names
from .._core.modules import load_state, state_of
from .._core.tensor_files import read_safetensors
from ..config.files import load_config
from ..config.schemas import DistillConfig, TeacherConfig
from ..config.student import StudentConfig
from ..export.folders import has_custom_network, load_network, load_student
from ..export.student import Student
from ..records.folder import RUN_CONFIG
from ..teachers.conversion import as_rectified_flow, check_prediction
from ..teachers.keywords import KeywordNetwork
from ..teachers.schedulers import read_scheduler

__all__ = [
    "built_by",
    "built_network",
    "is_changed",
    "load_run_student",
    "load_teacher",
    "load_weights",
]

_DECLARATION = ("path", "prediction", "data_at", "time_scale", "clip_sample", "spacing")
# How such a key says what needs no conversion.
_PLAIN = {
    "path": "linear",
    "prediction": "flow",
    "data_at": 0,
    "time_scale": 1.0,
    "clip_sample": "unclipped",
    "spacing": "time",
}


def load_teacher(cfg: DistillConfig, network: nn.Module | None = None) -> nn.Module:
    """The teacher of a config, as a module called `net(x_t, t, cond)` in RF time.

    Args:
        network: the teacher, where `cfg.teacher` names neither a folder nor a factory. Weights and
            declaration of the config are applied to it all the same.

    Raises:
        ValueError: no teacher or two of them; a folder, factory or weights that can't be used; a
            declaration that contradicts itself, the network or `student.pred_type`.
        TypeError: a factory that returns something else than a module.
    """
    source = cfg.teacher
    given = [name for name in ("folder", "factory") if getattr(source, name) is not None]
    if network is not None:
        given.append("a module")
    if len(given) > 1:
        raise ValueError(f"expected one teacher, got {' and '.join(given)}")
    if source.folder is not None:
        network = _from_folder(cfg, source.folder)
    elif source.factory is not None:
        network = built_by(source.factory, source.arguments)
    elif network is None:
        raise ValueError(
            "expected teacher.folder (model.safetensors and config.json) or teacher.factory "
            "(package.module:callable), got neither"
        )
    if source.weights is not None:
        load_weights(network, source.weights)
    network = _declared(network, source)
    check_prediction(network, cfg.student.pred_type)
    return network


def built_network(source: TeacherConfig) -> nn.Module:
    """What the factory of a config returns, as it is.

    Raises:
        ValueError: no factory, or one that can't be used.
        TypeError: it returns something else than a module.
    """
    if source.factory is None:
        raise ValueError("expected teacher.factory (package.module:callable), got none")
    return built_by(source.factory, source.arguments)


def is_changed(source: TeacherConfig) -> bool:
    """Whether a teacher is more than its folder or factory says: whether the config names other
    weights, another dtype, keywords or a declaration."""
    changes = (source.weights, source.keywords, source.dtype)
    return _is_declared(source) or any(change is not None for change in changes)


def _is_declared(source: TeacherConfig) -> bool:
    """Whether anything but a rectified flow is declared."""
    said = _set_keys(source)
    return source.scheduler is not None or any(said[key] != _PLAIN[key] for key in said)


def _set_keys(source: TeacherConfig) -> dict[str, Any]:
    """What the config itself says of a declaration."""
    values = {key: getattr(source, key) for key in _DECLARATION}
    return {key: value for key, value in values.items() if value is not None}


def load_run_student(folder: Path, factory: str | None = None) -> Student:
    """The student in `folder`, with the network that `factory` builds if it isn't of
    `fastgen.models`.

    A factory is code, so it is never taken from a folder, which may come from anywhere. Its
    arguments are taken from the run's config, if that names this very factory.

    Raises:
        ValueError: a folder that can't be read, or a network of the user's own without a factory.
    """
    if not has_custom_network(folder):
        return load_student(folder)
    source: TeacherConfig | StudentConfig
    try:
        cfg = load_config(DistillConfig, folder.parent / RUN_CONFIG)
        source = cfg.teacher if cfg.student.factory is None else cfg.student
    except ValueError:  # the student doesn't lie in a run's folder
        source = TeacherConfig()
    if factory is None:
        said = f" (its run was made with {source.factory})" if source.factory else ""
        raise ValueError(
            f"expected factory=package.module:callable for the network of {folder}, which isn't "
            f"fastgen's{said}"
        )
    arguments = source.arguments if source.factory == factory else {}
    return load_student(folder, network=built_by(factory, arguments))


def _from_folder(cfg: DistillConfig, folder: str) -> nn.Module:
    """The network in a folder, which must predict what the config says."""
    network, description = load_network(folder)
    prediction = description.get("prediction", cfg.student.pred_type)
    if prediction != cfg.student.pred_type:
        raise ValueError(
            f"expected student.pred_type={prediction}, what the teacher predicts, got "
            f"{cfg.student.pred_type}"
        )
    return network


def built_by(factory: str, arguments: dict[str, Any], *, key: str = "teacher.factory") -> nn.Module:
    """What the callable `package.module:name` returns, in eval mode; `key` names it in errors.

    Raises:
        ValueError: no such callable, or arguments that it doesn't take.
        TypeError: it returns something else than a module.
    """
    module_name, _, name = factory.partition(":")
    if not module_name or not name or module_name.startswith("."):
        raise ValueError(f"expected {key} as package.module:callable, got {factory!r}")
    if os.getcwd() not in sys.path and "" not in sys.path:
        # A user's module lies where the user is; Python looks beside the recipe only.
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{key} {factory!r}: {error}; install it, or start from the folder where it lies"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(
                f"{key} {factory!r}: expected {part!r} in {module_name}, which has no such name"
            )
        found = getattr(found, part)
    try:
        network = found(**arguments)
    except TypeError as error:
        raise ValueError(f"{key} {factory!r} called with {arguments}: {brief(error)}") from error
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"expected {key} {factory!r} to return an nn.Module, got {type(network).__name__}"
        )
    return network.eval()


def _declared(network: nn.Module, source: TeacherConfig) -> nn.Module:
    """The network in the wrappers that its declaration asks for."""
    if source.keywords is not None:
        network = KeywordNetwork(network, **source.keywords.model_dump())
    if not _is_declared(source):
        return network
    try:
        declared = {} if source.scheduler is None else read_scheduler(source.scheduler)
        declared.update(_set_keys(source))
        if declared.get("clip_sample") == _PLAIN["clip_sample"]:
            del declared["clip_sample"]
        return as_rectified_flow(network, **declared)
    except (TypeError, ValueError) as error:
        raise ValueError(f"teacher: {error}") from error


# ---- Weights -------------------------------------------------------------------------------------


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load a `.safetensors` file into `network`: all tensors of the file into all of the network.
    Names of the network that share one tensor need one entry.

    Raises:
        ValueError: a file that is missing, of another kind, not whole or not finite; names or
            shapes that differ. The message holds the first ten, and what would mend it.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"expected teacher.weights as a .safetensors file, got {path.name}; convert it once: "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), "
            "'weights.safetensors')"
        )
    if not path.exists():
        raise ValueError(f"expected teacher.weights at {path}, got nothing there")
    tensors = read_safetensors(path)
    own = state_of(network)
    if any(value.is_meta for value in own.values()):
        raise ValueError(
            "expected a network with numbers, got one on the meta device; let the factory build "
            "it on the CPU"
        )
    _check_fit(path, own, tensors)
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{path}: expected finite weights, got NaN or infinity in {name}")
    load_state(network, tensors, strict=False)


def _check_fit(path: Path, own: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """ValueError unless names and shapes of the file's tensors are those of the network's own."""
    tied = {_place(own[name]) for name in own.keys() & tensors.keys() if own[name].numel()}
    missing = [name for name in own if name not in tensors and _place(own[name]) not in tied]
    unexpected = [name for name in tensors if name not in own]
    if missing or unexpected:
        said = []
        if missing:
            said.append(f"{len(missing)} missing: {first_names(missing)}")
        if unexpected:
            said.append(f"{len(unexpected)} unexpected: {first_names(unexpected)}")
        raise ValueError(
            f"{path} doesn't fit the network: {'; '.join(said)}; {_remedy(set(own), set(tensors))}"
        )
    wrong = []
    for name, value in tensors.items():
        wanted = tuple(own[name].shape)
        if tuple(value.shape) != wanted:
            wrong.append(f"{name} {tuple(value.shape)} for {wanted}")
    if wrong:
        raise ValueError(
            f"{path} doesn't fit the network: {len(wrong)} of another shape: "
            f"{first_names(wrong)}; give the factory the arguments that the network was trained "
            "with (teacher.arguments)"
        )


def _place(value: Tensor) -> tuple[Any, ...]:
    """The same for two names of one tensor, different for two tensors."""
    return value.device, value.data_ptr(), value.shape, value.stride()


def _remedy(own: set[str], found: set[str]) -> str:
    """What to do so that the names `found` in a file become the network's `own`."""
    for prefix in sorted(_prefixes(found)):
        inside = {name.removeprefix(prefix) for name in found if name.startswith(prefix)}
        if own <= inside or (inside < own and len(inside) == len(found)):
            return f"take only the names that begin with {prefix!r}, without it"
    for prefix in sorted(_prefixes(own)):
        if {prefix + name for name in found} == own:
            return f"put {prefix!r} before every name, or let the factory return the network inside"
    return "are they of this network? save its own state_dict()"


def _prefixes(names: set[str]) -> set[str]:
    """Every beginning of a name that ends with a dot."""
    return {name[: i + 1] for name in names for i, letter in enumerate(name) if letter == "."}
