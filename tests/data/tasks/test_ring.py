"""The ring's law is what its formulas say, is exactly D4-symmetric, and the scores see what they
are meant to see."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from fastgen.data.tasks import paths, ring
from fastgen.data.tasks.paths import References
from fastgen.metrics import energy_distance

F64 = torch.float64
TURN = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=F64)
MIRROR = torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=F64)
D4 = [(torch.linalg.matrix_power(TURN, k), False) for k in range(4)]
D4 += [(torch.linalg.matrix_power(TURN, k) @ MIRROR, True) for k in range(4)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def demos() -> tuple[torch.Tensor, torch.Tensor]:
    g = generator(1)
    Z = torch.cat([ring.sample_conditions(3000, g), ring.sample_conditions(3000, g, near=True)])
    return Z, ring.demonstrate(Z, g)


# --- the loop -------------------------------------------------------------------------------------


def test_loop_coordinate_inverts_loop_point_at_any_radius():
    s = torch.linspace(0, 8, 401, dtype=F64)[:-1]
    for radius in (0.3, 1.0, 1.28):
        assert (ring.loop_coordinate(radius * ring.loop_point(s)) - s).abs().max() < 1e-12


def test_loop_point_runs_at_unit_speed_on_the_square_counter_clockwise():
    s = torch.linspace(0, 8, 801, dtype=F64)
    x = ring.loop_point(s)
    assert torch.equal(x.abs().amax(-1), torch.ones(801, dtype=F64))
    assert (x.diff(dim=0).norm(dim=-1) - 0.01).abs().max() < 1e-12
    area = 0.5 * (x[:-1, 0] * x[1:, 1] - x[1:, 0] * x[:-1, 1]).sum()
    assert float(area) == pytest.approx(4)


@pytest.mark.parametrize(("matrix", "reflects"), D4)
def test_the_group_moves_the_loop_coordinate_by_quarter_turns_and_sign(matrix, reflects):
    x = torch.randn(500, 2, generator=generator(), dtype=F64)
    s, moved = ring.loop_coordinate(x), ring.loop_coordinate(x @ matrix.T)
    shift = (moved + s if reflects else moved - s) % 2
    assert torch.minimum(shift, 2 - shift).max() < 1e-12


# --- conditions and demonstrations ----------------------------------------------------------------


@pytest.mark.parametrize(("near", "low", "high"), [(False, 1.0, 7.0), (True, 3.5, 4.5)])
def test_conditions_fill_their_ranges_uniformly(near, low, high):
    n = 4000
    Z = ring.sample_conditions(n, generator(), near=near)
    radius, s, offset = Z.abs().amax(-1), ring.loop_coordinate(Z[:, 0]), ring.ccw_offset(Z)
    for values, a, b in [
        (radius[:, 0], 0.72, 1.28),
        (radius[:, 1], 0.72, 1.28),
        (s, 0, 8),
        (offset, low, high),
    ]:
        assert float(values.min()) >= a - 1e-12 and float(values.max()) <= b + 1e-12
        # Kolmogorov-Smirnov against the uniform law; 1.95 / sqrt(n) is exceeded with probability
        # 1e-3.
        empirical = (values.sort().values - a) / (b - a)
        assert (empirical - (torch.arange(n) + 0.5) / n).abs().max() < 1.95 / math.sqrt(n)


def test_probability_of_the_direction_is_the_stated_sigmoid():
    offset = torch.tensor([1.0, 3.5, 4.0, 4.5, 7.0], dtype=F64)
    Z = torch.stack(
        [ring.loop_point(torch.full_like(offset, 7.3)), 0.8 * ring.loop_point(7.3 + offset)], 1
    )
    expected = [1 / (1 + math.exp(-(8 - 2 * float(x)) / 0.5)) for x in offset]
    assert ring.ccw_probability(Z).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("matrix", "reflects"), D4)
def test_law_is_exactly_d4_symmetric(matrix, reflects):
    """The demonstrator commutes with the group, reflections swap the directions, and p swaps with
    them."""
    g = generator(2)
    n = 200
    Z, ccw = ring.sample_conditions(n, g), torch.rand(n, generator=g) < 0.5
    lane, speed = 0.85 + 0.3 * torch.rand(n, generator=g), 0.9 + 0.2 * torch.rand(n, generator=g)
    noise = torch.randn(n, ring.STEPS, 2, generator=g, dtype=F64)
    X = ring.rollout(Z, ccw, lane=lane, speed=speed, noise=noise)
    moved = ring.rollout(
        Z @ matrix.T, ccw ^ reflects, lane=lane, speed=speed, noise=noise @ matrix.T
    )
    assert (moved - X @ matrix.T).abs().max() < 1e-11
    p, moved_p = ring.ccw_probability(Z), ring.ccw_probability(Z @ matrix.T)
    assert (moved_p - (1 - p if reflects else p)).abs().max() < 1e-12


def test_demonstrations_are_collision_free_and_arrive(demos):
    Z, X = demos
    assert X.dtype == F64 and X.shape == (6000, 16, 2)
    assert bool(ring.succeeds(X, Z).all())
    assert float(ring.clearance(X, Z).min()) > 1.5 * paths.RADIUS
    assert float((X[:, -1] - Z[:, 1]).norm(dim=-1).max()) < 0.02


def test_demonstrations_go_the_way_they_were_told():
    g = generator(3)
    Z = ring.sample_conditions(1000, g)
    ccw = torch.arange(1000) % 2 == 0
    lane = speed = torch.ones(1000, dtype=F64)
    X = ring.rollout(
        Z, ccw, lane=lane, speed=speed, noise=torch.randn(1000, ring.STEPS, 2, generator=g)
    )
    # A whole lap of up to 7 in either direction; at the top speed each arrives.
    assert torch.equal(ring.goes_ccw(X, Z), ccw)
    assert float((X[:, -1] - Z[:, 1]).norm(dim=-1).quantile(0.9)) < 0.01


def test_share_of_each_direction_is_p(demos):
    Z, X = demos
    p, ccw = ring.ccw_probability(Z), ring.goes_ccw(X, Z).double()
    for low, high in itertools.pairwise([0, 0.02, 0.2, 0.4, 0.6, 0.8, 0.98, 1]):
        rows = (p >= low) & (p <= high)
        n, variance = int(rows.sum()), float((p * (1 - p))[rows].mean())
        assert n > 100
        assert abs(float((ccw - p)[rows].mean())) < 4 * math.sqrt(variance / n) + 1e-3


def test_demonstrate_is_a_pure_function_of_conditions_and_generator():
    Z = ring.sample_conditions(50, generator(4))
    first, again = ring.demonstrate(Z, generator(5)), ring.demonstrate(Z, generator(5))
    assert torch.equal(first, again)
    assert not torch.equal(first, ring.demonstrate(Z, generator(6)))


def test_waypoints_are_equally_spaced_in_arc_length():
    # An L-shaped path of unequal segments: 3 along x, then 1 along y.
    path = torch.tensor([[[0.0, 0], [0.5, 0], [3, 0], [3, 0], [3, 1]]], dtype=F64)
    expected = torch.tensor([[[1.0, 0], [2, 0], [3, 0], [3, 1]]], dtype=F64)
    assert (paths.resample(path, 4) - expected).abs().max() < 1e-12


# --- geometry -------------------------------------------------------------------------------------


def test_clearance_agrees_with_a_slow_twin():
    """Against 4001 points along every segment, whose distances can only be larger, and by half a
    spacing at most."""
    g = generator(7)
    Z = 1.4 * (2 * torch.rand(200, 2, 2, generator=g, dtype=F64) - 1)
    X = 1.45 * (2 * torch.rand(200, 3, 2, generator=g, dtype=F64) - 1)
    points = torch.cat([Z[:, :1], X], 1)
    t = torch.linspace(0, 1, 4001, dtype=F64)[:, None]
    dense = (points[:, :-1, None] + t * points.diff(dim=1)[:, :, None]).flatten(1, 2)
    to_block = (dense.abs() - ring.BLOCK).clamp_min(0).norm(dim=-1)
    slow = torch.minimum(to_block, (ring.WALL - dense.abs().amax(-1)).clamp_min(0)).amin(1)
    gap = slow - ring.clearance(X, Z)
    assert float(gap.min()) > -1e-12 and float(gap.max()) < 1e-3
    assert 20 < int((slow == 0).sum()) < 180  # both cases are among the paths


@pytest.mark.parametrize(("matrix", "reflects"), D4)
def test_scores_of_a_path_are_invariant(matrix, reflects, demos):
    Z, X = (
        demos[0][:200],
        demos[1][:200] + 0.1 * torch.randn(200, 16, 2, generator=generator(), dtype=F64),
    )
    assert (ring.clearance(X @ matrix.T, Z @ matrix.T) - ring.clearance(X, Z)).abs().max() < 1e-12
    assert torch.equal(ring.succeeds(X @ matrix.T, Z @ matrix.T), ring.succeeds(X, Z))
    assert torch.equal(ring.goes_ccw(X @ matrix.T, Z @ matrix.T), ring.goes_ccw(X, Z) ^ reflects)


def straight(
    start: list[float], goal: list[float], n: int = 16
) -> tuple[torch.Tensor, torch.Tensor]:
    Z = torch.tensor([[start, goal]], dtype=F64)
    share = torch.arange(1, n + 1, dtype=F64)[:, None] / n
    return Z[:, :1] + share * (Z[:, 1:] - Z[:, :1]), Z


@pytest.mark.parametrize(
    ("start", "goal", "n", "clear"),
    [
        ([-1.0, 0.0], [1.0, 0.0], 16, False),  # through the middle of the block
        ([-1.0, 0.0], [1.0, 0.0], 1, False),  # no waypoint is near the block, only the segment
        ([-1.0, 0.59], [1.0, 0.59], 16, False),  # beside it, closer than the radius
        ([-1.0, 0.61], [1.0, 0.61], 16, True),
        ([-1.0, 1.41], [1.0, 1.41], 16, False),  # grazes the wall
        ([-1.0, 1.39], [1.0, 1.39], 16, True),
        # Along y = x + c past the corner (-.5, .5), which is |c - 1| / sqrt 2 away: .107 and then
        # .092.
        ([-1.2, 0.151 - 0.2], [0.2 - 0.151, 1.2], 1, True),
        ([-1.2, 0.130 - 0.2], [0.2 - 0.130, 1.2], 1, False),
    ],
)
def test_success_needs_clearance_of_the_whole_polyline(start, goal, n, clear):
    X, Z = straight(start, goal, n)
    assert bool(ring.succeeds(X, Z)) is clear


def test_success_needs_arrival():
    X, Z = straight([-1.0, 1.0], [1.0, 1.0])
    for short, arrives in ((0.14, True), (0.16, False)):
        moved = Z.clone()
        moved[:, 1, 0] += short
        assert bool(ring.succeeds(X, moved)) is arrives


# --- scores ---------------------------------------------------------------------------------------


def test_mode_error_floor_is_the_expected_error_of_a_perfect_sampler():
    exact = [(0.0, 16, 0.0), (1.0, 16, 0.0), (0.5, 2, 0.25), (0.3, 1, 0.42)]
    for p, k, expected in exact:
        assert paths.mode_error_floor(torch.tensor([p]), k) == pytest.approx(expected, abs=1e-7)
    p = torch.rand(40, generator=generator(), dtype=F64)
    drawn = (
        (torch.rand(20000, 40, 16, generator=generator(1), dtype=F64) < p[:, None]).double().mean(2)
    )
    errors = (drawn - p).abs().mean(1)
    assert abs(float(errors.mean()) - paths.mode_error_floor(p, 16)) < 4 * float(
        errors.std()
    ) / math.sqrt(20000)


def test_within_mode_spread_sees_the_modes_apart():
    g = generator()
    noise = 0.3 * torch.randn(200, 16, 4, 2, generator=g, dtype=F64)
    ccw = torch.rand(200, 16, generator=g) < 0.3
    X = noise + 50.0 * ccw[..., None, None]
    # sqrt(sum over 8 numbers of variance .09); its sampling error over 200 x 14 x 8 degrees of
    # freedom is below 1 %.
    assert paths.within_mode_spread(X, ccw) == pytest.approx(0.3 * math.sqrt(8), rel=0.03)
    alone = torch.zeros(200, 16, dtype=torch.bool)
    alone[:, 0] = True
    assert paths.within_mode_spread(noise + 50.0 * alone[..., None, None], alone) < 1


def test_energy_against_the_pool_is_the_average_over_all_sets_from_it():
    g = generator(8)
    Z = ring.sample_conditions(3, g, near=True)
    references = ring.draw_references(Z, 6, g)
    X, pool = (
        ring.demonstrate(Z.repeat_interleave(3, 0), g).view(3, 3, 16, 2),
        references.X.flatten(2),
    )
    sets = [pool[:, list(rows)] for rows in itertools.combinations(range(6), 3)]
    brute = torch.stack([energy_distance(X.flatten(2), demos) for demos in sets]).mean(0)
    assert (references.energy(X) - brute).abs().max() < 1e-12
    halves = [
        (rows, tuple(set(range(6)) - set(rows))) for rows in itertools.combinations(range(6), 3)
    ]
    between = torch.stack(
        [energy_distance(pool[:, list(a)], pool[:, list(b)]) for a, b in halves]
    ).mean(0)
    assert (references.own_energy(3) - between).abs().max() < 1e-12


@pytest.fixture(scope="module")
def references() -> References:
    g = generator(9)
    return ring.draw_references(ring.sample_conditions(150, g, near=True), 64, g)


def fresh(references: References, seed: int) -> torch.Tensor:
    return ring.demonstrate(references.Z.repeat_interleave(16, 0), generator(seed)).view(
        -1, 16, 16, 2
    )


@pytest.mark.slow
def test_fresh_demonstrations_score_as_demonstrations(references):
    rows = [ring.score(fresh(references, seed), references) for seed in range(4)]
    mean = {name: sum(row[name] for row in rows) / 4 for name in rows[0]}
    assert mean["success"] == 1
    # The sampling error of one energy ratio is about .06, of the mode error .005.
    assert abs(mean["energy_ratio"] - 1) < 0.15
    assert abs(mean["mode_error"] - paths.mode_error_floor(references.p, 16)) < 0.01
    assert abs(mean["clearance"] - 1) < 0.01
    assert abs(mean["spread"] - 1) < 0.03


def test_scores_see_each_failure(references):
    X = fresh(references, 0)
    good = ring.score(X, references)
    average = ring.score(X.mean(1, keepdim=True).expand_as(X), references)
    assert average["success"] < 0.5 and average["energy_ratio"] > 3
    one_way = ring.rollout(
        references.Z.repeat_interleave(16, 0),
        torch.ones(2400, dtype=torch.bool),
        lane=torch.ones(2400, dtype=F64),
        speed=torch.ones(2400, dtype=F64),
        noise=torch.zeros(2400, ring.STEPS, 2),
    ).view_as(X)
    collapsed = ring.score(one_way, references)
    assert collapsed["success"] == 1 and collapsed["mode_error"] > 3 * good["mode_error"]
    assert collapsed["energy_ratio"] > 3 and collapsed["spread"] < 0.1
    noisy = ring.score(
        X + 0.05 * torch.randn(X.shape, generator=generator(), dtype=F64), references
    )
    assert (
        noisy["spread"] > 1.05
        and noisy["clearance"] < 0.97
        and noisy["energy_ratio"] > good["energy_ratio"]
    )


def test_score_refuses_other_shapes_and_nan(references):
    with pytest.raises(
        ValueError, match=r"expected samples of shape \(150, K, 16, 2\), got \(2400, 16, 2\)"
    ):
        ring.score(fresh(references, 0).flatten(0, 1), references)
    X = fresh(references, 0)
    X[3, 2, 1, 0] = float("nan")
    with pytest.raises(ValueError, match="finite samples"):
        ring.score(X, references)
