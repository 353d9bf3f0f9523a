"""Sources of networks: the teacher that a config names, and the student of an earlier run.

A teacher is read from a folder, of this package or of another library, built by a factory of the
user's, or handed in as a module. What the config declares of its training (`teacher.path`,
`prediction`, `data_at`, `time_scale`, `clip_sample`, `spacing`, `scheduler`, `keywords`) is applied
here.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from torch import nn

from .._core.messages import brief
from .._core.tensor_files import map_safetensors
from ..config.files import load_config
from ..config.schemas import DistillConfig, TeacherConfig
from ..config.student import StudentConfig
from ..export.folders import STUDENT_FILE, has_custom_network, load_student
from ..export.networks import load_network
from ..export.student import Student
from ..records.folder import RUN_CONFIG
from ..teachers.conversion import as_rectified_flow, check_prediction
from ..teachers.keywords import KeywordNetwork
from ..teachers.saved import SavedTeacher, blank_network, read_saved
from ..teachers.schedulers import read_scheduler
from ..teachers.weights import load_weights

__all__ = [
    "built_by",
    "built_network",
    "is_changed",
    "load_run_student",
    "load_teacher",
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
    saved = None
    if source.folder is not None:
        saved = read_saved(source.folder)
        network = _from_folder(cfg, source.folder) if saved is None else saved.network
    elif source.factory is not None:
        network = built_by(source.factory, source.arguments)
    elif network is None:
        raise ValueError(
            "expected teacher.folder (model.safetensors and config.json, or a folder of diffusers "
            "or LeRobot) or teacher.factory (package.module:callable), got neither"
        )
    if source.weights is not None:
        load_weights(network, source.weights)
    network = _declared(network, source, saved)
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


def load_run_student(
    folder: Path, factory: str | None = None, encoder: str | None = None
) -> Student:
    """The student in `folder`, with the network that `factory` builds if it isn't of
    `fastgen.models`, and the encoder that `encoder` builds, if it is to be given raw observations.

    A factory is code, so it is never taken from a folder, which may come from anywhere. Its
    arguments are taken from the run's config, if that names this very factory. A network that the
    run took from a folder of another library is built as that folder says, if it is still there.

    Raises:
        ValueError: a folder that can't be read, or a network of the user's own without a factory.
    """
    try:
        cfg = load_config(DistillConfig, folder.parent / RUN_CONFIG)
    except ValueError:  # the student doesn't lie in a run's folder
        cfg = None
    module = None if encoder is None else _encoder_of_run(cfg, encoder)
    if not has_custom_network(folder):
        return load_student(folder, encoder=module)
    source: TeacherConfig | StudentConfig = TeacherConfig()
    if cfg is not None:
        source = cfg.teacher if cfg.student.factory is None else cfg.student
    if factory is None and isinstance(source, TeacherConfig) and source.folder is not None:
        network = blank_network(source.folder, map_safetensors(folder / STUDENT_FILE))
        if network is not None:
            return load_student(folder, network=network, encoder=module)
    if factory is None:
        said = f" (its run was made with {source.factory})" if source.factory else ""
        raise ValueError(
            f"expected factory=package.module:callable for the network of {folder}, which isn't "
            f"fastgen's{said}"
        )
    arguments = source.arguments if source.factory == factory else {}
    return load_student(folder, network=built_by(factory, arguments), encoder=module)


def _encoder_of_run(cfg: DistillConfig | None, factory: str) -> nn.Module:
    """What a factory builds, with the arguments that the run's config has for it."""
    how = None if cfg is None else cfg.teacher.encoder
    arguments = how.arguments if how is not None and how.factory == factory else {}
    return built_by(factory, arguments, key="encoder")


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


def _declared(
    network: nn.Module, source: TeacherConfig, saved: SavedTeacher | None = None
) -> nn.Module:
    """The network in the wrappers that its declaration, or that of its folder, asks for."""
    if source.keywords is not None:
        network = KeywordNetwork(network, **source.keywords.model_dump())
    elif saved is not None and saved.keywords is not None:
        network = KeywordNetwork(network, **saved.keywords)
    if saved is None and not _is_declared(source):
        return network
    try:
        declared = _declaration(source, saved)
        declared.update(_set_keys(source))
        if declared.get("clip_sample") == _PLAIN["clip_sample"]:
            del declared["clip_sample"]
        return as_rectified_flow(network, **declared)
    except (TypeError, ValueError) as error:
        raise ValueError(f"teacher: {error}") from error


def _declaration(source: TeacherConfig, saved: SavedTeacher | None) -> dict[str, Any]:
    """What a scheduler's config says: the one that is named, else the one of the folder."""
    if source.scheduler is not None:
        return read_scheduler(source.scheduler)
    if saved is None:
        return {}
    if saved.declaration is None and (source.path is None or source.prediction is None):
        raise ValueError(
            f"expected scheduler_config.json in {source.folder}, or in the scheduler/ of its "
            "pipeline, got none; give teacher.scheduler, or teacher.path and teacher.prediction"
        )
    return dict(saved.declaration or {})
