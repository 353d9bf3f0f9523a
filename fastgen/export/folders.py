"""Folders of students: written whole, checked before they are trusted.

A folder holds all that is needed to sample: dense weights, rungs, sampler, normalizers
(`export_student`, `load_student`):

    student.safetensors    config.json    README.md

Reading a student needs torch and safetensors alone. Nothing is imported by a name that stands in a
folder, and nothing is unpickled. `config.json` records the size and sha256 of the tensor file and a
checksum of itself. Both files are read once, and of one export, also while another takes its place.
The network that config.json describes is compared with the tensors before its own memory is
allocated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._core.checks import is_count
from .._core.copies import copied
from .._core.files import new_folder, write_file
from .._core.json_files import plain_json
from .._core.messages import listed
from .._core.modules import state_of
from .._core.sizes import parse_sizes
from .._core.tensor_files import write_tensors
from ..box import Box
from ..channel_kinds import ChannelKinds, KindNormalizer
from ..networks import cast, unwrap
from ..normalizer import Normalizer
from ..samplers.student import served_steps
from ..teachers.conversion import check_prediction
from ..teachers.descriptions import describe_network, wrap_network
from .built_in import CUSTOM, EQUIVARIANT, PLAIN, built_in_config
from .card import CARD, student_card
from .encoders import (
    ENCODER_FILE,
    StudentEncoder,
    check_encoder,
    encoder_head,
    load_encoder,
    write_encoder,
)
from .networks import load_module, stored_dtype
from .normalizers import more_channels
from .schema import (
    EXPORT_CONFIG,
    STUDENT_FORMAT,
    check_student_config,
    config_head,
    is_export,
    read_config,
    read_export,
    read_t_lists,
    write_config,
)
from .student import Student

__all__ = [
    "STUDENT_FILE",
    "check_box",
    "export_student",
    "exported_network",
    "has_custom_network",
    "load_student",
]

STUDENT_FILE = "student.safetensors"


def export_student(
    path: str | Path,
    network: nn.Module,
    *,
    t_list: Sequence[float],
    steps: Sequence[int] | None = None,
    t_lists: Mapping[int, Sequence[float]] | None = None,
    sample_type: str = "ode",
    pred_type: str = "flow",
    x_normalizer: Normalizer | None = None,
    z_normalizer: Normalizer | None = None,
    pack: int = 1,
    prefix_max: int = 0,
    box: Box | None = None,
    horizon: Sequence[int] | None = None,
    cond_horizon: Sequence[int] | None = None,
    cond_sizes: Mapping[str, Sequence[Any]] | None = None,
    masks: Sequence[str] = (),
    encoder: StudentEncoder | None = None,
    description: Mapping[str, Any] | None = None,
) -> None:
    """Write a student folder: `student.safetensors` (plain dense tensors), `config.json`,
    `README.md`.

    Args:
        path: new, empty, or an earlier export, which is replaced whole once the new one is
            complete.
        network: with the weights to ship (the EMA's). An equivariant one is folded to a dense twin
            of the same outputs. Of one that `as_rectified_flow` has converted, the network inside
            is shipped, with its path, prediction and clock beside it as `parameterization`.
        t_list: [t_1 > ... > t_K > 0.0], t_1 <= 1 (< 1 for "eps"): the very floats the student was
            trained with.
        steps: numbers of calls to offer; None: those of `t_lists`, else K, and for "sde" also
            every divisor k of K, over every (K / k)-th rung.
        t_lists: of a student of several numbers of calls the rungs of each, {calls: [t_1, ...,
            0.0]}, floats of `t_list`; None: every (K / k)-th rung.
        sample_type: "ode" (a rung reuses the implied noise) or "sde" (it draws fresh noise).
        pred_type: "flow", "x0" or "eps".
        x_normalizer, z_normalizer: of unpacked channels; None: the network speaks original
            units. Of angles and rotations, `fastgen.channel_kinds.KindNormalizer`.
        pack: waypoints per token of a trajectory.
        prefix_max: most waypoints at the beginning of a trajectory that the student was trained to
            be given; the network then takes t of shape (B, T_x) as well.
        box: in original units, what finished samples are clamped to (`range` in config.json);
            None: they aren't.
        horizon: the shape of a sample, (T_x, d_x) of a trajectory; None: the network's
            `in_horizon * pack`, `in_dim / pack`. With a network of your own, `pack` 1 and no
            `x_normalizer` it may be any shape.
        cond_horizon: (most T_z, d_z) of a condition; None: the network's `cond_horizon`,
            `cond_dim`. Where the network has none, conditions are not checked (but for d_z, with a
            `z_normalizer`).
        cond_sizes: the sizes of a condition that the student was trained with, which no sample may
            leave: {"Z": one entry for each axis but the rows}, an entry a size or the least and the
            most, such as {"Z": [(1, 2), 12]}. Members are named "Z.goal" or "Z.0"; {} is a student
            without a condition. None: not said, and not checked.
        masks: what the student was trained with of "mask" (samples of unequal length) and
            "cond_mask" (conditions), and may be sampled with.
        encoder: what made Z of raw observations; its tensors are written to `encoder.safetensors`.
        description: anything JSON can hold; NaN and infinity become null. These keys also go to
            the card:
            `summary`, a text;
            `license`, its name as hubs of models spell it, such as "mit";
            `scores`, {name: value} or {row: {name: value}};
            `condition`, without a `cond_horizon`: what one looks like, or "none";
            `guidance_scale`, `guidance_interval`, `guidance_rescale` and `guidance_null_cond` (its
            name), of a guided teacher.

    Raises:
        TypeError: a description that JSON can't hold.
        ValueError: options that contradict each other or the network, extra state that JSON can't
            hold, weights that aren't finite, a folder that holds other files.
        OSError: the folder can't be written; what stood there is untouched.
    """
    check_prediction(network, pred_type)
    network, parameterization = describe_network(network)
    config = {
        "parameterization": parameterization,
        "t_list": [float(t) for t in t_list],
        "steps": sorted(_served(t_list, t_lists, sample_type) if steps is None else steps),
        "sample_type": sample_type,
        "pred_type": pred_type,
        "horizon": _horizon(horizon, network, ("in_horizon", "in_dim"), pack, x_normalizer),
        "cond_horizon": _horizon(
            cond_horizon, network, ("cond_horizon", "cond_dim"), 1, z_normalizer
        ),
        "pack": pack,
        "x_normalizer": None if x_normalizer is None else x_normalizer.state(),
        "z_normalizer": None if z_normalizer is None else z_normalizer.state(),
        "group": built_in_config(network).get("group"),
        "description": plain_json(dict(description or {}), "description"),
    }
    # Only where there is one: folders without it stay readable by earlier versions.
    if prefix_max:
        config["prefix_max"] = prefix_max
    if t_lists is not None:
        config["t_lists"] = {str(k): [float(t) for t in own] for k, own in t_lists.items()}
    if box is not None:
        check_box(box, network, x_normalizer)
        config["range"] = box.state()
    if cond_sizes is not None:
        config["cond_sizes"] = plain_json(parse_sizes(cond_sizes), "cond_sizes")
    if masks:
        config["masks"] = list(masks)
    network = _dense(network)
    if encoder is not None:
        config["encoder"] = encoder_head(encoder)
    config = {**config_head(STUDENT_FORMAT, network), **config}
    check_student_config(config, "export_student")
    card = student_card(config, sum(p.numel() for p in network.parameters()))
    state = state_of(network)
    with new_folder(path, (EXPORT_CONFIG, CARD, STUDENT_FILE, ENCODER_FILE), is_export) as partial:
        if encoder is not None:
            config["encoder"] = write_encoder(partial, encoder)
        config["tensors"] = write_tensors(partial / STUDENT_FILE, state, stored_dtype(network))
        write_file(partial / CARD, card.encode())
        write_config(partial, config)


def exported_network(network: nn.Module) -> nn.Module:
    """A network as `load_student` gives it back: of an equivariant one its dense twin, which is the
    same function to rounding, in the same conversions; any other as it is."""
    inner, description = describe_network(network)
    dense = _dense(inner)
    return network if dense is inner else wrap_network(dense, description)


def _dense(network: nn.Module) -> nn.Module:
    """The dense twin of an equivariant network; any other as it is."""
    if built_in_config(network).get("class") != EQUIVARIANT:
        return network
    # Imported here because the equivariant files need escnn, which a dense student must not.
    from ..models.equivariance import fold

    return fold(copied(network))


def _served(
    t_list: Sequence[float], t_lists: Mapping[int, Sequence[float]] | None, sample_type: str
) -> list[int]:
    """The numbers of calls that a student offers."""
    if t_lists is not None:
        return list(t_lists)
    return served_steps(len(t_list) - 1, sample_type)


def check_box(box: Box | None, network: nn.Module, normalizer: Normalizer | None = None) -> None:
    """Refuse a range whose clamp makes something else of samples.

    Of a rotation one number can't be clamped alone: what is left is no rotation, unless the range
    holds all of [-1, 1]. And it breaks the equivariance that a network declares by its `out_rep`
    (as those of `fastgen.models` do): unless every element permutes channels and changes their
    signs, and maps the range to itself, clamp(rho x) isn't rho clamp(x).

    Args:
        box: the range; None: there is none.
        network: that may declare an `out_rep`.
        normalizer: of samples.

    Raises:
        ValueError: rotations that the range cuts; an element that does something else; angles or
            rotations, on which a group acts as networks see them.
    """
    rep: Any = getattr(unwrap(network), "out_rep", None)
    if box is None:
        return
    if isinstance(normalizer, KindNormalizer):
        _check_rotations_whole(box, normalizer.kinds)
    if rep is None:
        return
    if isinstance(normalizer, KindNormalizer):
        raise ValueError(
            f"expected no range beside angles or rotations that {rep.group} acts on, got "
            f"{box.state()}; leave the range out"
        )
    for element in rep.group.generators:
        if not box.is_kept_by(torch.as_tensor(rep(element))):
            raise ValueError(
                f"expected a range that {rep.group} keeps, got {box.state()}: element {element} of "
                "out_rep must permute channels and change their signs, and map the range to "
                "itself, or the clamped student isn't equivariant; leave the range out, or make "
                "it symmetric ([-1, 1]) where only signs change"
            )


def _check_rotations_whole(box: Box, kinds: ChannelKinds) -> None:
    """ValueError for a range that is narrower than [-1, 1] in a channel of a rotation."""
    cut = (box.lo > -1.0) | (box.hi < 1.0)
    found = [channel for channel in kinds.rotation_channels if cut[channel % len(cut)]]
    if found:
        raise ValueError(
            f"expected a range that holds [-1, 1] in the channels of rotations, got {box.state()} "
            f"for channel {listed(found)}: a rotation of which one number is clamped is none; "
            "widen the range there, or leave it out"
        )


def load_student(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    network: nn.Module | None = None,
    encoder: nn.Module | None = None,
) -> Student:
    """The sampler in a folder written by `export_student`, ready to call; needs torch and
    safetensors only.

    Args:
        path: the folder.
        device: where to sample.
        dtype: of network and samples; None: as it was exported.
        network: the module to load into, for a class that isn't of `fastgen.models`; it becomes the
            student's own. Give the bare one: how it was converted for training stands in
            config.json, and is done again here.
        encoder: the module to load the encoder's tensors into, for a student that is then given raw
            observations; None: it is given Z, what the encoder makes of them.

    Raises:
        ValueError: a missing, truncated, edited or foreign file, in one line that says which one
            and what to do.
    """
    file, config, tensors = read_export(Path(path), STUDENT_FORMAT, STUDENT_FILE)
    x_normalizer, z_normalizer = check_student_config(config, str(file))
    check_encoder(config, str(file))
    # A folder from elsewhere can name the plain classes only: so nothing else is imported, and no
    # group is constructed.
    given = None if network is None else describe_network(network)[0]
    loaded = load_module(file, config, tensors, given, PLAIN)
    try:
        converted = wrap_network(loaded if network is None else network, config["parameterization"])
    except ValueError as error:
        raise ValueError(f"{file}: parameterization: {error}") from error
    converted = converted.to(device)
    return Student(
        cast(converted, dtype),
        t_list=config["t_list"],
        steps=config["steps"],
        t_lists=read_t_lists(config),
        sample_type=config["sample_type"],
        pred_type=config["pred_type"],
        horizon=config["horizon"],
        cond_horizon=config["cond_horizon"],
        cond_sizes=None if config.get("cond_sizes") is None else parse_sizes(config["cond_sizes"]),
        masks=config.get("masks") or (),
        pack=config["pack"],
        prefix_max=config.get("prefix_max", 0),
        box=None if config.get("range") is None else Box.from_state(config["range"]),
        x_normalizer=x_normalizer,
        z_normalizer=z_normalizer,
        encoder=load_encoder(Path(path), config, encoder, device),
        config=config,
    )


def has_custom_network(path: str | Path) -> bool:
    """Whether the student in a folder has a network that isn't of `fastgen.models`: `load_student`
    has to be given it.

    Raises:
        ValueError: as `load_student`.
    """
    network = read_config(Path(path), STUDENT_FORMAT, STUDENT_FILE)[1]["network"]
    return isinstance(network, dict) and network.get("class") == CUSTOM


def _horizon(
    given: Sequence[int] | None,
    network: nn.Module,
    names: tuple[str, str],
    pack: Any,
    normalizer: Normalizer | None,
) -> list[int] | None:
    """[tokens, channels] in original units as given, or as the network's attributes of these names
    say, with `pack` undone; None if it lacks one of them."""
    if given is not None:
        return list(given)
    tokens, channels = (getattr(network, name, None) for name in names)
    if tokens is None or channels is None:
        return None
    if not is_count(pack) or channels % pack:
        raise ValueError(
            f"expected pack as a whole number >= 1 that divides the network's {names[1]} = "
            f"{channels}, got {pack!r}"
        )
    return [tokens * pack, channels // pack - more_channels(normalizer)]
