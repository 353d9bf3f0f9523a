"""What is odd about data is said before the first step, and what isn't is not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgen.data import build_task, invariance
from fastgen.data.checks import constant_channels, data_notes, repeated_rows
from fastgen.data.files import file_task
from fastgen.data.held_out import HeldOutTask
from fastgen.data.invariance import moment_violations
from fastgen.data.samples import SampleData, SampleTask
from fastgen.data.trajectories import TrajectoryData, fit_normalizers
from fastgen.models import parse_group, parse_representation, rep_matrices
from fastgen.normalizer import Normalizer

PLANE = {"group": "D4", "in_rep": ["standard"], "out_rep": ["standard"], "cond_rep": ["standard"]}
WITH_HEIGHT = {**PLANE, "in_rep": ["standard", "trivial"], "out_rep": ["standard", "trivial"]}


def matrices(symmetry: dict, key: str) -> Tensor:
    return rep_matrices(parse_representation(parse_group(symmetry["group"]), symmetry[key]))


def drawn(
    symmetry: dict, n: int, seed: int = 0, *, act: bool = True, heavy: bool = False
) -> tuple[Tensor, Tensor]:
    """X (n, 4, d_x) and Z (n, 1, d_z), tied and far from symmetric, each row then moved by an
    element of its own."""
    generator = torch.Generator().manual_seed(seed)
    rho_x, rho_z = matrices(symmetry, "out_rep"), matrices(symmetry, "cond_rep")
    d_x, d_z = rho_x.shape[-1], rho_z.shape[-1]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    Z = normal(n, 1, d_z) + 1
    tie = torch.randn(
        d_z, 4 * d_x, generator=torch.Generator().manual_seed(99), dtype=torch.float64
    )
    X = (Z.flatten(1) @ tie).view(n, 4, d_x) + normal(n, 4, d_x)
    X = X * normal(n, 1, 1).exp() if heavy else X
    if act:
        g = torch.randint(len(rho_x), (n,), generator=generator)
        X, Z = torch.einsum("nij,ntj->nti", rho_x[g], X), torch.einsum("nij,ntj->nti", rho_z[g], Z)
    return X.float(), Z.float()


def declared(X: Tensor, Z: Tensor, symmetry: dict) -> TrajectoryData:
    return TrajectoryData(X, Z, *fit_normalizers(X, Z, symmetry), symmetry=symmetry)


# ---- Symmetry ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("n", "heavy"), [(12, False), (40, True), (150, False), (150, True)])
def test_invariant_data_are_rarely_warned_of(monkeypatch, n, heavy):
    """The p-values are what they say on few rows, on many and with heavy tails, and the stated rate
    is kept."""
    monkeypatch.setattr(invariance, "LEAST_CHANGE", 0.0)
    monkeypatch.setattr(invariance, "FALSE_ALARMS", 100.0)
    seeds = range(150)
    found = [
        moment_violations(declared(*drawn(WITH_HEIGHT, n, seed, heavy=heavy), WITH_HEIGHT))
        for seed in seeds
    ]
    p = torch.tensor([violation.p_value for violations in found for violation in violations])
    assert len(p) == 4 * len(seeds)  # two generators, two moments
    assert 0.02 < float((p < 0.1).double().mean()) < 0.16
    assert float((p < 0.01).double().mean()) < 0.03
    alarms = sum(any(v.p_value < 1e-3 / 4 for v in violations) for violations in found)
    assert alarms <= 2  # .15 expected


def test_a_law_that_a_group_changes_is_found_with_element_moment_and_channels():
    X, Z = drawn(PLANE, 300, act=False)
    found = moment_violations(declared(X, Z, PLANE))
    assert {v.element for v in found} == {"(+, 1[2pi/4])", "(-, 0[2pi/4])"}
    assert {v.moment for v in found} == {"mean", "second moment"}
    assert all(
        v.p_value < 1e-6 and v.change > 0.3 and set(v.channels) <= {"X 0", "X 1", "Z 0", "Z 1"}
        for v in found
    )


def test_the_change_is_the_one_of_the_law():
    """X = (a, 0) under C2 x -> -x: E moves by 2 |a| of the root mean square sqrt(a^2 + var)."""
    symmetry = {"group": "C2", "in_rep": ["sign"], "out_rep": ["sign"], "cond_rep": ["trivial"]}
    generator = torch.Generator().manual_seed(0)
    X, Z = torch.randn(4000, 1, 1, generator=generator) + 0.5, torch.zeros(4000, 1, 1)
    data = TrajectoryData(X, Z, Normalizer.identity(1), Normalizer.identity(1), symmetry=symmetry)
    mean = next(v for v in moment_violations(data) if v.moment == "mean")
    assert mean.change == pytest.approx(2 * 0.5 / 1.25**0.5, rel=0.1) and mean.channels == ("X 0",)


def test_a_wrong_representation_is_found_by_what_ties_the_channels():
    """Positions declared trivial: X alone would pass, every law being invariant under doing
    nothing."""
    X, Z = drawn(PLANE, 400)
    assert not moment_violations(declared(X, Z, PLANE))
    for changes in (
        {"out_rep": ["trivial"] * 2},
        {"cond_rep": ["trivial"] * 2},
        {"out_rep": ["irrep:(1,2)", "sign"]},
    ):
        data = declared(X, Z, {**PLANE, **changes})
        assert "second moment" in {v.moment for v in moment_violations(data)}


def test_channels_in_another_order_are_found():
    X, Z = drawn(WITH_HEIGHT, 400)
    turned = X[..., [2, 0, 1]].contiguous()
    assert not moment_violations(declared(X, Z, WITH_HEIGHT))
    found = moment_violations(declared(turned, Z, WITH_HEIGHT))
    assert found and {"X 0", "X 2"} & set(found[0].channels)
    lines = data_notes(task_of(turned, Z, symmetry=WITH_HEIGHT), 8)
    assert len(lines) == len(found) > 0
    for line in lines:
        assert line.startswith(
            "warning: the data are not invariant under D4 as data.symmetry declares it: element ("
        )
        assert "changes their" in line and "most in " in line and "\n" not in line


def test_one_broken_channel_is_named():
    X, Z = drawn(WITH_HEIGHT, 400)
    X[..., 1] = X[..., 1].abs()
    found = moment_violations(declared(X, Z, WITH_HEIGHT))
    assert found and all(v.channels[0] == "X 1" for v in found if v.moment == "mean")


def test_units_hide_nothing():
    """A broken channel of millimetres beside one of kilometres."""
    symmetry = {
        "group": "C2",
        "in_rep": ["sign"] * 2,
        "out_rep": ["sign"] * 2,
        "cond_rep": ["trivial"],
    }
    generator = torch.Generator().manual_seed(0)
    X, Z = torch.randn(500, 2, 2, generator=generator), torch.randn(500, 1, 1, generator=generator)
    X = (X + torch.tensor([1.0, 0.0])) * torch.tensor([1e-3, 1e3])
    identity = TrajectoryData(
        X, Z, Normalizer.identity(2), Normalizer.identity(1), symmetry=symmetry
    )
    assert {v.channels for v in moment_violations(identity) if v.moment == "mean"} == {("X 0",)}


def test_windows_of_an_episode_are_one_draw():
    """Twelve episodes of a hundred windows each say as much as twelve rows."""
    X, Z = (part.repeat_interleave(100, 0) for part in drawn(PLANE, 12, seed=5))
    noise = 0.01 * torch.randn(X.shape, generator=torch.Generator().manual_seed(1))
    data, episodes = (
        declared(X + noise, Z + noise[:, :1], PLANE),
        torch.arange(12).repeat_interleave(100),
    )
    assert not moment_violations(data, episodes) and moment_violations(data)


def test_demonstrations_of_one_condition_are_one_draw():
    """Five rows of each of 100 conditions say of the law of conditions what 100 rows do."""
    alarms = 0
    for seed in range(20):
        X, Z = (part.repeat_interleave(5, 0) for part in drawn(PLANE, 100, seed))
        X = X + torch.randn(X.shape, generator=torch.Generator().manual_seed(seed))
        alarms += bool(moment_violations(declared(X, Z, PLANE)))
    assert alarms == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ring", "two_rings", "weave", "modes", "flights"])
@pytest.mark.parametrize("seed", [0, 1])
def test_embedded_tasks_are_without_fault(name, seed):
    try:
        task = build_task(SimpleNamespace(name=name, seed=seed))
    except FileNotFoundError:
        pytest.skip("the recorded flights are an extra")
    assert data_notes(task, 32) == []


# ---- Channels and rows ---------------------------------------------------------------------------


def task_of(X: Tensor, Z: Tensor, **options) -> HeldOutTask:
    return HeldOutTask("file", X, Z, torch.arange(len(X)), primary="energy_score", **options)


def test_constant_channels_are_named_and_harmless():
    X, Z = drawn(WITH_HEIGHT, 60)
    X[..., 2], Z[..., 0] = 3.5, -1e4
    task = task_of(X, Z)
    assert constant_channels(task.train) == {"X": [2], "Z": [0]}
    lines = data_notes(task, 8)
    assert [line.split(":")[1].strip() for line in lines] == [
        "X is constant in channel 2",
        "Z is constant in channel 0",
    ]
    x, z = task.train.network_inputs()
    assert x.abs().max() < 20 and z.abs().max() < 20


def test_what_may_be_constant_is_let_pass():
    X, Z = drawn(PLANE, 60)
    assert (
        constant_channels(task_of(X, torch.ones(60, 1, 1)).train) == {}
    )  # a stand-in for no condition
    images = torch.rand(20, 1, 4, 4)
    images[..., 0] = 0
    assert constant_channels(SampleData(images, torch.zeros(20, dtype=torch.long))) == {}
    points = torch.rand(20, 3)
    points[:, 1] = 2
    assert constant_channels(SampleData(points)) == {"X": [1]}


def test_repeated_rows_are_numbered_as_in_the_file(tmp_path):
    X, Z = (part.numpy() for part in drawn(PLANE, 60))
    task = file_task(_saved(tmp_path, X, Z))
    assert isinstance(task, HeldOutTask)
    first, later, other = (int(task.rows["train"][i]) for i in (3, 10, 20))
    X[later], Z[later] = X[first], Z[first]
    X[other] = X[first]  # another condition: another row
    task = file_task(_saved(tmp_path, X, Z))
    (line,) = data_notes(task, 8)
    assert (
        line
        == f"note: 1 of {len(task.train)} training rows repeat an earlier one: {later} (as {first})"
    )


def _saved(folder, X, Z):
    np.savez(folder / "data.npz", X=X, Z=Z)
    return folder / "data.npz"


def test_repeats_are_found_across_blocks():
    X = torch.randn(5000, 37, generator=torch.Generator().manual_seed(0))
    X[-2000:] = X[:2000]
    assert repeated_rows(SampleData(X)) == [(row, 3000 + row) for row in range(2000)]


def test_repeats_are_pairs_with_the_first_of_their_kind():
    X = torch.tensor([1.0, 2.0, 1.0, 3.0, 2.0, 1.0])[:, None]
    assert repeated_rows(SampleData(X)) == [(0, 2), (1, 4), (0, 5)]
    assert repeated_rows(SampleData(X, torch.arange(6))) == []
    assert repeated_rows(SampleData(X, (torch.tensor([0, 0, 0, 0, 1, 1]), torch.zeros(6, 2)))) == [
        (0, 2)
    ]


def test_fewer_rows_than_a_batch_are_said_with_what_is_needed():
    task = SampleTask("points", torch.rand(40, 2))
    assert data_notes(task, len(task.train)) == []
    (line,) = data_notes(task, 64)
    assert line.startswith("warning: expected at least train.batch_size = 64 training rows, got 28")


@pytest.mark.parametrize("key", ["X", "Z"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_no_numbers_are_named_before_anything_is_built(tmp_path, key, value):
    arrays = {name: part.numpy() for name, part in zip("XZ", drawn(PLANE, 30), strict=True)}
    for row in (4, 17):
        arrays[key][row, 0, 1] = value
    with pytest.raises(
        ValueError, match=rf"finite numbers in {key}, got NaN or infinity in 2 rows: 4, 17"
    ):
        file_task(_saved(tmp_path, arrays["X"], arrays["Z"]))


# ---- Faithful groups -----------------------------------------------------------------------------


def unfaithful(tmp_path, cond_rep) -> SimpleNamespace:
    """Data of C8, which a file of matrices lets turn X by quarters."""
    np.savez(tmp_path / "quarter.npz", matrices=np.array([[[0.0, -1.0], [1.0, 0.0]]]))
    quarter = {"matrices": str(tmp_path / "quarter.npz")}
    symmetry = {"group": "C8", "in_rep": quarter, "out_rep": quarter, "cond_rep": cond_rep}
    X, Z = drawn(symmetry, 80)
    return SimpleNamespace(train=declared(X, Z, symmetry))


def test_a_group_that_acts_by_a_smaller_one_is_named(tmp_path):
    quarter = {"matrices": str(tmp_path / "quarter.npz")}
    (note,) = data_notes(unfaithful(tmp_path, quarter), 8)
    assert note.startswith("note: data.symmetry: 1 of the 8 elements of C8 act as the identity")
    assert "in_rep, cond_rep, out_rep" in note and "what acts is a group of 4, not C8" in note


def test_a_group_that_acts_faithfully_on_the_condition_alone_is_not(tmp_path):
    assert data_notes(unfaithful(tmp_path, ["standard"]), 8) == []
