"""The student's network where it hasn't its teacher's shape: deeper, shallower, or a user's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .._core.copies import copied
from .._core.modules import as_built, load_state, state_of
from .._core.precision import in_full_precision, is_uniform
from .._core.seeds import draws_apart, generator_for
from ..config.schemas import DistillConfig
from ..config.student import StudentConfig
from ..models.depth import change_layers, layers_of, spread_places
from ..networks import cast, clip_limits, network_device, unwrap
from ..teachers.conversion import RectifiedFlow, as_rectified_flow
from .sources import built_by, built_network

__all__ = ["OwnNetwork", "give_layers", "network_facts", "network_note", "network_to_load"]


def give_layers(network: nn.Module, layers: int, seed: int) -> None:
    """Change the number of layers of a copy of the teacher, in place and inside its coats.

    Raises:
        ValueError: the teacher's depth can't be changed.
    """
    inner = unwrap(network)
    if layers_of(inner) is None:
        raise ValueError(
            f"expected a network of this package with layers for student.layers={layers}, got "
            f"{type(inner).__name__}; give student.factory, which builds the student"
        )
    change_layers(inner, layers, generator_for(seed, "student layers"))


class OwnNetwork:
    """What `student.factory` builds, with the teacher's weights where names and shapes agree.

    Its own draws are those of the run's seed, so that it is the same in every process and after
    every resume.

    Args:
        how: names the factory.
        seed: of the run.
        source: the teacher, whose device it is put on.
        dtype: of the data as networks see them; the network is cast to it if it has one dtype.

    Attributes:
        network: in eval mode and full precision.
        taken: how many of the numbers in its parameters are the teacher's.

    Raises:
        ValueError, TypeError: a factory that can't be used.
    """

    def __init__(
        self, how: StudentConfig, seed: int, source: nn.Module, dtype: torch.dtype
    ) -> None:
        device = network_device(source, torch.device("cpu"))
        network = _built(how, seed, device)
        theirs = state_of(unwrap(source))
        inner = unwrap(network)
        own = state_of(inner)
        shared = {
            name: value
            for name, value in theirs.items()
            if name in own and own[name].shape == value.shape
        }
        load_state(inner, shared, strict=False)
        parameters = dict(inner.named_parameters())
        self.taken = sum(parameters[name].numel() for name in shared if name in parameters)
        network = in_full_precision(network)
        if is_uniform(network):
            network = cast(network, dtype)
        self.network = _clipped_as(source, network, how.pred_type).to(device)

    def copy(self) -> nn.Module:
        """A network like it."""
        return copied(self.network)


def _built(how: StudentConfig, seed: int, device: torch.device) -> nn.Module:
    assert how.factory is not None
    start = generator_for(seed, "student").initial_seed()
    with draws_apart(device, start):
        return built_by(how.factory, how.arguments, key="student.factory")


def _clipped_as(source: nn.Module, network: nn.Module, pred_type: str) -> nn.Module:
    """`network` with its x0 clipped as the teacher's is, which is part of the teacher's law."""
    limits = clip_limits(source)
    converted = isinstance(as_built(network), RectifiedFlow)
    if limits is None or converted or pred_type != "flow":
        return network
    return as_rectified_flow(network, clip_sample=limits).eval()


def network_to_load(cfg: DistillConfig, source: nn.Module) -> nn.Module:
    """A fresh network that a student's folder is loaded into, where it isn't of this package."""
    how = cfg.student
    if how.factory is not None:
        return built_by(how.factory, how.arguments, key="student.factory")
    if cfg.teacher.factory is not None:
        return built_network(cfg.teacher)
    return copied(source)


# ---- Words ---------------------------------------------------------------------------------------


def network_facts(network: nn.Module) -> dict[str, Any]:
    """{"class", "numbers", and "layers" where they are known} of a network inside its coats."""
    inner = unwrap(network)
    facts = {"class": type(inner).__name__, "numbers": _numbers(inner)}
    layers = layers_of(inner)
    return facts if layers is None else {**facts, "layers": layers}


def network_note(how: StudentConfig, student: nn.Module, source: nn.Module, taken: int) -> str:
    """What the student is beside its teacher, in one line.

    Args:
        how: names its layers or its factory.
        student: its network.
        source: the teacher.
        taken: numbers that a factory's network has of the teacher.
    """
    numbers = _numbers(student)
    teacher = f"the teacher has {_numbers(source):,}"
    if how.factory is not None:
        name = type(unwrap(student)).__name__
        group = getattr(getattr(unwrap(source), "in_rep", None), "group", None)
        turned = ""
        if group is not None and not hasattr(unwrap(student), "in_rep"):
            turned = f"; the teacher is equivariant under {group.name}, the student need not be"
        return (
            f"student: {name} of {numbers:,} numbers, {taken:,} of them the teacher's by name and "
            f"shape ({teacher}){turned}"
        )
    before = layers_of(unwrap(source))
    assert before is not None and how.layers is not None
    places = ", ".join(map(str, spread_places(min(before, how.layers), max(before, how.layers))))
    where = f"those at {places} of the teacher's {before}"
    if how.layers >= before:
        where = f"the teacher's {before} at {places}"
    return f"student: {how.layers} layers, {where}; {numbers:,} numbers ({teacher})"


def _numbers(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
