"""Real Wigner D-matrices: the one function that escnn imports from the package `lie_learn`.

The published `lie_learn` is compiled for numpy 1 and has wheels for Linux x86-64 up to Python 3.12
only. `tools/setup.sh` installs this module under its name everywhere else (newer Pythons, numpy 2,
other processors and systems), so that no compiler is needed. Same basis, same values:
tests/test_setup.py compares the two.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.linalg import expm


@cache
def _generators(degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Real antisymmetric generators (L_z, L_y), each (2l+1, 2l+1), of rotations about z and about
    y.

    The angular momentum matrices J_z, J_y of spin l in the basis m = -l..l, carried by the unitary
    map Y_m -> real harmonics (rows -m: sine type, rows +m: cosine type, Condon-Shortley phase): L =
    -i U J U^*.
    """
    m = np.arange(-degree, degree + 1)
    raising = np.diag(np.sqrt(degree * (degree + 1) - m[:-1] * (m[:-1] + 1)), -1)
    j_y = (raising - raising.T) / 2j
    to_real = np.zeros((2 * degree + 1, 2 * degree + 1), dtype=complex)
    to_real[degree, degree] = 1.0
    for k in range(1, degree + 1):
        plus, minus, sign = degree + k, degree - k, (-1) ** k
        to_real[plus, plus], to_real[plus, minus] = sign / np.sqrt(2), 1 / np.sqrt(2)
        to_real[minus, minus], to_real[minus, plus] = -1j / np.sqrt(2), 1j * sign / np.sqrt(2)
    back = to_real.conj().T
    return (to_real @ (-1j * np.diag(m)) @ back).real, (to_real @ (-1j * j_y) @ back).real


def wigner_D_matrix(
    l: int,  # noqa: E741
    alpha: float,
    beta: float,
    gamma: float,
    field: str = "real",
) -> np.ndarray:
    """Irrep of degree l of SO(3) at ZYZ Euler angles: D = exp(alpha L_z) exp(beta L_y) exp(gamma
    L_z).

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
    l_z, l_y = _generators(int(l))
    return expm(float(alpha) * l_z) @ expm(float(beta) * l_y) @ expm(float(gamma) * l_z)
