"""Groups and representations as JSON: "D4", ["standard", "regular"], {"matrices": "file.npz"} and
back, exactly."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from escnn import group as escnn_group
from escnn.group import Group, Representation, directsum

from .._core.archives import read_npz
from .._core.checks import is_count
from .._core.messages import brief
from .fourier import FourierStack, fourier_stack
from .groups import RegularStack, regular_stack, representation

__all__ = ["describe_group", "describe_representation", "parse_group", "parse_representation"]

_SINGLE = {"icosahedral": escnn_group.ico_group, "octahedral": escnn_group.octa_group}
_GROUP_HELP = "expected C<n>, D<n>, Icosahedral, Octahedral or a product of two such as C2xC2"


def parse_group(name: str) -> Group:
    """The escnn group of a name: C<n>, D<n> (2n elements), Icosahedral (60), Octahedral (24), or a
    product such as C2xC2.

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
        # escnn reports its disk cache of these irreps on stdout
        with contextlib.redirect_stdout(io.StringIO()):
            return _SINGLE[part.lower()]()
    match = re.fullmatch(r"([CD])([1-9]\d*)", part)
    if match is None:
        raise ValueError(f"unknown group {name!r}, {_GROUP_HELP}")
    n = int(match[2])
    return escnn_group.cyclic_group(n) if match[1] == "C" else escnn_group.dihedral_group(n)


def describe_group(group: Group) -> str:
    """The name from which ``parse_group`` gives back ``group``.

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

    Args:
        group: the group.
        spec: a list whose direct sum is meant, or a single entry: a name (``trivial``, ``sign``,
            ``standard``, ``regular``, ``irrep:<id>``), ``{"irreps": [ids], "change_of_basis":
            rows}``, ``{"regular_by_irreps": copies}`` (as ``fourier.FourierStack``), or
            ``{"matrices": "file.npz"}`` with an array ``matrices`` of one orthogonal matrix per
            generator of the group, shape (n, d, d).

    Names: ``standard`` is the irrep by which C_n, D_n (n >= 3) act on the plane and the icosahedral
    and octahedral groups on space; ``sign`` is -1 on the reflections of D_n, and on the odd
    rotations of C_n with n even.

    Raises:
        ValueError: an unknown or empty description, one that this group does not have, or matrices
            that are no representation.
        FileNotFoundError: no such file of matrices.
    """
    if isinstance(spec, (str, dict)):
        return _named(group, spec) if isinstance(spec, str) else _described(group, spec)
    if not isinstance(spec, Sequence) or not spec:
        raise ValueError(f"expected a representation as a non-empty list of names, got {spec!r}")
    if all(part == "regular" for part in spec):
        return regular_stack(group, len(spec))
    parts = [parse_representation(group, part) for part in spec]
    return parts[0] if len(parts) == 1 else directsum(parts)


def _irrep_names(group: Group) -> str:
    return ", ".join("irrep:" + repr(irrep.id).replace(" ", "") for irrep in group.irreps())


def _named(group: Group, name: str) -> Representation:
    known = f"{group.name} has trivial, regular, {_irrep_names(group)}"
    cyclic = isinstance(group, escnn_group.CyclicGroup)
    dihedral = isinstance(group, escnn_group.DihedralGroup)
    if name == "trivial":
        return group.trivial_representation
    if name == "regular":
        return regular_stack(group, 1)
    if name == "sign":
        if dihedral:
            return group.irrep(1, 0)
        if cyclic and group.order() % 2 == 0:
            return group.irrep(group.order() // 2)
        raise ValueError(f"{group.name} has no representation 'sign'; {known}")
    if name == "standard":
        if isinstance(group, (escnn_group.Icosahedral, escnn_group.Octahedral)):
            return group.irrep(1)
        rotations = group.order() // (2 if dihedral else 1)
        if (cyclic or dihedral) and rotations >= 3:
            return group.irrep(1) if cyclic else group.irrep(1, 1)
        hint = (
            "; write a reflection (x, y) -> (x, -y) of the plane as [trivial, sign]"
            if group.name == "C2"
            else ""
        )
        raise ValueError(f"{group.name} has no 2-D irrep 'standard'{hint}; {known}")
    if name.startswith("irrep:"):
        try:
            irrep_id = ast.literal_eval(name.removeprefix("irrep:"))
        except (SyntaxError, ValueError):
            irrep_id = None
        irrep_id = irrep_id if isinstance(irrep_id, tuple) else (irrep_id,)
        for irrep in group.irreps():
            if irrep.id == irrep_id:
                return irrep
    raise ValueError(f"unknown representation {name!r}; {known}")


def _described(group: Group, spec: dict[str, Any]) -> Representation:
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
    if not isinstance(spec["irreps"], (list, tuple)):
        raise ValueError(f"expected a list of irreps, got {spec['irreps']!r}")
    irreps = [_tuples(i) for i in spec["irreps"]]
    known = {irrep.id for irrep in group.irreps()}
    if any(i not in known for i in irreps):
        raise ValueError(
            f"expected irreps of {group.name}, got {irreps}; it has {_irrep_names(group)}"
        )
    basis = np.array(spec["change_of_basis"], dtype=np.float64)
    size = sum(group.irrep(*i).size for i in irreps)
    if basis.shape != (size, size):
        raise ValueError(f"expected change_of_basis of shape {(size, size)}, got {basis.shape}")
    return Representation(
        group, f"basis_{hashlib.blake2b(basis.tobytes(), digest_size=6).hexdigest()}", irreps, basis
    )


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
    """JSON-able description from which ``parse_representation`` gives back the same matrices: a
    list of regular copies and irreps where the change of basis is theirs, else the irreps with the
    rows of the change of basis."""
    if isinstance(rep, RegularStack):
        return ["regular"] * rep.copies
    if isinstance(rep, FourierStack):
        return [{"regular_by_irreps": rep.copies}]
    regular = rep.group.regular_representation
    basis = np.asarray(rep.change_of_basis)
    parts: list[Any] = []
    irrep_index = start = 0
    while irrep_index < len(rep.irreps):
        candidates = (
            [("regular", list(regular.irreps), regular.change_of_basis)]
            if rep.group.order() > 1
            else []
        )
        irrep = rep.group.irrep(*rep.irreps[irrep_index])
        candidates.append(
            ("irrep:" + repr(irrep.id).replace(" ", ""), [irrep.id], np.eye(irrep.size))
        )
        for name, irreps, block in candidates:
            stop = start + len(block)
            expected = np.zeros((len(basis), len(block)))
            expected[start:stop] = block[: len(basis) - start]
            if list(
                rep.irreps[irrep_index : irrep_index + len(irreps)]
            ) == irreps and np.array_equal(basis[:, start:stop], expected):
                parts.append(name)
                irrep_index += len(irreps)
                start = stop
                break
        else:
            return [{"irreps": [list(i) for i in rep.irreps], "change_of_basis": basis.tolist()}]
    return parts
