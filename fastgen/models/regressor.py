"""The backbone interface: a network that maps a noisy trajectory, a time and a condition to a
regression target."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from .._core.checks import check_count

__all__ = ["GenCondRegressor"]


class GenCondRegressor(nn.Module, ABC):
    r"""Abstract conditional regressor V = f(X, Z, k), the backbone of a flow or a diffusion.

    .. math::
        f_\theta: \mathcal{X}^{T_x} \times \mathcal{Z}^{T_z} \times \mathbb{R}
            \to \mathcal{Y}^{T_x}

    with X = R^in_dim, Z = R^cond_dim and Y = R^out_dim. For a rectified flow, V is the velocity
    eps - x0 and k is the time t in [0, 1]. The class itself imposes no symmetry.

    Args:
        in_dim: d_x, channels of an X token.
        out_dim: d_v, channels of an output token.
        cond_dim: d_z, channels of a Z token.

    Raises:
        ValueError: a dimension is not a positive int.
    """

    def __init__(self, in_dim: int, out_dim: int, cond_dim: int) -> None:
        super().__init__()
        check_count("in_dim", in_dim)
        check_count("out_dim", out_dim)
        check_count("cond_dim", cond_dim)
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.cond_dim = cond_dim

    @abstractmethod
    def forward(self, X: Tensor, opt_step: Tensor | float | int, Z: Tensor) -> Tensor:
        """Evaluate the map.

        Args:
            X: noisy sample, shape (B, T_x, d_x).
            opt_step: time k, a scalar or a tensor of shape (B,).
            Z: condition, shape (B, T_z, d_z).

        Returns:
            The regression target, shape (B, T_x, d_v).
        """
