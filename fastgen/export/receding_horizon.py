"""A student in a closed loop: it plans, some waypoints of the plan are executed, and it plans anew.

With a horizon of T waypoints and k executed of each plan,

    plan 1   x_0 ... x_{k-1} | x_k ... x_{T-1}         executed | left
    plan 2                     y_0 ... y_{k-1} | ...   of the observation after k actions

A student that was trained to be given waypoints (`prefix_max`) goes on from what is left:
y_0 = x_k, y_1 = x_{k+1}, ..., as many as are given. So plans join without a jump; what is given is
executed whatever is observed meanwhile.

References:
    Chi et al., Diffusion Policy, 2023, arXiv:2303.04137 (receding-horizon control).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .._core.checks import is_count, plain_int

if TYPE_CHECKING:
    from .student import Student

__all__ = ["RecedingHorizon"]


class RecedingHorizon:
    """Actions of a student, one at a time: `policy(observation)`; made by `Student.policy`.

    Args:
        student: of trajectories (T_x, d_x).
        execute: k, how many waypoints of a plan are executed, 1 to T_x; None: all.
        steps: network calls of a plan, as `Student.sample` takes them.
        prefix: how many waypoints of what is left of a plan the next one is given; fewer where
            fewer are left. None: the most that the student was trained with (0 where with none).
        seed: of the noise, which has a generator of its own.

    Attributes:
        plan: the last one, (T_x, d_x) or (B, T_x, d_x), Tensor or array; None before the first.
        waiting: how many actions are left before the next plan.

    Raises:
        ValueError: numbers that the student doesn't offer, or samples that are no trajectories.
    """

    def __init__(
        self,
        student: Student,
        *,
        execute: int | None = None,
        steps: int | None = None,
        prefix: int | None = None,
        seed: int = 0,
    ) -> None:
        if len(student.horizon) != 2:
            raise ValueError(
                f"expected a student of trajectories (T_x, d_x), got one of samples "
                f"{student.horizon}; use Student.sample"
            )
        tokens = student.horizon[0]
        execute = tokens if execute is None else plain_int(execute)
        if not is_count(execute) or execute > tokens:
            raise ValueError(
                f"expected execute as a whole number from 1 to {tokens}, the waypoints of a plan, "
                f"got {execute!r}"
            )
        most = student.prefix_max
        prefix = most if prefix is None else plain_int(prefix)
        if not is_count(prefix, 0) or prefix > most or prefix % student.pack:
            whole = f", a multiple of {student.pack}" if student.pack > 1 else ""
            raise ValueError(
                f"expected prefix as a whole number from 0 to {most}{whole}, for which the student "
                f"was trained, got {prefix!r}"
            )
        student.rungs(plain_int(steps))  # refused here, before the first plan
        self.student = student
        self.execute = execute
        self.steps = steps
        self.prefix = prefix
        self._seed = _checked_seed(seed)
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        """Begin as new: without a plan, the noise from the beginning.

        Args:
            seed: of the noise from now on, such as the number of the episode; None: as it was.

        Raises:
            ValueError: no whole number from 0.
        """
        if seed is not None:
            self._seed = _checked_seed(seed)
        self._generator = torch.Generator().manual_seed(self._seed)
        self.plan: Any = None
        self.waiting = 0

    def __call__(self, observation: Any) -> Any:
        """The next action (d_x,), in original units.

        Args:
            observation: what `Student.sample` takes as `cond`: Z of one scene (T_z, d_z), or of
                several (B, T_z, d_z), whose actions are (B, d_x). It is looked at when a plan is
                made, once in `execute` calls.

        Raises:
            TypeError, ValueError: as `Student.sample`; or another number of scenes than before.
        """
        if not self.waiting:
            self._make_plan(observation)
        action = self.plan[..., self.execute - self.waiting, :]
        self.waiting -= 1
        return action

    def _make_plan(self, observation: Any) -> None:
        plan = self.student.sample(
            observation, steps=self.steps, prefix=self._left(), generator=self._generator
        )
        if self.plan is not None and plan.shape != self.plan.shape:
            raise ValueError(
                f"expected as many scenes as before, whose plans are {tuple(self.plan.shape)}, got "
                f"those of {tuple(plan.shape)}; call reset() first"
            )
        self.plan = plan
        self.waiting = self.execute

    def _left(self) -> Any:
        """What the next plan is given of the last one; None: nothing."""
        if self.plan is None:
            return None
        left = self.student.horizon[0] - self.execute
        k = min(self.prefix, left)
        k -= k % self.student.pack
        return self.plan[..., self.execute : self.execute + k, :] if k else None

    def __repr__(self) -> str:
        return (
            f"RecedingHorizon(execute={self.execute} of {self.student.horizon[0]}, "
            f"prefix={self.prefix}, steps={self.steps or max(self.student.steps)}, "
            f"seed={self._seed})"
        )


def _checked_seed(seed: Any) -> int:
    seed = plain_int(seed)
    if not is_count(seed, 0):
        raise ValueError(f"expected seed as a whole number >= 0, got {seed!r}")
    return seed
