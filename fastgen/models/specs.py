"""Descriptions of groups and representations, as in YAML and JSON, and back without loss.

A group is a name such as "D4". A representation is a list such as ["standard", "regular"], or
{"matrices": "file.npz"}.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from escnn import group as escnn_group
from escnn.group import Group, Representation, directsum

from .._core.archives import read_npz
from .._core.checks import is_count
from .._core.messages import brief
from .fourier import FourierStack, fourier_stack
from .representations import representation
from .stacks import RegularStack, regular_stack

__all__ = ["describe_group", "describe_representation", "parse_group", "parse_representation"]

_SINGLE = {"icosahedral": escnn_group.ico_group, "octahedral": escnn_group.octa_group}
_GROUP_HELP = "expected C<n>, D<n>, Icosahedral, Octahedral or a product of two such as C2xC2"


def parse_group(name: str) -> Group:
    """The escnn group of a name.

    Names are C<n>, D<n> (2n elements), Icosahedral (60), Octahedral (24), or a product of these
    such as C2xC2.

    Raises:
        ValueError: unknown name.
    """
    if not isinstance(name, str):
        raise ValueError(f"unknown group {name!r}, {_GROUP_HELP}")
    factors = [_simple_group(part, name) for part in re.split(r"\s*[xX]\s*", name.strip())]
    group = factors[0]
    for factor in factors[1:]:
        group = escnn_group.direct_product(group, factor)
    return group


def _simple_group(part: str, name: str) -> Group:
    if part.lower() in _SINGLE:
        # escnn reports its disk cache of these irreps on stdout.
        with contextlib.redirect_stdout(io.StringIO()):
            return _SINGLE[part.lower()]()
    match = re.fullmatch(r"([CD])([1-9]\d*)", part)
    if match is None:
        raise ValueError(f"unknown group {name!r}, {_GROUP_HELP}")
    n = int(match[2])
    return escnn_group.cyclic_group(n) if match[1] == "C" else escnn_group.dihedral_group(n)


def describe_group(group: Group) -> str:
    """The name from which `parse_group` gives back `group`.

    Raises:
        ValueError: a group that has no such name.
    """
    if isinstance(group, escnn_group.DirectProductGroup):
        name = f"{describe_group(group.G1)}x{describe_group(group.G2)}"
    else:
        name = group.name
    if parse_group(name) != group:
        raise ValueError(f"group {group.name} has no name here, {_GROUP_HELP}")
    return name


def parse_representation(
    group: Group, spec: str | Sequence[Any] | dict[str, Any]
) -> Representation:
    """A representation from its description.

    A description is an entry, or a list of entries whose direct sum is meant. An entry is

    - a name: `trivial`, `sign`, `standard`, `regular` or `irrep:<id>`. `standard` is the irrep by
      which C_n and D_n (n >= 3) act on the plane, and the icosahedral and octahedral groups on
      space. `sign` is -1 on the reflections of D_n, and on the odd rotations of C_n with n even;
    - `{"matrices": "file.npz"}`, a file with an array `matrices` of one orthogonal matrix per
      generator of the group, shape (n, d, d);
    - `{"irreps": [ids], "change_of_basis": rows}`;
    - `{"regular_by_irreps": copies}`, as :class:`fastgen.models.fourier.FourierStack`.

    Args:
        group: the group.
        spec: the description.

    Raises:
        ValueError: an unknown or empty description, one that this group does not have, or matrices
            that are no representation.
        FileNotFoundError: no such file of matrices.
    """
    if isinstance(spec, str):
        return _named(group, spec)
    if isinstance(spec, dict):
        return _described(group, spec)
    if not isinstance(spec, Sequence) or not spec:
        raise ValueError(f"expected a representation as a non-empty list of names, got {spec!r}")
    if all(part == "regular" for part in spec):
        return regular_stack(group, len(spec))
    parts = [parse_representation(group, part) for part in spec]
    return parts[0] if len(parts) == 1 else directsum(parts)


def _irrep_name(irrep: Representation) -> str:
    return "irrep:" + repr(irrep.id).replace(" ", "")  # pyright: ignore[reportAttributeAccessIssue]


def _irrep_names(group: Group) -> str:
    return ", ".join(_irrep_name(irrep) for irrep in group.irreps())


def _named(group: Group, name: str) -> Representation:
    """The representation of a name."""
    if name == "trivial":
        return group.trivial_representation
    if name == "regular":
        return regular_stack(group, 1)
    if name == "sign":
        return _sign(group)
    if name == "standard":
        return _standard(group)
    if name.startswith("irrep:"):
        try:
            irrep_id = ast.literal_eval(name.removeprefix("irrep:"))
        except (SyntaxError, ValueError):
            irrep_id = None
        irrep_id = irrep_id if isinstance(irrep_id, tuple) else (irrep_id,)
        for irrep in group.irreps():
            if irrep.id == irrep_id:
                return irrep
    raise ValueError(f"unknown representation {name!r}; {_known_names(group)}")


def _known_names(group: Group) -> str:
    return f"{group.name} has trivial, regular, {_irrep_names(group)}"


def _sign(group: Group) -> Representation:
    if isinstance(group, escnn_group.DihedralGroup):
        return group.irrep(1, 0)
    if isinstance(group, escnn_group.CyclicGroup) and group.order() % 2 == 0:
        return group.irrep(group.order() // 2)
    raise ValueError(f"{group.name} has no representation 'sign'; {_known_names(group)}")


def _standard(group: Group) -> Representation:
    if isinstance(group, (escnn_group.Icosahedral, escnn_group.Octahedral)):
        return group.irrep(1)
    if isinstance(group, escnn_group.CyclicGroup) and group.order() >= 3:
        return group.irrep(1)
    if isinstance(group, escnn_group.DihedralGroup) and group.order() >= 6:
        return group.irrep(1, 1)
    hint = ""
    if group.name == "C2":
        hint = "; write a reflection (x, y) -> (x, -y) of the plane as [trivial, sign]"
    raise ValueError(f"{group.name} has no 2-D irrep 'standard'{hint}; {_known_names(group)}")


def _described(group: Group, spec: dict[str, Any]) -> Representation:
    """The representation of a mapping."""
    if set(spec) == {"matrices"}:
        if not isinstance(spec["matrices"], (str, Path)):
            raise ValueError(
                f"expected the path of an .npz file as matrices, got {spec['matrices']!r}"
            )
        return _from_file(group, Path(spec["matrices"]))
    if set(spec) == {"regular_by_irreps"}:
        copies = spec["regular_by_irreps"]
        if not is_count(copies):
            raise ValueError(
                f"expected a number of copies >= 1 as regular_by_irreps, got {copies!r}"
            )
        return fourier_stack(group, copies)
    if set(spec) != {"irreps", "change_of_basis"}:
        raise ValueError(
            "expected a representation with keys irreps and change_of_basis, or matrices, got "
            f"{sorted(spec)}"
        )
    return _from_irreps(group, spec["irreps"], spec["change_of_basis"])


def _from_irreps(group: Group, irreps: Any, change_of_basis: Any) -> Representation:
    """The sum of irreps, in the basis that the rows of a matrix give."""
    if not isinstance(irreps, (list, tuple)):
        raise ValueError(f"expected a list of irreps, got {irreps!r}")
    irreps = [_tuples(irrep) for irrep in irreps]
    known = {irrep.id for irrep in group.irreps()}
    if any(irrep not in known for irrep in irreps):
        raise ValueError(
            f"expected irreps of {group.name}, got {irreps}; it has {_irrep_names(group)}"
        )
    basis = np.array(change_of_basis, dtype=np.float64)
    size = sum(group.irrep(*irrep).size for irrep in irreps)
    if basis.shape != (size, size):
        raise ValueError(f"expected change_of_basis of shape {(size, size)}, got {basis.shape}")
    name = f"basis_{hashlib.blake2b(basis.tobytes(), digest_size=6).hexdigest()}"
    return Representation(group, name, irreps, basis)


def _from_file(group: Group, path: Path) -> Representation:
    if not path.is_file():
        raise FileNotFoundError(f"expected an .npz file of matrices at {path}, got nothing there")
    arrays = read_npz(path)
    if "matrices" not in arrays:
        raise ValueError(f"expected an array 'matrices' in {path}, got {brief(sorted(arrays))}")
    matrices = arrays["matrices"]
    try:
        return representation(group, matrices)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _tuples(value: Any) -> Any:
    """Lists of a JSON document back to escnn's tuples."""
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


def describe_representation(rep: Representation) -> list[Any]:
    """A description, as JSON, from which `parse_representation` gives back the same matrices.

    It is a list of regular copies and irreps where the change of basis is theirs, else the irreps
    with the rows of the change of basis.
    """
    if isinstance(rep, RegularStack):
        return ["regular"] * rep.copies
    if isinstance(rep, FourierStack):
        return [{"regular_by_irreps": rep.copies}]
    basis = np.asarray(rep.change_of_basis)
    parts: list[Any] = []
    irrep_index = 0
    start = 0
    while irrep_index < len(rep.irreps):
        summand = _summand_at(rep, basis, irrep_index, start)
        if summand is None:
            return [{"irreps": [list(i) for i in rep.irreps], "change_of_basis": basis.tolist()}]
        parts.append(summand.name)
        irrep_index += len(summand.irreps)
        start += len(summand.basis)
    return parts


class _Summand(NamedTuple):
    """A representation that has a name: the regular one or an irrep."""

    name: str
    irreps: list[Any]
    basis: np.ndarray


def _summand_at(
    rep: Representation, basis: np.ndarray, irrep_index: int, start: int
) -> _Summand | None:
    """The summand with a name that begins at an irrep and at a column, or None.

    It must have the irreps that follow, and its own basis as a diagonal block of `basis`.
    """
    irrep = rep.group.irrep(*rep.irreps[irrep_index])
    candidates = [_Summand(_irrep_name(irrep), [irrep.id], np.eye(irrep.size))]
    if rep.group.order() > 1:
        regular = rep.group.regular_representation
        candidates.insert(0, _Summand("regular", list(regular.irreps), regular.change_of_basis))
    for candidate in candidates:
        size = len(candidate.basis)
        irreps = list(rep.irreps[irrep_index : irrep_index + len(candidate.irreps)])
        expected = np.zeros((len(basis), size))
        expected[start : start + size] = candidate.basis[: len(basis) - start]
        if irreps == candidate.irreps and np.array_equal(basis[:, start : start + size], expected):
            return candidate
    return None
