"""Networks of the backbone's benchmark, of equal sizes: equivariant, dense, torch's, a peer's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from escnn.group import Representation
from torch import Tensor, nn

from fastgen.models import (
    CondTransformerRegressor,
    eCondTransformerRegressor,
    parse_group,
    parse_representation,
)

# Name of a configuration -> group, width.
CONFIGS = {
    "C4 D=128": ("C4", 128),
    "D4 D=128": ("D4", 128),
    "D4 D=256": ("D4", 256),
    "A5 D=240": ("Icosahedral", 240),
}
LAYERS = 4
HEADS = 4
T_X = 16
T_Z = 3


def representations(group_name: str) -> tuple[Representation, Representation]:
    """Of X and Z in a small task: vectors of the plane or of space to denoise, with two such
    vectors and a number as the condition."""
    group = parse_group(group_name)
    rep = parse_representation(group, ["standard"])
    cond = parse_representation(group, ["standard", "standard", "trivial"])
    return rep, cond


def equivariant(config: str, basis: str) -> eCondTransformerRegressor:
    torch.manual_seed(0)
    group, width = CONFIGS[config]
    rep, cond = representations(group)
    return eCondTransformerRegressor(
        rep, cond, rep, T_X, T_Z, LAYERS, HEADS, width, 0.0, 0.0, basis=basis
    )


def dense(config: str) -> CondTransformerRegressor:
    torch.manual_seed(0)
    group, width = CONFIGS[config]
    rep, cond = representations(group)
    return CondTransformerRegressor(
        rep.size, rep.size, cond.size, T_X, T_Z, LAYERS, HEADS, width, 0.0, 0.0
    )


def peer(config: str) -> nn.Module | None:
    """symm-learning's network of the same sizes, or None without that package."""
    try:
        from symm_learning.models.control.econd_transformer import (  # pyright: ignore[reportMissingImports]
            eCondTransformer,
        )
    except ImportError:
        return None
    torch.manual_seed(0)
    group, width = CONFIGS[config]
    rep, cond = representations(group)
    return eCondTransformer(rep, cond, rep, T_X, T_Z, LAYERS, HEADS, width, 0.0, 0.0)


class TorchDecoder(nn.Module):
    """torch's decoder of the same layers and widths, alone: its inputs are embedded already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(
            width,
            HEADS,
            4 * width,
            dropout=0.0,
            activation=F.gelu,
            batch_first=True,
            norm_first=True,
        )
        self.decoder = nn.TransformerDecoder(layer, LAYERS, nn.LayerNorm(width))

    def forward(self, X: Tensor, opt_step: Tensor, Z: Tensor) -> Tensor:
        return self.decoder(X, Z)


def inputs(model: nn.Module, config: str, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random X, t, Z for a network."""
    generator = torch.Generator().manual_seed(1)
    group, width = CONFIGS[config]
    rep, cond = representations(group)
    embedded = isinstance(model, TorchDecoder)
    X = torch.randn(batch, T_X, width if embedded else rep.size, generator=generator)
    # The time token is one of the embedded ones.
    tokens = T_Z + 1 if embedded else T_Z
    Z = torch.randn(batch, tokens, width if embedded else cond.size, generator=generator)
    return X, torch.rand(batch, generator=generator), Z


def shaken(model: nn.Module) -> nn.Module:
    """Move every parameter off its initial value: biases, scales and the time's modulation, too."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.03 * torch.randn(p.shape, generator=generator))
    return model
