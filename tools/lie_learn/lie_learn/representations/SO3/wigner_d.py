"""Real Wigner D-matrices: the one function that escnn imports from the package `lie_learn`.

The published `lie_learn` is compiled for numpy 1 and has wheels for Linux x86-64 up to Python 3.12
only. `tools/setup.sh` installs this module under its name, so that neither a compiler nor an old
numpy is needed. Same basis, same values to the last bit or two: tests/tools/test_lie_learn.py
compares them with values of the package.

A rotation by half a turn about (y + z) / sqrt(2) exchanges the axes y and z. With J its matrix,

    D(alpha, beta, gamma) = Z(alpha) J Z(beta) J Z(gamma),

where Z, a rotation about z, has cosines and sines of multiples of its angle (Pinchon and Hoggan,
2007).
"""

from __future__ import annotations

from functools import cache

import numpy as np

# J is computed with the longest numbers that there are, and rounded at the end.
_PI = np.longdouble("3.14159265358979323846264338327950288")
_TERMS = 30


@cache
def _exchange(degree: int) -> np.ndarray:
    """J, symmetric and orthogonal, (2l+1, 2l+1)."""
    l_z, l_y = _generators(degree)
    j = _exponential(_PI * (l_y + l_z) / np.sqrt(np.longdouble(2)))
    # What is 0 is so to the rounding of longer numbers.
    return np.where(np.abs(j) < 1e-15, 0.0, (j + j.T) / 2).astype(np.float64)


def _generators(degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Real antisymmetric generators (L_z, L_y), each (2l+1, 2l+1), of rotations about z and about
    y.

    The angular momentum matrices J_z, J_y of spin l in the basis m = -l..l, carried by the unitary
    map Y_m -> real harmonics (rows -m: sine type, rows +m: cosine type, Condon-Shortley phase): L =
    -i U J U^*.
    """
    m = np.arange(-degree, degree + 1)
    steps = degree * (degree + 1) - m[:-1] * (m[:-1] + 1)
    raising = np.diag(np.sqrt(steps.astype(np.longdouble)), -1)
    j_y = (raising - raising.T) / np.clongdouble(2j)
    half = 1 / np.sqrt(np.longdouble(2))
    to_real = np.zeros((2 * degree + 1, 2 * degree + 1), dtype=np.clongdouble)
    to_real[degree, degree] = 1.0
    for k in range(1, degree + 1):
        plus, minus, sign = degree + k, degree - k, (-1) ** k
        to_real[plus, plus], to_real[plus, minus] = sign * half, half
        to_real[minus, minus], to_real[minus, plus] = -1j * half, 1j * sign * half
    back = to_real.conj().T
    j_z = np.diag(m).astype(np.clongdouble)
    return (to_real @ (-1j * j_z) @ back).real, (to_real @ (-1j * j_y) @ back).real


def _exponential(x: np.ndarray) -> np.ndarray:
    """exp(x): the series of a small part of x, squared until it is that of x."""
    halvings = max(0, int(np.ceil(np.log2(float(np.abs(x).sum(1).max()) + 1e-9)))) + 1
    term = np.eye(len(x), dtype=x.dtype)
    total = term.copy()
    for k in range(1, _TERMS):
        term = term @ x / (k * x.dtype.type(2) ** halvings)
        total = total + term
    for _ in range(halvings):
        total = total @ total
    return total


def _about_z(degree: int, angle: float) -> np.ndarray:
    """Z: rotation by an angle about z, (2l+1, 2l+1)."""
    index = np.arange(2 * degree + 1)
    order = np.arange(degree, -degree - 1, -1)
    turned = np.zeros((2 * degree + 1, 2 * degree + 1))
    turned[index, index[::-1]] = np.sin(order * angle)
    turned[index, index] = np.cos(order * angle)
    return turned


def wigner_D_matrix(
    l: int,  # noqa: E741
    alpha: float,
    beta: float,
    gamma: float,
    field: str = "real",
) -> np.ndarray:
    """Irrep of degree l of SO(3) at ZYZ Euler angles.

    Args:
        l: degree >= 0 (the name is lie_learn's).      alpha, beta, gamma: angles in radians.
        field: only "real", the basis of real spherical harmonics ordered m = -l..l.
    Returns: orthogonal matrix (2l+1, 2l+1), float64.
    Raises: ValueError for another `field`: install the published lie_learn for that.
    """
    if field != "real":
        raise ValueError(
            f"expected field 'real', got {field!r}: this stand-in for lie_learn has the real "
            "irreps only"
        )
    degree = int(l)
    j = _exchange(degree)
    first, second, third = (_about_z(degree, float(x)) for x in (alpha, beta, gamma))
    return first @ j @ second @ j @ third
