"""Equivariance of models: the dense twin of an equivariant one, and its error per group element."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from .._core.modules import evaluating
from .._core.precision import computing_dtype
from .emaps import ePositionTable
from .enorms import eRMSNorm
from .etransformer import eCondTransformerRegressor
from .fourier import FourierStack
from .maps import LinearMap, PositionTable
from .representations import rep_matrices
from .transformer import CondTransformerRegressor

__all__ = ["check_equivariance", "fold"]


# Keys of a config that a constructor doesn't take, or that it takes in another form.
_DESCRIPTIONS = ("class", "group", "in_rep", "cond_rep", "out_rep")


def fold(model: nn.Module) -> CondTransformerRegressor:
    """The dense twin of an equivariant regressor: a network for inference with the same outputs and
    without escnn objects.

    Args:
        model: an `eCondTransformerRegressor`. A `CondTransformerRegressor` is copied as it is.

    Returns:
        A new `CondTransformerRegressor` in eval mode, with dropout 0 and the dtype and device of
        `model`; nothing is shared with it.

    Raises:
        TypeError: another kind of module.
    """
    if not isinstance(model, (eCondTransformerRegressor, CondTransformerRegressor)):
        raise TypeError(
            "expected an eCondTransformerRegressor or a CondTransformerRegressor, got "
            f"{type(model).__name__}"
        )
    arguments = _arguments(model)
    arguments.pop("basis", None)
    arguments |= {"in_dim": model.in_dim, "out_dim": model.out_dim, "cond_dim": model.cond_dim}
    arguments |= {"p_drop_emb": 0.0, "p_drop_attn": 0.0}
    # On the meta device nothing is drawn: folding costs no initialisation and leaves the global
    # random state alone.
    with torch.device("meta"):
        twin = CondTransformerRegressor(**arguments)
    with torch.no_grad():
        twin.load_state_dict(_dense_state(_in_regular_basis(model)), assign=True)
    return twin.requires_grad_(False).eval()


def _arguments(model: eCondTransformerRegressor | CondTransformerRegressor) -> dict[str, Any]:
    """Arguments of a model's constructor, without those that a config describes."""
    return {key: value for key, value in model.config.items() if key not in _DESCRIPTIONS}


def _in_regular_basis(
    model: eCondTransformerRegressor | CondTransformerRegressor,
) -> nn.Module:
    """A network with the parameters of `model` whose hidden tokens are in the regular basis, which
    a pointwise GELU needs."""
    if not isinstance(model, eCondTransformerRegressor):
        return model
    if not isinstance(model.embedding_rep, FourierStack):
        return model
    arguments = _arguments(model)
    arguments["in_rep"] = model.in_rep
    arguments["cond_rep"] = model.cond_rep
    arguments["out_rep"] = model.out_rep
    arguments["basis"] = "regular"
    parameter = next(model.parameters())
    random_state = torch.get_rng_state()
    sibling = eCondTransformerRegressor(**arguments).to(parameter.device, parameter.dtype)
    torch.set_rng_state(random_state)
    sibling.load_state_dict(model.state_dict())
    return sibling


def _dense_state(model: nn.Module) -> dict[str, Tensor]:
    """State dict of the dense twin. Submodules have the same names in both; their tensors are
    expanded here."""
    state: dict[str, Tensor | None] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.RMSNorm, nn.LayerNorm, PositionTable)):
            weight = module.weight
            bias = getattr(module, "bias", None)
        elif isinstance(module, LinearMap):
            weight, bias = module.dense()
            bias = weight.new_zeros(len(weight)) if bias is None else bias
        elif isinstance(module, ePositionTable):
            weight = module.embed(module.weight)
            bias = None
        elif isinstance(module, eRMSNorm):
            weight, bias = module.affine()
        else:
            continue
        state[f"{name}.weight"] = weight
        state[f"{name}.bias"] = bias
    return {
        key: value.clone(memory_format=torch.contiguous_format)
        for key, value in state.items()
        if value is not None
    }


@torch.no_grad()
def check_equivariance(
    model: nn.Module, batch_size: int = 8, *, generator: torch.Generator | None = None
) -> dict[str, float]:
    r"""Measure how exactly a model commutes with its group.

    For each g the error is

        || f(rho_in(g) X, t, rho_cond(g) Z) - rho_out(g) f(X, t, Z) || / || f(X, t, Z) ||:

    noise and observation move together.

    Args:
        model: has `in_rep`, `cond_rep`, `out_rep`, `in_horizon`, `cond_horizon` and is called
            (X, t, Z).
        batch_size: number of random standard normal inputs, with t uniform in [0, 1].
        generator: draws them; None for a fixed seed.

    Returns:
        Group element (as escnn prints it) -> L2-relative error. The model runs in eval mode and
        gets its mode back.

    Raises:
        TypeError: `model` has no representations.
    """
    wanted = ("in_rep", "cond_rep", "out_rep", "in_horizon", "cond_horizon")
    missing = [name for name in wanted if not hasattr(model, name)]
    if missing:
        raise TypeError(
            f"expected an equivariant regressor, got {type(model).__name__} without "
            f"{', '.join(missing)}"
        )
    network = cast(Any, model)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    dtype = computing_dtype(model, torch.float32)
    device = next(model.parameters()).device

    def normal(horizon: int, rep: Any) -> Tensor:
        shape = (batch_size, horizon, rep.size)
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        # Numbers that the dtype can hold: rounding them would count as an error of the model.
        return drawn.to(dtype).double()

    X = normal(network.in_horizon, network.in_rep)
    Z = normal(network.cond_horizon, network.cond_rep)
    t = torch.rand(batch_size, generator=generator, dtype=torch.float64).to(device)

    def evaluate(x: Tensor, z: Tensor) -> Tensor:
        return model(x.to(device, dtype), t, z.to(device, dtype)).double().cpu()

    elements = network.in_rep.group.elements
    reps = (network.in_rep, network.cond_rep, network.out_rep)
    moves = zip(*(rep_matrices(rep) for rep in reps), strict=True)
    errors = {}
    with evaluating(model):
        reference = evaluate(X, Z)
        for element, (rho_in, rho_cond, rho_out) in zip(elements, moves, strict=True):
            moved = evaluate(X @ rho_in.T, Z @ rho_cond.T)
            error = (moved - reference @ rho_out.T).norm() / reference.norm()
            errors[str(element)] = error.item()
    return errors
