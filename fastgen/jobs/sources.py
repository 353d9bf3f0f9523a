"""Where a teacher comes from, and what the method must keep to for its sake.

A teacher is read from a folder of this package, built by a factory of the user's, or handed in as a
module. What the config declares of its training (`teacher.path`, `prediction`, `data_at`,
`time_scale`, `keywords`) is applied here.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._core.messages import brief, first_names
from .._core.tensor_files import read_safetensors
from ..config.files import load_config
from ..config.schemas import DistillConfig, TeacherConfig
from ..export.folders import has_custom_network, load_network, load_student
from ..export.student import Student
from ..records.folder import RUN_CONFIG
from ..teachers.conversion import as_rectified_flow, check_prediction
from ..teachers.keywords import KeywordNetwork

__all__ = ["is_changed", "load_run_student", "load_teacher", "load_weights"]

_DECLARATION = ("path", "prediction", "data_at", "time_scale")


def load_teacher(cfg: DistillConfig, network: nn.Module | None = None) -> nn.Module:
    """The teacher of a config, as a module called `net(x_t, t, cond)` in RF time.

    Args:
        network: in place of what `cfg.teacher.folder` or `.factory` names; weights and declaration
            are applied to it.

    Raises:
        ValueError: no teacher or two of them; a folder, factory or weights that can't be used; a
            declaration that contradicts itself, the network or `student.pred_type`.
        TypeError: a factory that returns something else than a module.
    """
    source = cfg.teacher
    given = [name for name in ("folder", "factory") if getattr(source, name) is not None]
    if len(given) + (network is not None) > 1:
        raise ValueError(
            "expected one teacher, got "
            f"{' and '.join([*given, *['a module'] * (network is not None)])}"
        )
    if source.folder is not None:
        network = _from_folder(cfg, source.folder)
    elif source.factory is not None:
        network = _built(source.factory, source.arguments)
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


def is_changed(source: TeacherConfig) -> bool:
    """Whether something beside its folder or factory says what the teacher is: other weights, dtype
    or declaration."""
    return _is_declared(source) or any(
        value is not None for value in (source.weights, source.keywords, source.dtype)
    )


def _is_declared(source: TeacherConfig) -> bool:
    """Whether anything but a rectified flow is declared."""
    return any(
        getattr(source, key) != TeacherConfig.model_fields[key].default for key in _DECLARATION
    )


def load_run_student(folder: Path, factory: str | None = None) -> Student:
    """The student in `folder`, with the network that `factory` builds if it isn't of
    `fastgen.models`.

    A factory is code: it is never taken from a folder, which may come from anywhere. Its arguments
    are, where the run's config names this very factory.

    Raises:
        ValueError: a folder that can't be read, or a network of the user's own without a factory.
    """
    if not has_custom_network(folder):
        return load_student(folder)
    try:
        source = load_config(DistillConfig, folder.parent / RUN_CONFIG).teacher
    except ValueError:  # the student doesn't lie in a run's folder
        source = TeacherConfig()
    if factory is None:
        said = f" (its run was made with {source.factory})" if source.factory else ""
        raise ValueError(
            f"expected factory=package.module:callable for the network of {folder}, which isn't "
            f"fastgen's{said}"
        )
    arguments = source.arguments if source.factory == factory else {}
    return load_student(folder, network=_built(factory, arguments))


def _from_folder(cfg: DistillConfig, folder: str) -> nn.Module:
    network, description = load_network(folder)
    prediction = description.get("prediction", cfg.student.pred_type)
    if prediction != cfg.student.pred_type:
        raise ValueError(
            f"expected student.pred_type={prediction}, what the teacher predicts, got "
            f"{cfg.student.pred_type}"
        )
    return network


def _built(factory: str, arguments: dict[str, Any]) -> nn.Module:
    """What the callable `package.module:name` returns."""
    module_name, _, name = factory.partition(":")
    if not module_name or not name or module_name.startswith("."):
        raise ValueError(f"expected teacher.factory as package.module:callable, got {factory!r}")
    if os.getcwd() not in sys.path and "" not in sys.path:
        # A recipe's own folder comes first on the path of a script; a user's module lies where the
        # user is.
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"teacher.factory {factory!r}: {error}; install it, or start from the folder where it "
            "lies"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(
                f"teacher.factory {factory!r}: expected {part!r} in {module_name}, which has no "
                "such name"
            )
        found = getattr(found, part)
    try:
        network = found(**arguments)
    except TypeError as error:
        raise ValueError(
            f"teacher.factory {factory!r} called with {arguments}: {brief(error)}"
        ) from error
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"expected teacher.factory {factory!r} to return an nn.Module, got "
            f"{type(network).__name__}"
        )
    return network.eval()


def _declared(network: nn.Module, source: TeacherConfig) -> nn.Module:
    """The network in the wrappers that its declaration asks for."""
    if source.keywords is not None:
        network = KeywordNetwork(network, **source.keywords.model_dump())
    if not _is_declared(source):
        return network
    try:
        return as_rectified_flow(network, **{key: getattr(source, key) for key in _DECLARATION})
    except (TypeError, ValueError) as error:
        raise ValueError(f"teacher: {error}") from error


# ---- Weights -------------------------------------------------------------------------------------


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load a `.safetensors` file into `network`, every tensor of both; names that share one tensor
    need one entry.

    Raises:
        ValueError: a file that is missing, of another kind, not whole or not finite; names or
            shapes that differ, the first ten of each, with what would mend it.
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
    own = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    if any(value.is_meta for value in own.values()):
        raise ValueError(
            "expected a network with numbers, got one on the meta device; let the factory build "
            "it on the CPU"
        )
    tied = {_place(own[name]) for name in own.keys() & tensors.keys() if own[name].numel()}
    missing = [name for name in own if name not in tensors and _place(own[name]) not in tied]
    unexpected = [name for name in tensors if name not in own]
    if missing or unexpected:
        kinds = (("missing", missing), ("unexpected", unexpected))
        said = "; ".join(
            f"{len(names)} {kind}: {first_names(names)}" for kind, names in kinds if names
        )
        raise ValueError(
            f"{path} doesn't fit the network: {said}; {_remedy(set(own), set(tensors))}"
        )
    shapes = {name: (tuple(tensors[name].shape), tuple(own[name].shape)) for name in tensors}
    if wrong := [
        f"{name} {got} for {wanted}" for name, (got, wanted) in shapes.items() if got != wanted
    ]:
        raise ValueError(
            f"{path} doesn't fit the network: {len(wrong)} of another shape: "
            f"{first_names(wrong)}; give the factory the arguments that the network was trained "
            "with (teacher.arguments)"
        )
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{path}: expected finite weights, got NaN or infinity in {name}")
    network.load_state_dict(tensors, strict=False)


def _place(value: Tensor) -> tuple[Any, ...]:
    """What two names of one and the same tensor have in common."""
    return value.device, value.data_ptr(), value.shape, value.stride()


def _remedy(own: set[str], found: set[str]) -> str:
    """How names that differ could be made the same."""
    for prefix in sorted(_prefixes(found)):
        inside = {name.removeprefix(prefix) for name in found if name.startswith(prefix)}
        if own <= inside or (inside < own and len(inside) == len(found)):
            return f"take only the names that begin with {prefix!r}, without it"
    for prefix in sorted(_prefixes(own)):
        if {prefix + name for name in found} == own:
            return f"put {prefix!r} before every name, or let the factory return the network inside"
    return "are they of this network? save its own state_dict()"


def _prefixes(names: set[str]) -> Iterator[str]:
    """Every beginning of a name that ends with a dot."""
    return iter({name[: i + 1] for name in names for i, letter in enumerate(name) if letter == "."})


# ---- The method ----------------------------------------------------------------------------------
