"""The networks of a run, built in one place: training and the plan both ask here."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from .._core.caches import renew_caches
from .._core.conditions import (
    cond_text,
    cond_to,
    map_tensors,
    named_tensors,
    take_rows,
    tensors_in,
)
from .._core.copies import copied
from .._core.masks import cond_without_masks, token_mask
from .._core.messages import first_names
from .._core.precision import in_full_precision, is_uniform, trainable
from .._core.prefixes import cond_without_prefix, drawn_lengths, prefix_of, with_prefix
from .._core.row_counts import RowCount
from .._core.seeds import generator_for
from ..config.prefix import prefix_tokens
from ..config.schemas import DistillConfig
from ..data import Data
from ..data.files import load_conditions, load_members
from ..export.encoders import StudentEncoder
from ..guidance import Guidance
from ..methods.method import Batch, Networks
from ..networks import Cond, network_dtype, parameters_to, tokens_given
from ..teachers.answer import answer_of
from ..teachers.counted import CountedNetwork
from ..teachers.couplings import Coupling, coupling_of
from ..teachers.guided import GuidedNetwork
from ..teachers.half import Bfloat16Network, in_own_precision
from ..teachers.prefixed import PrefixedNetwork
from ..training.recompute import recompute_blocks
from .students import OwnNetwork, give_layers, network_note

__all__ = ["Setup", "guided_teacher"]


class Setup(Networks):
    """The teacher of a run as it is called, and untrained networks with its weights.

    What one method alone needs (a fake score, a discriminator) stands in that method's file; it is
    made there from what is offered here, once for training and once for a plan.

    Args:
        cfg: of the run, with what its method implies.
        teacher: on its device, in eval mode, called `teacher(x_t, t, cond)`. Changed in place where
            `teacher.dtype` or `train.gradient_checkpointing` ask for it. Of whatever precision:
            it is called in its own, while students are float32 (`student`).
        data: the training set.

    Attributes:
        source: the network whose weights students start from.
        rows: how many rows were asked of the teacher, by part of the run.
        uncounted: what is called as the teacher, without guidance, and isn't counted.
        unguided: the same, counted.
        teacher: what is distilled, scored and drawn; it guides itself if asked to.
        x0, cond: the training data as networks see them, N rows each.
        encoder: what made the condition of raw observations, which students are exported with; None
            until it is set.
        prefix_tokens: most tokens of a sample that its condition gives; 0: none are.
        in_order: whether the order of these rows may mean something.
        x_normalizer: of the data; None: they are seen as they are.

    Raises:
        ValueError: a teacher in float64 that is to be in bfloat16; no blocks to compute twice; a
            null condition that can't be used.
    """

    def __init__(self, cfg: DistillConfig, teacher: nn.Module, data: Data) -> None:
        self.cfg = cfg
        self.encoder: StudentEncoder | None = None
        self.x0, cond = data.network_inputs()
        # A user's own data need not say.
        self.in_order = getattr(data, "in_order", True)
        self.x_normalizer = getattr(data, "x_normalizer", None)
        # As students take it; a teacher in half precision casts it for itself.
        dtype = torch.promote_types(network_dtype(teacher, self.x0.dtype), torch.float32)
        self.cond = cond_to(cond, dtype=dtype)
        self._dtype = dtype
        renew_caches(teacher)
        self.source = teacher
        # As it was read: `teacher.dtype` changes it.
        self._uniform = is_uniform(teacher)
        in_float64 = any(parameter.dtype == torch.float64 for parameter in teacher.parameters())
        if cfg.teacher.dtype is not None and in_float64:
            raise ValueError(
                f"expected teacher.dtype=null for a teacher in float64, got {cfg.teacher.dtype}"
            )
        if cfg.train.gradient_checkpointing:
            recompute_blocks(teacher)
        if cfg.teacher.dtype is not None:
            self.uncounted = Bfloat16Network(teacher).eval()
        else:
            self.uncounted = in_own_precision(teacher, self.x0, self.cond)
        self.prefix_tokens = prefix_tokens(cfg.train.prefix_max, data)
        if self.prefix_tokens:
            told = tokens_given(teacher) >= self.prefix_tokens
            way = "times" if told else "replacement"
            self.uncounted = PrefixedNetwork(self.uncounted, way, cfg.student.pred_type).eval()
            none = torch.zeros(len(self.x0))
            self.cond = self.with_prefixes(with_prefix(self.cond, self.x0, none))
        self.rows = RowCount()
        self.unguided = CountedNetwork(self.uncounted, self.rows)
        self.unguided.training = self.uncounted.training
        self.teacher = guided_teacher(cfg, self.unguided, data)

    def student(self) -> nn.Module:
        """What is trained, in full precision: a copy of `source` (`teacher_copy`), with
        `student.layers` if these are given; or what `student.factory` builds.

        Raises:
            ValueError, TypeError: a teacher whose layers can't be changed, a factory that can't be
                used.
        """
        how = self.cfg.student
        if self._own is not None:
            network = trainable(self._own.copy(), self._own.network)
        else:
            network = self.teacher_copy()
        if self._own is None and how.layers is not None:
            give_layers(network, how.layers, self.cfg.seed)
        if self.prefix_tokens:
            return PrefixedNetwork(network, pred_type=how.pred_type)
        return network

    def with_prefixes(self, cond: Cond, name: str = "data") -> Cond:
        """A condition whose prefixes, if it has any, are of lengths drawn anew, for each row one in
        0..`train.prefix_max` that is below its real waypoints; `name` tells the draws apart."""
        rest, prefix, _ = prefix_of(cond)
        if prefix is None:
            return cond
        generator = generator_for(self.cfg.seed, "prefix", name)
        most = self.prefix_tokens
        mask = token_mask(rest)
        if mask is None:
            lengths = torch.randint(most + 1, (len(prefix),), generator=generator)
        else:
            lengths = drawn_lengths(torch.rand(len(prefix), generator=generator), most, mask)
        return with_prefix(rest, prefix, lengths)

    @functools.cached_property
    def _own(self) -> OwnNetwork | None:
        """The network of `student.factory`."""
        how = self.cfg.student
        if how.factory is None:
            return None
        own = OwnNetwork(how, self.cfg.seed, self.source, self._dtype)
        if self.cfg.train.gradient_checkpointing:
            recompute_blocks(own.network)
        return own

    def teacher_copy(self) -> nn.Module:
        """A copy of `source` in full precision: parameters in float64 stay in it, all others are in
        float32. Trained whole if `source` is wholly frozen; else what is frozen stays so."""
        network = copied(self.source)
        if not self._uniform:
            network = in_full_precision(network)
        elif self.cfg.teacher.dtype is not None:
            network = parameters_to(network, torch.float32)
        return trainable(network, self.source)

    def notes(self) -> list[str]:
        """What of the teacher stays frozen, if a part of it is, and what the student is, if it
        hasn't the teacher's shape: a line each."""
        found = []
        how = self.cfg.student
        if how.layers is not None or self._own is not None:
            taken = 0 if self._own is None else self._own.taken
            found.append(network_note(how, self.student(), self.source, taken))
        if isinstance(self.uncounted, PrefixedNetwork):
            told = "times of their own" if self.uncounted.way == "times" else "replacement"
            most = self.cfg.train.prefix_max
            found.append(f"up to {most} waypoints are given; the teacher is told them by {told}")
        parameters = dict(self.source.named_parameters())
        frozen = [name for name, p in parameters.items() if not p.requires_grad]
        if frozen and len(frozen) < len(parameters):
            found.append(f"frozen in the teacher, and so in the student: {first_names(frozen)}")
        return found

    def check_student(self) -> None:
        """Refuse a student that can't be made or called: a teacher whose weights are in half
        precision and whose copy in full precision can't be called, a depth that can't be changed, a
        factory's network that doesn't fit the data.

        Raises:
            ValueError: what it raised, and what to do.
            TypeError: a factory that returns something else than a module.
        """
        if self._own is not None:
            self._check_own()
            return
        if self.cfg.student.layers is not None:
            self.student()
        if self._uniform:
            return
        try:
            answer_of(self.student(), self.x0, self.cond)
        except ValueError as error:
            kinds = sorted({str(parameter.dtype) for parameter in self.source.parameters()})
            raise ValueError(
                f"expected a teacher whose copy can be trained in float32, got one in "
                f"{', '.join(kinds)}: {error}; let its forward cast to the dtype of its weights "
                "instead of a fixed one"
            ) from error

    def _check_own(self) -> None:
        """Call the network of `student.factory` at each rung of the student."""
        for rung in self.cfg.student.t_list[:-1]:
            try:
                answer_of(self.student(), self.x0, self.cond, rung, who="the student")
            except ValueError as error:
                raise ValueError(
                    f"expected student.factory={self.cfg.student.factory} to build a network that "
                    f"can be called net(x_t, t, cond) as the teacher is: {error}"
                ) from error

    def prediction_at(self, time: float) -> Tensor:
        """What the teacher answers for two samples at `time`; errors as `answer_of`."""
        return answer_of(self.unguided, self.x0, self.cond, time)

    @functools.cached_property
    def coupling(self) -> Coupling | None:
        """How far the teacher's data and noise were coupled, None where it can't be told."""
        pred_type = self.cfg.student.pred_type
        cond = cond_without_prefix(self.cond)
        return coupling_of(self.unguided, self.x0, cond, pred_type=pred_type)

    @property
    def coupled(self) -> bool:
        """Whether they were, so that the teacher's velocity is no score."""
        return self.coupling is not None and self.coupling.found

    def batch(self, size: int) -> Batch:
        """A micro-batch of `size` rows of the data, repeated where there are fewer."""
        rows = torch.arange(size) % len(self.x0)
        x0 = self.x0[rows]
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        return Batch(x0, noise, take_rows(self.cond, rows))


def guided_teacher(cfg: DistillConfig, network: nn.Module, data: Data) -> nn.Module:
    """The teacher that guides itself as `cfg.dmd` says; `network` as it is without a guidance
    scale.

    Raises:
        ValueError: a null condition that can't be read, or that isn't shaped like one row of the
            data's condition.
    """
    dmd = cfg.dmd
    source = cfg.teacher.null_cond
    if dmd.guidance_scale is None or source is None:
        return network
    _, cond = data.network_inputs()
    # The network guides away under the masks of the very samples.
    row = take_rows(cond_without_masks(cond), slice(1))
    if not tensors_in(row):
        raise ValueError(
            "expected data with a condition for dmd.guidance_scale, got none to guide away from; "
            "leave out dmd.guidance_scale and teacher.null_cond"
        )
    if source == "zeros":
        null = _zeros(row)
    elif isinstance(row, Tensor):
        null = load_conditions(source)[:1]
        null = null if data.z_normalizer is None else data.z_normalizer.normalize(null)
        _check_like(source, "Z", null, row)
    else:
        null = _members(source, row)
    guidance = Guidance(dmd.guidance_scale, dmd.guidance_interval, dmd.guidance_rescale)
    null = cond_to(null, dtype=network_dtype(network, torch.float32))
    return GuidedNetwork(network, guidance, null, pred_type=cfg.student.pred_type).eval()


def _zeros(row: Cond) -> Cond:
    """Zeros in the place of one condition, whose members must all be real numbers."""
    others = [name for name, value in named_tensors(row).items() if not value.is_floating_point()]
    if others:
        raise ValueError(
            f"expected a condition of real numbers for teacher.null_cond=zeros, got "
            f"{cond_text(row)}: there is no zero of {', '.join(others)}; name a file (.npz or "
            f".safetensors) that holds one row of each: {', '.join(named_tensors(row))}"
        )
    return map_tensors(torch.zeros_like, row)


def _members(source: str, row: Cond) -> Cond:
    """One condition of several members from a file, an array for each of them."""
    wanted = named_tensors(row)
    loaded = load_members(source, wanted)
    for name, member in wanted.items():
        value = loaded[name][:1]
        if member.is_floating_point():
            value = value.to(member.dtype)
        _check_like(source, name, value, member)
        loaded[name] = value
    in_order = iter([loaded[name] for name in wanted])
    return map_tensors(lambda member: next(in_order), row)


def _check_like(source: str, name: str, null: Tensor, row: Tensor) -> None:
    """ValueError unless a null condition looks like one row of the data's."""
    if cond_text(null) != cond_text(row):
        raise ValueError(
            f"expected {name} in {source} like one condition, {cond_text(row)}, got "
            f"{cond_text(null)}"
        )
