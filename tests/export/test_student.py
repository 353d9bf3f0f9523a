"""What a student computes: units, rungs, shapes, noise, dtypes; with networks whose answer is
known."""

import warnings
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from fastgen.export.student import Student
from fastgen.models.transformer import CondTransformerRegressor
from fastgen.normalizer import Normalizer, pack_tokens
from fastgen.samplers import sample_student
from support.rounding import MULTIPLE, sway

T_LIST = (0.999, 0.7, 0.4, 0.2, 0.0)
MEAN, SCALE = torch.tensor([3.0, -2.0]), torch.tensor([[2.0, 0.5], [0.0, 0.25]])


class Probe(nn.Module):
    """Answers with a function of its arguments and remembers the times it was asked at."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.answer, self.times = answer, []

    def forward(self, x: Tensor, t: Tensor, cond) -> Tensor:
        self.times.append(float(t[0]))
        return self.answer(x, t, cond)


def student(network: nn.Module, **changes) -> Student:
    options = {
        "t_list": T_LIST,
        "steps": [1, 2, 4],
        "sample_type": "sde",
        "pred_type": "flow",
        "horizon": (6, 2),
    }
    return Student(network, **{**options, "cond_horizon": (2, 2), **changes})


def dense(**changes) -> CondTransformerRegressor:
    torch.manual_seed(0)
    options = {"num_layers": 1, "num_attention_heads": 2, "embedding_dim": 8, **changes}
    return CondTransformerRegressor(4, 4, 2, 3, 2, **options)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_samples_are_in_original_units_and_conditions_are_normalised():
    x_normalizer, z_normalizer = Normalizer(MEAN, SCALE), Normalizer(MEAN + 1, 3 * SCALE)
    seen = []

    def first_point(x, t, z):
        seen.append(z)
        return z[:, :1].repeat(1, 3, 2)  # normalised Z_0 at each of 3 tokens of 2 waypoints

    network = Probe(first_point)
    model = student(
        network, pred_type="x0", pack=2, x_normalizer=x_normalizer, z_normalizer=z_normalizer
    )
    z = torch.randn(5, 2, 2, dtype=torch.float64)
    x = model.sample(z, generator=seeded())
    expected = x_normalizer.denormalize(z_normalizer.normalize(z)[:, :1]).expand(-1, 6, -1)
    assert torch.allclose(x, expected, rtol=0, atol=1e-12)
    assert torch.equal(seen[0], z_normalizer.normalize(z))


def test_noise_lives_in_normalised_space():
    # flow = -x_t / (1 - t) + ... : with flow 0 a one-step sample is t_1 noise, so the sample shows
    # the noise itself.
    model = student(Probe(lambda x, t, z: 0 * x), pack=3, x_normalizer=Normalizer(MEAN, SCALE))
    noise = torch.randn(4, 6, 2, generator=seeded(), dtype=torch.float64)
    x = model.sample(torch.zeros(4, 1, 2), steps=1, noise=noise)
    assert torch.allclose(
        x, MEAN.double() + T_LIST[0] * noise @ SCALE.double().T, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("steps", [1, 2, 4, None])
def test_fewer_steps_take_every_kth_rung(steps):
    network = Probe(lambda x, t, z: 0.3 * x)
    model = student(network, sample_type="ode")
    noise = torch.randn(2, 6, 2, dtype=torch.float64)
    x = model.sample(torch.zeros(2, 2, 2), steps=steps, noise=noise)
    rungs = {1: (0.999, 0.0), 2: (0.999, 0.4, 0.0), 4: T_LIST, None: T_LIST}[steps]
    assert network.times == pytest.approx(rungs[:-1], abs=0)
    state, product = noise * rungs[0], 1.0
    for t, s in zip(rungs, rungs[1:], strict=False):
        product *= 1 + 0.3 * (s - t)  # Euler's step of dx/dt = 0.3 x
    assert torch.allclose(x, product * state, rtol=1e-12, atol=0)


def test_many_samples_are_samples_of_each_condition():
    network = dense().double()
    model = student(network, pack=2)
    z = torch.randn(3, 2, 2, dtype=torch.float64)
    noise = torch.randn(3, 5, 6, 2, dtype=torch.float64)
    many = model.sample(z, num_samples=5, steps=1, noise=noise)
    assert many.shape == (3, 5, 6, 2)
    for k in range(5):
        assert torch.allclose(
            many[:, k], model.sample(z, steps=1, noise=noise[:, k]), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("sample_type", ["ode", "sde"])
def test_the_same_generator_gives_the_same_bits_and_is_what_the_sampler_sees(sample_type):
    network = dense()
    model = student(network, pack=2, sample_type=sample_type)
    z = torch.randn(3, 2, 2)
    x = model.sample(z, generator=seeded(7))
    assert torch.equal(x, model.sample(z, generator=seeded(7)))
    assert not torch.equal(x, model.sample(z, generator=seeded(8)))
    generator = seeded(7)
    noise = torch.randn(3, 6, 2, generator=generator)
    reference = sample_student(
        network, pack_tokens(noise, 2), T_LIST, z, sample_type=sample_type, generator=generator
    )
    assert torch.equal(x, reference.reshape(3, 6, 2))


def test_without_a_generator_torch_decides():
    model = student(dense(), pack=2)
    z = torch.randn(2, 2, 2)
    torch.manual_seed(5)
    first = model.sample(z)
    assert not torch.equal(first, model.sample(z))
    torch.manual_seed(5)
    assert torch.equal(first, model.sample(z))


@pytest.mark.kernels
@pytest.mark.parametrize(
    ("dtype", "coarser"), [(torch.float64, torch.float32), (torch.bfloat16, torch.bfloat16)]
)
def test_students_of_any_dtype_start_from_the_same_noise(dtype, coarser):
    z = torch.randn(3, 2, 2, generator=seeded(1))
    rungs = torch.tensor(T_LIST[:-1])

    def sampled(network: nn.Module, z: Tensor, rungs: Tensor) -> Tensor:
        t_list = [*rungs.tolist(), 0.0]
        model = student(network, pack=2, sample_type="ode", t_list=t_list)
        return model.sample(z, generator=seeded())

    exact = sampled(dense(), z, rungs).double()
    other = sampled(dense().to(dtype), z, rungs)
    assert other.dtype == dtype
    # The rungs are nudged as well: a network multiplies its time by 1000.
    network = dense().to(coarser)
    allowed = MULTIPLE * sway(partial(sampled, network), network, z, rungs)
    assert (other.double() - exact).norm() <= allowed * exact.norm()


def test_sampling_is_inference():
    network = dense(p_drop_emb=0.5, p_drop_attn=0.5).train()
    model = student(network, pack=2)
    z = torch.randn(2, 2, 2, requires_grad=True)
    noise = torch.randn(2, 6, 2)
    x = model.sample(z, noise=noise, steps=1)
    assert not x.requires_grad and not network.training
    assert torch.equal(x, model.sample(z, noise=noise, steps=1))


def test_observations_far_from_the_origin_keep_their_digits():
    seen = []
    network = Probe(lambda x, t, z: seen.append(z) or 0 * x)
    model = student(network, z_normalizer=Normalizer([1e7, 0.0], [[1.0, 0.0], [0.0, 1.0]]))
    model.sample(torch.tensor([[[1e7 + 0.125, 0.0]]], dtype=torch.float64), steps=1)
    assert seen[0][0, 0, 0].item() == 0.125


def test_a_shorter_history_is_allowed():
    assert student(dense(), pack=2).sample(torch.randn(2, 1, 2)).shape == (2, 6, 2)


def test_networks_of_ones_own_take_any_condition():
    network = Probe(lambda x, t, cond: 0 * x + cond["a"][:, :1, None] + cond["b"][0][:, :1, None])
    model = student(network, cond_horizon=None, pred_type="x0")
    cond = {"a": torch.arange(3.0)[:, None], "b": (torch.ones(3, 1),)}
    x = model.sample(cond, num_samples=2)
    assert torch.equal(x, torch.arange(1.0, 4.0).double()[:, None, None, None].expand(3, 2, 6, 2))
    free = student(
        Probe(lambda x, t, cond: 0 * x + (cond is None)), cond_horizon=None, pred_type="x0"
    )
    assert torch.equal(
        free.sample(None, num_samples=4), torch.ones(1, 4, 6, 2, dtype=torch.float64)
    )
    assert free.sample(None, noise=torch.randn(5, 6, 2)).shape == (5, 6, 2)
    with pytest.raises(ValueError, match=r"same number of rows in cond, got \[2, 3\]"):
        model.sample({"a": torch.ones(2, 1), "b": (torch.ones(3, 1),)})
    with pytest.raises(TypeError, match="expected cond as a Tensor, a tuple or mapping"):
        model.sample("north")


@pytest.mark.parametrize("shape", [(5,), (4, 3), (3, 4, 4), (2, 3, 4, 5)])
def test_samples_have_any_shape(shape):
    model = student(
        Probe(lambda x, t, cond: 0.3 * x), horizon=shape, cond_horizon=None, sample_type="ode"
    )
    noise = torch.randn(6, *shape, dtype=torch.float64)
    x = model.sample(None, noise=noise)
    assert x.shape == noise.shape and model.sample(None).shape == (1, *shape)
    assert model.sample(None, num_samples=4, generator=seeded()).shape == (1, 4, *shape)
    label = torch.arange(6)
    assert torch.equal(model.sample(label, noise=noise), x)
    many = model.sample(label.view(3, 2)[:, 0], num_samples=2, noise=noise.view(3, 2, *shape))
    assert torch.equal(many, x.view(3, 2, *shape))
    assert f"Student(cond -> X (B, {', '.join(map(str, shape))})" in repr(model)
    with pytest.raises(ValueError, match="expected noise of shape"):
        model.sample(label, noise=noise[:5])


def test_labels_stay_integers_and_are_repeated_with_their_samples():
    seen = []
    network = Probe(lambda x, t, cond: seen.append(cond) or 0 * x + cond[:, None, None, None])
    model = student(network, horizon=(3, 2, 2), cond_horizon=None, pred_type="x0")
    x = model.sample(torch.tensor([7, 2]), num_samples=3, steps=1)
    assert seen[0].dtype == torch.int64 and seen[0].tolist() == [7, 7, 7, 2, 2, 2]
    assert torch.equal(x[:, :, 0, 0, 0], torch.tensor([[7.0] * 3, [2.0] * 3]).double())


Z = torch.zeros(8, 2, 2)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (
            ValueError,
            r"expected Z of shape \(B, T_z <= 2, 2\), got \(8, 3, 2\)",
            {"cond": torch.zeros(8, 3, 2)},
        ),
        (
            ValueError,
            r"expected Z of shape \(B, T_z <= 2, 2\), got \(8, 2\)",
            {"cond": torch.zeros(8, 2)},
        ),
        (ValueError, r"expected Z of shape .* got \(8, 0, 2\)", {"cond": torch.zeros(8, 0, 2)}),
        (ValueError, r"expected Z of shape .* got \(8, 2, 3\)", {"cond": torch.zeros(8, 2, 3)}),
        (TypeError, "expected cond as a floating-point Tensor .* got list", {"cond": [[0.0]]}),
        (
            TypeError,
            "expected cond .* got a Tensor of torch.int64",
            {"cond": torch.zeros(8, 2, 2).long()},
        ),
        (TypeError, "expected cond .* got NoneType", {"cond": None}),
        (
            ValueError,
            r"expected steps among those trained, \[1, 2, 4\], got 3",
            {"cond": Z, "steps": 3},
        ),
        (ValueError, "expected steps .* got True", {"cond": Z, "steps": True}),
        (ValueError, "expected steps .* got 2.0", {"cond": Z, "steps": 2.0}),
        (ValueError, "expected num_samples .* got 0", {"cond": Z, "num_samples": 0}),
        (ValueError, "expected num_samples .* got 1.5", {"cond": Z, "num_samples": 1.5}),
        (
            ValueError,
            r"expected noise of shape \(8, 6, 2\), that of the result, got \(8, 3, 4\)",
            {"cond": Z, "noise": torch.zeros(8, 3, 4)},
        ),
        (
            ValueError,
            r"expected noise of shape \(8, 3, 6, 2\)",
            {"cond": Z, "num_samples": 3, "noise": torch.zeros(8, 6, 2)},
        ),
        (
            TypeError,
            "expected noise as a floating-point Tensor",
            {"cond": Z, "noise": torch.zeros(8, 6, 2).int()},
        ),
    ],
)
def test_wrong_arguments_are_named(error, message, call):
    with pytest.raises(error, match=message):
        student(dense(), pack=2).sample(**call)


def test_repr_says_what_it_does():
    text = repr(student(dense(), pack=2, config={"group": "D4"}))
    assert "Z (B, T_z <= 2, 2) -> X (B, 6, 2)" in text and "steps=[1, 2, 4]" in text
    assert "group D4" in text and "float32 on cpu" in text


# ---- Noise ---------------------------------------------------------------------------------------


def plain() -> Student:
    return student(Probe(lambda x, t, cond: 0 * x), cond_horizon=None)


@pytest.mark.parametrize(
    "noise",
    [
        torch.rand(40, 6, 2, generator=seeded()),
        2 * torch.randn(40, 6, 2, generator=seeded()),
        0.5 * torch.randn(40, 6, 2, generator=seeded()),
        torch.randn(40, 6, 2, generator=seeded()) + 1,
        torch.zeros(40, 6, 2) + torch.arange(40.0)[:, None, None],
    ],
)
def test_noise_of_another_law_is_warned_of(noise):
    with pytest.warns(UserWarning, match=r"expected standard normal noise, N\(0, 1\), got numbers"):
        plain().sample(noise=noise)


def test_no_seed_of_standard_normal_noise_is_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(200):
            for rows in (1, 3, 40):
                plain().sample(noise=torch.randn(rows, 6, 2, generator=seeded(seed)))
        # One draw for every condition says no more than itself.
        for seed in range(50):
            one = torch.randn(4, 6, 2, generator=seeded(seed))
            plain().sample(noise=one.repeat(50, 1, 1))
        # A walk from one draw to another, which keeps to the law.
        turn = torch.linspace(0.0, 1.57, 64)[:, None, None]
        for seed in range(100):
            start, end = torch.randn(2, 6, 2, generator=seeded(seed))
            plain().sample(noise=turn.cos() * start + turn.sin() * end)
