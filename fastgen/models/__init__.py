"""Backbones: the abstract regressor, the dense conditional transformer, and their equivariant
twins, which are loaded on first use; the patch transformer of images; the U-Net of Diffusion Policy
and the transformer of LeRobot's multi-task DiT."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from torch import nn

from .attention import MultiheadAttention
from .conv_unet import TrajectoryUnet
from .depth import with_layers
from .layers import TransformerDecoderLayer, TransformerEncoderLayer
from .mlp import MLP
from .patches import PatchTransformer
from .regressor import GenCondRegressor
from .time_embedding import TimeEmbedding
from .trajectory_transformer import TrajectoryTransformer
from .transformer import CondTransformerRegressor

if TYPE_CHECKING:
    from .eattention import eMultiheadAttention
    from .ediscriminators import InvariantHeads, eFourierDiscriminator
    from .elayers import eTransformerDecoderLayer, eTransformerEncoderLayer
    from .emaps import eLinear
    from .emlp import eMLP
    from .enorms import eLayerNorm, eRMSNorm
    from .equivariance import check_equivariance, fold
    from .etransformer import eCondTransformerRegressor
    from .representations import irrep_blocks, rep_matrices, representation
    from .specs import describe_group, describe_representation, parse_group, parse_representation

__all__ = [
    "MLP",
    "CondTransformerRegressor",
    "GenCondRegressor",
    "InvariantHeads",
    "MultiheadAttention",
    "PatchTransformer",
    "TimeEmbedding",
    "TrajectoryTransformer",
    "TrajectoryUnet",
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
    "with_layers",
]

# escnn says at import that an optional package of its own, which compiles Fortran, is missing.
# Nothing here needs it.
warnings.filterwarnings("ignore", message="`py3nj` package not found", category=UserWarning)

# Module -> its names that need escnn. They are imported on first use, since a distilled student
# runs without escnn.
_LAZY = {
    "eattention": ["eMultiheadAttention"],
    "ediscriminators": ["InvariantHeads", "eFourierDiscriminator"],
    "elayers": ["eTransformerDecoderLayer", "eTransformerEncoderLayer"],
    "emaps": ["eLinear"],
    "emlp": ["eMLP"],
    "enorms": ["eLayerNorm", "eRMSNorm"],
    "equivariance": ["check_equivariance", "fold"],
    "etransformer": ["eCondTransformerRegressor"],
    "representations": ["irrep_blocks", "rep_matrices", "representation"],
    "specs": ["describe_group", "describe_representation", "parse_group", "parse_representation"],
}
_MODULE_OF = {name: module for module, names in _LAZY.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"fastgen.models.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'fastgen.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


def build_model(config: dict[str, Any]) -> nn.Module:
    """A freshly initialised model from its `config`.

    Args:
        config: `{"class": "CondTransformerRegressor" | "eCondTransformerRegressor" |
            "PatchTransformer" | "TrajectoryUnet" | "TrajectoryTransformer", ...}` with the
            constructor's arguments, as in the attribute `config` of these models. Representations
            are JSON descriptions beside the key `group`.

    Raises:
        ValueError: unknown class, or constructor arguments that are missing, unknown or out of
            range.
    """
    arguments = dict(config)
    name = arguments.pop("class", None)
    if name == "CondTransformerRegressor":
        model_class: Any = CondTransformerRegressor
    elif name == "PatchTransformer":
        model_class = PatchTransformer
    elif name == "TrajectoryUnet":
        model_class = TrajectoryUnet
    elif name == "TrajectoryTransformer":
        model_class = TrajectoryTransformer
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
            "eCondTransformerRegressor, PatchTransformer, TrajectoryUnet, TrajectoryTransformer"
        )
    try:
        return model_class(**arguments)
    except TypeError as error:
        raise ValueError(f"cannot build {name}: {error}") from error
