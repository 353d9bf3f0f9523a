"""Folders of networks: a teacher as it was trained, in its own dtype (`save_network`,
`load_network`).

    model.safetensors    config.json

What a student's folder shares with them stands here, too: a module filled from the tensors of a
folder. How folders are written and trusted: :mod:`fastgen.export.folders`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._core.caches import renew_caches
from .._core.checks import is_count
from .._core.files import new_folder
from .._core.json_files import plain_json
from .._core.messages import brief
from .._core.modules import as_built, fit_buffers, load_state, state_of
from .._core.precision import accept_any_dtype, is_uniform
from .._core.sizes import Sizes, parse_sizes
from .._core.tensor_files import TensorFile, write_tensors
from ..networks import cast, tokens_given
from .built_in import DENSE, EQUIVARIANT, NETWORKS, build_network, built_in_config
from .card import CARD
from .extra_state import load_extra_state
from .schema import (
    EXPORT_CONFIG,
    NETWORK_FORMAT,
    config_head,
    is_export,
    read_export,
    write_config,
)

__all__ = ["SCORES_FILE", "load_module", "load_network", "save_network", "stored_dtype"]

_MODEL = "model.safetensors"
# Scores that a recipe lays beside a network belong to those weights, and go when the network is
# replaced.
SCORES_FILE = "scores.json"
# What the description of a network holds that recipes/train_teacher.py has trained.
_OF_RECIPE = {"task", "path", "prediction", "data", "seed", "steps"}


def save_network(
    folder: str | Path, network: nn.Module, *, description: Mapping[str, Any] | None = None
) -> None:
    """Write a network, as it is and in its own dtype, to `model.safetensors` and `config.json` in
    `folder`.

    Args:
        folder: new, empty, or an earlier export, which is replaced whole, with a `README.md` or
            `scores.json` about it.
        network: one of `fastgen.models`, whose `.config` says how to build it again, or any module,
            which its user then has to build and give to `load_network(network=)`. The sizes of X
            and Z that it was trained with are kept where it declares them as `trained_sizes`, such
            as {"X": [(4, 4), (8, 8)], "Z": [(1, 2), (12, 12)]}: the least and the most of each axis
            but the rows.
        description: anything JSON can hold: command, seed, scores, data. NaN and infinity become
            null.

    Raises:
        TypeError: a description that JSON can't hold.
        ValueError: extra state that JSON can't hold, weights that aren't finite, a folder that
            holds other files.
        OSError: the folder can't be written; what stood there is untouched.
    """
    network = as_built(network)
    config = config_head(NETWORK_FORMAT, network)
    config["description"] = plain_json(dict(description or {}), "description")
    trained = getattr(network, "trained_sizes", None)
    if trained is not None:
        config["trained_sizes"] = plain_json(parse_sizes(trained), "trained_sizes")
    if tokens_given(network):
        config["prefix_tokens"] = tokens_given(network)
    state = state_of(network)
    with new_folder(folder, (EXPORT_CONFIG, CARD, _MODEL, SCORES_FILE), is_export) as partial:
        config["tensors"] = write_tensors(partial / _MODEL, state, stored_dtype(network))
        write_config(partial, config)


def load_network(
    folder: str | Path, *, network: nn.Module | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The network in a folder written by `save_network`, on the CPU and in eval mode, and its
    description. Where they are known, it declares the sizes that it was trained with
    (`trained_sizes`), and samplers refuse others.

    Args:
        folder: with `model.safetensors` and `config.json`.
        network: the module to load into, for a class that isn't of `fastgen.models`; None builds
            what config.json says.

    Raises:
        ValueError: a missing, truncated, edited or foreign file; tensors that don't fit the
            network.
    """
    file, config, tensors = read_export(Path(folder), NETWORK_FORMAT, _MODEL)
    loaded: Any = load_module(file, config, tensors, network, NETWORKS)
    sizes = _trained_sizes(config, loaded, str(file))
    if sizes is not None:
        loaded.trained_sizes = sizes
    if "prefix_tokens" in config:
        loaded.prefix_tokens = _prefix_tokens(config["prefix_tokens"], str(file))
    return loaded, config["description"]


def _prefix_tokens(tokens: Any, where: str) -> int:
    """How many tokens a network was trained to be given, of which its folder speaks."""
    if not is_count(tokens):
        raise ValueError(
            f"{where}: expected prefix_tokens as a whole number >= 1, got {brief(tokens)}"
        )
    return tokens


def _trained_sizes(config: Mapping[str, Any], network: Any, where: str) -> Sizes | None:
    """The sizes of X and Z that a network was trained with; None if nothing is known of them."""
    if config.get("trained_sizes") is not None:
        try:
            return parse_sizes(config["trained_sizes"])
        except ValueError as error:
            raise ValueError(f"{where}: trained_sizes: {error}") from error
    by_tokens = built_in_config(network).get("class") in (DENSE, EQUIVARIANT)
    if not config["description"].keys() >= _OF_RECIPE or not by_tokens:
        return None
    # Before the sizes were written, recipes/train_teacher.py made a network for the sizes of its
    # data exactly.
    axes = {"X": (network.in_horizon, network.in_dim)}
    axes["Z"] = (network.cond_horizon, network.cond_dim)
    return parse_sizes(axes)


# ---- Tensors of a folder -------------------------------------------------------------------------


def load_module(
    file: Path,
    config: Mapping[str, Any],
    tensors: TensorFile,
    network: nn.Module | None,
    classes: Iterable[str],
) -> nn.Module:
    """The network that a folder's `config` describes, or the one given, with its tensors and in
    eval mode."""
    if network is not None:
        # The forward of a network in half precision may cast to that.
        casting = tensors.dtype.itemsize >= 4 and not is_uniform(network)
        # Some have other buffers in eval mode.
        cast(network.eval(), tensors.dtype)
        fit_buffers(network, tensors.shapes)
        load_state(network, tensors.read(state_of(network)))
        load_extra_state(network, config.get("extra_state", {}), str(file))
        network.eval()
        renew_caches(network)
        return accept_any_dtype(network) if casting else network
    return build_network(config["network"], str(file), tensors, classes)


def stored_dtype(network: nn.Module) -> torch.dtype:
    """That of the network's first floating tensor, or what holds all of its parameters if these
    have more digits; float32 if there is none."""
    tensors = [x for x in network.state_dict().values() if isinstance(x, Tensor)]
    dtypes = [x.dtype for x in tensors if x.is_floating_point()]
    dtype = dtypes[0] if dtypes else torch.float32
    for parameter in network.parameters():
        if parameter.is_floating_point() and parameter.itemsize >= dtype.itemsize:
            dtype = torch.promote_types(dtype, parameter.dtype)
    return dtype
