"""How far two runs lie apart, by kind of what they wrote: weights of a network, moments of its
optimiser, a logged loss."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from fastgen.records.log import read_log, timeless
from support.rounding import MULTIPLE

__all__ = ["assert_equal_runs", "assert_equal_up_to_rounding", "tensors_of"]

# Of a run in float64; a sum in another order makes 6e-15 of it in 20 updates.
EXACT = 1e-10


def tensors_of(run: Path) -> dict[str, Tensor]:
    """Every tensor that a run has written: pairs, results of stages, and the state of all networks
    and optimisers."""
    files = [
        *run.glob("*.safetensors"),
        *run.glob("stages/*"),
        *run.glob("checkpoints/*/*.safetensors"),
    ]
    return {
        f"{file.relative_to(run)} {key}": value
        for file in files
        for key, value in load_file(file).items()
    }


def assert_equal_runs(run: Path, other: Path) -> None:
    """Fail unless two runs in float64 have the same tensors and the same log."""
    far = {kind: gap for kind, gap in gaps(run, other).items() if not gap <= EXACT}
    assert not far, f"further apart than {EXACT}: {far}"


def assert_equal_up_to_rounding(run: Path, other: Path, nudged: list[Path]) -> None:
    """Fail unless two runs lie no further apart than roundings take them.

    Args:
        run, other: two arrangements of one run.
        nudged: the run once more, with every number of its data moved by one unit in the last
            place. The largest change that this makes of a kind is the yardstick of the kind, next
            to one rounding of the kind's largest number.
    """
    yardsticks = [gaps(run, one) for one in nudged]
    sizes = sizes_of(records_of(run))
    for kind, gap in gaps(run, other).items():
        rounding = torch.finfo(torch.float32).eps * sizes[kind]
        allowed = MULTIPLE * max(rounding, *(yardstick[kind] for yardstick in yardsticks))
        assert gap <= allowed, f"{kind}: {gap:.2e} apart, roundings explain {allowed:.2e}"


def gaps(run: Path, other: Path) -> dict[str, float]:
    """The largest difference of two runs in each kind of what they wrote."""
    logs = [[set(timeless(row)) for row in read_log(folder)] for folder in (run, other)]
    assert logs[0] == logs[1]
    ours = records_of(run)
    theirs = records_of(other)
    assert ours.keys() == theirs.keys()
    differences = {key: value - theirs[key] for key, value in ours.items()}
    return sizes_of(differences)


def sizes_of(records: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest absolute number of each kind."""
    sizes: dict[str, float] = {}
    for key, value in records.items():
        # What is no number is no agreement; max() would pass over it.
        assert value.isfinite().all(), f"numbers of {key}"
        kind = kind_of(key)
        sizes[kind] = max(sizes.get(kind, 0.0), float(value.abs().max()))
    return sizes


def records_of(run: Path) -> dict[str, Tensor]:
    """All numbers of a run in float64: its tensors, and those of its log by row."""
    records = {key: value.double() for key, value in tensors_of(run).items()}
    for i, row in enumerate(map(timeless, read_log(run))):
        # Whether a part of a batch needs the null condition depends on how the batch is shared,
        # where guidance has an interval.
        row.pop("teacher_evaluations", None)
        for key, value in {**row, **row.get("diagnostics", {})}.items():
            if isinstance(value, (int, float, list)):
                records[f"row {i} {key}"] = torch.tensor(value, dtype=torch.float64)
    return records


def kind_of(key: str) -> str:
    """What a record is one of: `... student.weights.linear.bias` is of the student's weights, and
    `row 7 vsd` of the logged values of vsd.

    A tensor alone would make no yardstick: a bias of two numbers may keep its bits under a nudge.
    """
    place, _, name = key.rpartition(" ")
    if place.startswith("row"):
        return f"logged {name}"
    parts = name.split(".")
    moment = parts[-1:] if parts[1:2] == ["optimizer"] else []
    return " ".join([place, *parts[:2], *moment])
