"""Rollouts of the student: its inputs and its samples at a rung, and the draws behind them.

A student is trained on the very inputs that its sampler gives it. With backward simulation these
are states of its own rollout, without it they are noised data. One batch may be spread over
processes and micro-batches, which share its draws.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from .._core.checks import check_shape
from .._core.modules import as_built, evaluating
from .._core.prefixes import pinned
from .._core.seeds import draw_normal
from .._core.tensors import wide_dtype
from ..flow_matching import add_noise, sample_timesteps
from ..networks import Cond, predict_x0
from ..samplers.student import check_student, unroll
from .time_grids import rung_shares

if TYPE_CHECKING:
    from ..config.dmd import DMDConfig
    from ..config.groups import SampleTimestepConfig

__all__ = ["Generated", "Rollouts", "SharedDraws", "student_rungs"]


class Generated(NamedTuple):
    """Samples of the student at one rung.

    Attributes:
        x0: (B, ...), with the student's gradient where it was asked for.
        rung: index of the rung that made them, an int or integers (B,).
    """

    x0: Tensor
    rung: int | Tensor

    def detach(self) -> Generated:
        """The same samples without their gradient."""
        return Generated(self.x0.detach(), self.rung)


def student_rungs(config: DMDConfig) -> list[float]:
    """The student's trajectory `config.t_list`, as floats.

    Raises:
        ValueError: for one that contradicts `student_steps`, and what
            :func:`fastgen.samplers.check_student` refuses.
    """
    t_list = check_student(config.t_list, config.student_sample_type, config.pred_type)
    if isinstance(config.student_steps, int) and config.student_steps != len(t_list) - 1:
        raise ValueError(
            f"expected student_steps={len(t_list) - 1} for t_list={t_list}, got "
            f"{config.student_steps}"
        )
    return t_list


@dataclass(frozen=True)
class SharedDraws:
    """Draws for one global batch, of which each process or micro-batch keeps its own part.

    Every part is given a generator in the same state. It draws for the whole batch and keeps its
    own rows, so results don't depend on the number of parts.

    Attributes:
        rank: number of this part.
        world_size: number of equal parts.
        same_draws: whether all processes are sure to give generators in the same state. If not,
            what must be one number for all of them is taken from rank 0.
        across: mean of a tensor over all processes, as `Processes.mean`; None: this one is alone.

    Raises:
        ValueError: unless 0 <= rank < world_size.
    """

    rank: int = 0
    world_size: int = 1
    same_draws: bool = False
    across: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"expected 0 <= rank < world_size, got rank={self.rank}, "
                f"world_size={self.world_size}"
            )

    def alone(self) -> SharedDraws:
        """Draws for a batch that no other process has a part of."""
        return replace(self, rank=0, world_size=1, across=None)

    def part(self, index: int, of: int) -> SharedDraws:
        """Draws of part `index` of the `of` equal parts of this process's own part."""
        return replace(self, rank=self.rank * of + index, world_size=self.world_size * of)

    def own(self, x: Tensor) -> Tensor:
        """The rows of this part, of a draw `x` for the global batch."""
        size = len(x) // self.world_size
        return x[self.rank * size : (self.rank + 1) * size]

    def normal_like(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Standard normal noise shaped like `x`, the rows of this part."""
        shape = (len(x) * self.world_size, *x.shape[1:])
        return self.own(draw_normal(shape, device=x.device, dtype=x.dtype, generator=generator))

    def times_and_noise(
        self, x: Tensor, cfg: SampleTimestepConfig, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Times t (B,) from `cfg`, then noise eps shaped like `x`."""
        t = sample_timesteps(len(x) * self.world_size, cfg, device=x.device, generator=generator)
        return self.own(t), self.normal_like(x, generator)

    def mean(self, x: Tensor) -> Tensor:
        """The mean over all processes of `x`, a mean over this part; all of them must ask."""
        return x if self.across is None else self.across(x)

    def agreed(self, x: Tensor, device: torch.device) -> Tensor:
        """The draw `x` that all processes use: rank 0's, or `x` itself if theirs are the same.

        Without a broadcast no process has to wait for its GPU.
        """
        distributed = torch.distributed
        if self.same_draws or not distributed.is_available() or not distributed.is_initialized():
            return x
        x = x.to(device)
        distributed.broadcast(x, src=0)
        return x


@dataclass(frozen=True)
class Rollouts:
    """The student as it generates: in eval mode, since it must be trained on what sampling makes.

    Attributes:
        student: called `student(x_t, t, cond)`, predicts `config.pred_type`.
        config: of it `student_sample_type`, `backward_simulation`, `rung_weights`, `first_rung`,
            `t_lists`.
        t_list: the student's trajectory [t_1 > ... > 0.0].
        draws: of the batch that is generated.
    """

    student: nn.Module
    config: DMDConfig
    t_list: Sequence[float]
    draws: SharedDraws

    @property
    def num_rungs(self) -> int:
        """Number of the student's rungs."""
        return len(self.t_list) - 1

    def student_input(
        self,
        x0: Tensor | None,
        noise: Tensor,
        cond: Cond = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, float | Tensor, int | Tensor]:
        """An input that the student is trained on, with its time and the index of its rung.

        With backward simulation it is a state of the student's own rollout, made by the function
        that samples it (:func:`fastgen.samplers.unroll`), at one rung for the whole global batch,
        of one number of calls where the student serves several.
        Without, it is real data noised at a rung drawn for each sample; at the first rung it is
        pure noise t_1 * noise.

        Args:
            x0: data (B, ...), needed without backward simulation of several rungs.
            noise: standard normal (B, ...).
            cond: the student's condition.
            generator: source of the number of calls, of the rung, then of the sde noise.

        Returns:
            `(x_t, t, rung)`: x_t (B, ...) without gradient; t and rung are a float and an int, or
            tensors (B,).

        Raises:
            ValueError: for missing data, or data that aren't shaped like the noise.
        """
        if x0 is not None:
            check_shape("x0", x0, noise.shape)
        if self.config.backward_simulation or self.num_rungs == 1:
            return self._state_of_rollout(noise, cond, generator)
        if x0 is None:
            raise ValueError("expected x0 for backward_simulation=False, got None")
        return self._noised_data(x0, noise, generator)

    def generate(
        self,
        x0: Tensor | None,
        noise: Tensor,
        cond: Cond = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Generated:
        """The student's x0 at one rung, in the dtype of `noise`, with its gradient; the very prefix
        at tokens that the condition gives, without one.

        Arguments and errors are those of `student_input`.
        """
        x_t, t, rung = self.student_input(x0, noise, cond, generator=generator)
        with evaluating(self.student):
            made = predict_x0(
                self.student, x_t, t, cond, pred_type=self.config.pred_type, dtype=noise.dtype
            )
        return Generated(pinned(made.to(noise.dtype), cond), rung)

    def _state_of_rollout(
        self, noise: Tensor, cond: Cond, generator: torch.Generator | None
    ) -> tuple[Tensor, float, int]:
        t_list = self._t_list_for_all(noise.device, generator)
        rung = self._rung_for_all(len(t_list) - 1, noise.device, generator)
        states = unroll(
            as_built(self.student),
            noise,
            t_list,
            cond,
            sample_type=self.config.student_sample_type,
            pred_type=self.config.pred_type,
            draw_noise=lambda: self.draws.normal_like(noise, generator),
        )
        with torch.no_grad(), evaluating(self.student):
            x_t = next(itertools.islice(states, rung, None))
        return x_t, t_list[rung], self.t_list.index(t_list[rung])

    def _noised_data(
        self, x0: Tensor, noise: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = noise.device
        drawn = self._rungs(len(noise) * self.draws.world_size, device, generator)
        rungs = self.draws.own(drawn).to(device)
        t = torch.tensor(self.t_list, dtype=wide_dtype(device)).to(device)[rungs]
        first = (rungs == 0).reshape(-1, *(1,) * (noise.ndim - 1))
        # Sampling starts from noise alone, so the first rung holds no trace of x0.
        x_t = add_noise(x0.masked_fill(first, 0.0), noise, t)
        return x_t, t, rungs

    def _t_list_for_all(
        self, device: torch.device, generator: torch.Generator | None
    ) -> Sequence[float]:
        """The trajectory of the global batch: the student's, or that of one of its numbers of
        calls, all drawn equally often."""
        if not self._serves_several:
            return self.t_list
        t_lists = list(self.config.t_lists.values())
        place = device if generator is None else generator.device
        drawn = torch.randint(len(t_lists), (1,), device=place, generator=generator)
        return t_lists[int(self.draws.agreed(drawn, device))]

    def _rung_for_all(
        self, rungs: int, device: torch.device, generator: torch.Generator | None
    ) -> int:
        """One of `rungs` for the global batch: processes on different rungs would make different
        numbers of calls, and wait for each other forever."""
        if rungs == 1:
            return 0
        if not self._serves_several:
            drawn = self._rungs(1, device, generator)
        else:
            place = device if generator is None else generator.device
            drawn = torch.randint(rungs, (1,), device=place, generator=generator)
        return int(self.draws.agreed(drawn, device))

    def _rungs(self, n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """n rungs, drawn as often as `rung_weights` say, the first one never if it regresses; those
        of several numbers of calls as often as the numbers have them."""
        place = device if generator is None else generator.device
        matched: Sequence[float] = self.config.matched_rungs(self.num_rungs)
        if self._serves_several:
            matched = rung_shares(self.config.t_lists.values())
        if not matched:
            return torch.randint(self.num_rungs, (n,), device=place, generator=generator)
        weights = torch.tensor(matched, device=place)
        return torch.multinomial(weights, n, replacement=True, generator=generator)

    @property
    def _serves_several(self) -> bool:
        """Whether the rungs are those of several numbers of calls."""
        return len(self.config.t_lists) > 1
