"""How a student's group acts on what it is given and makes, and how exactly a written sampler
commutes with that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .sampler_inputs import example_inputs
from .student import Student
from .whole_sampler import WholeSampler

__all__ = ["acting_on", "equivariance_of", "group_of"]

_ROWS = 8


def group_of(student: Student, name: str | None = None) -> Any:
    """The group of a student with a condition of fixed size.

    Args:
        name: of the group; None: the one in the student's config, which must have one.

    Raises:
        ValueError: no group, or no trajectories.
        ImportError: escnn is missing.
    """
    from ..models.specs import parse_group

    group_name = student.config.get("group") if name is None else name
    if group_name is None:
        raise ValueError(
            "expected a student with a group in its config, got one whose network declared none "
            "when it was exported"
        )
    if student.cond_horizon is None or len(student.horizon) != 2:
        raise ValueError(
            "expected a student of trajectories with a condition of fixed size, got horizon "
            f"{student.horizon} and cond_horizon {student.cond_horizon}"
        )
    return parse_group(group_name)


def acting_on(group: Any, name: str, spec: Any, channels: int) -> Any:
    """The representation that `spec` describes, or the usual one, of so many channels.

    Raises:
        ValueError: it is of another size.
    """
    from ..models.specs import parse_representation

    hint = f"give {name}, such as {name}=['standard'], by which {group.name} acts on these channels"
    if spec is None and channels == 1:
        spec = ["trivial"]
    elif spec is None:
        try:
            size = parse_representation(group, "standard").size
        except ValueError as error:
            raise ValueError(
                f"expected {name} for {channels} channels, got none; {hint}"
            ) from error
        spec = ["standard"] * max(1, channels // size)
    rep = parse_representation(group, spec)
    if rep.size != channels:
        raise ValueError(
            f"expected {name} of size {channels}, the student's channels, got {rep.size} of "
            f"{spec!r}; {hint}"
        )
    return rep


def equivariance_of(
    sampler: WholeSampler,
    run: Callable[[list[Tensor]], Tensor],
    *,
    group: str | None = None,
    in_rep: Any = None,
    cond_rep: Any = None,
) -> dict[str, Any] | None:
    """The relative L2 error of f(rho_in(g) noise, rho_cond(g) z) = rho_in(g) f(noise, z), by
    element g of the group, for a written sampler f.

    Args:
        sampler: that was written.
        run: runs what was written.
        group: its name; None: the one in the student's config.
        in_rep, cond_rep: how the group acts, as for `acting_on`.

    Returns:
        {"errors": by element, "group", "in_rep", "cond_rep"}; {"not_measured": why}; None for a
        student without a group.
    """
    student = sampler.student
    name = student.config.get("group") if group is None else group
    if name is None:
        return None
    try:
        from ..models.representations import rep_matrices

        acting = group_of(student, name)
    except ImportError as error:
        return {"not_measured": f"it needs escnn: {error}"}
    except ValueError as error:
        return {"not_measured": str(error)}
    assert student.cond_horizon is not None
    try:
        rep = acting_on(acting, "in_rep", in_rep, student.horizon[1])
        cond_rep_of_group = acting_on(acting, "cond_rep", cond_rep, student.cond_horizon[1])
    except ValueError as error:
        if in_rep is not None or cond_rep is not None:
            raise
        return {"not_measured": str(error)}
    tensors = example_inputs(student, sampler.inputs, _ROWS)
    reference = run(tensors).double()
    moves = zip(rep_matrices(rep), rep_matrices(cond_rep_of_group), strict=True)
    errors = {}
    for element, (rho, rho_cond) in zip(acting.elements, moves, strict=True):
        moved = [
            _moved(each.name, value, rho, rho_cond)
            for each, value in zip(sampler.inputs, tensors, strict=True)
        ]
        off = run(moved).double() - reference @ rho.T
        errors[str(element)] = float(off.norm() / reference.norm())
    return {
        "errors": errors,
        "group": name,
        "in_rep": rep.name,
        "cond_rep": cond_rep_of_group.name,
    }


def _moved(name: str, value: Tensor, rho: Tensor, rho_cond: Tensor) -> Tensor:
    """An input after an element of the group has acted on it; masks and lengths stay."""
    if not value.is_floating_point():
        return value
    matrix = rho_cond if name == "cond" else rho
    return (value.double() @ matrix.T).to(value.dtype)
