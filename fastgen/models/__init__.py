"""Backbones: the abstract regressor, the dense conditional transformer, and (loaded on first use)
their equivariant siblings."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from torch import nn

from .layers import (
    MLP,
    MultiheadAttention,
    TimeEmbedding,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
)
from .regressor import GenCondRegressor
from .transformer import CondTransformerRegressor

if TYPE_CHECKING:
    from .ediscriminators import InvariantHeads, eFourierDiscriminator
    from .elayers import (
        eLayerNorm,
        eMLP,
        eMultiheadAttention,
        eRMSNorm,
        eTransformerDecoderLayer,
        eTransformerEncoderLayer,
    )
    from .emaps import eLinear
    from .equivariance import check_equivariance, fold
    from .etransformer import eCondTransformerRegressor
    from .groups import irrep_blocks, rep_matrices, representation
    from .specs import describe_group, describe_representation, parse_group, parse_representation

__all__ = [
    "MLP",
    "CondTransformerRegressor",
    "GenCondRegressor",
    "InvariantHeads",
    "MultiheadAttention",
    "TimeEmbedding",
    "TransformerDecoderLayer",
    "TransformerEncoderLayer",
    "build_model",
    "check_equivariance",
    "describe_group",
    "describe_representation",
    "eCondTransformerRegressor",
    "eFourierDiscriminator",
    "eLayerNorm",
    "eLinear",
    "eMLP",
    "eMultiheadAttention",
    "eRMSNorm",
    "eTransformerDecoderLayer",
    "eTransformerEncoderLayer",
    "fold",
    "irrep_blocks",
    "parse_group",
    "parse_representation",
    "rep_matrices",
    "representation",
]

# escnn says at import that this optional package of its own, which compiles Fortran, is missing;
# nothing here needs it.
warnings.filterwarnings("ignore", message="`py3nj` package not found", category=UserWarning)

# The names that need escnn, by the module that defines them: imported on first use, since a
# distilled student runs without escnn.
_LAZY = {
    **dict.fromkeys(("eRMSNorm", "eLayerNorm", "eMLP", "eMultiheadAttention"), "elayers"),
    **dict.fromkeys(("eTransformerEncoderLayer", "eTransformerDecoderLayer"), "elayers"),
    **dict.fromkeys(("InvariantHeads", "eFourierDiscriminator"), "ediscriminators"),
    "eLinear": "emaps",
    "eCondTransformerRegressor": "etransformer",
    **dict.fromkeys(("check_equivariance", "fold"), "equivariance"),
    **dict.fromkeys(("irrep_blocks", "rep_matrices", "representation"), "groups"),
    **dict.fromkeys(
        ("describe_group", "describe_representation", "parse_group", "parse_representation"),
        "specs",
    ),
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"fastgen.models.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'fastgen.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


def build_model(config: dict[str, Any]) -> nn.Module:
    """A freshly initialised model from its ``config``.

    Args:
        config: ``{"class": "CondTransformerRegressor" | "eCondTransformerRegressor", constructor
            arguments...}``, as in the attribute ``config`` of these models; representations are
            JSON descriptions beside the key ``group``.

    Raises:
        ValueError: unknown class, or constructor arguments that are missing, unknown or out of
            range.
    """
    arguments = dict(config)
    name = arguments.pop("class", None)
    if name == "CondTransformerRegressor":
        model_class: Any = CondTransformerRegressor
    elif name == "eCondTransformerRegressor":
        from .etransformer import eCondTransformerRegressor as model_class
        from .specs import parse_group, parse_representation

        group = parse_group(arguments.pop("group", None))
        for key in ("in_rep", "cond_rep", "out_rep"):
            if arguments.get(key) is not None:
                arguments[key] = parse_representation(group, arguments[key])
    else:
        raise ValueError(
            f"unknown model class {name!r}, expected one of: CondTransformerRegressor, "
            "eCondTransformerRegressor"
        )
    try:
        return model_class(**arguments)
    except TypeError as error:
        raise ValueError(f"cannot build {name}: {error}") from error
