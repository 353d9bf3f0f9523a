"""Angles and rotations: what networks see of them is continuous, and comes back as it was."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch

from fastgen.channel_kinds import ChannelKinds, KindNormalizer, read_normalizer
from fastgen.normalizer import Normalizer

KINDS = ChannelKinds(8, {"angle": [[2]], "quaternion": [[4, 5, 6, 3]]})
EPS = torch.finfo(torch.float64).eps


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rows(count: int = 500) -> torch.Tensor:
    """Channels of `KINDS`: headings, and quaternions with w >= 0, w first."""
    x = normal(count, 8)
    q = x[:, 3:7] / x[:, 3:7].norm(dim=1, keepdim=True)
    x[:, 3:7] = torch.where(q[:, :1] < 0, -q, q)
    x[:, 2] = x[:, 2].remainder(2 * math.pi) - math.pi
    return x


def matrix(q: torch.Tensor) -> torch.Tensor:
    """The rotation v -> q v q* of one quaternion x, y, z, w, axis by axis."""
    axis, w = q[:3], q[3]
    columns = []
    for v in torch.eye(3, dtype=q.dtype):
        turned = 2 * torch.linalg.cross(axis, v)
        columns.append(v + w * turned + torch.linalg.cross(axis, turned))
    return torch.stack(columns, 1)


def test_what_is_seen_comes_back():
    x = rows()
    normalizer = KindNormalizer.around(KINDS, Normalizer.fit(5 * x[:, KINDS.plain] + 1))
    seen = normalizer.normalize(x)
    assert seen.shape == (500, 11) == (500, normalizer.network_dim)
    assert (normalizer.denormalize(seen) - x).abs().max() < 32 * EPS
    assert (normalizer.denormalize(normalizer.normalize(x.float())) - x).abs().max() < 1e-5


def test_plain_channels_are_those_of_a_plain_normalizer():
    x = rows()
    plain = Normalizer.fit(x[:, KINDS.plain])
    normalizer = KindNormalizer.around(KINDS, plain)
    seen = normalizer.normalize(x)
    assert torch.equal(seen[:, KINDS.plain_seen], plain.normalize(x[:, KINDS.plain]))
    assert KINDS.seen_names()[:4] == ["0", "1", "2 cos", "2 sin"]
    again = normalizer.plain
    assert again is not None and again.state() == plain.state()


def test_a_pair_is_cosine_and_sine_and_six_numbers_are_columns():
    x = rows(20)
    seen = KINDS.expand(x)
    assert torch.equal(seen[:, 2], x[:, 2].cos()) and torch.equal(seen[:, 3], x[:, 2].sin())
    for row, six in zip(x, seen[:, 4:10], strict=True):
        expected = matrix(row[[4, 5, 6, 3]])[:, :2].T.reshape(6)
        assert (six - expected).abs().max() < 16 * EPS


def test_it_is_continuous_where_the_numbers_are_not():
    x = rows(2)
    x[1] = x[0]
    x[0, 2], x[1, 2] = math.pi - 1e-7, 1e-7 - math.pi
    x[1, 3:7] = -x[0, 3:7]
    seen = KINDS.expand(x)
    assert (seen[0] - seen[1]).abs().max() < 3e-7
    # And back from beyond the wrap.
    between = KINDS.collapse((seen[0] + seen[1]) / 2)
    assert math.pi - float(between[2].abs()) < 1e-12


def test_any_numbers_become_angles_and_rotations():
    y = normal(200, 11)
    y[0] = 0
    y[1, 7:10] = y[1, 4:7]  # two columns that are one
    y[2, 4:7] = 0
    x = KINDS.collapse(y)
    assert bool(torch.isfinite(x).all())
    assert (x[:, 3:7].norm(dim=1) - 1).abs().max() < 16 * EPS
    six = ChannelKinds(6, {"rotation_6d": [range(6)]})
    columns = six.collapse(y[:, 4:10]).unflatten(-1, (2, 3))
    products = columns @ columns.mT - torch.eye(2, dtype=torch.float64)
    assert products.abs().max() < 32 * EPS
    assert torch.allclose(six.collapse(columns.flatten(1)), columns.flatten(1), atol=32 * EPS)


SIX = ChannelKinds(6, {"rotation_6d": [range(6)]})
TURN = ChannelKinds(4, {"quaternion": [range(4)]})
ANGLE = ChannelKinds(1, {"angle": [[0]]})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kinds", [SIX, TURN, ANGLE], ids=["six", "quaternion", "angle"])
def test_what_a_broken_network_answers_is_no_angle_and_no_rotation(kinds, value):
    for broken in [*range(kinds.network_dim), slice(None)]:
        y = normal(3, kinds.network_dim)
        y[1, broken] = value
        x = kinds.collapse(y)
        assert bool(torch.isnan(x[1]).all())
        assert bool(torch.isfinite(x[[0, 2]]).all())
        found = KindNormalizer.around(kinds, None).denormalize(y)
        assert bool(torch.isnan(found[1]).all()) and bool(torch.isfinite(found[[0, 2]]).all())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_quaternion_that_is_not_finite_is_no_rotation(value):
    for broken in range(4):
        q = normal(3, 4)
        q[1, broken] = value
        seen = TURN.expand(q)
        assert bool(torch.isnan(seen[1]).all()) and bool(torch.isfinite(seen[[0, 2]]).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_of_any_size_have_a_direction(dtype):
    eps = torch.finfo(dtype).eps
    six, q = normal(50, 6).to(dtype), normal(50, 4).to(dtype)
    six, q = six / six.abs().amax(), q / q.abs().amax()
    # A power of two, so that scaling rounds nothing.
    large = 2.0 ** (math.frexp(torch.finfo(dtype).max)[1] - 1)
    for size in (large, 2.0**-20):
        for part in (slice(0, 3), slice(3, 6), slice(0, 6)):
            scaled = six.clone()
            scaled[:, part] *= size
            assert (SIX.collapse(scaled) - SIX.collapse(six)).abs().max() < 64 * eps
        assert (TURN.expand(size * q) - TURN.expand(q)).abs().max() < 64 * eps


def test_a_group_turns_columns_as_vectors():
    """R becomes g R: each column v becomes g v, and g turns what is made orthonormal, too."""
    y = normal(40, 6)
    g = matrix(torch.tensor([0.5, -0.5, 0.1, 0.7], dtype=torch.float64))
    assert (g @ g.T - torch.eye(3)).abs().max() < 8 * EPS
    turned = (y.unflatten(1, (2, 3)) @ g.T).flatten(1)
    expected = (SIX.collapse(y).unflatten(1, (2, 3)) @ g.T).flatten(1)
    assert (SIX.collapse(turned) - expected).abs().max() < 256 * EPS


def test_a_half_turn_about_any_axis_comes_back():
    # w = 0, where the trace of the matrix says nothing of the axis.
    axes = torch.cat([torch.eye(3), normal(20, 3).float()]).double()
    q = torch.cat([axes / axes.norm(dim=1, keepdim=True), torch.zeros(len(axes), 1)], 1)
    kinds = ChannelKinds(4, {"quaternion": [[0, 1, 2, 3]]})
    back = kinds.collapse(kinds.expand(q))
    assert torch.minimum((back - q).norm(dim=1), (back + q).norm(dim=1)).max() < 16 * EPS


def test_each_time_step_may_have_its_own_scale():
    x = rows(60).reshape(20, 3, 8)
    plain = Normalizer.fit_per_step(x[..., KINDS.plain])
    normalizer = KindNormalizer.around(KINDS, plain)
    assert normalizer.steps == 3
    assert (normalizer.denormalize(normalizer.normalize(x)) - x).abs().max() < 32 * EPS
    assert read_normalizer(normalizer.state()).state() == normalizer.state()
    with pytest.raises(ValueError, match=r"expected x of shape \(..., 3, 8\)"):
        normalizer.normalize(x[:, :2])


def test_a_state_is_read_back_and_checked():
    normalizer = KindNormalizer.around(KINDS, Normalizer.fit(rows()[:, KINDS.plain]))
    state = normalizer.state()
    again = read_normalizer(state)
    assert isinstance(again, KindNormalizer)
    assert again.kinds == KINDS and again.state() == state
    plain = Normalizer.identity(2)
    assert type(read_normalizer(plain.state())) is Normalizer
    shifted = [0.0, 0.0, 0.5, *state["mean"][3:]]
    for changes, message in [
        ({"channels": 9}, "mean and scale of 12 channels"),
        ({"channels": True}, "expected channels as a whole number"),
        ({"channels": 1 << 40}, "expected channels as a whole number"),
        ({"kinds": {}}, "expected kinds as lists"),
        ({"kinds": [1]}, "expected kinds as lists"),
        ({"kinds": {"angle": [2]}}, "expected kinds as lists"),
        ({"kinds": {"angle": [["2"]]}}, "among the channels 0 to 7, got '2'"),
        ({"kinds": {"angle": [[True]]}}, "among the channels 0 to 7, got True"),
        ({"kinds": {"angle": [[2], [2]]}}, "each channel in one kind, once"),
        ({"kinds": {"spin": [[2]]}}, "kinds of channels among angle, quaternion, rotation_6d"),
        ({"kinds": {"quaternion": [[1, 2, 3]]}}, "expected 4 channels for each quaternion"),
        ({"mean": shifted}, "leave angles and rotations as they are"),
        ({"more": 1}, "expected a normalizer state with the keys"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_normalizer({**state, **changes})
    for key in ("channels", "kinds"):
        with pytest.raises(ValueError, match=f"expected {key} as"):
            read_normalizer({name: value for name, value in state.items() if name != key})


def mutated(value: Any, draw: random.Random) -> Any:
    """A JSON value with something in it replaced, left out or repeated."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(sorted(value))
        rest = {name: one for name, one in value.items() if name != key}
        return rest if draw.random() < 0.1 else {**rest, key: mutated(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.9:
        at = draw.randrange(len(value))
        middle = draw.choice([[], [value[at]] * 2, [mutated(value[at], draw)]])
        return [*value[:at], *middle, *value[at + 1 :]]
    return draw.choice([None, True, -1, 0, 1, 2, 7, 1e400, 1 << 70, 0.5, "angle", [], {}, [[0]]])


def test_a_hostile_state_is_refused_or_read_whole():
    state = KindNormalizer.around(KINDS, Normalizer.fit(rows()[:, KINDS.plain])).state()
    draw = random.Random(0)
    for _ in range(1000):
        changed = mutated(state, draw)
        try:
            found = read_normalizer(changed)
        except (ValueError, TypeError, RuntimeError, OverflowError):
            continue
        x = found.denormalize(torch.ones(1, found.network_dim, dtype=torch.float64))
        assert x.shape == (1, found.dim)


def test_numbers_that_are_no_rotation_are_refused():
    x = rows(5)
    KINDS.check("X", x)
    x[3, 3:7] *= 1.2
    with pytest.raises(ValueError, match=r"unit quaternion x, y, z, w in channels 4, 5, 6, 3 of X"):
        KINDS.check("X", x)
    six = ChannelKinds(6, {"rotation_6d": [range(6)]})
    with pytest.raises(ValueError, match="two orthonormal columns in channels"):
        six.check("Z", torch.ones(2, 6))
