"""The form in which every data set is held: named arrays over rows, the ends of episodes, the rate.

A `Source` is a data set that was opened: it says what there is, and reads the columns it is asked
for. What is not asked for, such as images, is never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

__all__ = ["BOOKKEEPING", "EPISODE_COLUMNS", "STATES", "VIDEO", "Column", "Source", "kind_of_rows"]

# Columns that count rows and episodes, or say when a row was recorded.
BOOKKEEPING = frozenset(
    {
        "timestamp",
        "time",
        "step",
        "frame_index",
        "episode",
        "episode_id",
        "episode_index",
        "index",
        "task_index",
    }
)
# Columns that may hold the number of each row's episode; the first that is there does.
EPISODE_COLUMNS = ("episode_index", "episode", "episode_id")
# The dtype of a column whose rows are frames of videos.
VIDEO = "video"
# Columns of numbers that LeRobot's policies see.
STATES = ("observation.state", "observation.environment_state")


@dataclass(frozen=True)
class Column:
    """One named array over the rows of a data set.

    Attributes:
        kind: "numbers", which can be used; "image", "text" or "other", which are left out.
        shape: of one row; () for a single number.
        dtype: as the file says it, for people.
        channels: names of the numbers of a row, where the file gives them.
        packed: whether a row is the bytes of a picture's file, PNG or JPEG, which is unpacked when
            it is read, to (height, width, channels).
    """

    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    channels: tuple[str, ...] = ()
    packed: bool = False

    @property
    def is_array(self) -> bool:
        """Whether its rows can be read as arrays of numbers, of whatever shape."""
        return self.packed or (self.kind in ("numbers", "image") and self.dtype != VIDEO)

    @property
    def width(self) -> int:
        """Numbers of one row."""
        width = 1
        for size in self.shape:
            width *= size
        return width


@dataclass(frozen=True)
class Source:
    """A data set that was opened.

    Attributes:
        format: its name, for people.
        path: where it lies.
        columns: what it holds of each row, by name.
        ends: for each episode the row after its last one; they increase from above 0 to M, the
            number of rows.
        read: names of number columns -> {name: (M, *shape)}, in the dtype of the file.
        pieces: name of a column that is an array (`Column.is_array`) -> its rows in order,
            (m, *shape) at a time, for columns that memory doesn't hold; None where `read` answers
            with any array, mapped if it is large.
        rate: rows per second; None where the data set doesn't say.
        notes: what is odd about it, a line each.
    """

    format: str
    path: Path
    columns: Mapping[str, Column]
    ends: Sequence[int]
    read: Callable[[Sequence[str]], dict[str, Tensor]]
    pieces: Callable[[str], Iterator[Tensor]] | None = None
    rate: float | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def rows(self) -> int:
        """M, the rows of all episodes."""
        return self.ends[-1]


def kind_of_rows(shape: Sequence[int]) -> str:
    """The kind of numbers whose rows have this shape: of three axes and more they are images."""
    return "image" if len(shape) >= 3 else "numbers"
