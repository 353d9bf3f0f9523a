"""Samples that go on from given waypoints, in original units."""

import json

import pytest
import torch

from fastgen._core.prefixes import with_prefix
from fastgen.export import load_network, load_student, save_network, schema
from fastgen.export.folders import export_student
from fastgen.networks import tokens_given
from fastgen.normalizer import Normalizer
from fastgen.samplers import sample_student
from fastgen.teachers.prefixed import PrefixedNetwork
from support.folders import T_LIST, X_NORMALIZER, Z_NORMALIZER, conditions, export_, seeded
from support.networks import dense, equivariant

GIVEN = 3 + torch.randn(3, 4, 2, generator=seeded(7), dtype=torch.float64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export_(tmp_path_factory.mktemp("prefix") / "s", prefix_max=4)


def test_samples_begin_with_the_very_waypoints_that_were_given(folder):
    student = load_student(folder)
    assert student.prefix_max == 4 and student.config["prefix_max"] == 4
    for k in (2, 4):
        for steps in student.steps:
            prefix = GIVEN[:, :k]
            x = student.sample(conditions(), prefix=prefix, steps=steps, generator=seeded())
            assert torch.equal(x[:, :k], prefix.float()) and x.shape == (3, 6, 2)
            free = student.sample(conditions(), steps=steps, generator=seeded())
            assert float((x[:, k:] - free[:, k:]).abs().amax((1, 2)).min()) > 1e-3


def test_a_student_goes_on_as_its_network_does_on_normalised_tokens(folder):
    student = load_student(folder, dtype=torch.float64)
    noise = torch.randn(3, 6, 2, generator=seeded(), dtype=torch.float64)
    whole = torch.cat([GIVEN[:, :2], torch.full((3, 4, 2), 9.0)], 1)
    tokens = X_NORMALIZER.normalize(whole).reshape(3, 3, 4)
    cond = with_prefix(Z_NORMALIZER.normalize(conditions().double()), tokens, torch.ones(3))
    network = PrefixedNetwork(dense().double())
    y = sample_student(network, noise.reshape(3, 3, 4), T_LIST[:1] + [0.0], cond)
    x = X_NORMALIZER.denormalize(y.reshape(3, 6, 2))
    found = student.sample(conditions(), noise=noise, prefix=GIVEN[:, :2], steps=1)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-6)


def test_each_sample_of_a_condition_begins_so(folder):
    student = load_student(folder)
    noise = torch.randn(3, 5, 6, 2, generator=seeded())
    prefix = GIVEN[:, :2].float()
    x = student.sample(conditions(), num_samples=5, noise=noise, prefix=prefix, steps=1)
    assert torch.equal(x[:, :, :2], prefix[:, None].expand(-1, 5, -1, -1))
    for row in range(3):
        alone = student.sample(
            conditions()[row : row + 1],
            num_samples=5,
            noise=noise[row : row + 1],
            prefix=prefix[row : row + 1],
            steps=1,
        )
        torch.testing.assert_close(x[row : row + 1], alone, rtol=0, atol=1e-5)


def test_time_steps_that_are_normalised_by_themselves_take_a_prefix(tmp_path):
    steps = torch.randn(50, 6, 2, generator=seeded(2), dtype=torch.float64)
    normalizer = Normalizer.fit_per_step(steps * torch.arange(1.0, 7.0)[:, None] + 3)
    path = export_(tmp_path / "s", x_normalizer=normalizer, horizon=(6, 2), prefix_max=4)
    x = load_student(path).sample(conditions(), prefix=GIVEN, generator=seeded())
    assert torch.equal(x[:, :4], GIVEN.float()) and bool(x.isfinite().all())


def test_a_folded_student_moves_with_its_prefix(tmp_path):
    options = {"t_list": T_LIST, "pack": 2, "prefix_max": 4, "sample_type": "ode"}
    export_student(tmp_path / "s", equivariant().double(), **options)
    student = load_student(tmp_path / "s")
    noise = torch.randn(3, 6, 2, generator=seeded(), dtype=torch.float64)
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    z = conditions().double()
    x = student.sample(z, noise=noise, prefix=GIVEN[:, :2])
    moved = student.sample(z @ turn.T, noise=noise @ turn.T, prefix=GIVEN[:, :2] @ turn.T)
    torch.testing.assert_close(moved, x @ turn.T, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("prefix", "error", "message"),
    [
        (
            GIVEN[:, :3],
            ValueError,
            r"1 <= k <= 4, a multiple of 2, 2\), got \(3, 3, 2\)",
        ),
        (torch.zeros(3, 6, 2), ValueError, r"1 <= k <= 4, .* got \(3, 6, 2\)"),
        (GIVEN[:, :0], ValueError, r"got \(3, 0, 2\)"),
        (GIVEN[:2, :2], ValueError, r"got \(2, 2, 2\)"),
        (torch.zeros(3, 2, 3), ValueError, r"got \(3, 2, 3\)"),
        (
            torch.zeros(3, 2, 2).long(),
            TypeError,
            "Tensor .* got a Tensor of torch.int64",
        ),
        ([[0.0]], TypeError, "got list"),
    ],
)
def test_other_prefixes_are_refused(folder, prefix, error, message):
    with pytest.raises(error, match=message):
        load_student(folder).sample(conditions(), prefix=prefix)


def test_a_student_that_was_not_trained_for_it_takes_none(tmp_path):
    student = load_student(export_(tmp_path / "s"))
    assert student.prefix_max == 0 and "prefix_max" not in student.config
    with pytest.raises(ValueError, match="expected no prefix for a student .* train.prefix_max"):
        student.sample(conditions(), prefix=GIVEN)


def test_a_network_keeps_how_many_tokens_it_was_trained_to_be_given(tmp_path):
    network = dense()
    save_network(tmp_path / "plain", network)
    network.prefix_tokens = 2
    save_network(tmp_path / "t", network)
    assert tokens_given(load_network(tmp_path / "t")[0]) == 2
    assert tokens_given(load_network(tmp_path / "plain")[0]) == 0
    for wrong in (0, -1, 2.0, "2", True, None):
        config = json.loads((tmp_path / "t" / "config.json").read_text())
        schema.write_config(tmp_path / "t", {**config, "prefix_tokens": wrong})
        with pytest.raises(ValueError, match="expected prefix_tokens as a whole number >= 1"):
            load_network(tmp_path / "t")


@pytest.mark.parametrize("most", [3, 6, 8, -2, 2.0, True])
def test_an_impossible_length_is_not_exported(tmp_path, most):
    with pytest.raises(ValueError, match="prefix_max below T_x, a multiple of pack = 2"):
        export_(tmp_path / "s", prefix_max=most)
