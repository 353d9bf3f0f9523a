"""The task `flights`: where will an aircraft be in the next 160 seconds, given the last 80?

The tracks are the collection `quickstart` inside the PyPI package `traffic` 2.13: 236 flights over
the Paris region, one row a second. Only its data file is read; the package is not imported, and its
dependencies aren't needed. From rows to windows:

1. Rows are grouped into flights by (icao24, callsign) and ordered in time. A position that equals
   the one before was not received again but held. It is dropped, since held positions make aircraft
   stop and jump.
2. A flight is split where no new position came for more than 60 s.
3. Each part is resampled to 10 s, linearly in time, latitude and longitude.
4. Windows of 8 past and 16 future points start every 8 points. Those are kept whose 23 steps are
   all within 100-1100 km/h.
5. Coordinates are east and north in km, on the plane tangent to the WGS84 ellipsoid at the window's
   own last past point, turned so that the last past step points along +x (the *ego frame*). So Z
   ends in (0, 0), preceded by (-v, 0).

In the ego frame the reflection y -> -y keeps the heading. So the group is C2, with x trivial and y
sign.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...metrics import min_ade, min_fde
from ..held_out import HeldOutTask

__all__ = ["FlightsTask", "constant_velocity", "flight_windows", "quickstart_path", "read_tracks"]

INSTALL = "pip install --no-deps 'traffic==2.13.*'"
_QUICKSTART = Path("data/samples/collections/quickstart.json.gz")
# Seconds from point to point, and the longest time without a new position.
STEP = 10.0
GAP = 60.0
# Points of a window, and from one window to the next.
PAST = 8
FUTURE = 16
STRIDE = 8
# Kilometres in 10 s.
SLOWEST = 100 / 360
FASTEST = 1100 / 360
# The quickstart's JSON has 66 MB; a few hundred bytes of gzip can unpack to any size.
_MOST_BYTES = 1 << 28
# The ellipsoid WGS84, in km.
_EQUATOR = 6378.137
_FLATTENING = 1 / 298.257223563

# Seconds (n,) and degrees (n, 2) = (latitude, longitude).
Track = tuple[Tensor, Tensor]


# ---- Files --------------------------------------------------------------------------------------


def quickstart_path() -> Path:
    """The data file inside the installed package `traffic`.

    Raises:
        FileNotFoundError: it isn't there; the message has the command that installs it.
    """
    spec = importlib.util.find_spec("traffic")
    folders = [] if spec is None else spec.submodule_search_locations or []
    for folder in folders:
        if (Path(folder) / _QUICKSTART).is_file():
            return Path(folder) / _QUICKSTART
    what = "no such package" if spec is None else "a version without the file"
    raise FileNotFoundError(
        f"expected the recorded flights of the package traffic 2.13, got {what}; run: {INSTALL} "
        "(or give data.path, your own copy of its quickstart.json.gz)"
    )


def read_tracks(path: str | Path) -> list[Track]:
    """Read flights from a `.json` or `.json.gz` file.

    The file is a list of rows with icao24, callsign, timestamp (ms), latitude, longitude.

    Returns:
        For each flight, in the order of their names: seconds (n,) and degrees (n, 2) = (latitude,
        longitude), float64, increasing in time, without held positions and rows that have no
        position.

    Raises:
        FileNotFoundError, ValueError: no such file, not JSON, rows without these keys, no rows.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"expected recorded flights at {path}, got nothing there; to get some: {INSTALL}"
        )
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES:,} bytes")
        rows = json.loads(raw)
    except (gzip.BadGzipFile, zlib.error, EOFError, ValueError, RecursionError) as error:
        raise ValueError(
            f"expected JSON (.json or .json.gz) at {path}, got a file that can't be read: {error}"
        ) from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(
            f"expected a list of rows in {path}, got "
            f"{'an empty list' if rows == [] else type(rows).__name__}"
        )
    flights: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for index, row in enumerate(rows):
        try:
            key = (str(row["icao24"]), str(row["callsign"]))
            if row["latitude"] is None or row["longitude"] is None:
                continue
            seconds = float(row["timestamp"]) / 1000
            entry = (seconds, float(row["latitude"]), float(row["longitude"]))
            if all(map(math.isfinite, entry)):
                flights.setdefault(key, []).append(entry)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                "expected rows with icao24, callsign, timestamp, latitude and longitude "
                f"in {path}, got row {index}: {repr(row)[:120]}"
            ) from error
    return [_clean(flights[key]) for key in sorted(flights)]


def _clean(rows: list[tuple[float, float, float]]) -> Track:
    """The track of a flight's rows, in the order of time and without held positions."""
    table = torch.tensor(sorted(rows), dtype=torch.float64)
    fresh = torch.ones(len(table), dtype=torch.bool)
    fresh[1:] = (table[1:, 1:] != table[:-1, 1:]).any(1) & (table[1:, 0] > table[:-1, 0])
    return table[fresh, 0], table[fresh, 1:]


# ---- Windows ------------------------------------------------------------------------------------


def flight_windows(
    tracks: Sequence[Track], *, stride: int = STRIDE
) -> tuple[Tensor, Tensor, Tensor]:
    """Windows in the ego frame.

    Returns:
        X (N, 16, 2) and Z (N, 8, 2), both float64 in km, and the flight (N,) of each window.

    Raises:
        ValueError: no flight is long enough for a window.
    """
    windows = []
    flights = []
    for flight, (seconds, degrees) in enumerate(tracks):
        cuts = (seconds.diff() > GAP).nonzero().flatten() + 1
        for t, position in zip(seconds.tensor_split(cuts), degrees.tensor_split(cuts), strict=True):
            points = _resample(t, position)
            if len(points) >= PAST + FUTURE:
                cut = points.unfold(0, PAST + FUTURE, stride).transpose(1, 2)
                windows.append(cut)
                flights += [flight] * len(cut)
    if not flights:
        raise ValueError(
            f"expected a track of at least {(PAST + FUTURE - 1) * STEP:.0f} s without a gap of "
            f"{GAP:.0f} s, got none in {len(tracks)} flights"
        )
    degrees = torch.cat(windows)
    local = _tangent_plane(degrees, degrees[:, PAST - 1])
    steps = local.diff(dim=1).norm(dim=-1)
    keep = ((steps >= SLOWEST) & (steps <= FASTEST)).all(1)
    ego = _turn(local[keep])
    return ego[:, PAST:], ego[:, :PAST], torch.tensor(flights, dtype=torch.long)[keep]


def _resample(t: Tensor, values: Tensor) -> Tensor:
    """Linear interpolation of values (n, 2) at t[0], t[0] + 10 s, ... <= t[-1]."""
    if len(t) < 2:
        return values[:0]
    wanted = t[0] + STEP * torch.arange(math.floor(float(t[-1] - t[0]) / STEP) + 1, dtype=t.dtype)
    right = torch.searchsorted(t, wanted).clamp(1, len(t) - 1)
    share = (wanted - t[right - 1]) / (t[right] - t[right - 1])
    return torch.lerp(values[right - 1], values[right], share[:, None])


def _geocentric(degrees: Tensor) -> Tensor:
    """WGS84 latitude and longitude (..., 2) at height 0 -> Cartesian coordinates (..., 3) in km."""
    latitude, longitude = torch.deg2rad(degrees).unbind(-1)
    squared = _FLATTENING * (2 - _FLATTENING)
    normal = _EQUATOR / torch.sqrt(1 - squared * latitude.sin().square())
    flat = normal * latitude.cos()
    return torch.stack(
        [flat * longitude.cos(), flat * longitude.sin(), (1 - squared) * normal * latitude.sin()],
        -1,
    )


def _tangent_plane(degrees: Tensor, origin: Tensor) -> Tensor:
    """East and north (N, T, 2) in km of degrees (N, T, 2), on the plane tangent at the origin
    (N, 2)."""
    latitude, longitude = torch.deg2rad(origin).unbind(-1)
    east = [-longitude.sin(), longitude.cos(), torch.zeros_like(latitude)]
    north = [-latitude.sin() * longitude.cos(), -latitude.sin() * longitude.sin(), latitude.cos()]
    axes = torch.stack([torch.stack(east, -1), torch.stack(north, -1)], 1)
    return (_geocentric(degrees) - _geocentric(origin)[:, None]) @ axes.transpose(1, 2)


def _turn(points: Tensor) -> Tensor:
    """Turn each window (N, T, 2) so that its last past step points along +x."""
    heading = torch.nn.functional.normalize(points[:, PAST - 1] - points[:, PAST - 2], dim=-1)
    left = torch.stack([-heading[:, 1], heading[:, 0]], -1)
    return points @ torch.stack([heading, left], -1)


def constant_velocity(Z: Tensor, horizon: int = FUTURE) -> Tensor:
    """The baseline that goes on as in the last past step: Z (N, T_z >= 2, d) -> X (N, horizon,
    d)."""
    k = torch.arange(1, horizon + 1, dtype=Z.dtype, device=Z.device)[:, None]
    return Z[:, -1:] + k * (Z[:, -1:] - Z[:, -2:-1])


# ---- The task -----------------------------------------------------------------------------------


class FlightsTask(HeldOutTask):
    """Predict 16 points of an aircraft's track from 8, in km in the ego frame.

    Train, validation and test flights are disjoint.

    Args:
        path: None for the data inside the package `traffic`, or a copy of it (`.json`, `.json.gz`).
        pack, seed, symmetry: as in `HeldOutTask`; None for the task's own symmetry C2.
    """

    own_symmetry = {
        "group": "C2",
        "in_rep": ["trivial", "sign"],
        "cond_rep": ["trivial", "sign"],
        "out_rep": ["trivial", "sign"],
    }

    def __init__(
        self,
        *,
        path: str | Path | None = None,
        pack: int = 4,
        seed: int = 0,
        symmetry: dict | None = None,
    ) -> None:
        tracks = read_tracks(quickstart_path() if path is None else path)
        X, Z, flights = flight_windows(tracks)
        symmetry = dict(self.own_symmetry) if symmetry is None else symmetry
        super().__init__(
            "flights",
            X.float(),
            Z.float(),
            flights,
            primary="min_fde",
            pack=pack,
            seed=seed,
            symmetry=symmetry,
            # Pairs go through these few windows many times over, so that it hardly matters which
            # ones the last turn begins with; and scores stay those that were published.
            in_order=False,
        )

    def floor(self) -> dict[str, float]:
        """`cv_min_ade` and `cv_min_fde` in km: those of constant velocity on the test windows."""
        X, Z = self.split("test")
        guess = constant_velocity(Z)[:, None]
        return {
            "cv_min_ade": float(min_ade(guess, X).mean()),
            "cv_min_fde": float(min_fde(guess, X).mean()),
        }

    def examples(self, n: int = 6) -> tuple[Tensor, Tensor]:
        """Z, X of n test windows from straight flight to turns: at quantiles of how far to the side
        they end."""
        X, Z = self.split("test")
        order = X[:, -1, 1].abs().argsort(stable=True)
        pick = order[(torch.linspace(0.2, 0.97, n) * (len(order) - 1)).long()]
        return Z[pick], X[pick]
