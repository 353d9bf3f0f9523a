"""A network that goes on from given tokens: what it sees of them, and where samplers carry them."""

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.prefixes import with_prefix
from fastgen.flow_matching import convert_prediction
from fastgen.methods.kd import kd_loss, teacher_pairs
from fastgen.models.representations import rep_matrices
from fastgen.networks import teacher_x0, tokens_given
from fastgen.samplers import sample_student, sample_teacher
from fastgen.teachers.prefixed import PREFIX_WAYS, PrefixedNetwork
from support.exact import normal
from support.networks import equivariant

B, T, D = 4, 3, 4
X = normal(B, T, D, seed=5)
NOISE = normal(B, T, D)
Z = normal(B, 2, 2, seed=1)
LENGTHS = torch.tensor([0, 1, 2, 2])
COND = with_prefix(Z, X, LENGTHS)
GIVEN = COND["given"]
TIMES = torch.tensor([0.2, 0.5, 0.9, 1.0], dtype=torch.float64)


class Seen(nn.Module):
    """A flow of its inputs, which keeps them; times of tokens or of rows."""

    prefix_tokens = 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        self.calls.append((x_t, t, cond))
        each = t if t.ndim == 2 else t[:, None]
        return self.scale * x_t - each[..., None] + cond.mean((1, 2))[:, None, None]

    def predict_x0(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        raise AssertionError("a way to x0 that doesn't know the prefix")


def test_given_tokens_are_seen_clean_at_time_zero():
    network = Seen()
    PrefixedNetwork(network)(NOISE, TIMES, COND)
    x_t, t, cond = network.calls[0]
    assert torch.equal(x_t, torch.where(GIVEN[..., None], X, NOISE)) and torch.equal(cond, Z)
    assert torch.equal(t, torch.where(GIVEN, 0.0, TIMES[:, None]))


def test_replacement_shows_the_state_at_the_time_of_all():
    network = Seen()
    PrefixedNetwork(network, "replacement")(NOISE, TIMES, COND)
    x_t, t, cond = network.calls[0]
    assert torch.equal(x_t, NOISE) and torch.equal(t, TIMES) and torch.equal(cond, Z)


@pytest.mark.parametrize("way", PREFIX_WAYS)
def test_without_a_prefix_nothing_is_changed(way):
    network = Seen()
    coat = PrefixedNetwork(network, way)
    assert torch.equal(coat(NOISE, TIMES, Z), network(NOISE, TIMES, Z))
    assert torch.equal(network.calls[0][1], TIMES)
    assert tokens_given(coat) == 2 and tokens_given(nn.ReLU()) == 0


@pytest.mark.parametrize("pred_type", ["flow", "x0", "eps"])
@pytest.mark.parametrize("way", PREFIX_WAYS)
def test_what_is_given_is_known_and_the_rest_is_the_networks(way, pred_type):
    network = Seen()
    coat = PrefixedNetwork(network, way, pred_type)
    pred = coat(NOISE, TIMES, COND)
    x_t, t, _ = network.calls[0]
    assert torch.equal(pred[~GIVEN], network(x_t, t, Z)[~GIVEN])
    rows = TIMES < 1
    x0 = convert_prediction(pred[rows], NOISE[rows], TIMES[rows], pred_type, "x0")
    torch.testing.assert_close(x0[GIVEN[rows]], X[rows][GIVEN[rows]], rtol=0, atol=1e-12)


def test_x0_goes_through_the_coat():
    x0 = teacher_x0(PrefixedNetwork(Seen()), NOISE, TIMES, COND, pred_type="flow")
    torch.testing.assert_close(x0[GIVEN], X[GIVEN], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["euler", "midpoint", "ab2"])  # heun and rk4 ask at t = 0
@pytest.mark.parametrize("way", PREFIX_WAYS)
def test_the_teachers_ode_carries_given_tokens_in_a_straight_line(way, method):
    """That is replacement: at each step they are (1 - t) x0 + t eps."""
    xs, ts = sample_teacher(
        PrefixedNetwork(Seen(), way), NOISE, 5, COND, method=method, return_all_steps=True
    )
    for x, t in zip(xs.unbind(1), ts.tolist(), strict=True):
        line = (1 - t) * X + t * NOISE
        torch.testing.assert_close(x[GIVEN], line[GIVEN], rtol=0, atol=1e-5 if t == 0 else 1e-12)


@pytest.mark.parametrize("sample_type", ["ode", "sde"])
def test_a_student_ends_at_what_is_given(sample_type):
    x = sample_student(
        PrefixedNetwork(Seen()), NOISE, [0.999, 0.5, 0.0], COND, sample_type=sample_type
    )
    torch.testing.assert_close(x[GIVEN], X[GIVEN], rtol=0, atol=1e-12)
    plain = sample_student(Seen(), NOISE, [0.999, 0.5, 0.0], Z, sample_type="ode")
    free = LENGTHS == 0
    if sample_type == "ode":
        torch.testing.assert_close(x[free], plain[free], rtol=0, atol=1e-12)


def test_kd_is_a_mean_over_tokens_that_are_not_given():
    t_list = [0.999, 0.0]
    states = teacher_pairs(PrefixedNetwork(Seen()), NOISE, COND, t_list, calls=4)
    student = PrefixedNetwork(Seen())
    rungs = torch.zeros(B, dtype=torch.int64)
    c = 0.02
    loss = kd_loss(student, states, t_list, COND, rungs, huber_c=c)
    t = torch.full((B,), 0.999, dtype=torch.float64)
    x0 = states[:, 0] - 0.999 * student(states[:, 0], t, COND)
    rows = []
    for row, k in enumerate(LENGTHS.tolist()):
        mean = (x0 - states[:, -1])[row, k:].square().mean()
        rows.append((mean + c**2).sqrt() - c)
    torch.testing.assert_close(loss, torch.stack(rows).mean(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("way", PREFIX_WAYS)
@pytest.mark.parametrize("basis", ["regular", "irrep"])
@torch.no_grad()
def test_a_prefix_that_moves_with_scene_and_noise_moves_the_sample(way, basis):
    network = equivariant(basis=basis).double()
    coat = PrefixedNetwork(network, way)
    x = sample_student(coat, NOISE, [0.999, 0.5, 0.0], COND)
    still = sample_student(coat, NOISE, [0.999, 0.5, 0.0], with_prefix(Z, X.flip(0), LENGTHS))
    assert float((x - still).abs().max()) > 0.1
    moves = (rep_matrices(rep) for rep in (network.in_rep, network.cond_rep))
    for rho, rho_cond in zip(*moves, strict=True):
        cond = with_prefix(Z @ rho_cond.T, X @ rho.T, LENGTHS)
        moved = sample_student(coat, NOISE @ rho.T, [0.999, 0.5, 0.0], cond)
        torch.testing.assert_close(moved, x @ rho.T, rtol=0, atol=1e-10)


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="unknown way 'inpaint', expected one of: times, repl"):
        PrefixedNetwork(Seen(), "inpaint")
