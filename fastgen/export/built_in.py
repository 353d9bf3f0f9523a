"""Built-in networks: the classes of `fastgen.models` that a config.json may name, and their limits.

A hostile config could ask for a network of any size. An argument is believed only as far as the
tensors that lie beside the config allow.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .._core.checks import is_count
from .._core.json_files import check_names
from .._core.messages import brief
from .._core.tensor_files import TensorFile
from ..models import build_model

__all__ = [
    "CUSTOM",
    "DENSE",
    "EQUIVARIANT",
    "NETWORKS",
    "PATCHES",
    "PLAIN",
    "TRAJECTORIES",
    "UNET",
    "build_network",
    "built_in_config",
    "check_network_config",
]

# The arguments of the built-in networks, each with its kind, which says what bounds it:
#   int       a dimension or horizon, which is an axis of some tensor
#   "width"   the width of the layers
#   "widths"  the widths of its stages, each of which has tensors of its own
#   "layers"  a number of layers, each of which has tensors of its own
#   "rep"     a representation
#   "group"   the name of a group
# or another type. A config has all of them and nothing else.
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
PATCHES = "PatchTransformer"
UNET = "TrajectoryUnet"
TRAJECTORIES = "TrajectoryTransformer"
CUSTOM = "custom"
# The classes that need no group: those of students.
PLAIN = (DENSE, PATCHES, UNET, TRAJECTORIES)
NETWORKS: dict[str, dict[str, Any]] = {
    DENSE: {"in_dim": int, "out_dim": int, "cond_dim": int, **_ARGUMENTS},
    EQUIVARIANT: {
        "group": "group",
        "in_rep": "rep",
        "cond_rep": "rep",
        "out_rep": "rep",
        "basis": str,
        **_ARGUMENTS,
    },
    PATCHES: {
        "channels": int,
        "image_size": int,
        "patch_size": int,
        "num_labels": int,
        "num_layers": "layers",
        "num_attention_heads": int,
        "embedding_dim": "width",
        "time_scale": float,
        "norm_module": str,
    },
    UNET: {
        "in_dim": int,
        "cond_dim": int,
        "down_dims": "widths",
        "kernel_size": int,
        "num_groups": int,
        "time_dim": int,
        "scales": bool,
    },
    TRAJECTORIES: {
        "in_dim": int,
        "cond_dim": int,
        "embedding_dim": "width",
        "num_layers": "layers",
        "num_attention_heads": int,
        "time_dim": int,
        "rotary": bool,
        "rotary_base": float,
        "positions": int,
    },
}


def built_in_config(network: nn.Module) -> Mapping[str, Any]:
    """The config of a network of `fastgen.models`; {} for a module from elsewhere, whatever its
    `config` may be."""
    config = getattr(network, "config", None)
    if isinstance(config, Mapping) and config.get("class") in NETWORKS:
        return config
    return {}


def check_network_config(
    config: Any, where: str, shapes: Mapping[str, Sequence[int]], classes: Iterable[str]
) -> dict[str, Any]:
    """The config of a network that may be built: of one of `classes`, no larger than the tensors
    that lie beside it.

    Args:
        config: {"class": ..., constructor arguments}.
        where: begins the messages.
        shapes: {name: shape} of the tensors.
        classes: names among `NETWORKS`.

    Raises:
        ValueError: another class, arguments that are missing, unknown, of a wrong type or beyond
            their limit.
    """
    classes = tuple(classes)
    name = config.get("class") if isinstance(config, dict) else None
    if name == CUSTOM:
        got = brief(config.get("name"))
        raise ValueError(
            f"{where}: expected a built-in network, got the class {got}; build one and pass "
            "network="
        )
    if name not in classes:
        raise ValueError(
            f"{where}: expected network.class among {', '.join(classes)}, got {brief(name)}"
        )
    arguments = NETWORKS[name]
    check_names(config, ("class", *arguments), f"{where}: network")

    axis = max((size for shape in shapes.values() for size in shape), default=0)
    numbers = sum(map(math.prod, shapes.values()))
    # Of an equivariant network the tensors are kernels: a width is copies times group order, both
    # of which are axes, and a kernel has a number for each |G| entries of the matrix.
    dense = name in PLAIN
    limits = {"layers": len(shapes), "width": axis if dense else axis**2}
    entries = numbers if dense else numbers * axis

    for key, kind in arguments.items():
        expected = _expected(config[key], kind, limits.get(kind, axis), len(shapes))
        if expected is not None:
            got = brief(config[key])
            raise ValueError(f"{where}: expected network.{key} {expected}, got {got}")
    # Some map is as wide on both sides.
    if config.get("embedding_dim", 0) ** 2 > entries:
        raise ValueError(
            f"{where}: expected network.embedding_dim that the tensors allow, got "
            f"{config['embedding_dim']}"
        )
    return config


def _expected(value: Any, kind: Any, most: int, tensors: int) -> str | None:
    """What an argument of this kind (see `_ARGUMENTS`) has to be, beside so many tensors; None if
    `value` is that."""
    if kind == "widths":
        is_list = isinstance(value, list) and 1 <= len(value) <= tensors
        if is_list and all(is_count(width) and width <= most for width in value):
            return None
        return f"as at most {tensors} numbers within 1..{most}, which the tensors allow"
    if kind in (int, "layers", "width"):
        if is_count(value, 0) and value <= most:
            return None
        return f"within 0..{most}, which the tensors allow"
    if kind == "group":
        # The order of C<n> and D<n> is a multiple of n, and embedding_dim is a multiple of the
        # order.
        if isinstance(value, str) and len(value) <= 64 and _order(value) <= most:
            return None
        return f"as a group of an order within 1..{most}, which the tensors allow"
    if kind == "rep":
        is_list = isinstance(value, list) and 1 <= len(value) <= most
        if is_list and all(_is_representation(part, most) for part in value):
            return None
        return f"as a list of at most {most} representations, none of them from a file"
    if type(value) is kind or (kind is float and type(value) is int):
        return None
    return f"of type {kind.__name__}"


def _order(group: str) -> int:
    """An upper bound of the order of the group with this name."""
    named = 60 ** len(re.findall("(?i)icosahedral|octahedral", group))
    numbered = re.findall("([A-Za-z]?)([0-9]+)", group)
    return named * math.prod(2 * int(n) if kind == "D" else int(n) for kind, n in numbered)


def _is_representation(part: Any, most: int) -> bool:
    """Whether a representation is spelt out in the config, in no more copies than the tensors
    allow. One that names a file is refused: that could be any file of the machine."""
    if not isinstance(part, dict):
        return isinstance(part, str) and len(part) <= 64
    copies = part.get("regular_by_irreps", 1)
    return "matrices" not in part and is_count(copies) and copies <= most


# ---- Building ------------------------------------------------------------------------------------


def build_network(
    config: Any, where: str, tensors: TensorFile, classes: Iterable[str]
) -> nn.Module:
    """The network that a config describes, with its tensors and in eval mode.

    Args:
        config: of the network, from a file.
        where: the file, for people.
        tensors: of the network.
        classes: those that may be built.

    Raises:
        ValueError: a config that describes no such network, or another one than `tensors` are of.
    """
    config = check_network_config(config, where, tensors.shapes, classes)
    try:
        if config["class"] in PLAIN:
            # On the meta device a network of any size costs nothing: shapes are compared before
            # memory is allocated.
            with torch.device("meta"), _Uninitialised():
                built = build_model(config)
        else:
            # A group's tables must hold numbers; check_network_config bounds them. The caller's
            # generator stays as it is.
            with torch.random.fork_rng(devices=[]):
                built = build_model(config)
    # escnn answers a representation that a group doesn't have with whatever its tables raise,
    # assertions included.
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        AssertionError,
        RuntimeError,
    ) as error:
        raise ValueError(f"{where}: network: {brief(error)}") from error
    built.to(tensors.dtype)
    built.load_state_dict(tensors.read(built.state_dict()), assign=True)
    return built.eval()


class _Uninitialised(TorchFunctionMode):
    """Inside, random initialisation does nothing: on the meta device it has nothing to fill, yet
    its first call would import a compiler for seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # By name: both the functions of torch.nn.init and the methods of Tensor come by here.
        if getattr(func, "__name__", "").endswith(("normal_", "uniform_")):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
