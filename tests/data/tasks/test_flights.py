"""Tracks become windows in km in the ego frame: straight flight is straight, mirrors mirror, gaps
and stops are out."""

from __future__ import annotations

import gzip
import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch

from fastgen.data import build_task
from fastgen.data.tasks import flights
from fastgen.data.tasks.flights import (
    FlightsTask,
    constant_velocity,
    flight_windows,
    quickstart_path,
    read_tracks,
)

F64 = torch.float64
EARTH = 6371.0


def circle(
    seconds: torch.Tensor,
    *,
    bearing: float = 0.7,
    turn: float = 0.0,
    speed: float = 0.2,
    start=(48.5, 2.5),
) -> torch.Tensor:
    """Degrees (n, 2) of a flight at `speed` km/s whose bearing (from north, clockwise) grows by
    `turn` rad/s."""
    dt = torch.cat([torch.zeros(1, dtype=F64), seconds.diff()])
    heading = bearing + turn * (seconds - seconds[0])
    latitude = start[0] + torch.rad2deg((speed * dt * heading.cos()).cumsum(0) / EARTH)
    longitude = start[1] + torch.rad2deg(
        (speed * dt * heading.sin() / torch.deg2rad(latitude).cos()).cumsum(0) / EARTH
    )
    return torch.stack([latitude, longitude], 1)


def seconds(n: int) -> torch.Tensor:
    return torch.arange(n, dtype=F64) + 1.6e9


def rows_of(name: str, t: torch.Tensor, degrees: torch.Tensor) -> list[dict]:
    return [
        {
            "icao24": name,
            "callsign": "X",
            "timestamp": 1000 * s,
            "latitude": a,
            "longitude": b,
            "altitude": None,
        }
        for s, (a, b) in zip(t.tolist(), degrees.tolist(), strict=True)
    ]


def write(path, rows):
    text = json.dumps(rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("bearing", [0.0, 0.7, 2.0, 3.5, 5.9])
def test_steady_straight_flight_is_the_constant_velocity_line(bearing):
    t = seconds(800)
    X, Z, _ = flight_windows([(t, circle(t, bearing=bearing))])
    assert X.shape[1:] == (16, 2) and Z.shape[1:] == (8, 2) and X.dtype == F64
    # 0.2 km/s for 10 s; the sphere of the test and WGS84 differ by less than half a percent.
    assert (Z[:, -2, 0] + 2.0).abs().max() < 0.01
    # A line of constant bearing bends by tan(latitude) distance / R: over 32 km sideways, 0.1 km at
    # most.
    assert (constant_velocity(Z) - X).norm(dim=-1).max() < 0.15


def test_last_past_point_is_the_origin_and_the_heading_is_along_x():
    t = seconds(900)
    _, Z, _ = flight_windows([(t, circle(t, turn=0.004))])
    assert torch.equal(Z[:, -1], torch.zeros(len(Z), 2, dtype=F64))
    assert (Z[:, -2, 1]).abs().max() < 1e-12 and (Z[:, -2, 0] < 0).all()


def test_a_right_turn_goes_to_negative_y_along_its_circle():
    t, turn, speed = seconds(600), 0.01, 0.2
    X, _, _ = flight_windows([(t, circle(t, turn=turn, speed=speed))])
    radius = speed / turn
    angle = turn * flights.STEP * torch.arange(1, 17, dtype=F64)
    # The last past step points along the chord, half a step's turn behind the tangent.
    angle = torch.stack([angle.sin(), angle.cos() - 1], -1) * radius
    half = turn * flights.STEP / 2
    back = torch.tensor(
        [[math.cos(half), -math.sin(half)], [math.sin(half), math.cos(half)]], dtype=F64
    )
    assert (X - angle @ back).norm(dim=-1).max() < 0.25 and (X[:, 4:, 1] < 0).all()


def test_mirroring_east_and_west_mirrors_the_windows():
    t = seconds(700)
    degrees = circle(t, turn=0.005, start=(48.5, 0.0))
    X, Z, _ = flight_windows([(t, degrees)])
    mirrored_X, mirrored_Z, _ = flight_windows(
        [(t, degrees * torch.tensor([1.0, -1.0], dtype=F64))]
    )
    mirror = torch.tensor([1.0, -1.0], dtype=F64)
    assert (mirrored_X - X * mirror).abs().max() < 1e-9 and (
        mirrored_Z - Z * mirror
    ).abs().max() < 1e-9


def test_windows_do_not_depend_on_where_and_when_the_flight_is():
    t = seconds(700)
    degrees = circle(t, turn=0.005)
    X, _, _ = flight_windows([(t, degrees)])
    later, _, _ = flight_windows([(t + 12345, degrees + torch.tensor([0.0, 31.0], dtype=F64))])
    assert (later - X).abs().max() < 1e-6
    # South of the equator with the mirrored bearing it is the mirror image.
    south, _, _ = flight_windows([(t, degrees * torch.tensor([-1.0, 1.0], dtype=F64))])
    assert (south * torch.tensor([1.0, -1.0], dtype=F64) - X).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("latitude", "north_km", "east_km"), [(0.0, 110.574, 111.320), (45.0, 111.132, 78.847)]
)
def test_kilometres_are_those_of_wgs84(latitude, north_km, east_km):
    origin = torch.tensor([[latitude, 7.0]], dtype=F64)
    points = origin[:, None] + torch.tensor(
        [[[0.005, 0.0], [-0.005, 0.0], [0.0, 0.005], [0.0, -0.005]]], dtype=F64
    )
    north, south, east, west = flights._tangent_plane(points, origin)[0]
    assert float((north - south)[1]) == pytest.approx(north_km / 100, rel=1e-4)
    assert float((east - west)[0]) == pytest.approx(east_km / 100, rel=1e-4)
    assert abs(float((north - south)[0])) < 1e-9 and abs(float((east - west)[1])) < 1e-9


def test_a_gap_splits_the_flight_so_that_no_window_spans_it():
    t = seconds(1000)
    keep = (t < t[0] + 400) | (t > t[0] + 465)
    degrees = circle(t)
    whole, _, _ = flight_windows([(t, degrees)], stride=1)
    X, Z, numbers = flight_windows([(t[keep], degrees[keep])], stride=1)
    assert numbers.tolist() == [0] * len(X)
    # 400 s make 40 points and 535 s make 54; n points make n - 23 windows.
    assert len(whole) == 100 - 23 and len(X) == (40 - 23) + (54 - 23)
    # Less than a minute is bridged.
    near = (t < t[0] + 400) | (t > t[0] + 455)
    assert len(flight_windows([(t[near], degrees[near])], stride=1)[0]) == len(whole)


def test_windows_are_a_stride_apart():
    t = seconds(1000)
    tracks = [(t, circle(t, turn=0.003))]
    every, eighth = flight_windows(tracks, stride=1)[0], flight_windows(tracks)[0]
    assert torch.equal(eighth, every[::8])


@pytest.mark.parametrize(("speed", "kept"), [(90, False), (110, True), (1090, True), (1110, False)])
def test_speeds_out_of_range_are_left_out(speed, kept):
    t = seconds(400)
    X, _, _ = flight_windows(
        [(t, circle(t, bearing=math.pi / 2, speed=speed / 3600, start=(0.1, 2.0)))]
    )
    assert bool(len(X)) is kept


def test_reading_groups_flights_orders_rows_and_drops_held_positions(tmp_path):
    t = seconds(300)
    first, second = circle(t), circle(t, bearing=2.0)
    held = first.clone()
    held[1::3] = held[0::3]  # every third position is the one before, held
    rows = rows_of("bb", t, second) + rows_of("aa", t, held)[::-1]
    for later, latitude, longitude in [(1, None, None), (2, 1.0, math.nan)]:
        time = 1000 * float(t[-1] + later)
        row = {
            "icao24": "aa",
            "callsign": "X",
            "timestamp": time,
            "latitude": latitude,
            "longitude": longitude,
        }
        rows.append(row)
    tracks = read_tracks(write(tmp_path / "tracks.json.gz", rows))
    assert len(tracks) == 2
    (time, degrees), (other_time, other) = tracks
    assert len(time) == 200 and (time.diff() > 0).all()
    assert torch.equal(degrees, first[torch.arange(300) % 3 != 1])
    assert torch.equal(other_time, t) and torch.equal(other, second)
    # What is read is what was flown: without the held rows interpolation is exact on a straight
    # line.
    straight = flight_windows(tracks)[0][: len(flight_windows([(t, first)])[0])]
    assert (straight - flight_windows([(t, first)])[0]).abs().max() < 1e-3


@pytest.fixture
def file_of_flights(tmp_path):
    t = seconds(600)
    rows = []
    for i in range(12):
        rows += rows_of(
            f"{i:02d}",
            t,
            circle(t, bearing=0.5 * i, turn=0.004 * (i % 3 - 1), speed=0.1 + 0.01 * i),
        )
    return write(tmp_path / "tracks.json", rows)


def test_task_splits_by_flight_and_scores_constant_velocity(file_of_flights):
    task = build_task(
        SimpleNamespace(name="flights", path=file_of_flights, pack=4, seed=0, symmetry=None)
    )
    X, Z, numbers = flight_windows(read_tracks(file_of_flights))
    parts = [set(numbers[rows].tolist()) for rows in task.rows.values()]
    assert set.union(*parts) == set(range(12)) and sum(map(len, parts)) == 12
    assert (
        task.primary == "min_fde"
        and task.train.symmetry["group"] == "C2"
        and task.train.X.shape[1:] == (16, 2)
    )
    # The reflection y -> -y is in the group: no mean across the heading.
    assert (
        float(task.train.x_normalizer.mean[1]) == 0 and float(task.train.x_normalizer.mean[0]) > 1
    )
    scores = task.evaluate(lambda Z, noise: constant_velocity(Z))
    floor = task.floor()
    assert scores["min_fde"] == pytest.approx(floor["cv_min_fde"], rel=1e-6)
    assert scores["min_ade"] == pytest.approx(floor["cv_min_ade"], rel=1e-6)
    assert 0 < floor["cv_min_ade"] < floor["cv_min_fde"]


def test_examples_run_from_straight_flight_to_turns(file_of_flights):
    Z, X = FlightsTask(path=file_of_flights).examples(4)
    side = X[:, -1, 1].abs()
    assert Z.shape == (4, 8, 2) and bool((side.diff() >= 0).all())


def test_the_package_is_found_but_never_imported(tmp_path, monkeypatch):
    data = tmp_path / "traffic" / "data" / "samples" / "collections"
    data.mkdir(parents=True)
    (tmp_path / "traffic" / "__init__.py").write_text("raise RuntimeError('imported')")
    t = seconds(300)
    write(data / "quickstart.json.gz", rows_of("aa", t, circle(t)))
    monkeypatch.delitem(sys.modules, "traffic", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert quickstart_path() == data / "quickstart.json.gz"
    assert len(read_tracks(quickstart_path())) == 1 and "traffic" not in sys.modules
    (data / "quickstart.json.gz").unlink()
    with pytest.raises(
        FileNotFoundError, match="a version without the file; run: pip install --no-deps"
    ):
        quickstart_path()


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(flights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        FileNotFoundError, match=r"no such package; run: pip install --no-deps 'traffic==2.13.\*'"
    ):
        FlightsTask()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{not json", "JSON .* can't be read"),
        (b"[]", "list of rows .* an empty list"),
        (b'{"a": 1}', "list of rows .* got dict"),
        (b'[{"icao24": "a", "callsign": "b", "timestamp": 1, "latitude": 2.0}]', "got row 0"),
        (
            b'[{"icao24": "a", "callsign": "b", "timestamp": "noon", "latitude": 2.0, '
            b'"longitude": 1}]',
            "got row 0",
        ),
        (b"[3]", "got row 0: 3"),
    ],
)
def test_files_that_hold_no_tracks_are_refused(tmp_path, content, words):
    (tmp_path / "tracks.json").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_tracks(tmp_path / "tracks.json")


def test_missing_broken_and_too_short_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="recorded flights at"):
        read_tracks(tmp_path / "nowhere.json")
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b"[" + b" " * 10000)[:20])
    with pytest.raises(ValueError, match="can't be read"):
        read_tracks(tmp_path / "cut.json.gz")
    t = seconds(100)
    with pytest.raises(
        ValueError, match="at least 230 s without a gap of 60 s, got none in 1 flights"
    ):
        FlightsTask(path=write(tmp_path / "short.json", rows_of("aa", t, circle(t))))
