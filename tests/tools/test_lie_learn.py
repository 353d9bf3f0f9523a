"""The stand-in for lie_learn: its matrices are irreps of rotations, as the package's are."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def load(name: str, path: Path) -> ModuleType:
    """A module from a file that isn't in a package."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


stand_in = load(
    "wigner_d_stand_in", ROOT / "tools" / "lie_learn" / "lie_learn/representations/SO3/wigner_d.py"
)
ANGLES = np.random.default_rng(0).uniform(-np.pi, np.pi, (6, 3))


def rotation(degree: int, angles: np.ndarray) -> np.ndarray:
    return stand_in.wigner_D_matrix(degree, *angles)


def angles_of(matrix: np.ndarray) -> np.ndarray:
    """ZYZ angles (alpha, beta, gamma) of a rotation matrix in the axes (x, y, z)."""
    alpha, beta = np.arctan2(matrix[1, 2], matrix[0, 2]), np.arccos(np.clip(matrix[2, 2], -1, 1))
    return np.array([alpha, beta, np.arctan2(matrix[2, 1], -matrix[2, 0])])


def turned(alpha: float, beta: float, gamma: float) -> np.ndarray:
    """The rotation matrix of ZYZ angles, from the definition."""

    def z(angle: float) -> np.ndarray:
        c, s = np.cos(angle), np.sin(angle)
        return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])

    c, s = np.cos(beta), np.sin(beta)
    return z(alpha) @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) @ z(gamma)


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 6])
def test_the_stand_ins_matrices_are_orthogonal_irreps_of_rotations(degree):
    for first, second in zip(ANGLES, ANGLES[::-1], strict=True):
        a, b = rotation(degree, first), rotation(degree, second)
        assert a.shape == (2 * degree + 1,) * 2 and a.dtype == np.float64
        assert np.abs(a @ a.T - np.eye(len(a))).max() < 1e-12
        product = rotation(degree, angles_of(turned(*first) @ turned(*second)))
        assert np.abs(product - a @ b).max() < 1e-10
        # Which irrep it is, up to a basis: its character, a function of the angle w of the rotation
        # alone.
        w = np.arccos(np.clip((np.trace(turned(*first)) - 1) / 2, -1, 1))
        assert np.trace(a) == pytest.approx(np.sin((degree + 0.5) * w) / np.sin(w / 2), abs=1e-8)


def test_degree_one_is_the_rotation_of_y_z_x():
    for angles in ANGLES:
        permuted = turned(*angles)[np.ix_([1, 2, 0], [1, 2, 0])]
        assert np.abs(rotation(1, angles) - permuted).max() < 1e-12


def test_the_stand_ins_values_are_those_of_lie_learn_to_the_last_bit():
    """Values of the published lie_learn 0.0.2 (MIT), which needs numpy 1 and a processor of its
    own; sines and cosines of another library may differ in their last bit."""
    published = np.load(Path(__file__).with_name("lie_learn.npz"))
    for degree in range(7):
        for angles, expected in zip(ANGLES, published[f"d{degree}"], strict=False):
            assert np.abs(rotation(degree, angles) - expected).max() < 1e-15


def test_the_stand_in_is_as_orthogonal_as_float64_can_be():
    for degree in range(9):
        for angles in ANGLES:
            matrix = rotation(degree, angles)
            assert np.abs(matrix @ matrix.T - np.eye(2 * degree + 1)).max() < 2e-15


def test_what_is_installed_agrees_with_the_stand_in():
    # What is importable is the published package, or the stand-in where no wheel of it fits; both
    # must agree.
    from lie_learn.representations.SO3.wigner_d import wigner_D_matrix

    for degree in range(7):
        for angles in ANGLES:
            # Called as escnn calls it.
            published = wigner_D_matrix(degree, *angles, field="real")
            assert np.abs(rotation(degree, angles) - published).max() < 1e-9


def test_the_stand_in_refuses_what_it_does_not_have():
    with pytest.raises(ValueError, match="real irreps only"):
        stand_in.wigner_D_matrix(1, 0.1, 0.2, 0.3, field="complex")
