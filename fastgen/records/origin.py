"""Origin of a run: what it was begun with, beside its config, told by a few numbers.

That is its data, its teacher and its precision, and a run must go on with the same. Of tensors x_1,
x_2, ... the numbers are how many elements they have, their root mean square r, and a few random
projections w . x / (r sqrt(n)).

Projections agree to `TOLERANCE` where data were computed anew on another machine, which changes
their last digits. Other data, other weights or another order of rows change projections by about as
much as they change the data. NaN counts as 0, an infinity as 1 or -1: masks hold such.
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
    """Numbers that tell tensors apart.

    Args:
        tensors: in their order, as if they were one long vector.

    Returns:
        [n, r, projections ...] as of this module; [0.0] where there is no element.
    """
    generator = generator_for(0, "fingerprint")
    n = 0
    squares = 0.0
    sums = torch.zeros(_PROJECTIONS, dtype=torch.float64)
    # To draw is what takes time: each part has the same signs, times a factor of its own.
    signs = torch.randint(2, (_PROJECTIONS, _CHUNK), generator=generator).double() * 2.0 - 1.0
    for tensor in tensors:
        for part in tensor.detach().reshape(-1).split(_CHUNK):
            factors = torch.randn(_PROJECTIONS, dtype=torch.float64, generator=generator)
            wide = part.cpu().double().nan_to_num(0.0, 1.0, -1.0)
            n += len(part)
            squares += float(wide.square().sum())
            sums += factors * (signs[:, : len(part)] @ wide)
    if n == 0:
        return [0.0]
    scale = squares**0.5 or 1.0
    return [float(n), (squares / n) ** 0.5, *(sums / scale).tolist()]


def write_origin(folder: Path, origin: Mapping[str, Any]) -> None:
    """Write `origin`, a word or a `fingerprint` by name, into the folder of a run."""
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
            words = isinstance(then, str) and isinstance(now, str)
            said = f" ({then} then, {now} now)" if words else ""
            raise ValueError(
                f"{folder} holds a run that was begun with another {name}{said}: resume with its "
                "own, or choose another run_dir"
            )


def _agree(then: Any, now: Any) -> bool:
    """Whether two words are equal, or two fingerprints but for the last digits."""
    if not (isinstance(then, list) and isinstance(now, list)):
        return then == now
    if len(then) != len(now) or then[0] != now[0]:
        return False
    # The root mean square has a unit, projections have none.
    sizes = [abs(then[1]), *[1.0] * _PROJECTIONS] if len(then) > 1 else []
    return all(
        abs(a - b) <= TOLERANCE * size for a, b, size in zip(then[1:], now[1:], sizes, strict=True)
    )
