"""Groups and representations survive a trip through JSON; a name that means nothing is refused with
what exists."""

from __future__ import annotations

import json

import numpy as np
import pytest
from escnn import group as escnn_group
from escnn.group import change_basis, directsum

from fastgen.models import (
    describe_group,
    describe_representation,
    parse_group,
    parse_representation,
)
from fastgen.models.stacks import RegularStack

GROUPS = ["C2", "C3", "C4", "C8", "D3", "D4", "D6", "Icosahedral"]
D4 = escnn_group.dihedral_group(4)


def same(a, b) -> bool:
    """Equal matrices on the generators, to the last digits."""
    assert a.group == b.group
    return a.size == b.size and all(np.abs(a(g) - b(g)).max() < 1e-14 for g in a.group.generators)


# ---- Groups --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("C1", 1),
        ("C2", 2),
        ("C3", 3),
        ("C8", 8),
        ("C12", 12),
        ("D1", 2),
        ("D2", 4),
        ("D4", 8),
        ("Icosahedral", 60),
        ("C2xC2", 4),
        ("D3xC2", 12),
        ("C2xC2xC2", 8),
        ("C2xIcosahedral", 120),
    ],
)
def test_a_name_gives_its_group_and_a_group_its_name(name, order):
    group = parse_group(name)
    assert group.order() == order
    assert describe_group(group) == name
    assert parse_group(name) == group and parse_group(f" {name} ") == group


def test_spelling_of_products_and_of_named_groups_is_free():
    assert parse_group("C2 x D3") == parse_group("C2XD3") == parse_group("C2xD3")
    assert parse_group("icosahedral") == parse_group("Icosahedral")


def test_groups_are_those_of_escnn():
    assert parse_group("D6") == escnn_group.dihedral_group(6) and parse_group(
        "C8"
    ) == escnn_group.cyclic_group(8)
    assert describe_group(escnn_group.ico_group()) == "Icosahedral"
    product = escnn_group.direct_product(escnn_group.cyclic_group(3), escnn_group.dihedral_group(2))
    assert describe_group(product) == "C3xD2" and parse_group("C3xD2") == product


@pytest.mark.parametrize(
    "name",
    ["", "c4", "C0", "C-1", "C", "D4.0", "SO2", "E3", "xC2", "C2x", "C2*C2", None, 4, ["C4"]],
)
def test_an_unknown_group_is_refused_with_what_exists(name):
    with pytest.raises(
        ValueError,
        match="unknown group .* expected C<n>, D<n>, Icosahedral, Octahedral or a product",
    ):
        parse_group(name)


@pytest.mark.parametrize(
    "make", [escnn_group.so2_group, escnn_group.o2_group, escnn_group.so3_group]
)
def test_an_infinite_group_has_no_name(make):
    with pytest.raises(ValueError):
        describe_group(make())


# ---- Names of representations --------------------------------------------------------------------


def test_names_of_a_dihedral_group():
    turn, mirror = D4.generators
    expected = {
        "trivial": ([[1]], [[1]]),
        "sign": ([[1]], [[-1]]),
        "standard": ([[0, -1], [1, 0]], [[1, 0], [0, -1]]),
        "irrep:1,1": ([[0, -1], [1, 0]], [[1, 0], [0, -1]]),
        "irrep:(0, 2)": ([[-1]], [[1]]),
    }
    for name, (of_turn, of_mirror) in expected.items():
        rep = parse_representation(D4, name)
        assert np.allclose(rep(turn), of_turn, atol=1e-15) and np.allclose(
            rep(mirror), of_mirror, atol=1e-15
        )
    assert parse_representation(D4, "regular").size == 8


def test_names_of_cyclic_and_icosahedral_groups(represent, count):
    C4, C3 = parse_group("C4"), parse_group("C3")
    turn = C4.generators[0]
    assert np.allclose(parse_representation(C4, "sign")(turn), [[-1]])
    assert np.allclose(parse_representation(C4, "standard")(turn), [[0, -1], [1, 0]], atol=1e-15)
    assert np.allclose(
        parse_representation(C3, "standard")(C3.generators[0]) @ [1, 0], [-0.5, 0.75**0.5]
    )
    assert parse_representation(C4, "irrep:2").id == (2,)
    space = parse_representation(parse_group("Icosahedral"), "standard")
    assert space.size == 3
    for g in space.group.generators:
        assert np.linalg.det(space(g)) == pytest.approx(1)  # rotations of space
    assert parse_representation(parse_group("Icosahedral"), "irrep:2").size == 5


def test_a_list_is_a_direct_sum_in_its_order():
    rep = parse_representation(D4, ["standard", "trivial", "regular", "sign"])
    parts = [D4.irrep(1, 1), D4.trivial_representation, D4.regular_representation, D4.irrep(1, 0)]
    assert same(rep, directsum(parts))
    assert same(parse_representation(D4, ["standard"]), D4.irrep(1, 1))
    assert same(
        parse_representation(D4, [["standard", "trivial"], "sign"]),
        directsum([*parts[:2], parts[3]]),
    )


def test_regular_copies_need_no_change_of_basis():
    rep = parse_representation(D4, ["regular"] * 3)
    assert isinstance(rep, RegularStack) and same(rep, directsum([D4.regular_representation] * 3))


@pytest.mark.parametrize(
    ("group", "spec", "words"),
    [
        (
            "D4",
            "vector",
            r"unknown representation 'vector'; D4 has trivial, regular, irrep:\(0,0\), irrep:"
            r"\(1,0\)",
        ),
        ("D4", ["standard", "nope"], "unknown representation 'nope'"),
        ("D4", "irrep:7", "unknown representation 'irrep:7'"),
        ("D4", "irrep:1,9", "unknown representation"),
        ("D4", "irrep:", "unknown representation"),
        ("D4", "irrep:(", "unknown representation"),
        ("D4", "irrep:__import__('os')", "unknown representation"),
        ("C3", "sign", "C3 has no representation 'sign'; C3 has trivial, regular"),
        (
            "C2",
            "standard",
            r"C2 has no 2-D irrep 'standard'; write a reflection .* as \[trivial, sign\]",
        ),
        ("D2", "standard", "D2 has no 2-D irrep 'standard'"),
        ("C2xC2", "sign", "no representation 'sign'"),
        ("D4", [], r"non-empty list of names, got \[\]"),
        ("D4", None, "non-empty list of names, got None"),
        ("D4", 3, "non-empty list of names, got 3"),
        (
            "D4",
            {"matrix": "a.npz"},
            r"keys irreps and change_of_basis, or matrices, got \['matrix'\]",
        ),
        ("D4", {"irreps": [[1, 1]]}, "keys irreps and change_of_basis"),
        (
            "D4",
            {"irreps": [[5, 5]], "change_of_basis": [[1.0]]},
            r"expected irreps of D4, got \[\(5, 5\)\]",
        ),
        (
            "D4",
            {"irreps": [[1, 1]], "change_of_basis": [[1.0]]},
            r"change_of_basis of shape \(2, 2\), got \(1, 1\)",
        ),
    ],
)
def test_an_unknown_representation_is_refused_with_what_exists(group, spec, words):
    with pytest.raises(ValueError, match=words):
        parse_representation(parse_group(group), spec)


# ---- Round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", ["small", "mixed", 1, 2])
@pytest.mark.parametrize("group", GROUPS)
def test_a_representation_survives_json(group, kind, turned, represent):
    rep = represent(group, kind, turned=turned)
    again = parse_representation(
        parse_group(describe_group(rep.group)), json.loads(json.dumps(describe_representation(rep)))
    )
    assert same(again, rep)
    assert describe_representation(again) == describe_representation(rep)


@pytest.mark.parametrize("group", ["C2xC2", "C3xD3", "D2", "C1"])
def test_representations_of_other_groups_survive_json_too(group):
    group = parse_group(group)
    for rep in [
        *group.irreps(),
        group.regular_representation,
        directsum([*group.irreps(), group.regular_representation]),
    ]:
        assert same(
            parse_representation(group, json.loads(json.dumps(describe_representation(rep)))), rep
        )


@pytest.mark.parametrize(
    ("spec", "described"),
    [
        (["regular", "regular"], ["regular", "regular"]),
        (["standard", "trivial"], ["irrep:(1,1)", "irrep:(0,0)"]),
        (["standard", "regular"], ["irrep:(1,1)", "regular"]),
    ],
)
def test_what_has_a_name_is_described_by_it(spec, described):
    assert describe_representation(parse_representation(D4, spec)) == described


def test_another_basis_is_described_by_its_numbers():
    swapped = change_basis(
        directsum([D4.irrep(1, 1), D4.irrep(1, 0)]), np.eye(3)[::-1].copy(), "swapped"
    )
    (described,) = describe_representation(swapped)
    assert described == {
        "irreps": [[1, 1], [1, 0]],
        "change_of_basis": [[0, 0, 1], [0, 1, 0], [1, 0, 0]],
    }


# ---- Matrices from a file ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("group", ["C3", "D4"])
def test_matrices_from_a_file_are_that_representation(tmp_path, group, dtype, represent):
    rep = represent(group, "mixed", turned=True)
    path = tmp_path / "rep.npz"
    np.savez(path, matrices=np.stack([rep(g) for g in rep.group.generators]).astype(dtype))
    for spec in ({"matrices": str(path)}, [{"matrices": str(path)}]):
        found = parse_representation(rep.group, spec)
        assert all(
            np.abs(found(g) - rep(g)).max() < 8 * np.finfo(dtype).eps for g in rep.group.elements
        )
    path.unlink()
    # The description holds the numbers, not the path: a saved network doesn't need the file.
    assert same(
        parse_representation(rep.group, json.loads(json.dumps(describe_representation(found)))),
        found,
    )


def test_a_file_may_be_one_of_several_parts(tmp_path):
    np.savez(tmp_path / "rep.npz", matrices=np.stack([np.eye(1), -np.eye(1)]))
    rep = parse_representation(D4, ["standard", {"matrices": str(tmp_path / "rep.npz")}])
    assert same(rep, directsum([D4.irrep(1, 1), D4.irrep(1, 0)]))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (
            {"matrices": np.stack([np.eye(2), np.array([[0.0, 1.0], [-1.0, 0.0]])])},
            "multiply as D4 does",
        ),
        ({"matrices": np.stack([2 * np.eye(2), np.eye(2)])}, "orthogonal matrix"),
        ({"matrices": np.eye(2)[None]}, r"expected matrices of shape \(2, d, d\)"),
        ({"rho": np.eye(2)[None]}, r"expected an array 'matrices' in .*rep.npz, got \['rho'\]"),
    ],
)
def test_a_file_that_holds_no_representation_is_refused_by_its_name(tmp_path, arrays, words):
    path = tmp_path / "rep.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=words) as caught:
        parse_representation(D4, {"matrices": str(path)})
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not an archive", "a lone array"])
def test_a_file_that_is_no_archive_is_refused_by_its_name(tmp_path, content):
    path = tmp_path / "rep.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with path.open("wb") as file:
            np.save(file, np.eye(2)[None])
    with pytest.raises(ValueError, match="rep.npz"):
        parse_representation(D4, {"matrices": str(path)})


def test_a_missing_file_is_reported_as_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.npz"):
        parse_representation(D4, {"matrices": str(tmp_path / "nowhere.npz")})


@pytest.mark.parametrize(
    "spec",
    [
        {"irreps": [[1, 1]], "change_of_basis": [[1.0, 0.0], [1.0, 0.0]]},
        {"irreps": 3, "change_of_basis": [[1.0]]},
        {"irreps": [1], "change_of_basis": [[1.0]]},
        {"irreps": [[1, 1]], "change_of_basis": [["a", 0], [0, 1]]},
        {"irreps": [[1, 1]], "change_of_basis": [[float("nan"), 0], [0, 1]]},
        {"matrices": 3},
    ],
)
def test_a_broken_description_is_a_value_error(spec):
    with pytest.raises(ValueError):
        parse_representation(D4, spec)
