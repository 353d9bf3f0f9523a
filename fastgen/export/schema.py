"""What a config.json of this package may say: keys, types, limits, checksum.

The checksum is against damage and slips of the hand. Against a hostile folder, whose checksums
agree, stand the list of built-in classes and the limits on every number: a size is believed only as
far as the tensors beside it allow.
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

from torch import nn

from .._core.checks import is_count
from .._core.json_files import check_names, plain_json, read_json, write_json
from .._core.messages import brief
from .._core.tensor_files import check_tensor_entry
from ..normalizer import Normalizer

__all__ = [
    "CUSTOM",
    "DENSE",
    "EQUIVARIANT",
    "EXPORT_CONFIG",
    "NETWORKS",
    "NETWORK_FORMAT",
    "STUDENT_FORMAT",
    "built_in_config",
    "config_checksum",
    "check_network_config",
    "check_student_config",
    "config_head",
    "read_config",
    "write_config",
]

EXPORT_CONFIG = "config.json"
NETWORK_FORMAT = "fastgen-network"
STUDENT_FORMAT = "fastgen-student"
_VERSION = 1
_COMMON_KEYS = (
    "format",
    "format_version",
    "package_version",
    "network",
    "description",
    "tensors",
    "checksum",
)
_STUDENT_KEYS = (
    *(
        "parameterization",
        "t_list",
        "steps",
        "sample_type",
        "pred_type",
        "horizon",
        "cond_horizon",
        "pack",
    ),
    *("x_normalizer", "z_normalizer", "group"),
)
_KEYS = {NETWORK_FORMAT: _COMMON_KEYS, STUDENT_FORMAT: (*_COMMON_KEYS, *_STUDENT_KEYS)}

# Arguments of the built-in networks: int (a dimension or horizon, which is an axis of some tensor),
# "width", "layers" (each has tensors of its own), "rep" (a representation), "group", or another
# type. A config has all of them and nothing else.
_ARGUMENTS: dict[str, Any] = {
    "in_horizon": int,
    "cond_horizon": int,
    "num_layers": "layers",
    "num_attention_heads": int,
    "embedding_dim": "width",
    "p_drop_emb": float,
    "p_drop_attn": float,
    "causal_attn": bool,
    "num_cond_layers": "layers",
    "time_scale": float,
    "norm_module": str,
    "init_scheme": str,
}
DENSE = "CondTransformerRegressor"
EQUIVARIANT = "eCondTransformerRegressor"
CUSTOM = "custom"
NETWORKS: dict[str, dict[str, Any]] = {
    DENSE: {"in_dim": int, "out_dim": int, "cond_dim": int, **_ARGUMENTS},
    EQUIVARIANT: {
        **{"group": "group", "in_rep": "rep", "cond_rep": "rep", "out_rep": "rep", "basis": str},
        **_ARGUMENTS,
    },
}


# ---- The file ------------------------------------------------------------------------------------


def config_head(format_name: str, network: nn.Module) -> dict[str, Any]:
    """The first entries of a config: format, version, and how to build the network again."""
    config = built_in_config(network) or {"class": CUSTOM, "name": type(network).__name__}
    return {
        "format": format_name,
        "format_version": _VERSION,
        "package_version": _package_version(),
        "network": plain_json(config, "network.config"),
    }


def built_in_config(network: nn.Module) -> Mapping[str, Any]:
    """The config of a network of `fastgen.models`; {} for a module from elsewhere, whatever its
    `config` may be."""
    config = getattr(network, "config", None)
    return config if isinstance(config, Mapping) and config.get("class") in NETWORKS else {}


def _package_version() -> str:
    try:
        return metadata.version("fastgen-distill")
    except metadata.PackageNotFoundError:
        return "source tree"


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json with its checksum."""
    write_json(folder / EXPORT_CONFIG, {**config, "checksum": config_checksum(config)})


def config_checksum(config: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of all other entries; spaces and the order of keys don't
    matter."""
    rest = {key: value for key, value in config.items() if key != "checksum"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_config(folder: Path, format_name: str, tensor_file: str) -> tuple[Path, dict[str, Any]]:
    """(path of config.json, its content), with known format, version, keys and checksum.

    Raises:
        ValueError: a missing, damaged or edited file, or one of another kind.
    """
    file = folder / EXPORT_CONFIG
    config = read_json(file)
    if config.get("format") != format_name:
        raise ValueError(
            f"{file}: expected format {format_name!r}, got {brief(config.get('format'))}; look "
            "for another folder"
        )
    if config.get("format_version") != _VERSION:
        got = brief(config.get("format_version"))
        raise ValueError(
            f"{file}: expected format_version {_VERSION}, got {got}; use the fastgen-distill that "
            "wrote it"
        )
    check_names(config, _KEYS[format_name], str(file))
    if config["checksum"] != config_checksum(config):
        what = f"expected a content with the checksum {brief(config['checksum'])}, got another one"
        raise ValueError(f"{file}: {what}; the file was edited, export it again or copy it anew")
    if not isinstance(config["description"], dict):
        raise ValueError(
            f"{file}: expected description as an object, got {brief(config['description'])}"
        )
    check_tensor_entry(config["tensors"], tensor_file, str(file))
    return file, config


# ---- Students ------------------------------------------------------------------------------------


def check_student_config(
    config: Mapping[str, Any], where: str
) -> tuple[Normalizer | None, Normalizer | None]:
    """Check every value that only students have.

    Args:
        config: with all keys of a student but `tensors` and `checksum`.      where: begins the messages.

    Returns: the normalizers of X and Z.

    Raises:
        ValueError: an impossible value, or two that contradict each other.
    """

    def expect(met: bool, what: str, key: str) -> None:
        if not met:
            raise ValueError(f"{where}: expected {what}, got {key}={brief(config[key])}")

    kind = config["parameterization"]
    expect(
        kind is None or isinstance(kind, dict),
        "parameterization as an object or null",
        "parameterization",
    )
    t_list = config["t_list"]
    steps = config["steps"]
    pred_type = config["pred_type"]
    expect(pred_type in ("flow", "x0", "eps"), "pred_type flow, x0 or eps", "pred_type")
    expect(config["sample_type"] in ("ode", "sde"), "sample_type ode or sde", "sample_type")
    numbers = (
        isinstance(t_list, list) and len(t_list) >= 2 and all(type(t) is float for t in t_list)
    )
    ordered = (
        numbers
        and t_list[0] <= 1.0
        and t_list[-1] == 0.0
        and all(t > s for t, s in pairwise(t_list))
    )
    expect(ordered, "t_list strictly decreasing from at most 1.0 to 0.0", "t_list")
    expect(
        pred_type != "eps" or t_list[0] < 1.0,
        "t_list[0] < 1 for pred_type eps (x0 needs 1 / (1 - t))",
        "t_list",
    )
    known = isinstance(steps, list) and len(steps) > 0 and all(map(is_count, steps))
    known = (
        known and len(set(steps)) == len(steps) and all((len(t_list) - 1) % k == 0 for k in steps)
    )
    expect(known, f"steps that divide len(t_list) - 1 = {len(t_list) - 1}, each once", "steps")
    expect(
        config["group"] is None or isinstance(config["group"], str),
        "group as text or null",
        "group",
    )
    expect(is_count(config["pack"]), "pack as a whole number >= 1", "pack")
    horizon = config["horizon"]
    cond_horizon = config["cond_horizon"]
    pack = config["pack"]
    network = config["network"]
    dense = isinstance(network, dict) and network.get("class") == DENSE
    # Tokens, channels and a normaliser of channels are words about trajectories.
    if dense or pack > 1 or config["x_normalizer"] is not None:
        expect(_is_pair(horizon), "horizon [T_x, d_x]", "horizon")
        expect(horizon[0] % pack == 0, f"T_x a multiple of pack = {pack}", "horizon")
    expect(_is_shape(horizon), "horizon, the shape of a sample, as whole numbers >= 1", "horizon")
    expect(
        cond_horizon is None or _is_pair(cond_horizon),
        "cond_horizon [T_z, d_z] or null",
        "cond_horizon",
    )
    if dense:
        sizes = [network.get(key) for key in ("in_horizon", "in_dim", "out_dim")]
        # A network may be made for longer samples than these.
        fits = (
            is_count(sizes[0])
            and horizon[0] // pack <= sizes[0]
            and sizes[1:] == [horizon[1] * pack] * 2
        )
        expect(
            fits,
            f"horizon and pack = {pack} that fit the network's in_horizon, in_dim, out_dim = "
            f"{brief(sizes)}",
            "horizon",
        )
        sizes = [network.get(key) for key in ("cond_horizon", "cond_dim")]
        expect(cond_horizon == sizes, f"cond_horizon {brief(sizes)}, the network's", "cond_horizon")
    x_normalizer = _read_normalizer(config, "x_normalizer", horizon[-1], where)
    z_dim = None if cond_horizon is None else cond_horizon[1]
    return x_normalizer, _read_normalizer(config, "z_normalizer", z_dim, where)


def _read_normalizer(
    config: Mapping[str, Any], key: str, dim: int | None, where: str
) -> Normalizer | None:
    if (state := config[key]) is None:
        return None
    try:
        normalizer = Normalizer.from_state(state)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{where}: {key}: {brief(error)}") from error
    if dim is not None and normalizer.dim != dim:
        raise ValueError(f"{where}: expected {key} of {dim} channels, got {normalizer.dim}")
    return normalizer


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 1 and all(map(is_count, value))


def _is_pair(value: Any) -> bool:
    return _is_shape(value) and len(value) == 2


# ---- Networks ------------------------------------------------------------------------------------


def check_network_config(
    config: Any, where: str, shapes: Mapping[str, Sequence[int]], classes: Iterable[str]
) -> dict[str, Any]:
    """The config of a network that may be built: of one of `classes`, no larger than the tensors
    that lie beside it.

    Args:
        config: {"class": ..., constructor arguments}.      where: begins the messages.
        shapes: {name: shape} of the tensors.      classes: names among `NETWORKS`.

    Raises:
        ValueError: another class, arguments that are missing, unknown, of a wrong type or beyond
            their limit.
    """
    name = config.get("class") if isinstance(config, dict) else None
    if name == CUSTOM:
        got = brief(config.get("name"))
        raise ValueError(
            f"{where}: expected a built-in network, got the class {got}; build one and pass "
            "network="
        )
    if name not in (classes := tuple(classes)):
        raise ValueError(
            f"{where}: expected network.class among {', '.join(classes)}, got {brief(name)}"
        )
    arguments = NETWORKS[name]
    check_names(config, ("class", *arguments), f"{where}: network")
    axis = max((size for shape in shapes.values() for size in shape), default=0)
    # Of an equivariant network the tensors are kernels: a width is copies times group order, both
    # of which are axes.
    width = axis if name == DENSE else axis**2
    for key, kind in arguments.items():
        value = config[key]
        most = {"layers": len(shapes), "width": width}.get(kind, axis)
        if kind in (int, "layers", "width"):
            good = is_count(value, 0) and value <= most
            what = f"within 0..{most}, which the tensors allow"
        elif kind == "group":
            # The order of C<n> and D<n> is a multiple of n, and embedding_dim is a multiple of the
            # order.
            good = isinstance(value, str) and len(value) <= 64 and _order(value) <= most
            what = f"as a group of an order within 1..{most}, which the tensors allow"
        elif kind == "rep":
            good = isinstance(value, list) and 1 <= len(value) <= most
            good = good and all(_is_representation(part, most) for part in value)
            what = f"as a list of at most {most} representations, none of them from a file"
        else:
            good = type(value) is kind or (kind is float and type(value) is int)
            what = f"of type {kind.__name__}"
        if not good:
            raise ValueError(f"{where}: expected network.{key} {what}, got {brief(value)}")
    # Some map is as wide on both sides; its kernel has a number for each |G| entries of the matrix.
    numbers = sum(map(math.prod, shapes.values()))
    if config["embedding_dim"] ** 2 > (numbers if name == DENSE else numbers * axis):
        raise ValueError(
            f"{where}: expected network.embedding_dim that the tensors allow, got "
            f"{config['embedding_dim']}"
        )
    return config


def _order(group: str) -> int:
    """A number that the order of the group so named doesn't exceed."""
    named = 60 ** len(re.findall("(?i)icosahedral|octahedral", group))
    numbered = re.findall("([A-Za-z]?)([0-9]+)", group)
    return named * math.prod(2 * int(n) if kind == "D" else int(n) for kind, n in numbered)


def _is_representation(part: Any, most: int) -> bool:
    """Whether a representation is spelt out here: a name, or numbers no more than the tensors
    allow. A file that it names would be any file of the machine."""
    if not isinstance(part, dict):
        return isinstance(part, str) and len(part) <= 64
    copies = part.get("regular_by_irreps", 1)
    return "matrices" not in part and is_count(copies) and copies <= most
