"""Modules over representations: what all equivariant layers rest on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from escnn.group import Representation
from torch import Tensor, nn

from .fourier import stack_of
from .representations import check_representation, invariant_basis
from .specs import describe_group, describe_representation, parse_group, parse_representation

__all__ = ["Invariant", "SharedRepresentations", "Typed"]

# A constant in float64, or the function (group, dtype, device) that makes the table of a group.
Master = Tensor | Callable[..., Tensor]


class SharedRepresentations(nn.Module):
    """A module with representations, which copies of it share.

    Deep-copying an escnn representation would copy its whole group, so a copy of the module has the
    very same representations. Pickling writes their descriptions instead, since escnn's objects
    hold local functions.
    """

    def _reps(self) -> dict[str, Representation]:
        return {
            name: value
            for name, value in self.__dict__.items()
            if isinstance(value, Representation)
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedRepresentations:
        memo.update({id(rep): rep for rep in self._reps().values()})
        clone = self.__class__.__new__(self.__class__)
        memo[id(self)] = clone
        clone.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return clone

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        reps = self._reps()
        for name, rep in reps.items():
            state[name] = (describe_group(rep.group), describe_representation(rep))
        state["_described"] = list(reps)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        for name in state.pop("_described"):
            group, description = state[name]
            state[name] = parse_representation(parse_group(group), description)
        super().__setstate__(state)


class Typed(SharedRepresentations):
    """A module that knows how its input and its output transform, and constants that follow from
    that.

    Constants are non-persistent buffers. Whenever the module moves or changes its dtype, they are
    cast anew from float64 masters, so that `.float().double()` loses no digit. A table that all
    layers of a group share has a function (group, dtype, device) in the place of its master.

    Args:
        in_rep: representation of the input.
        out_rep: representation of the output, of the same group.

    Raises:
        TypeError: one that is no escnn representation.
        ValueError: representations of different groups, of an infinite group, or not orthogonal.
    """

    in_rep: Representation
    out_rep: Representation

    def __init__(self, in_rep: Representation, out_rep: Representation) -> None:
        super().__init__()
        self.in_rep = check_representation("in_rep", in_rep)
        self.out_rep = check_representation("out_rep", out_rep)
        if in_rep.group != out_rep.group:
            raise ValueError(
                f"expected in_rep and out_rep of one group, got {in_rep.group.name} and "
                f"{out_rep.group.name}"
            )
        self._masters: dict[str, Master] = {}

    def register_constant(self, name: str, master: Master) -> None:
        """Register a constant. A floating one is kept in the module's dtype, float32 or above."""
        self._masters[name] = master
        reference = torch.empty(0)  # of the default dtype and device
        self.register_buffer(name, self._cast(master, reference), persistent=False)

    def _cast(self, master: Master, reference: Tensor) -> Tensor:
        """The constant of a master, in the device and (float32 or above) the dtype of a tensor."""
        dtype = torch.promote_types(reference.dtype, torch.float32)
        if not isinstance(master, Tensor):
            return master(self.in_rep.group, dtype, reference.device)
        if not master.is_floating_point():
            dtype = master.dtype
        return master.to(device=reference.device, dtype=dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Typed:
        super()._apply(fn, recurse)
        for name, master in self._masters.items():
            setattr(self, name, self._cast(master, getattr(self, name)))
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Typed:
        # Constants never change in place: a copy has the very same ones.
        for kept in (self._masters, self._buffers):
            for name in self._masters:
                if isinstance(kept[name], Tensor):
                    memo[id(kept[name])] = kept[name]
        return super().__deepcopy__(memo)  # pyright: ignore[reportReturnType]

    def __getstate__(self) -> dict[str, Any]:
        """The state without tables of the group, which are made or found again."""
        state = super().__getstate__()
        buffers = dict(self._buffers)
        likes = {}
        for name, master in self._masters.items():
            if not isinstance(master, Tensor):
                table = buffers.pop(name)
                if table is not None:
                    likes[name] = torch.empty(0, dtype=table.dtype, device=table.device)
        state["_buffers"] = buffers
        state["_tables"] = likes
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        tables = state.pop("_tables")
        super().__setstate__(state)
        for name, like in tables.items():
            self._buffers[name] = self._cast(self._masters[name], like)

    def extra_repr(self) -> str:
        return f"{self.in_rep} -> {self.out_rep}"


class Invariant(Typed):
    """A module with parameters in the invariant subspace of `out_rep`.

    Attributes:
        stack: `out_rep` as copies of the regular representation, None if it is no such.
        copies: their number, 0 without a stack.
        num_invariants: dimension of the invariant subspace.
    """

    def __init__(self, in_rep: Representation, out_rep: Representation) -> None:
        super().__init__(in_rep, out_rep)
        self.stack = stack_of(out_rep)
        self.copies = self.stack.copies if self.stack else 0
        self.num_invariants = self.copies
        if not self.stack:
            basis = invariant_basis(out_rep)
            self.num_invariants = basis.shape[1]
            self.register_constant("invariants", basis)

    def embed(self, coefficients: Tensor) -> Tensor:
        """Invariant vectors (..., D) of coefficients c (..., num_invariants).

        On regular copies they are constant over each copy, elsewhere they are B c in a basis B.
        """
        if self.stack:
            return self.stack.invariant(coefficients)
        basis: Tensor = self.invariants  # pyright: ignore[reportAssignmentType]
        return (coefficients.to(basis.dtype) @ basis.T).to(coefficients.dtype)
