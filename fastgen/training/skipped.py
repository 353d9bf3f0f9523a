"""Skipped updates: what the log and the user are told of them.

An update whose loss or gradient is not finite is skipped by the device itself
(:class:`fastgen.training.trained_network.TrainedNetwork`), and heard of when somebody asks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .._core.processes import together
from ..records.log import RunLog, say
from .run_state import RunState
from .stage import Stage
from .validation import Progress

__all__ = ["Skipped", "note_skipped", "say_skipped", "take_skipped"]

SHOWN = 8  # rows of a batch that are named on stderr


class Skipped(NamedTuple):
    """The updates of a stage that were found to be skipped just now.

    Attributes:
        rows: update of the stage, from 1 -> what is logged of it: `{"skipped": {network:
            {"in_a_row", "in_all", "rows" of the data}}}`.
        hopeless: what is said of a network of which too many in a row were skipped, if one is.
        cause: which network answers no number, at which time and for which row, where that was
            looked for and found.
    """

    rows: dict[int, dict[str, Any]]
    hopeless: str | None = None
    cause: str | None = None

    def check_hope(self) -> None:
        """End a run in which too many updates in a row were skipped.

        Raises:
            FloatingPointError: one that says what to do.
        """
        if self.hopeless:
            cause = f" ({self.cause})" if self.cause else ""
            raise FloatingPointError(
                f"loss or gradient of the {self.hopeless}{cause}; look at the rows that "
                "metrics.jsonl names, lower the learning rate in a new run, or raise "
                "train.most_skipped"
            )


def take_skipped(stage: Stage, progress: Progress, most: int) -> Skipped:
    """Ask the networks of `stage` which updates were skipped since the last call; waits for the
    device.

    Args:
        stage: whose networks are asked.
        progress: of the stage, in which they are noted.
        most: updates skipped in a row from which on a network is hopeless.
    """
    rows: dict[int, dict[str, Any]] = {}
    hopeless = None
    cause = None
    for name, network in stage.trained().items():
        for update, in_a_row, in_all in network.take_skipped():
            of_batch = stage.batch_rows(update - 1, name).tolist()
            networks = rows.setdefault(update, {"skipped": {}})["skipped"]
            networks[name] = {"in_a_row": in_a_row, "in_all": in_all, "rows": of_batch}
            # Looked for once, and again before a run is given up.
            if cause is None and (in_all == 1 or in_a_row >= most):
                cause = stage.cause(update - 1, name)
            if in_a_row >= most:
                hopeless = (
                    f"{name} not finite in {in_a_row} updates in a row, up to {stage.name} update "
                    f"{update}"
                )
    rows = dict(sorted(rows.items()))
    for update, row in rows.items():
        for name, skip in row["skipped"].items():
            progress.skip(name, update, skip["in_all"])
    return Skipped(rows, hopeless, cause)


def say_skipped(stage: str, skipped: Skipped, *, shown: bool) -> None:
    """A line on stderr for each network and update of `skipped`, if `shown`."""
    if not shown:
        return
    for update, row in skipped.rows.items():
        for name, skip in row["skipped"].items():
            of_batch = [str(number) for number in skip["rows"][:SHOWN]]
            if len(skip["rows"]) > SHOWN:
                of_batch.append(f"... ({len(skip['rows'])} in metrics.jsonl)")
            say(
                f"warning: {stage} update {update}: loss or gradient of the {name} not finite, "
                f"update skipped ({skip['in_a_row']} in a row, {skip['in_all']} in all); rows of "
                f"its batch: {', '.join(of_batch)}"
            )
    if skipped.cause:
        say(f"warning: {skipped.cause}")


def note_skipped(stage: str, skipped: Skipped, log: RunLog, state: RunState) -> None:
    """Write a row of the log for each update of `skipped`. All processes must call this.

    Args:
        stage: its name.
        state: where the run stands.
    """
    if not skipped.rows:
        return
    before = state.iteration - state.updates
    with together():
        for update, row in skipped.rows.items():
            log.note({"iteration": before + update, "stage": stage, "step": update, **row})
