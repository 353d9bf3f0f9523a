"""The student that a distillation ends with: conditions in, samples out, both in original units.

A student with the rungs t_1 > ... > t_K > 0 makes K network calls. For a divisor k of K it also
samples in k calls, over every (K / k)-th rung: t_1, t_{1 + K/k}, ..., 0. One that was trained for
several numbers of calls has for each of them rungs of its own among t_1, ..., t_K.

The file needs torch alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._core.checks import is_count, plain_int
from .._core.masks import masks_of
from .._core.modules import as_built
from .._core.room import check_room, naming_what_to_lower
from .._core.seeds import draw_normal
from .._core.sizes import Sizes
from ..box import Box
from ..networks import network_device, network_dtype
from ..normalizer import Normalizer
from ..samplers.student import sample_student
from .arguments import arguments_of
from .conditions import check_numbers, kind_of, rows_of, z_text
from .masked import masked_condition
from .noise import check_noise, warn_of_noise
from .normalizers import more_channels
from .original_units import sample_in_original_units
from .prefixes import prefix_law
from .receding_horizon import RecedingHorizon

if TYPE_CHECKING:
    from .encoders import StudentEncoder

__all__ = ["Student"]

# Where the call of `Student.sample` stands, as `warnings.warn` counts: beyond what decorates it.
_CALLER = 4
# Bytes that no machine lacks, whose room isn't worth a look.
_FEW_BYTES = 1 << 26

# ---- Student -------------------------------------------------------------------------------------


class Student:
    """A few-step sampler X ~ p(X | Z), or X ~ p(X).

    Args:
        network: called as `network(x_t, t, cond)` on normalised, packed tokens, or on samples of
            any shape.
        t_list: [t_1 > ... > t_K > 0.0].
        steps: numbers of network calls on offer, divisors of K unless there are `t_lists`.
        t_lists: {calls: its rungs and 0.0} for each of `steps`; None: every (K / steps)-th of
            `t_list`.
        sample_type: "ode" (a rung reuses the implied noise) or "sde" (it draws fresh noise).
        pred_type: "flow", "x0" or "eps", what the network predicts.
        horizon: the shape of a sample, (T_x, d_x) of a trajectory.
        cond_horizon: (most T_z, d_z) of a condition; None: it isn't checked.
        cond_sizes: the sizes of a condition that the student was trained with, {"Z": [(least,
            most) of each axis but the rows]}, members by name ("Z.goal"); {} is no condition. None:
            they aren't known, and not checked.
        masks: what the student was trained with, "mask" (samples of unequal length) and
            "cond_mask" (conditions).
        pack: waypoints per token of a trajectory.
        prefix_max: most waypoints at the beginning of a trajectory that it was trained to be given.
        box: in original units, what finished samples are clamped to; None: they aren't.
        x_normalizer, z_normalizer: None changes nothing.
        encoder: makes Z of raw observations, which `sample` then takes; None: it takes Z.
        config: the content of config.json, for those who ask; sampling doesn't read it.

    Attributes: `network`, `encoder`, `t_list` (tuple), `steps` (tuple), `prefix_max`, `config`
    (dict), `device`, `dtype`.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        t_list: Sequence[float],
        steps: Sequence[int],
        t_lists: Mapping[int, Sequence[float]] | None = None,
        sample_type: str,
        pred_type: str,
        horizon: Sequence[int],
        cond_horizon: Sequence[int] | None,
        cond_sizes: Sizes | None = None,
        masks: Sequence[str] = (),
        pack: int = 1,
        prefix_max: int = 0,
        box: Box | None = None,
        x_normalizer: Normalizer | None = None,
        z_normalizer: Normalizer | None = None,
        encoder: StudentEncoder | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self._called: nn.Module = self.network
        self.t_list = tuple(t_list)
        self.steps = tuple(sorted(steps))
        self._t_lists = t_lists
        self._more = more_channels(x_normalizer)
        self.sample_type = sample_type
        self.pred_type = pred_type
        self.pack = pack
        self.prefix_max = prefix_max
        self.box = box
        self.horizon = tuple(horizon)
        self.cond_horizon = None if cond_horizon is None else (cond_horizon[0], cond_horizon[1])
        self.cond_sizes = cond_sizes
        self.masks = tuple(masks)
        self.x_normalizer = x_normalizer
        self.z_normalizer = z_normalizer
        self.encoder = encoder
        self.config = dict(config or {})

    @property
    def device(self) -> torch.device:
        """Where the network is and samples are returned."""
        return network_device(self.network, torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network. Samples have it too, unless they need float64 (`sample`)."""
        return network_dtype(self.network, torch.float32)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of the noise of a sample: `horizon`, with the channels that the network sees."""
        return (*self.horizon[:-1], self.horizon[-1] + self._more)

    def rungs(self, steps: int | None = None) -> tuple[float, ...]:
        """The steps + 1 times of a sampling run: every (K / steps)-th of `t_list`, or those that
        were trained for this number.

        Args:
            steps: network calls, among `.steps`; None: the most of them.

        Raises:
            ValueError: `steps` is not among `.steps`.
        """
        steps = max(self.steps) if steps is None else steps
        if not is_count(steps) or steps not in self.steps:
            raise ValueError(
                f"expected steps among those trained, {list(self.steps)}, got {steps!r}"
            )
        if self._t_lists is not None:
            return tuple(self._t_lists[steps])
        return self.t_list[:: (len(self.t_list) - 1) // steps]

    @naming_what_to_lower("num_samples", "the rows of cond")
    @torch.no_grad()
    def sample(
        self,
        cond: Any = None,
        *,
        num_samples: int | None = None,
        steps: int | None = None,
        noise: Any = None,
        mask: Any = None,
        cond_mask: Any = None,
        prefix: Any = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Draw samples of X given Z, or of X where there is nothing to condition on.

        Threads may call one student at once: what each of them gets depends on its own arguments
        alone, `generator` among them.

        Args:
            cond: Z of shape (B, T_z, d_z) in original units, T_z as it was in training. A student
                with a network of your own takes what that one does: a Tensor (labels are integers),
                a tuple or mapping of Tensors of B rows each, or None. One with an `encoder` takes
                raw observations (B, T_z, ...), by column where there are several. With None, B is
                the number of rows of `noise`, and 1 without it. One scene may come without the axis
                B, as (T_z, d_z), where `cond_horizon` is known, and so may raw observations; then
                `noise`, `prefix` and masks come without it, too, and so does the sample. Numbers
                far from the origin (times, places on a map) should come in float64; others are
                warned of.
            num_samples: K samples of each condition; None: one, without the axis K.
            steps: network calls, among `.steps`; None: the most of them.
            noise: the pure noise to start from, standard normal in the model's normalised space, in
                the result's shape, but with the channels of `.noise_shape` where some are angles
                or rotations; None: drawn, in float32, so that students of any dtype start
                from the same draw. Noise that is clearly of another law (uniform, scaled) is warned
                of: the student was trained from no other.
            mask: bool (B, T_x), True = real waypoint, for a student of trajectories of unequal
                length: what stands elsewhere in `noise` does nothing, and samples are 0 there.
                None: all are real.
            cond_mask: bool (B, T_z), True = real observation, for one that was trained with
                conditions of unequal length. `cond` may also be {"Z": Z, "mask": mask, "cond_mask":
                cond_mask}.
            prefix: (B, k, d_x) in original units, the first k waypoints of each row's samples, for
                a student that was trained to be given them (`.prefix_max`): samples begin with
                these very numbers and go on from them. With a mask, fewer than are real.
            generator: of `noise`, then of the fresh noise of "sde" rungs; None: torch's global one.
                A generator in the same state gives the same bits.

        Returns:
            (B, *horizon), or (B, K, *horizon) with `num_samples=K`: original units, the student's
            dtype and device, no gradient. In float64 where float32 is too coarse for the student's
            original units, such as times of today in seconds. NumPy arrays where `cond` holds
            arrays (without one, where `noise` is one); in float32 of a student in bfloat16.

        Raises:
            TypeError: `cond`, `noise` or `prefix` is no floating-point Tensor or array.
            ValueError: a shape or a mask that doesn't fit or that the student was not trained
                with, numbers that are no rotation, `steps` not on offer, `num_samples` not a whole
                number >= 1.
        """
        num_samples = plain_int(num_samples)
        rungs = self.rungs(plain_int(steps))
        given = arguments_of(
            self,
            cond,
            mask=mask,
            cond_mask=cond_mask,
            noise=noise,
            prefix=prefix,
            num_samples=num_samples,
        )
        cond, noise = given.cond, given.noise
        if self.encoder is not None:
            cond = self.encoder.encode(cond)
        cond = masked_condition(
            cond, given.mask, given.cond_mask, trained=self.masks, tokens=self.horizon[0]
        )
        Z, mask, cond_mask = masks_of(cond)
        shape = _shape_of_result(self, Z, num_samples, noise)
        check_numbers(Z, cond_mask, self.z_normalizer, stacklevel=_CALLER)
        if noise is None:
            shape_of_noise = (*shape[: -len(self.horizon)], *self.noise_shape)
            noise = draw_normal(shape_of_noise, device=self.device, generator=generator)
        elif mask is None:
            # Padding may hold any noise.
            warn_of_noise(noise.reshape(-1, *self.noise_shape), stacklevel=_CALLER)
        # In a copy of the student another network may stand in place of the one that was compiled.
        called = self._called if as_built(self._called) is self.network else self.network
        begun = prefix_law(self).parse(given.prefix, shape[0], num_samples or 1, mask)

        def solve(noise: Tensor, cond: Any) -> Tensor:
            network, cond = begun.around(called, cond)
            y = sample_student(
                network,
                noise,
                rungs,
                cond,
                sample_type=self.sample_type,
                pred_type=self.pred_type,
                generator=generator,
            )
            assert isinstance(y, Tensor)  # a pair only with return_all_steps
            return y

        x = sample_in_original_units(
            self.network,
            solve,
            noise.reshape(-1, *self.noise_shape),
            cond,
            x_normalizer=self.x_normalizer,
            z_normalizer=self.z_normalizer,
            pack=self.pack,
            box=self.box,
            num_samples=num_samples or 1,
        )
        return given.answer(begun.beginning(x).reshape(shape))

    def compile(self, **options: Any) -> Student:
        """Sample through `torch.compile(network, **options)` from now on; the student itself.

        The first call of each shape takes seconds. Samples are the same up to the rounding of the
        student's dtype. `network` stays what it is, and so does what is exported of it.
        """
        compiled: Any = torch.compile(self.network, **options)
        self._called = compiled
        return self

    def policy(
        self,
        execute: int | None = None,
        *,
        steps: int | None = None,
        prefix: int | None = None,
        seed: int = 0,
    ) -> RecedingHorizon:
        """Actions one at a time, of plans of which `execute` waypoints are executed; arguments and
        errors as :class:`fastgen.export.receding_horizon.RecedingHorizon`."""
        return RecedingHorizon(self, execute=execute, steps=steps, prefix=prefix, seed=seed)

    def __repr__(self) -> str:
        return _text_of(self)


def _shape_of_result(
    student: Student, cond: Any, num_samples: int | None, noise: Tensor | None
) -> tuple[int, ...]:
    """(B, *horizon) or (B, K, *horizon), after the arguments of `sample` are checked."""
    if num_samples is not None and not is_count(num_samples):
        raise ValueError(
            f"expected num_samples as a whole number >= 1 or None, got {num_samples!r}"
        )
    if noise is not None and not (isinstance(noise, Tensor) and noise.is_floating_point()):
        raise TypeError(f"expected noise as a floating-point Tensor, got {kind_of(noise)}")
    rows = rows_of(cond, student)
    if rows is None:
        # Without a condition the rows can only be those of the noise.
        rows = 1 if noise is None else noise.shape[0]
    if num_samples is not None:
        # Noise, state and samples; what the network keeps comes on top.
        each = 3 * 4 * rows * math.prod(student.horizon)
        if num_samples * each > _FEW_BYTES:
            check_room("num_samples", num_samples, each)
    samples = () if num_samples is None else (num_samples,)
    shape = (rows, *samples, *student.horizon)
    if noise is not None:
        check_noise(noise, shape, (rows, *samples, *student.noise_shape))
    return shape


def _text_of(student: Student) -> str:
    """A student in one line."""
    z = "cond"
    if student.cond_horizon is not None:
        z = f"Z {z_text(student.cond_horizon, student.cond_sizes)}"
    shape = ", ".join(map(str, student.horizon))
    group = f", group {student.config['group']}" if student.config.get("group") else ""
    numbers = sum(p.numel() for p in student.network.parameters())
    dtype = str(student.dtype).removeprefix("torch.")
    return (
        f"Student({z} -> X (B, {shape}), steps={list(student.steps)}, "
        f"t_list={list(student.t_list)}, {student.sample_type}{group}, "
        f"{type(student.network).__name__} of {numbers:,} numbers, {dtype} on {student.device})"
    )
