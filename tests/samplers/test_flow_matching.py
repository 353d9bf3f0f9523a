"""FlowMatching, with noise at 0 and data at 1: its clock, its arguments and its samples."""

import pytest
import torch

from fastgen._core.seeds import generator_for
from fastgen.samplers import FlowMatching
from support.exact import GaussianTeacher


def test_flow_matching_runs_from_noise_to_data():
    """The field towards one target, v = (target - x) / (1 - t), arrives there, and the path starts
    at N(0, I)."""
    target = torch.tensor([[1.0, -2.0]])
    sampler = FlowMatching((2,), num_inference_steps=8)
    xs, ts = sampler.sample(
        4000,
        lambda *, x, t: (target - x) / (1 - t),
        return_all_steps=True,
        generator=generator_for(0),
    )
    assert xs.shape == (4000, 9, 2) and ts.shape == (9,)
    torch.testing.assert_close(ts, torch.linspace(0, 1, 9))
    torch.testing.assert_close(xs[:, -1], target.expand(4000, 2))
    assert xs[:, 0].mean().abs() < 0.04 and xs[:, 0].std().item() == pytest.approx(1, abs=0.04)


def test_flow_matching_samples_the_exact_gaussian():
    teacher = GaussianTeacher(mean=0.7, std=0.4)
    x = FlowMatching(3, "heun", 32).sample(
        20_000, lambda *, x, t: -teacher(x, 1 - t, None), generator=generator_for(0)
    )
    assert x.shape == (20_000, 3)
    assert x.mean().item() == pytest.approx(0.7, abs=0.01) and x.std().item() == pytest.approx(
        0.4, abs=0.01
    )


@pytest.mark.parametrize("batch", [1, 3])
def test_step_functions_get_times_that_broadcast(batch):
    shapes = []

    def step(*, x, t):
        shapes.append((x.shape, t.shape, x.dtype, t.dtype))
        return x * t

    FlowMatching([4, 2]).sample(batch, step, inference_step=2)
    assert set(shapes) == {((batch, 4, 2), (batch, 1, 1), torch.float32, torch.float32)}


def test_flow_matching_arguments_override_the_constructor():
    calls = []
    sampler = FlowMatching(2, "euler", 10)

    def step(*, x, t):
        calls.append(t.flatten()[0].item())
        return x

    sampler.sample(1, step)
    assert len(calls) == 10
    calls.clear()
    xs, ts = sampler.sample(1, step, return_all_steps=True, inference_step=2, int_method="midpoint")
    assert (
        calls == [0.0, 0.25, 0.5, 0.75] and xs.shape == (1, 3, 2) and ts.tolist() == [0.0, 0.5, 1.0]
    )


@pytest.mark.parametrize(
    ("build", "changes", "message"),
    [
        ({"int_method": "rk9"}, {}, "unknown int_method 'rk9', expected one of: euler"),
        ({"num_inference_steps": 0}, {}, "expected num_inference_steps to be an int >= 1, got 0"),
        ({"x_dims": ()}, {}, "expected x_dims"),
        ({"x_dims": (4, 0)}, {}, "expected x_dims"),
        ({}, {"inference_step": 0}, "expected inference_step to be an int >= 1, got 0"),
        ({}, {"int_method": "dopri"}, "unknown int_method 'dopri'"),
        ({}, {"batch_size": 0}, "expected batch_size to be an int >= 1, got 0"),
        ({}, {"step_fn": lambda *, x, t: x[:, :1]}, "expected step_fn's output of shape"),
    ],
)
def test_bad_flow_matching_arguments_are_refused(build, changes, message):
    with pytest.raises(ValueError, match=message):
        FlowMatching(**{"x_dims": 2, **build}).sample(
            **{"batch_size": 2, "step_fn": lambda *, x, t: x, **changes}
        )
