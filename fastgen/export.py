"""Networks and students as folders: safetensors + JSON, written whole, checked before they are trusted.

    save_network / load_network      model.safetensors, config.json                   a teacher, as it was trained
    export_student / load_student    student.safetensors, config.json, README.md      a few-step sampler, folded to dense tensors

A student folder is all that is needed to sample: weights, rungs, sampler, normalizers. Reading one needs torch and safetensors alone,
imports nothing by name and unpickles nothing. `config.json` records the size and sha256 of the tensor file and a checksum of itself,
against damage and slips of the hand; against a hostile folder, whose checksums agree, stand the limits on every number in it and the
comparison of the network it describes with the header of the tensor file, both before anything is allocated.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ._files import (
    TensorFile,
    brief,
    check_names,
    check_tensor_entry,
    new_folder,
    plain_json,
    read_json,
    write_file,
    write_json,
    write_tensors,
)
from .models import build_model
from .normalizer import Normalizer
from .student import Student, student_card

__all__ = ["Student", "export_student", "load_network", "load_student", "save_network"]

_CONFIG, _CARD, _MODEL, _STUDENT = "config.json", "README.md", "model.safetensors", "student.safetensors"
# Scores that a recipe lays beside a network describe the weights they were measured on, and go with them when those are replaced.
_SCORES = "scores.json"
_VERSION = 1
_NETWORK_KEYS = ("format", "format_version", "package_version", "network", "description", "tensors", "checksum")
_STUDENT_KEYS = (
    "format", "format_version", "package_version", "network", "t_list", "steps", "sample_type", "pred_type", "horizon", "cond_horizon",
    "pack", "x_normalizer", "z_normalizer", "group", "description", "tensors", "checksum",
)  # fmt: skip
# What config.json may say of a network: argument -> int (a width or horizon, bounded by the axes of the tensors), "layers" (bounded by
# their number), "rep" (a representation), "group", or a type. A config needs all of them and nothing else.
_COMMON: dict[str, Any] = {
    "in_horizon": int, "cond_horizon": int, "num_layers": "layers", "num_attention_heads": int, "embedding_dim": int, "p_drop_emb": float,
    "p_drop_attn": float, "causal_attn": bool, "num_cond_layers": "layers", "time_scale": float, "norm_module": str, "init_scheme": str,
}  # fmt: skip
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "CondTransformerRegressor": {"in_dim": int, "out_dim": int, "cond_dim": int, **_COMMON},
    "eCondTransformerRegressor": {
        "group": "group",
        "in_rep": "rep",
        "cond_rep": "rep",
        "out_rep": "rep",
        "basis": str,
        **_COMMON,
    },
}
_DENSE, _EQUIVARIANT, _CUSTOM = "CondTransformerRegressor", "eCondTransformerRegressor", "custom"


# ---------------------------------------------------------------- networks
def save_network(folder: str | Path, network: nn.Module, *, description: Mapping[str, Any] | None = None) -> None:
    """Write a network, as it is and in its own dtype, to `model.safetensors` and `config.json` in `folder`.

    Args:
        folder: new, empty, or an earlier export, which is replaced whole, with the `README.md` and `scores.json` that describe it.
        network: one of `fastgen.models` (its `.config` says how to build it again), or any module; to load the latter it must be built
            by its user and given to `load_network(network=)`.
        description: anything JSON can hold: command, seed, scores, normalizers. NaN and infinity become null.

    Raises:
        TypeError: a description that JSON can't hold.
        ValueError: weights that aren't finite, a folder that holds other files.
        OSError: the folder can't be written.
    """
    config = {
        **_head("fastgen-network", network),
        "description": plain_json(dict(description or {}), "description"),
    }
    with new_folder(folder, (_CONFIG, _CARD, _MODEL, _SCORES)) as partial:
        config["tensors"] = write_tensors(partial / _MODEL, network.state_dict(), _dtype_of(network))
        _write_config(partial / _CONFIG, config)


def load_network(folder: str | Path, *, network: nn.Module | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """(network, description) from a folder written by `save_network`; the network is on the CPU, in eval mode.

    Args:
        folder: with `model.safetensors` and `config.json`.
        network: the module to load into, for a class that isn't of `fastgen.models`; None builds what config.json describes.

    Raises:
        ValueError: a missing, truncated, edited or foreign file; a network the tensors don't fit (the first ten names are said).
    """
    file, config = _read_config(Path(folder), "fastgen-network", _NETWORK_KEYS, _MODEL)
    tensors = TensorFile(Path(folder), config["tensors"])
    return _load_network(file, config["network"], tensors, network, _ARGUMENTS), config["description"]


# ---------------------------------------------------------------- students
def export_student(
    path: str | Path,
    network: nn.Module,
    *,
    t_list: Sequence[float],
    steps: Sequence[int] | None = None,
    sample_type: str = "sde",
    pred_type: str = "flow",
    x_normalizer: Normalizer | None = None,
    z_normalizer: Normalizer | None = None,
    pack: int = 1,
    horizon: tuple[int, int] | None = None,
    cond_horizon: tuple[int, int] | None = None,
    description: Mapping[str, Any] | None = None,
) -> None:
    """Write a student folder: `student.safetensors` (plain dense tensors), `config.json`, `README.md`.

    Args:
        path: new, empty, or an earlier export, which is replaced whole once the new one is complete.
        network: with the weights to ship (the EMA's). An equivariant one is folded to its dense twin, with the same outputs.
        t_list: [t_1 > ... > t_K > 0.0], t_1 <= 1 (< 1 for "eps"): the very floats the student was trained with.
        steps: numbers of calls to offer; None: every divisor k of K, over every (K / k)-th rung.
        sample_type: "ode" (a rung reuses the implied noise) or "sde" (fresh noise).      pred_type: "flow", "x0" or "eps".
        x_normalizer, z_normalizer: of unpacked channels; None: the network speaks original units.
        pack: waypoints per token.
        horizon: (T_x, d_x) of a sample; None: the network's `in_horizon * pack`, `in_dim / pack`.
        cond_horizon: (most T_z, d_z) of a condition; None: the network's `cond_horizon`, `cond_dim`, unchecked where it has none.
        description: anything JSON can hold. `scores` ({name: value} or {row: {name: value}}) and `summary` (text) go to the card.

    Raises:
        TypeError: a description that JSON can't hold.
        ValueError: options that contradict each other or the network, weights that aren't finite, a folder that holds other files.
        OSError: the folder can't be written; what stood there is untouched.
    """
    group = getattr(network, "config", {}).get("group")
    if hasattr(network, "in_rep"):
        # Only here: the equivariant files bring escnn along.
        from .models import fold

        # fold initialises the twin before it fills it; the user's random numbers are none of its business.
        with torch.random.fork_rng(devices=[]):
            network = fold(network)
    config = {
        **_head("fastgen-student", network),
        "t_list": [float(t) for t in t_list],
        "steps": _divisors(len(t_list) - 1) if steps is None else sorted(steps),
        "sample_type": sample_type,
        "pred_type": pred_type,
        "horizon": _horizon(network, "in_horizon", "in_dim", pack) if horizon is None else list(horizon),
        "cond_horizon": _horizon(network, "cond_horizon", "cond_dim", 1)
        if cond_horizon is None
        else list(cond_horizon),
        "pack": pack,
        "x_normalizer": None if x_normalizer is None else x_normalizer.state(),
        "z_normalizer": None if z_normalizer is None else z_normalizer.state(),
        "group": group,
        "description": plain_json(dict(description or {}), "description"),
    }
    _check_student(config, "export_student")
    card = student_card(config, sum(p.numel() for p in network.parameters()))
    with new_folder(path, (_CONFIG, _CARD, _STUDENT)) as partial:
        config["tensors"] = write_tensors(partial / _STUDENT, network.state_dict(), _dtype_of(network))
        write_file(partial / _CARD, card.encode())
        _write_config(partial / _CONFIG, config)


def load_student(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    network: nn.Module | None = None,
) -> Student:
    """The sampler in a folder written by `export_student`, ready to call; needs torch and safetensors only.

    Args:
        path: the folder.      device: where to sample.      dtype: of network and samples; None: the one it was exported in.
        network: the module to load into, for a student whose class isn't of `fastgen.models`; it becomes the student's own.

    Returns: a :class:`Student`.

    Raises:
        ValueError: a missing, truncated, edited or foreign file, each in one line that says which one and what to do.
    """
    file, config = _read_config(Path(path), "fastgen-student", _STUDENT_KEYS, _STUDENT)
    normalizers = _check_student(config, str(file))
    tensors = TensorFile(Path(path), config["tensors"])
    # A folder from elsewhere names built-in dense classes or none: nothing is imported, and no group is constructed.
    network = _load_network(file, config["network"], tensors, network, (_DENSE,))
    return Student(
        network.to(device=device, dtype=dtype),
        t_list=config["t_list"],
        steps=config["steps"],
        sample_type=config["sample_type"],
        pred_type=config["pred_type"],
        horizon=config["horizon"],
        cond_horizon=config["cond_horizon"],
        pack=config["pack"],
        x_normalizer=normalizers[0],
        z_normalizer=normalizers[1],
        config=config,
    )


# ---------------------------------------------------------------- config.json
def _head(format_name: str, network: nn.Module) -> dict[str, Any]:
    config = getattr(network, "config", None)
    if not isinstance(config, Mapping) or config.get("class") not in _ARGUMENTS:
        config = {"class": _CUSTOM, "name": type(network).__name__}
    return {
        "format": format_name,
        "format_version": _VERSION,
        "package_version": _package_version(),
        "network": plain_json(config, "network.config"),
    }


def _package_version() -> str:
    try:
        return metadata.version("fastgen-distill")
    except metadata.PackageNotFoundError:
        return "source tree"


def _write_config(path: Path, config: dict[str, Any]) -> None:
    write_json(path, {**config, "checksum": _checksum(config)})


def _checksum(config: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of everything else in the config; spaces and the order of keys don't matter."""
    rest = {key: value for key, value in config.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def _read_config(folder: Path, format_name: str, keys: Sequence[str], tensor_file: str) -> tuple[Path, dict[str, Any]]:
    """(path of config.json, its content) with known keys, format, version and checksum."""
    file = folder / _CONFIG
    config = read_json(file)
    if config.get("format") != format_name:
        raise ValueError(
            f"{file}: expected format {format_name!r}, got {brief(config.get('format'))}; this folder holds something else"
        )
    version = config.get("format_version")
    if version != _VERSION:
        raise ValueError(
            f"{file}: expected format_version {_VERSION}, got {brief(version)}; use the fastgen that wrote it, or a newer one"
        )
    check_names(config, keys, str(file))
    if config["checksum"] != _checksum(config):
        raise ValueError(
            f"{file}: its checksum does not match its content: the file was edited; export it again or copy it anew"
        )
    if not isinstance(config["description"], dict):
        raise ValueError(f"{file}: expected description as an object, got {brief(config['description'])}")
    check_tensor_entry(config["tensors"], tensor_file, str(file))
    return file, config


def _check_student(config: Mapping[str, Any], where: str) -> tuple[Normalizer | None, Normalizer | None]:
    """The two normalizers, after every value of a student's config was found to be possible; `where` begins the messages."""

    def expect(met: bool, what: str, key: str) -> None:
        if not met:
            raise ValueError(f"{where}: expected {what}, got {key}={brief(config[key])}")

    t_list, steps, pred_type = config["t_list"], config["steps"], config["pred_type"]
    expect(pred_type in ("flow", "x0", "eps"), "pred_type flow, x0 or eps", "pred_type")
    expect(config["sample_type"] in ("ode", "sde"), "sample_type ode or sde", "sample_type")
    rungs = isinstance(t_list, list) and len(t_list) >= 2 and all(type(t) is float and math.isfinite(t) for t in t_list)
    expect(
        rungs and t_list[0] <= 1.0 and t_list[-1] == 0.0 and all(s > t for s, t in pairwise(t_list)),
        "t_list strictly decreasing from at most 1.0 to 0.0",
        "t_list",
    )
    expect(pred_type != "eps" or t_list[0] < 1.0, "t_list[0] < 1 for pred_type eps (x0 needs 1 / (1 - t))", "t_list")
    divisors = _divisors(len(t_list) - 1)
    known = isinstance(steps, list) and len(steps) > 0 and all(type(k) is int and k in divisors for k in steps)
    expect(known and len(set(steps)) == len(steps), f"steps among {divisors}, the divisors of len(t_list) - 1", "steps")
    expect(config["group"] is None or isinstance(config["group"], str), "group as text or null", "group")
    expect(_is_size(config["pack"]), "pack as a whole number >= 1", "pack")
    horizon, cond_horizon, pack = config["horizon"], config["cond_horizon"], config["pack"]
    pairs = [
        value is None or (isinstance(value, list) and len(value) == 2 and all(map(_is_size, value)))
        for value in (horizon, cond_horizon)
    ]
    expect(pairs[0] and horizon is not None, "horizon [T_x, d_x], which this network doesn't say itself", "horizon")
    expect(pairs[1], "cond_horizon [T_z, d_z] or null", "cond_horizon")
    expect(horizon[0] % pack == 0, f"T_x a multiple of pack = {pack}", "horizon")
    network = config["network"]
    if isinstance(network, dict) and network.get("class") == _DENSE:
        sizes = [network.get(key) for key in ("in_horizon", "in_dim", "out_dim")]
        packed = [horizon[0] // pack, horizon[1] * pack, horizon[1] * pack]
        expect(
            sizes == packed, f"horizon and pack that fit the network's in_horizon, in_dim, out_dim = {sizes}", "horizon"
        )
        cond_sizes = [network.get("cond_horizon"), network.get("cond_dim")]
        expect(cond_horizon == cond_sizes, f"cond_horizon {cond_sizes}, the network's", "cond_horizon")
    expect(
        config["z_normalizer"] is None or cond_horizon is not None,
        "cond_horizon [T_z, d_z] along with z_normalizer",
        "cond_horizon",
    )
    x_normalizer = _read_normalizer(config, "x_normalizer", horizon[1], where)
    return x_normalizer, _read_normalizer(config, "z_normalizer", cond_horizon[1] if cond_horizon else 0, where)


def _read_normalizer(config: Mapping[str, Any], key: str, dim: int, where: str) -> Normalizer | None:
    if (state := config[key]) is None:
        return None
    try:
        normalizer = Normalizer.from_state(state)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{where}: {key}: {brief(error)}") from error
    if normalizer.dim != dim:
        raise ValueError(f"{where}: expected {key} of {dim} channels, got {normalizer.dim}")
    return normalizer


def _load_network(
    file: Path, config: Any, tensors: TensorFile, network: nn.Module | None, classes: Iterable[str]
) -> nn.Module:
    """The network that `config` describes, or the one given, with its tensors and in eval mode; `classes` are those that may be built."""
    if network is not None:
        network = network.to(tensors.dtype)
        network.load_state_dict(tensors.read(network.state_dict()))
        return network.eval()
    _check_network(config, str(file), tensors.shapes, classes)
    try:
        if config["class"] == _DENSE:
            # On the meta device a network of any size costs nothing: shapes are compared before the first number is allocated.
            with torch.device("meta"):
                network = build_model(config).to(tensors.dtype)
        else:
            # Tables of the group must be real. They are bounded by _check_network; initialising must not touch the user's generator.
            with torch.random.fork_rng(devices=[]):
                network = build_model(config).to(tensors.dtype)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{file}: network: {brief(error)}") from error
    network.load_state_dict(tensors.read(network.state_dict()), assign=True)
    return network.eval()


def _check_network(config: Any, where: str, shapes: Mapping[str, tuple[int, ...]], classes: Iterable[str]) -> None:
    """Refuse a network whose class isn't among `classes`, with unknown arguments, or larger than the tensors that lie beside it."""
    name = config.get("class") if isinstance(config, dict) else None
    if name == _CUSTOM:
        raise ValueError(
            f"{where}: this is a network of the class {brief(config.get('name'))}: build it and pass it as network="
        )
    if name not in tuple(classes):
        raise ValueError(f"{where}: expected network.class among {', '.join(classes)}, got {brief(name)}")
    check_names(config, ("class", *_ARGUMENTS[name]), f"{where}: network")
    # Every width and horizon is an axis of some tensor, and every layer has tensors of its own.
    axis = max((size for shape in shapes.values() for size in shape), default=0)
    for key, kind in _ARGUMENTS[name].items():
        value = config[key]
        most = len(shapes) if kind == "layers" else axis
        if kind in (int, "layers"):
            good, what = type(value) is int and 0 <= value <= most, f"within 0..{most}, which the tensors allow"
        elif kind == "group":
            # The order of C<n> and D<n> is a multiple of n, and embedding_dim is a multiple of the order.
            good = (
                isinstance(value, str)
                and len(value) <= 64
                and math.prod(map(int, re.findall(r"[0-9]+", value))) <= most
            )
            what = f"as a group of an order within 1..{most}, which the tensors allow"
        elif kind == "rep":
            good = (
                isinstance(value, list)
                and len(value) <= most
                and all(isinstance(v, dict) or len(str(v)) <= 64 for v in value)
            )
            what = f"as a list of at most {most} representations"
        else:
            good, what = type(value) is kind or (kind is float and type(value) is int), f"of type {kind.__name__}"
        if not good:
            raise ValueError(f"{where}: expected network.{key} {what}, got {brief(value)}")
    # The time embedding holds a square of this width, so the tensors must, too; layers of a group are smaller.
    if config["embedding_dim"] ** 2 > sum(map(math.prod, shapes.values())):
        raise ValueError(
            f"{where}: expected network.embedding_dim that the tensors allow, got {config['embedding_dim']}"
        )


def _dtype_of(network: nn.Module) -> torch.dtype:
    return next((value.dtype for value in network.state_dict().values() if value.is_floating_point()), torch.float32)


def _horizon(network: nn.Module, length: str, dim: str, pack: Any) -> list[int] | None:
    """[length, channels] as the network's attributes say, undoing `pack`; None if it has no such attributes."""
    if not _is_size(pack):
        raise ValueError(f"expected pack as a whole number >= 1, got {pack!r}")
    sizes = getattr(network, length, None), getattr(network, dim, None)
    if sizes[0] is None or sizes[1] is None:
        return None
    return [sizes[0] * pack, sizes[1] // pack]


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 1


def _divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]
