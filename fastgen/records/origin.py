"""What a run was begun with, told by a few numbers: its data, its teacher, its precision. It must
go on with the same.

The numbers of tensors x_1, x_2, ... are how many there are, their root mean square r, and sums w .
x / (r sqrt(n)) with random weights w, one for each of a few draws of weights. They agree to
`TOLERANCE` where the last digits of data differ that were computed anew on another machine; other
data, other weights or another order of rows change them by about as much as they change the data.
What is no number counts as 0, an infinity as 1 or -1 (masks hold such).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._core.json_files import read_json, write_json
from .._core.seeds import generator_for

__all__ = ["check_origin", "fingerprint", "write_origin"]

ORIGIN = "origin.json"
TOLERANCE = 1e-5
_PROJECTIONS = 3
_CHUNK = 1 << 20


def fingerprint(tensors: Iterable[Tensor]) -> list[float]:
    """[n, r, sums ...] of all numbers in `tensors`, in their order; [0.0] where there is none."""
    generator = generator_for(0, "fingerprint")
    n = 0
    squares = 0.0
    sums = torch.zeros(_PROJECTIONS, dtype=torch.float64)
    # The same signs for each part, whose number comes in by a factor: drawing is what takes time.
    signs = torch.randint(2, (_PROJECTIONS, _CHUNK), generator=generator).double() * 2.0 - 1.0
    for tensor in tensors:
        for part in tensor.detach().reshape(-1).split(_CHUNK):
            factors = torch.randn(_PROJECTIONS, dtype=torch.float64, generator=generator)
            wide = part.cpu().double().nan_to_num(0.0, 1.0, -1.0)
            n = n + len(part)
            squares = squares + float(wide.square().sum())
            sums += factors * (signs[:, : len(part)] @ wide)
    scale = squares**0.5
    return [float(n), (squares / n) ** 0.5, *(sums / (scale or 1.0)).tolist()] if n else [0.0]


def write_origin(folder: Path, origin: Mapping[str, Any]) -> None:
    """Write `origin`, words and `fingerprint`s by name, into the run's `folder`."""
    write_json(folder / ORIGIN, origin)


def check_origin(folder: Path, origin: Mapping[str, Any]) -> None:
    """Refuse to go on with what the run in `folder` was not begun with.

    Raises:
        ValueError: such as `... was begun with other data: resume it with its own, or choose
            another run_dir`.
    """
    path = folder / ORIGIN
    if not path.exists():
        raise ValueError(
            f"expected {ORIGIN} in {folder}, got none: go on with the version that began the run"
        )
    before = read_json(path)
    for name in sorted(before.keys() | origin.keys()):
        then = before.get(name)
        now = origin.get(name)
        if not _agree(then, now):
            said = (
                f" ({then} then, {now} now)"
                if isinstance(then, str) and isinstance(now, str)
                else ""
            )
            raise ValueError(
                f"{folder} holds a run that was begun with another {name}{said}: resume with its "
                "own, or choose another run_dir"
            )


def _agree(then: Any, now: Any) -> bool:
    if not (isinstance(then, list) and isinstance(now, list)):
        return then == now
    if len(then) != len(now) or then[0] != now[0]:
        return False
    # The root mean square has a unit, the sums have none.
    sizes = [abs(then[1]), *[1.0] * _PROJECTIONS] if len(then) > 1 else []
    return all(
        abs(a - b) <= TOLERANCE * size for a, b, size in zip(then[1:], now[1:], sizes, strict=True)
    )
