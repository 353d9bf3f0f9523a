"""Two posts in sequence: the law is what its formulas say, invariant under every rotation and
reflection of the plane, and the scores see what they are meant to see."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from fastgen.data import Task, build_task
from fastgen.data.tasks import two_rings as tr
from fastgen.data.tasks.paths import References
from fastgen.data.tasks.two_rings import TwoRingsTask
from fastgen.report.pictures import sample_figure

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def turn(degrees: float) -> torch.Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[c, -s], [s, c]], dtype=F64)


MIRROR = torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=F64)
# D4, and elements that are none of it: the law knows no axes.
MOVES = [(turn(a), False) for a in (90, 180, 270, 33)] + [
    (turn(a) @ MIRROR, True) for a in (0, 90, 180, 270, 71)
]


@pytest.fixture(scope="module")
def demos() -> tuple[torch.Tensor, torch.Tensor]:
    g = generator(1)
    Z = tr.sample_conditions(8000, g)
    return Z, tr.demonstrate(Z, g)


@pytest.fixture(scope="module")
def references() -> References:
    g = generator(9)
    return tr.draw_references(tr.sample_conditions(150, g), 64, g)


def fresh(references: References, seed: int) -> torch.Tensor:
    return tr.demonstrate(references.Z.repeat_interleave(16, 0), generator(seed)).view(
        -1, 16, 16, 2
    )


def draws(n: int, seed: int = 2) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    g = generator(seed)
    sides = torch.tensor(tr.SIDES, dtype=F64)[torch.arange(n) % 4]
    gap = 0.2 + 0.15 * torch.rand(n, 2, generator=g, dtype=F64)
    return sides, {"gap": gap, "waves": 0.02 * torch.rand(n, 3, generator=g, dtype=F64) - 0.01}


# --- conditions and demonstrations ----------------------------------------------------------------


def test_conditions_fill_their_ranges(demos):
    forward, length, posts = tr._frame(demos[0])
    share = posts[..., 0] / length[:, None]
    columns = [(length, 2.8, 3.4), (share[:, 0], 0.25, 0.29), (share[:, 1], 0.71, 0.75)]
    columns += [(posts[:, i, 1], -0.15, 0.15) for i in (0, 1)]
    columns += [(torch.atan2(forward[:, 1], forward[:, 0]), -math.pi, math.pi)]
    centre = demos[0][:, :2].mean(1).norm(dim=-1)
    for values, low, high in [*columns, ((centre / 0.2).square(), 0, 1)]:
        assert float(values.min()) >= low - 1e-9 and float(values.max()) <= high + 1e-9
        # Kolmogorov-Smirnov against the uniform law; 1.95 / sqrt(n) is exceeded with probability
        # 1e-3.
        empirical = (values.sort().values - low) / (high - low)
        assert (empirical - (torch.arange(8000) + 0.5) / 8000).abs().max() < 1.95 / math.sqrt(8000)


@pytest.mark.parametrize(("matrix", "reflects"), MOVES)
def test_law_is_exactly_symmetric(matrix, reflects):
    """The demonstrator commutes with the move; reflections swap left and right, and probabilities
    with them."""
    n = 200
    Z, (sides, rest) = tr.sample_conditions(n, generator(2)), draws(n)
    sign = -1 if reflects else 1
    X = tr.path(Z, sides, **rest)
    moved = tr.path(Z @ matrix.T, sign * sides, gap=rest["gap"], waves=sign * rest["waves"])
    assert (moved - X @ matrix.T).abs().max() < 1e-12
    p, moved_p = tr.class_probabilities(Z), tr.class_probabilities(Z @ matrix.T)
    assert (moved_p - (p.flip(1) if reflects else p)).abs().max() < 1e-12


def test_probabilities_are_the_stated_law():
    Z = torch.tensor([[[-1.5, 0], [1.5, 0], [-0.7, 0.1], [0.7, -0.05]]], dtype=F64)
    weight = [math.exp(-8 * (a * 0.1 - b * 0.05) + 0.3 * a * b) for a, b in tr.SIDES]
    assert tr.class_probabilities(Z)[0].tolist() == pytest.approx([w / sum(weight) for w in weight])


def test_demonstrations_are_collision_free_and_arrive(demos):
    Z, X = demos
    assert X.dtype == F64 and X.shape == (8000, 16, 2)
    assert bool(tr.succeeds(X, Z).all()) and float(tr.clearance(X, Z).min()) > 0.12
    assert float((X[:, -1] - Z[:, 1]).norm(dim=-1).max()) < 1e-9


def test_demonstrations_pass_on_the_sides_they_were_told():
    Z, (sides, rest) = tr.sample_conditions(2000, generator(3)), draws(2000)
    assert torch.equal(tr.class_of(tr.path(Z, sides, **rest), Z), torch.arange(2000) % 4)


def test_shares_of_the_classes_are_their_probabilities(demos):
    Z, X = demos
    p, found = tr.class_probabilities(Z), torch.nn.functional.one_hot(tr.class_of(X, Z), 4).double()
    for k in range(4):
        for low, high in ((0, 0.1), (0.1, 0.3), (0.3, 1)):
            rows = (p[:, k] > low) & (p[:, k] <= high)
            variance = float((p * (1 - p))[rows, k].mean())
            assert int(rows.sum()) > 100
            assert abs(float((found - p)[rows, k].mean())) < 4 * math.sqrt(
                variance / int(rows.sum())
            )


def test_demonstrate_is_a_pure_function_of_conditions_and_generator():
    Z = tr.sample_conditions(50, generator(4))
    first = tr.demonstrate(Z, generator(5))
    assert torch.equal(first, tr.demonstrate(Z, generator(5)))
    assert not torch.equal(first, tr.demonstrate(Z, generator(6)))


# --- geometry -------------------------------------------------------------------------------------


def test_clearance_agrees_with_a_slow_twin():
    """Against 4001 points along every segment, whose distances can only be larger, and by half a
    spacing at most."""
    g = generator(7)
    Z = tr.sample_conditions(200, g)
    X = 1.5 * (2 * torch.rand(200, 3, 2, generator=g, dtype=F64) - 1)
    points = torch.cat([Z[:, :1], X], 1)
    t = torch.linspace(0, 1, 4001, dtype=F64)[:, None]
    dense = (points[:, :-1, None] + t * points.diff(dim=1)[:, :, None]).flatten(1, 2)
    slow = ((dense[:, :, None] - Z[:, None, 2:]).norm(dim=-1).amin((1, 2)) - tr.POST).clamp_min(0)
    gap = slow - tr.clearance(X, Z)
    assert float(gap.min()) > -1e-12 and float(gap.max()) < 1e-3
    assert 20 < int((slow == 0).sum()) < 180  # both cases are among the paths


def test_a_path_that_stands_still_can_be_scored():
    Z = tr.sample_conditions(3, generator())
    X = Z[:, :1].expand(-1, 16, -1)
    distance = (Z[:, 2:] - Z[:, :1]).norm(dim=-1).amin(1) - tr.POST
    assert torch.allclose(tr.clearance(X, Z), distance) and not bool(tr.succeeds(X, Z).any())


@pytest.mark.parametrize(("matrix", "reflects"), MOVES)
def test_scores_of_a_path_are_invariant(matrix, reflects, demos):
    Z, X = (
        demos[0][:200],
        demos[1][:200] + 0.1 * torch.randn(200, 16, 2, generator=generator(), dtype=F64),
    )
    assert (tr.clearance(X @ matrix.T, Z @ matrix.T) - tr.clearance(X, Z)).abs().max() < 1e-12
    assert torch.equal(tr.succeeds(X @ matrix.T, Z @ matrix.T), tr.succeeds(X, Z))
    found = tr.class_of(X, Z)
    assert torch.equal(tr.class_of(X @ matrix.T, Z @ matrix.T), 3 - found if reflects else found)


@pytest.mark.parametrize(
    ("height", "clear"), [(0.0, False), (0.2, False), (0.34, False), (0.36, True)]
)
def test_success_needs_clearance_of_the_whole_polyline(height, clear):
    """A flat lane beside the line of both posts: no waypoint is near one, only the segment."""
    Z = torch.tensor([[[-1.5, height], [1.5, height], [-0.7, 0], [0.7, 0]]], dtype=F64)
    assert bool(tr.succeeds(Z[:, 1:2], Z)) is clear


def test_success_needs_arrival(demos):
    Z, X = demos[0][:1], demos[1][:1]
    for short, arrives in ((0.14, True), (0.16, False)):
        moved = Z.clone()
        moved[:, 1, 0] += short
        assert bool(tr.succeeds(X, moved)) is arrives


# --- scores ---------------------------------------------------------------------------------------


def test_class_error_floor_is_the_expected_error_of_a_perfect_sampler():
    p = torch.rand(40, 4, generator=generator(), dtype=F64).softmax(1)
    drawn = torch.multinomial(p, 16 * 2000, replacement=True, generator=generator(1)).view(
        40, 2000, 16
    )
    shares = torch.nn.functional.one_hot(drawn, 4).double().mean(2)
    errors = 0.5 * (shares - p[:, None]).abs().sum(2).mean(0)
    assert abs(float(errors.mean()) - tr.class_error_floor(p, 16)) < 4 * float(
        errors.std()
    ) / math.sqrt(2000)


@pytest.mark.slow
def test_fresh_demonstrations_score_as_demonstrations(references):
    rows = [tr.score(fresh(references, seed), references) for seed in range(4)]
    mean = {name: sum(row[name] for row in rows) / 4 for name in rows[0]}
    assert mean["success"] == 1
    assert abs(mean["energy_ratio"] - 1) < 0.1
    assert abs(mean["mode_error"] - tr.class_error_floor(references.p, 16)) < 0.01
    assert mean["share_error"] < 0.02
    assert abs(mean["clearance"] - 1) < 0.01 and abs(mean["spread"] - 1) < 0.03


@pytest.mark.parametrize(("matrix", "reflects"), MOVES[:6])
def test_scores_do_not_change_when_conditions_and_samples_are_moved(matrix, reflects, references):
    X = fresh(references, 0) + 0.05 * torch.randn(150, 16, 16, 2, generator=generator(), dtype=F64)
    p = references.p.flip(1) if reflects else references.p
    values = (references.distance, references.clearance, references.spread)
    moved = References(references.Z @ matrix.T, references.X @ matrix.T, p, *values)
    assert tr.score(X @ matrix.T, moved) == pytest.approx(tr.score(X, references), abs=1e-9)


def test_scores_see_each_failure(references):
    X = fresh(references, 0)
    good = tr.score(X, references)
    average = tr.score(X.mean(1, keepdim=True).expand_as(X), references)
    assert average["success"] < 0.5 and average["energy_ratio"] > 2 and average["clearance"] < 0.7
    tiled = references.Z.repeat_interleave(16, 0)
    sides, rest = draws(2400)
    one_way = tr.path(tiled, torch.ones_like(sides), **rest)
    collapsed = tr.score(one_way.view_as(X), references)
    assert collapsed["success"] == 1 and collapsed["mode_error"] > 3 * good["mode_error"]
    assert collapsed["share_error"] > 0.5 and collapsed["energy_ratio"] > 3
    # A mode that is lost everywhere: never first left, then right.
    lost = torch.where(
        (tr.class_of(X.flatten(0, 1), tiled) == 1)[:, None, None], one_way, X.flatten(0, 1)
    )
    dropped = tr.score(lost.view_as(X), references)
    assert dropped["success"] == 1 and dropped["share_error"] > 0.15
    assert dropped["mode_error"] > good["mode_error"] + 0.1
    noisy = tr.score(X + 0.05 * torch.randn(X.shape, generator=generator(), dtype=F64), references)
    assert (
        noisy["spread"] > 1.1
        and noisy["clearance"] < 0.95
        and noisy["energy_ratio"] > good["energy_ratio"]
    )
    assert noisy["success"] < 1
    short = tr.score(torch.lerp(X, references.Z[:, None, :1], 0.1), references)
    assert short["success"] == 0


def test_score_refuses_other_shapes_and_nan(references):
    with pytest.raises(
        ValueError, match=r"expected samples of shape \(150, K, 16, 2\), got \(2400, 16, 2\)"
    ):
        tr.score(fresh(references, 0).flatten(0, 1), references)
    X = fresh(references, 0)
    X[3, 2, 1, 0] = float("nan")
    with pytest.raises(ValueError, match="finite samples"):
        tr.score(X, references)


# --- the task -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task() -> TwoRingsTask:
    return TwoRingsTask(size=64)


def test_training_data_are_demonstrations_and_a_function_of_size_and_seed(task):
    data = task.train
    assert (
        data.X.shape == (64, 16, 2) and data.Z.shape == (64, 4, 2) and data.X.dtype == torch.float32
    )
    assert bool(tr.succeeds(data.X, data.Z).all())
    assert torch.equal(TwoRingsTask(size=64).train.X, data.X)
    assert not torch.equal(TwoRingsTask(size=64, seed=1).train.Z, data.Z)
    x, z = data.network_inputs()
    assert x.shape == (64, 4, 8) and z.shape == (64, 4, 2) and data.symmetry["group"] == "D4"


@pytest.mark.slow
def test_demonstrations_score_like_the_floor_and_every_sampler_has_the_same_draws(task):
    calls = []

    def demonstrator(Z, noise):
        calls.append((Z, noise))
        return tr.demonstrate(Z, generator(3)).float()

    floor, scores = task.floor(), task.evaluate(demonstrator)
    assert scores == TwoRingsTask(size=10, seed=5).evaluate(demonstrator)
    assert torch.equal(calls[0][0], calls[1][0]) and torch.equal(calls[0][1], calls[1][1])
    assert calls[0][0].shape == (3200, 4, 2) and calls[0][1].shape == (3200, 16, 2)
    assert set(floor) == set(scores) | {"mode_error_floor"} and task.primary in scores
    for row in (floor, scores):
        assert (
            row["success"] == 1
            and abs(row["energy_ratio"] - 1) < 0.15
            and row["share_error"] < 0.03
        )
        assert abs(row["mode_error"] - floor["mode_error_floor"]) < 0.015
    quick = task.evaluate(demonstrator, quick=True)
    assert abs(quick[task.primary] - 1) < 0.15
    assert not set(map(tuple, calls[0][0].flatten(1).tolist())) & set(
        map(tuple, calls[-1][0].flatten(1).tolist())
    )


def test_build_task_makes_it_with_its_options():
    task = build_task(SimpleNamespace(name="two_rings", size=20, pack=2, seed=3))
    assert (
        isinstance(task, Task)
        and task.name == "two_rings"
        and task.train.pack == 2
        and len(task.train) == 20
    )
    for options, words in [
        ({"pack": 3}, "divides the 16 waypoints"),
        ({"horizon": 8}, "no data.horizon for the task"),
    ]:
        with pytest.raises(ValueError, match=words):
            build_task(SimpleNamespace(name="two_rings", **options))


def test_a_picture_shows_the_posts_of_each_condition(task):
    Z, X = task.examples(3)
    assert Z.shape == (3, 4, 2) and bool(tr.succeeds(X, Z).all())
    drawn = X[:, None].expand(-1, 2, -1, -1)
    figure = sample_figure(
        {"Z": Z, "X_true": X, "teacher": drawn, "student": drawn, "scene": task.scene()}
    )
    axes = [ax for ax in figure.axes if ax.get_visible()]
    assert len(axes) == 6 and all(len(ax.patches) == 2 for ax in axes)
    corners = torch.tensor(axes[0].patches[1].get_xy())
    assert torch.allclose(
        (corners - Z[0, 3]).norm(dim=1), torch.tensor(tr.POST, dtype=corners.dtype), atol=1e-6
    )
