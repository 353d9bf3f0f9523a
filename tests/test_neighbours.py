"""Scores by neighbours are their definitions, and see within modes what the energy distance does
not."""

import math

import pytest
import torch

from fastgen._core.seeds import generator_for
from fastgen.metrics import coverage, energy_distance
from fastgen.neighbours import Region, precision_recall_density_coverage

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator_for(seed, "neighbours"), dtype=F64)


def share(flags: torch.Tensor) -> float:
    return float(flags.double().mean())


# ---- Precision, recall, density, coverage --------------------------------------------------------


def slow_twin(real, fake, k):
    """Every pair by itself."""

    def radius(points, i):
        others = sorted(math.dist(points[i], q) for j, q in enumerate(points) if j != i)
        return others[k - 1]

    real = real.tolist()
    fake = fake.tolist()
    of_real = [radius(real, i) for i in range(len(real))]
    of_fake = [radius(fake, j) for j in range(len(fake))]
    d = [[math.dist(y, x) for x in fake] for y in real]
    rows = range(len(real))
    columns = range(len(fake))
    balls = [sum(d[i][j] <= of_real[i] for i in rows) for j in columns]
    return {
        "precision": sum(n > 0 for n in balls) / len(fake),
        "recall": sum(any(d[i][j] <= of_fake[j] for j in columns) for i in rows) / len(real),
        "density": sum(balls) / (k * len(fake)),
        "coverage": sum(any(d[i][j] <= of_real[i] for j in columns) for i in rows) / len(real),
    }


@pytest.mark.parametrize("k", [1, 3])
def test_the_four_are_their_definitions(k):
    real = normal(20, 3)
    fake = 1.3 * normal(15, 3, seed=1) + 0.3
    found = precision_recall_density_coverage(real, fake, k)
    expected = slow_twin(real, fake, k)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected)
    assert 0 < expected["precision"] < 1


def test_coverage_is_that_of_metrics_and_precision_and_recall_change_places_with_the_sets():
    real = normal(1500, 2)
    fake = 0.7 * normal(1200, 2, seed=1)
    found = precision_recall_density_coverage(real, fake)
    other = precision_recall_density_coverage(fake, real)
    assert float(found["coverage"]) == float(coverage(fake, real))
    assert found["precision"] == other["recall"] and found["recall"] == other["precision"]


def test_of_the_datas_own_law_density_is_one_and_coverage_follows_k():
    real = normal(2000, 2)
    found = precision_recall_density_coverage(real, normal(2000, 2, seed=1), k=4)
    assert float(found["density"]) == pytest.approx(1, abs=0.05)
    assert float(found["coverage"]) == pytest.approx(1 - 2**-4, abs=0.02)


# ---- Outside, missed -----------------------------------------------------------------------------


def mixture(n: int, name: str, *, wide: float = 1.0, of: float = 1.0) -> torch.Tensor:
    """Nine narrow modes in twelve dimensions; the share `of` of the points has `wide` times the
    standard deviation."""
    generator = generator_for(0, "mixture", name)
    means = torch.randn(9, 12, generator=generator_for(0, "means"), dtype=F64)
    mode = torch.randint(9, (n,), generator=generator)
    off = torch.rand(n, generator=generator) < of
    size = torch.where(off, wide, 1.0)[:, None]
    return means[mode] + 0.05 * size * torch.randn(n, 12, generator=generator, dtype=F64)


def region_of_modes() -> Region:
    return Region.of(mixture(2000, "data"), mixture(1000, "held out"))


def test_what_the_energy_distance_does_not_see_within_modes_is_outside_or_missed():
    region = region_of_modes()
    fresh = mixture(1000, "fresh")
    blurred = mixture(1000, "fresh", wide=2.5, of=0.3)
    narrow = mixture(1000, "fresh", wide=0.6)
    noise = abs(float(energy_distance(fresh, region.held_out, unbiased=True)))
    for samples in (blurred, narrow):
        # The same modes in the same order, so that the difference is that within modes alone.
        energy = float(energy_distance(samples, region.held_out, unbiased=True))
        assert abs(energy) < 0.01 and abs(energy) < 4 * noise + 0.002
    assert share(region.outside(fresh)) < 0.02 and share(region.missed(fresh)) < 0.03
    assert share(region.outside(blurred)) > 0.2
    assert share(region.missed(narrow)) > 0.2 and share(region.outside(narrow)) < 0.01


def test_both_together_are_least_for_the_datas_own_law_and_a_lost_mode_is_missed():
    region = region_of_modes()

    def both(samples: torch.Tensor) -> float:
        return share(region.outside(samples)) + share(region.missed(samples))

    own = both(mixture(1000, "fresh"))
    for wide in (0.8, 1.25):
        assert both(mixture(1000, "fresh", wide=wide)) > own + 0.03
    samples = mixture(1000, "fresh")
    lost = torch.cdist(samples, samples[:1])[:, 0] > 1
    assert share(~lost) > 0.05 and both(samples[lost]) > own + 0.05


def test_shares_of_fresh_data_are_as_asked_for_whatever_the_law():
    """In expectation, for narrow and wide modes alike."""
    shares = []
    for seed in range(20):
        x = normal(900, 3, seed=seed).exp()
        region = Region.of(x[:400], x[400:700], share=0.9)
        shares.append([share(region.outside(x[700:])), share(region.missed(x[700:]))])
    mean = torch.tensor(shares).mean(0)
    assert torch.allclose(mean, torch.full((2,), 0.1), atol=0.02)


def test_they_see_no_rotation_no_unit_and_no_order_of_samples():
    data = normal(300, 3)
    held_out = normal(100, 3, seed=1)
    samples = 1.4 * normal(100, 3, seed=2)
    turn = 7 * torch.linalg.qr(normal(3, 3, seed=3))[0]
    plain = Region.of(data, held_out, share=0.9)
    turned = Region.of(data @ turn, held_out @ turn, share=0.9)
    assert plain.outside(samples).equal(turned.outside(samples @ turn))
    assert plain.missed(samples).equal(turned.missed(samples @ turn))
    assert plain.missed(samples).equal(plain.missed(samples.flip(0)))
    assert plain.outside(samples).flip(0).equal(plain.outside(samples.flip(0)))


def test_what_shares_a_row_does_not_count_as_near():
    """Samples that lie on their own row, among few others, are near to nothing but it."""
    data = normal(300, 2)
    held_out = normal(60, 2, seed=1)
    region = Region.of(data, held_out)
    assert not region.missed(held_out).any()
    moved = held_out + 1e-9
    moved[0] = held_out[0] + 100
    assert not region.missed(moved)[1:].any()
    lonely = torch.cat([held_out[:1] + 100, held_out[1:]])
    alone = Region.of(data, lonely)
    assert not alone.missed(lonely)[0] and alone.missed(lonely, paired=True)[0]


def test_data_that_occur_many_times_are_no_division_by_zero():
    data = normal(10, 2).repeat(8, 1)
    region = Region.of(data, data[:20])
    assert not region.outside(data).any() and region.outside(data + 1.0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: precision_recall_density_coverage(normal(9, 2), normal(9, 3)), "expected real"),
        (lambda: precision_recall_density_coverage(normal(9, 2), normal(3, 2)), "k from 1 to"),
        (lambda: Region.of(normal(9, 2), normal(9, 3)), "expected data"),
        (lambda: Region.of(normal(9, 2), normal(9, 2), share=1.0), r"share in \(0, 1\), got 1.0"),
        (lambda: Region.of(normal(9, 2), normal(9, 2)).outside(normal(9, 3)), "expected samples"),
        (
            lambda: Region.of(normal(9, 2), normal(9, 2)).missed(normal(10, 2)),
            "expected at most 9 samples, and 9 when paired, got 10",
        ),
    ],
)
def test_bad_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
