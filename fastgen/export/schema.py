"""The config.json of an exported folder: its keys, the values that a student has, its checksum.

The checksum is against damage and slips of the hand. A hostile folder has checksums that agree;
against it stand the limits of `built_in`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import nn

from .._core.checks import PRED_TYPES, is_count
from .._core.files import read_steadily
from .._core.json_files import check_names, plain_json, read_json, write_json
from .._core.masks import MASKS
from .._core.messages import EXPORT_AGAIN, brief
from .._core.sizes import parse_sizes
from .._core.tensor_files import TensorFile, check_tensor_entry
from .._core.versions import package_version
from ..box import Box
from ..samplers.student import SAMPLE_TYPES
from .built_in import CUSTOM, DENSE, PATCHES, TRAJECTORIES, UNET, built_in_config
from .extra_state import extra_state_of
from .normalizers import Normalizers, more_channels, read_normalizers

__all__ = [
    "EXPORT_CONFIG",
    "NETWORK_FORMAT",
    "STUDENT_FORMAT",
    "check_student_config",
    "config_checksum",
    "config_head",
    "is_export",
    "read_config",
    "read_export",
    "read_t_lists",
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
    "parameterization",
    "t_list",
    "steps",
    "sample_type",
    "pred_type",
    "horizon",
    "cond_horizon",
    "pack",
    "x_normalizer",
    "z_normalizer",
    "group",
)
# An entry near its beginning says what a config is of.
_HEAD_BYTES = 1 << 16
_KEYS = {NETWORK_FORMAT: _COMMON_KEYS, STUDENT_FORMAT: (*_COMMON_KEYS, *_STUDENT_KEYS)}
# What earlier versions did not write.
_LATER_KEYS = {
    NETWORK_FORMAT: ("trained_sizes", "extra_state", "prefix_tokens"),
    STUDENT_FORMAT: (
        *("cond_sizes", "encoder", "extra_state", "masks", "prefix_max", "range", "t_lists"),
    ),
}


# ---- The file ------------------------------------------------------------------------------------


def config_head(format_name: str, network: nn.Module) -> dict[str, Any]:
    """The first entries of a config: format, version, how to build the network again, and what it
    keeps beside its tensors, if anything.

    Raises:
        ValueError: extra state that JSON can't hold.
    """
    config = built_in_config(network) or {"class": CUSTOM, "name": type(network).__name__}
    head = {
        "format": format_name,
        "format_version": _VERSION,
        "package_version": package_version(),
        "network": plain_json(config, "network.config"),
    }
    extra = extra_state_of(network)
    return {**head, "extra_state": extra} if extra else head


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json with its checksum."""
    write_json(folder / EXPORT_CONFIG, {**config, "checksum": config_checksum(config)})


def is_export(folder: Path) -> bool:
    """Whether an export stands in `folder`, be it damaged: its config.json says so."""
    try:
        with open(folder / EXPORT_CONFIG, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    return any(f'"{name}"'.encode() in head for name in _KEYS)


def config_checksum(config: Mapping[str, Any]) -> str:
    """The checksum of a config: sha256 of the canonical JSON of all its entries but `checksum`, so
    that spaces and the order of keys don't matter."""
    rest = {key: value for key, value in config.items() if key != "checksum"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_config(folder: Path, format_name: str, tensor_file: str) -> tuple[Path, dict[str, Any]]:
    """(path of config.json, its content), with known format, version, keys and checksum.

    Args:
        folder: where it lies.
        format_name: `NETWORK_FORMAT` or `STUDENT_FORMAT`.
        tensor_file: the name of the tensor file that it has to speak of.

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
    later = [key for key in _LATER_KEYS[format_name] if key in config]
    check_names(config, [*_KEYS[format_name], *later], str(file))
    if config["checksum"] != config_checksum(config):
        what = f"expected a content with the checksum {brief(config['checksum'])}, got another one"
        raise ValueError(f"{file}: {what}; the file was edited, {EXPORT_AGAIN}")
    if not isinstance(config["description"], dict):
        raise ValueError(
            f"{file}: expected description as an object, got {brief(config['description'])}"
        )
    check_tensor_entry(config["tensors"], tensor_file, str(file))
    return file, config


def read_export(
    folder: Path, format_name: str, tensor_file: str
) -> tuple[Path, dict[str, Any], TensorFile]:
    """(path of config.json, its content, the tensors) of one export, also while another one takes
    its place; arguments and errors as `read_config`, and those of a `TensorFile`."""

    def read() -> tuple[Path, dict[str, Any], TensorFile]:
        file, config = read_config(folder, format_name, tensor_file)
        return file, config, TensorFile(folder, config["tensors"])

    return read_steadily(folder, read)


# ---- Students ------------------------------------------------------------------------------------


# Whether something is met, what was expected, and the key of which it was expected.
_Expect = Callable[[bool, str, str], None]


def check_student_config(config: Mapping[str, Any], where: str) -> Normalizers:
    """Check every value that only students have.

    Args:
        config: with all keys of a student but `tensors` and `checksum`.
        where: begins the messages.

    Returns:
        The normalizers of X and Z.

    Raises:
        ValueError: an impossible value, or two that contradict each other.
    """

    def expect(met: bool, what: str, key: str) -> None:
        if not met:
            raise ValueError(f"{where}: expected {what}, got {key}={brief(config[key])}")

    conversion = config["parameterization"]
    is_conversion = conversion is None or isinstance(conversion, dict)
    expect(is_conversion, "parameterization as an object or null", "parameterization")
    _check_rungs(config, expect)
    is_group = config["group"] is None or isinstance(config["group"], str)
    expect(is_group, "group as text or null", "group")
    expect(is_count(config["pack"]), "pack as a whole number >= 1", "pack")
    normalizers = read_normalizers(config, where)
    _check_shapes(config, normalizers, expect)
    _check_cond_sizes(config, expect)
    if "prefix_max" in config:
        most = config["prefix_max"]
        pack = config["pack"]
        fits = is_count(most) and len(config["horizon"]) == 2 and most % pack == 0
        fits = fits and most < config["horizon"][0]
        expect(fits, f"prefix_max below T_x, a multiple of pack = {pack}", "prefix_max")
    _check_range(config, expect)
    _check_masks(config, expect)
    normalizers.check(config["horizon"], config["cond_horizon"], where)
    return normalizers


def _check_rungs(config: Mapping[str, Any], expect: _Expect) -> None:
    """What is predicted, at which times, and in how many calls."""
    t_list = config["t_list"]
    steps = config["steps"]
    pred_type = config["pred_type"]
    expect(pred_type in PRED_TYPES, "pred_type flow, x0 or eps", "pred_type")
    expect(config["sample_type"] in SAMPLE_TYPES, "sample_type ode or sde", "sample_type")
    what = "t_list strictly decreasing from at most 1.0 to 0.0"
    expect(_is_decreasing(t_list), what, "t_list")
    has_x0 = pred_type != "eps" or t_list[0] < 1.0
    expect(has_x0, "t_list[0] < 1 for pred_type eps (x0 needs 1 / (1 - t))", "t_list")
    rungs = len(t_list) - 1
    counts = isinstance(steps, list) and len(steps) >= 1 and all(map(is_count, steps))
    distinct = counts and len(set(steps)) == len(steps)
    if config.get("t_lists") is None:
        dividing = distinct and all(rungs % k == 0 for k in steps)
        expect(dividing, f"steps that divide len(t_list) - 1 = {rungs}, each once", "steps")
        return
    expect(distinct, "steps as whole numbers >= 1, each once", "steps")
    own = config["t_lists"]
    keyed = isinstance(own, dict) and {str(k) for k in steps} <= own.keys()
    expect(keyed, f"t_lists with an entry for each of steps = {brief(steps)}", "t_lists")
    for k in steps:
        within = _is_decreasing(own[str(k)]) and set(own[str(k)]) <= set(t_list)
        fits = within and len(own[str(k)]) == k + 1 and own[str(k)][0] == t_list[0]
        expect(fits, f"t_lists[{k}] of {k} times of t_list, its first among them, and 0", "t_lists")


def _is_decreasing(t_list: Any) -> bool:
    """Whether times fall strictly from at most 1.0 to 0.0, and are floats in a list."""
    return (
        isinstance(t_list, list)
        and len(t_list) >= 2
        and all(type(t) is float for t in t_list)
        and t_list[0] <= 1.0
        and t_list[-1] == 0.0
        and all(t > s for t, s in pairwise(t_list))
    )


def read_t_lists(config: Mapping[str, Any]) -> dict[int, list[float]] | None:
    """{calls: rungs} of a student of several numbers of calls, by its checked config; None for any
    other."""
    own = config.get("t_lists")
    return None if own is None else {k: own[str(k)] for k in config["steps"]}


def _check_shapes(config: Mapping[str, Any], normalizers: Normalizers, expect: _Expect) -> None:
    """The shapes of a sample and of a condition, and that the network has them."""
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
    is_cond_horizon = cond_horizon is None or _is_pair(cond_horizon)
    expect(is_cond_horizon, "cond_horizon [T_z, d_z] or null", "cond_horizon")
    if isinstance(network, dict) and network.get("class") == PATCHES:
        size = network.get("image_size")
        own = [network.get("channels"), size, size]
        expect(horizon == own, f"horizon {brief(own)}, the network's", "horizon")
    if isinstance(network, dict) and network.get("class") in (UNET, TRAJECTORIES):
        _check_waypoints(network, horizon, pack, more_channels(normalizers.x), expect)
    if not dense:
        return
    most, in_dim, out_dim = (network.get(key) for key in ("in_horizon", "in_dim", "out_dim"))
    tokens = horizon[0] // pack
    width = (horizon[1] + more_channels(normalizers.x)) * pack
    # A network may be made for longer samples than these.
    fits = is_count(most) and tokens <= most and in_dim == width and out_dim == width
    expect(
        fits,
        f"horizon and pack = {pack} that fit the network's in_horizon, in_dim, out_dim = "
        f"{brief([most, in_dim, out_dim])}",
        "horizon",
    )
    most, d_z = (network.get(key) for key in ("cond_horizon", "cond_dim"))
    own = [most, d_z - more_channels(normalizers.z) if is_count(d_z) else d_z]
    expect(cond_horizon == own, f"cond_horizon {brief(own)}, the network's", "cond_horizon")


def _check_waypoints(
    network: Mapping[str, Any], horizon: Any, pack: int, more: int, expect: _Expect
) -> None:
    """A sample of waypoints that the network's stages halve, within its positions. The network sees
    `more` channels than there are in original units."""
    stages = network.get("down_dims")
    halved = 2 ** (len(stages) - 1) if isinstance(stages, list) and 0 < len(stages) < 64 else 1
    fits = _is_pair(horizon) and horizon[0] % (pack * halved) == 0
    fits = fits and (horizon[1] + more) * pack == network.get("in_dim")
    most = network.get("positions")
    fits = fits and (not is_count(most) or horizon[0] // pack <= most)
    expect(
        fits,
        f"horizon [T_x, d_x] with T_x / {pack} a multiple of {halved}, which the network's stages "
        f"halve, within its positions, and d_x * {pack} its in_dim",
        "horizon",
    )


def _check_cond_sizes(config: Mapping[str, Any], expect: _Expect) -> None:
    """The sizes of a condition that were trained, if they are said, and that `cond_horizon` holds
    them."""
    if config.get("cond_sizes") is None:
        return
    try:
        sizes = parse_sizes(config["cond_sizes"])
    except ValueError as error:
        expect(False, str(error).removeprefix("expected ").partition(", got")[0], "cond_sizes")
        return
    of_z = all(name == "Z" or name.startswith("Z.") for name in sizes)
    expect(of_z, "cond_sizes of Z or of its members, Z.<name>", "cond_sizes")
    horizon = config["cond_horizon"]
    if horizon is None:
        return
    most, d_z = horizon
    axes = sizes.get("Z", [])
    fits = len(sizes) == 1 and len(axes) == 2 and 1 <= axes[0][0] and axes[0][1] <= most
    fits = fits and axes[1] == (d_z, d_z)
    expect(fits, f"cond_sizes of Z within cond_horizon = {brief(horizon)}", "cond_sizes")


def _check_range(config: Mapping[str, Any], expect: _Expect) -> None:
    """The range of samples, if it is said, and that it is one of their channels."""
    if config.get("range") is None:
        return
    try:
        Box.from_state(config["range"]).check_channels(config["horizon"][-1])
    except ValueError as error:
        expect(False, str(error).removeprefix("expected ").partition(", got")[0], "range")


def _check_masks(config: Mapping[str, Any], expect: _Expect) -> None:
    """What the student was trained to be padded in, if that is said."""
    names = config.get("masks")
    if names is None:
        return
    known = isinstance(names, list) and all(name in MASKS for name in names)
    expect(known and len(set(names)) == len(names), f"masks among {', '.join(MASKS)}", "masks")


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 1 and all(map(is_count, value))


def _is_pair(value: Any) -> bool:
    return _is_shape(value) and len(value) == 2
