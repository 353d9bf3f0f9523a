"""Origin of a run: what it was begun with, beside its config, told by a few numbers.

That is its data, what it is scored on, its teacher and its precision, and a run must go on with the
same. `origin.json` holds groups ("data", "teacher"), each of one or more aspects: a word, or
numbers. Of tensors x_1, x_2, ... the numbers are how many elements they have, their root mean
square r, and a few random projections w . x / (r sqrt(n)).

Projections agree to `TOLERANCE` where data were computed anew on another machine, which changes
their last digits. Other data, other weights or another order of rows change projections by about as
much as they change the data. NaN counts as 0, an infinity as 1 or -1: masks hold such.

The file also names the run: `run` is a checksum of its config and its origin, which stands in all
that the run goes on from. So what another run wrote can be told, while a folder may be moved.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core.json_files import read_json, write_json
from .._core.made_rows import MadeRows
from .._core.messages import brief, first_names
from .._core.seeds import generator_for
from .._core.versions import versions

__all__ = [
    "ORIGIN",
    "Near",
    "check_origin",
    "digest",
    "fingerprint",
    "wide_numbers",
    "run_identity",
    "run_stamp",
    "write_origin",
]

ORIGIN = "origin.json"
TOLERANCE = 1e-5
_PROJECTIONS = 3
_CHUNK = 1 << 20
_RUN = "run"
_VERSIONS = "versions"
# A word of this many letters is for people, a longer one is a checksum.
_WORD = 24


class Near(NamedTuple):
    """Numbers that need not agree to the last digits: what a network answers depends on the kernels
    of the machine.

    Attributes:
        numbers: as of `fingerprint`.
        tolerance: how far they may be off, relative to their size.
    """

    numbers: list[float]
    tolerance: float


def fingerprint(tensors: Iterable[Tensor]) -> list[float]:
    """Numbers that tell tensors apart.

    Args:
        tensors: in their order, as if they were one long vector.

    Returns:
        [n, r, projections ...] as of this module; [0.0] where there is no element.
    """
    n = 0
    squares = 0.0
    sums = torch.zeros(_PROJECTIONS, dtype=torch.float64)
    # To draw is what takes time: each part has the same signs, times a factor of its own.
    signs = _signs()
    generator = generator_for(0, "fingerprint", "factors")
    for tensor in tensors:
        for part in _numbers(tensor).split(_CHUNK):
            factors = torch.randn(_PROJECTIONS, dtype=torch.float64, generator=generator)
            wide = wide_numbers(part)
            n += len(part)
            squares += float(wide @ wide)
            sums += factors * (signs[:, : len(part)] @ wide)
    if n == 0:
        return [0.0]
    scale = squares**0.5 or 1.0
    return [float(n), (squares / n) ** 0.5, *(sums / scale).tolist()]


def wide_numbers(tensor: Tensor) -> Tensor:
    """Real numbers as they are compared: float64 on the CPU, with 0 for NaN, 1 or -1 for an
    infinity."""
    wide = tensor.cpu().double()
    # Adding them up is much quicker than looking at each.
    if math.isfinite(float(wide.sum())):
        return wide
    return wide.nan_to_num(0.0, 1.0, -1.0)


@functools.cache
def _signs() -> Tensor:
    """1 or -1, (projections, chunk)."""
    generator = generator_for(0, "fingerprint")
    return torch.randint(2, (_PROJECTIONS, _CHUNK), generator=generator).double() * 2.0 - 1.0


def _numbers(tensor: Tensor) -> Tensor:
    """All real numbers of a tensor, one after the other."""
    value = tensor.detach()
    if value.is_complex():
        value = torch.view_as_real(value)
    return value.reshape(-1)


def digest(tensors: Iterable[Tensor]) -> str:
    """A checksum of tensors, in their order, to the last bit: of what is read and not computed."""
    found = hashlib.sha256()
    for tensor in tensors:
        if isinstance(tensor, MadeRows):
            # What they are made of is less than they are.
            found.update(digest(tensor.maker.contents()).encode())
            continue
        value = tensor.detach().cpu().contiguous()
        found.update(f"{value.dtype} {tuple(value.shape)} ".encode())
        for part in value.reshape(-1).split(_CHUNK):
            found.update(part.view(torch.uint8).numpy().data)
    return found.hexdigest()


# ---- The file ------------------------------------------------------------------------------------


def write_origin(folder: Path, origin: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Write `origin` into the folder of a run.

    Args:
        origin: by group, one aspect or a mapping of several: a word, a `fingerprint`, or `Near`.
        config: keys of the run's config that a resumed run may not change.
    """
    groups = {name: _plain(group) for name, group in origin.items()}
    write_json(folder / ORIGIN, {_RUN: _identity(origin, config), _VERSIONS: versions(), **groups})


def run_identity(folder: Path) -> str | None:
    """What tells the run in `folder` from others; None where it has no origin, or one of an earlier
    version.

    Raises:
        ValueError: a damaged origin.json.
    """
    if not (folder / ORIGIN).exists():
        return None
    return _read(folder / ORIGIN).get(_RUN)


def run_stamp(folder: Path) -> dict[str, str]:
    """`{"run": its identity}` for what the run in `folder` writes, and what it reads again has to
    have; {} where it has none."""
    identity = run_identity(folder)
    return {} if identity is None else {_RUN: identity}


def check_origin(folder: Path, origin: Mapping[str, Any]) -> list[str]:
    """Refuse to go on with what the run in `folder` was not begun with.

    An aspect that only one side has is not compared: it may be of another device or version.

    Returns:
        what should be said: of another version of this package or of torch.

    Raises:
        ValueError: such as `... was begun with other data: resume it with its own, or choose
            another run_dir`; or a damaged origin.json.
    """
    path = folder / ORIGIN
    if not path.exists():
        raise ValueError(
            f"expected {ORIGIN} in {folder}, got none: go on with the version that began the run"
        )
    before = _read(path)
    before.pop(_RUN, None)
    then_versions = before.pop(_VERSIONS, None)
    # The data differ, too, where what made them does.
    for name in sorted(before.keys() | origin.keys(), key=lambda name: (name != "encoder", name)):
        then = _aspects(before.get(name))
        now = _aspects(origin.get(name))
        # Versions before noted less.
        if then_versions is not None and bool(then) != bool(now):
            raise _other(folder, name)
        for aspect in sorted(then.keys() & now.keys()):
            if not _agree(then[aspect], now[aspect]):
                raise _other(folder, name, aspect, _words(then[aspect], now[aspect]))
    return _notes(then_versions)


def _other(folder: Path, name: str, where: str = "", words: str = "") -> ValueError:
    """What is said of a group of which an aspect differs."""
    alone = words if not where else ""
    what = f"; what differs: {first_names([where])}{words}" if where else ""
    return ValueError(
        f"{folder} holds a run that was begun with another {first_names([name])}{alone}: resume "
        f"with its own, or choose another run_dir{what}"
    )


def _words(then: Any, now: Any) -> str:
    """Both values, where they say something to people."""
    if isinstance(then, str) and isinstance(now, str) and max(len(then), len(now)) <= _WORD:
        return f" ({then} then, {now} now)"
    return ""


def _notes(then: Mapping[str, str] | None) -> list[str]:
    if then is None:
        return [
            "note: the run was begun by an earlier version, which noted less of what it was begun "
            "with: go on with the same data and the same teacher"
        ]
    now = versions()
    changed = [
        f"{name} {then.get(name)}, now {now.get(name)}"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]
    if not changed:
        return []
    return [f"note: the run was begun with {'; '.join(changed)}: its last digits may differ"]


def _read(path: Path) -> dict[str, Any]:
    """The content of an origin.json, each value of which is of a kind that was written."""
    found = read_json(path)
    for name, value in found.items():
        fits = all(map(_is_value, _aspects(value).values()))
        if name == _RUN:
            fits = isinstance(value, str)
        if name == _VERSIONS:
            fits = isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
        if not fits:
            raise ValueError(
                f"{path}: expected words and numbers of {brief(name)}, got {brief(value)}; restore "
                "the file, or begin a new run"
            )
    return found


def _is_value(value: Any) -> bool:
    """Whether this is a word or a fingerprint."""
    if isinstance(value, str):
        return True
    lengths = (1, 2 + _PROJECTIONS)
    return isinstance(value, list) and len(value) in lengths and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


# ---- Aspects -------------------------------------------------------------------------------------


def _aspects(group: Any) -> dict[str, Any]:
    """The aspects of a group; one without a name stands alone; none where the group is missing."""
    if isinstance(group, Mapping):
        return dict(group)
    return {} if group is None else {"": group}


def _plain(group: Any) -> Any:
    """A group as JSON holds it."""
    if isinstance(group, Mapping):
        return {name: _plain(value) for name, value in group.items()}
    return group.numbers if isinstance(group, Near) else group


def _identity(origin: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """A checksum of config and origin that doesn't depend on last digits."""
    said = sorted(
        [name, aspect, _coarse(value)]
        for name, group in origin.items()
        for aspect, value in _aspects(group).items()
        if not isinstance(value, Near)
    )
    text = json.dumps([dict(config), said], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _coarse(value: Any) -> Any:
    if isinstance(value, str):
        return value
    return [f"{number:.3g}" for number in value]


def _agree(then: Any, now: Any) -> bool:
    """Whether two words are equal, or two fingerprints but for the last digits."""
    tolerance = TOLERANCE
    if isinstance(now, Near):
        tolerance = now.tolerance
        now = now.numbers
    if not (isinstance(then, list) and isinstance(now, list)):
        return then == now
    if len(then) != len(now) or then[0] != now[0]:
        return False
    # The root mean square has a unit, projections have none.
    sizes = [abs(then[1]), *[1.0] * _PROJECTIONS] if len(then) > 1 else []
    return all(
        abs(a - b) <= tolerance * size for a, b, size in zip(then[1:], now[1:], sizes, strict=True)
    )
