"""Small networks whose every number is off its initial value."""

from __future__ import annotations

import torch
from torch import nn

from fastgen.models import build_model
from fastgen.models.transformer import CondTransformerRegressor

__all__ = ["GROUPS", "dense", "equivariant", "shaken"]

# Names of representations by group: of an input token and of a condition.
GROUPS = {"D4": (["standard"], ["standard"]), "C2": (["trivial", "sign"], ["trivial", "sign"])}


def equivariant(group: str = "D4", pack: int = 2, **changes) -> nn.Module:
    """A network whose every number differs from its initial value, biases and norms included."""
    in_rep, cond_rep = GROUPS[group]
    config = {"class": "eCondTransformerRegressor", "group": group, "cond_rep": cond_rep}
    config |= {
        "in_rep": in_rep * pack,
        "out_rep": in_rep * pack,
        "in_horizon": 3,
        "cond_horizon": 2,
    }
    torch.manual_seed(0)
    network = build_model(
        {**config, "num_layers": 2, "num_attention_heads": 2, "embedding_dim": 16, **changes}
    )
    return shaken(network)


def dense(**changes) -> nn.Module:
    torch.manual_seed(0)
    options = {"num_layers": 1, "num_attention_heads": 2, "embedding_dim": 8, **changes}
    return shaken(CondTransformerRegressor(4, 4, 2, 3, 2, **options))


def shaken(network: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return network.eval()
