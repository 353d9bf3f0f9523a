"""The prefix of a student's samples: waypoints in original units that they go on from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._core.prefixes import with_prefix
from .._core.tensors import wide_dtype
from ..channel_kinds import KindNormalizer
from ..networks import network_device
from ..normalizer import Normalizer, pack_tokens
from ..teachers.prefixed import PrefixedNetwork

if TYPE_CHECKING:
    from .student import Student

__all__ = ["Given", "PrefixLaw", "prefix_law"]


class Given(NamedTuple):
    """Waypoints that are given of each sample, or none.

    Attributes:
        waypoints: (R, T_x, d_x), in original units, with anything beyond those given; None: nothing
            is given.
        tokens: (R, T_x / pack, d_x pack), the same as networks see them.
        lengths: (R,), how many waypoints are given.
        pack: waypoints per token.
        pred_type: what the student predicts.
    """

    waypoints: Tensor | None = None
    tokens: Tensor | None = None
    lengths: Tensor | None = None
    pack: int = 1
    pred_type: str = "flow"

    def repeated(self, num_samples: int) -> Given:
        """The same of so many samples of each row, one after the other."""
        if self.waypoints is None or self.tokens is None or self.lengths is None:
            return self
        return self._replace(
            waypoints=self.waypoints.repeat_interleave(num_samples, 0),
            tokens=self.tokens.repeat_interleave(num_samples, 0),
            lengths=self.lengths.repeat_interleave(num_samples, 0),
        )

    def around(self, network: nn.Module, cond: Any) -> tuple[nn.Module, Any]:
        """What a sampler calls in place of `network`, and with which condition."""
        if self.tokens is None or self.lengths is None:
            return network, cond
        place = network_device(network, self.tokens.device)
        tokens = self.tokens.to(wide_dtype(place)).to(place)
        coat = PrefixedNetwork(network, pred_type=self.pred_type)
        return coat, with_prefix(cond, tokens, self.lengths // self.pack)

    def beginning(self, x: Tensor) -> Tensor:
        """Samples x (R, T_x, d_x) with the very waypoints that were given at their beginning."""
        if self.waypoints is None or self.lengths is None:
            return x
        places = torch.arange(x.shape[1], device=x.device)
        is_given = places < self.lengths.to(x.device)[:, None]
        return torch.where(is_given[..., None], self.waypoints.to(x), x)


class PrefixLaw(NamedTuple):
    """What a student may be given.

    Attributes:
        most: waypoints that it was trained to be given; 0: none.
        horizon: the shape of a sample, (T_x, d_x) of a trajectory.
        pack: waypoints per token, which k is a multiple of.
        pred_type: what it predicts.
        x_normalizer: None changes nothing.
    """

    most: int
    horizon: tuple[int, ...]
    pack: int
    pred_type: str
    x_normalizer: Normalizer | None

    def parse(self, prefix: Any, rows: int, num_samples: int, mask: Tensor | None = None) -> Given:
        """A prefix as a user gives it, checked, and as networks see it.

        Args:
            prefix: (B, k, d_x), original units; None: nothing is given.
            rows: B.
            num_samples: samples of each condition, all of which begin so.
            mask: bool (B, T_x), True = real waypoint; None: all are.

        Raises:
            TypeError: no floating-point Tensor.
            ValueError: another shape, a student that wasn't trained for it, tokens given in part,
                padding or all real waypoints of a row given, numbers that are no rotation.
        """
        if prefix is None:
            return Given()
        self._check(prefix, rows)
        if isinstance(self.x_normalizer, KindNormalizer):
            self.x_normalizer.kinds.check("prefix", prefix)
        if mask is not None:
            _check_open(mask, prefix.shape[1])
        found = self.given(prefix, torch.full((rows,), prefix.shape[1]))
        return found.repeated(num_samples)

    def given(self, prefix: Tensor, lengths: Tensor) -> Given:
        """The first `lengths` (R,) waypoints of prefix (R, k, d_x), in original units, as networks
        see them; nothing is checked."""
        whole = F.pad(prefix, (0, 0, 0, self.horizon[0] - prefix.shape[1]))
        # In float64: waypoints far from the origin must not lose their digits before the mean is
        # taken off.
        seen = whole.double()
        if self.x_normalizer is not None:
            seen = self.x_normalizer.normalize(seen)
        tokens = pack_tokens(seen, self.pack) if self.pack > 1 else seen
        return Given(whole, tokens, lengths, self.pack, self.pred_type)

    def _check(self, prefix: Any, rows: int) -> None:
        if not isinstance(prefix, Tensor) or not prefix.is_floating_point():
            kind = type(prefix).__name__
            got = f"a Tensor of {prefix.dtype}" if isinstance(prefix, Tensor) else kind
            raise TypeError(f"expected prefix as a floating-point Tensor (B, k, d_x), got {got}")
        if not self.most:
            raise ValueError(
                "expected no prefix for a student that was not trained with one, got "
                f"{tuple(prefix.shape)}; distil with train.prefix_max"
            )
        d_x = self.horizon[1]
        fits = prefix.ndim == 3 and prefix.shape[0] == rows and prefix.shape[2] == d_x
        if not fits or not 1 <= prefix.shape[1] <= self.most or prefix.shape[1] % self.pack:
            whole = f", a multiple of {self.pack}" if self.pack > 1 else ""
            raise ValueError(
                f"expected prefix of shape ({rows}, 1 <= k <= {self.most}{whole}, {d_x}), got "
                f"{tuple(prefix.shape)}"
            )


def prefix_law(student: Student) -> PrefixLaw:
    """What may be given of a student's samples, and how its network sees it."""
    return PrefixLaw(
        student.prefix_max,
        student.horizon,
        student.pack,
        student.pred_type,
        student.x_normalizer,
    )


def _check_open(mask: Tensor, k: int) -> None:
    """Refuse k waypoints that are given where a row of `mask` (B, T_x) has padding among them, or
    nothing real after them."""
    fits = mask[:, :k].all(1) & mask[:, k:].any(1)
    if not bool(fits.all()):
        row = int((~fits).nonzero()[0])
        raise ValueError(
            f"expected the first {k} waypoints of mask to be real, since prefix gives them, and "
            f"more after them, got {int(mask[row].sum())} real ones in row {row}; sample rows of "
            "other lengths by themselves, with a shorter prefix"
        )
