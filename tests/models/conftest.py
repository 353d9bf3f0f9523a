"""Representations made by escnn alone, the yardsticks of an equivariant map (matrices, characters,
error), and the equivariant network that several files test."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from escnn import group as escnn_group
from escnn.group import Group, Representation, change_basis, directsum
from torch import Tensor, nn

from fastgen.models import eCondTransformerRegressor
from support.etransformer import at_times, tokens
from support.exact import normal

# trivial, sign and standard where the group has them, then one more irrep of the larger groups
IRREPS: dict[str, list[tuple[int, ...]]] = {
    "C2": [(0,), (1,)],
    "C3": [(0,), (1,)],
    "C4": [(0,), (2,), (1,)],
    "C8": [(0,), (4,), (1,), (3,)],
    "D3": [(0, 0), (1, 0), (1, 1)],
    "D4": [(0, 0), (1, 0), (1, 1), (0, 2)],
    "D6": [(0, 0), (1, 0), (1, 1), (1, 2)],
    "Icosahedral": [(0,), (1,), (2,)],
}


@cache
def _group(name: str) -> Group:
    if name == "Icosahedral":
        return escnn_group.ico_group()
    return {"C": escnn_group.cyclic_group, "D": escnn_group.dihedral_group}[name[0]](int(name[1:]))


@cache
def _represent(name: str, parts: tuple, turned: bool) -> Representation:
    group = _group(name)
    reps = [
        group.regular_representation if part == "regular" else group.irrep(*part) for part in parts
    ]
    rep = directsum(reps)
    if turned:
        turn = torch.linalg.qr(normal(rep.size, rep.size, seed=rep.size)).Q
        rep = change_basis(rep, turn.numpy(), f"turned_{'_'.join(map(str, parts))}")
    return rep


_MATRICES: dict[int, tuple[Representation, Tensor]] = {}


def _matrices(rep: Representation) -> Tensor:
    if id(rep) not in _MATRICES:
        stack = torch.stack(
            [torch.as_tensor(rep(g), dtype=torch.float64) for g in rep.group.elements]
        )
        _MATRICES[id(rep)] = rep, stack  # the representation is kept, so that its id stays taken
    return _MATRICES[id(rep)][1]


def _moved(x: Tensor, rep: Representation) -> Tensor:
    """rho(g) x for all g, the group first: (|G|, *x.shape), rounded once."""
    return torch.einsum("gde,...e->g...d", _matrices(rep), x.double()).to(x.dtype)


@pytest.fixture(scope="session")
def represent() -> Callable[..., Representation]:
    """``represent(group, kind, turned=False)``: `small` is a sum of irreps, `mixed` has copies and
    the regular representation as well, an int is so many regular copies; `turned` rotates the
    coordinates at random."""

    def build(group: str, kind: str | int, *, turned: bool = False) -> Representation:
        if isinstance(kind, int):
            return _represent(group, ("regular",) * kind, turned)
        irreps = IRREPS[group]
        parts = irreps if kind == "small" else [irreps[-1], "regular", irreps[0], *irreps]
        return _represent(group, tuple(parts), turned)

    return build


@pytest.fixture(scope="session")
def matrices() -> Callable[[Representation], Tensor]:
    """All rho(g), shape (|G|, d, d), float64."""
    return _matrices


@pytest.fixture(scope="session")
def count() -> Callable[..., int]:
    """Dimension of the equivariant maps by characters, 1/|G| sum_g tr rho_in(g) tr rho_out(g); of
    the invariant vectors with one argument. A trace is that of the irreps, whose matrices are
    small."""

    def characters(rep: Representation) -> Tensor:
        irreps = [rep.group.irrep(*irrep_id) for irrep_id in set(rep.irreps)]
        return sum(
            rep.irreps.count(irrep.id) * torch.einsum("gdd->g", _matrices(irrep))
            for irrep in irreps
        )

    def dimension(in_rep: Representation, out_rep: Representation | None = None) -> int:
        products = (
            characters(in_rep) if out_rep is None else characters(in_rep) * characters(out_rep)
        )
        mean = products.mean().item()
        assert math.isclose(mean, round(mean), abs_tol=1e-9)
        return round(mean)

    return dimension


@pytest.fixture(scope="session")
def distance() -> Callable[[Tensor, Tensor], float]:
    """Relative L2 distance, measured in float64."""

    def measure(y: Tensor, reference: Tensor) -> float:
        y, reference = y.detach().double(), reference.detach().double()
        return float((y - reference).norm() / reference.norm())

    return measure


@pytest.fixture(scope="session")
def worst_error() -> Callable[..., float]:
    """The largest over g of |f(rho(g) x, ...) - rho_out(g) f(x, ...)| / |f(x, ...)|.

    ``worst_error(f, out_rep, (x, rep), ...)``; the moved inputs go through f as one long batch.
    """

    @torch.no_grad()
    def measure(
        f: Callable[..., Tensor], out_rep: Representation, *inputs: tuple[Tensor, Representation]
    ) -> float:
        reference = f(*(x for x, _ in inputs)).double()
        moved = f(*(_moved(x, rep).flatten(0, 1) for x, rep in inputs)).double()
        expected = _moved(reference, out_rep)
        errors = (moved.view_as(expected) - expected).flatten(1).norm(dim=1)
        return float((errors / reference.norm()).max())

    return measure


@pytest.fixture(scope="session")
def shaken() -> Callable[[nn.Module], nn.Module]:
    """Move every parameter off its initial value, biases, scales and time modulation included."""

    def shake(module: nn.Module, size: float = 0.1, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in module.parameters():
                p.add_(
                    size
                    * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
                )
        return module

    return shake


@pytest.fixture
def network(represent, shaken):
    """A small network on mixed representations whose every parameter is off its initial value.

    Some copies of the regular representation, since the time token has one number a copy: the norm
    of one number alone divides by something near zero now and then, which magnifies the rounding of
    float32. Wide networks and violent training round more as well: a sum of hundreds of numbers
    keeps fewer digits.
    """

    def build(
        group: str = "D4", *, turned: bool = True, seed: int = 0, shake: float = 0.03, **changes
    ):
        options = {
            "num_layers": 1,
            "num_attention_heads": 2,
            "p_drop_emb": 0.2,
            "p_drop_attn": 0.2,
            **changes,
        }
        in_rep, cond_rep = (represent(group, kind, turned=turned) for kind in ("mixed", "small"))
        out_rep = represent(group, "small", turned=not turned)
        width = options.pop("copies", 2 if group == "Icosahedral" else 4) * in_rep.group.order()
        torch.manual_seed(seed)
        model = eCondTransformerRegressor(
            in_rep, cond_rep, out_rep, 4, 3, embedding_dim=width, **options
        )
        return shaken(model, shake).eval()

    return build


@pytest.fixture
def model_error(worst_error):
    """The worst relative error over the group, on random inputs in the dtype of the network."""

    def measure(model: nn.Module, lengths: tuple[int, int] = (4, 3), batch: int = 3) -> float:
        X, Z = tokens(model, lengths, batch)
        return worst_error(
            at_times(model, batch), model.out_rep, (X, model.in_rep), (Z, model.cond_rep)
        )

    return measure
