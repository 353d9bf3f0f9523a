"""Skipped updates: what the log and the user are told of them.

An update whose loss or gradient is not finite is skipped by the device itself
(:class:`fastgen.training.trained_network.TrainedNetwork`), and heard of when somebody asks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..records.log import say
from .stage import Stage

__all__ = ["Skipped", "say_skipped", "take_skipped"]

SHOWN = 8  # rows of a batch that are named on stderr


class Skipped(NamedTuple):
    """The updates of a stage that were found to be skipped just now.

    Attributes:
        rows: update of the stage, from 1 -> what is logged of it: `{"skipped": {network:
            {"in_a_row", "in_all", "rows" of the data}}}`.
        hopeless: what is said of a network of which too many in a row were skipped, if one is.
    """

    rows: dict[int, dict[str, Any]]
    hopeless: str | None = None


def take_skipped(stage: Stage, most: int) -> Skipped:
    """Ask the networks of `stage` which updates were skipped since the last call; waits for the
    device.

    Args:
        most: updates skipped in a row from which on a network is hopeless.
    """
    rows: dict[int, dict[str, Any]] = {}
    hopeless = None
    for name, network in stage.trained().items():
        for update, in_a_row, in_all in network.take_skipped():
            of_batch = stage.batch_rows(update - 1, name).tolist()
            networks = rows.setdefault(update, {"skipped": {}})["skipped"]
            networks[name] = {"in_a_row": in_a_row, "in_all": in_all, "rows": of_batch}
            if in_a_row >= most:
                hopeless = (
                    f"{name} not finite in {in_a_row} updates in a row, up to {stage.name} update "
                    f"{update}"
                )
    return Skipped(dict(sorted(rows.items())), hopeless)


def say_skipped(stage: str, rows: dict[int, dict[str, Any]]) -> None:
    """A line on stderr for each network and update of `Skipped.rows`."""
    for update, row in rows.items():
        for name, skip in row["skipped"].items():
            of_batch = [str(number) for number in skip["rows"][:SHOWN]]
            if len(skip["rows"]) > SHOWN:
                of_batch.append(f"... ({len(skip['rows'])} in metrics.jsonl)")
            say(
                f"warning: {stage} update {update}: loss or gradient of the {name} not finite, "
                f"update skipped ({skip['in_a_row']} in a row, {skip['in_all']} in all); rows of "
                f"its batch: {', '.join(of_batch)}"
            )
