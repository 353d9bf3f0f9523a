"""Where a network's law clips x0, teacher, student and exported folder clip it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fastgen.config.dmd import DMDConfig
from fastgen.export.folders import export_student, load_student
from fastgen.guidance import Guidance
from fastgen.methods.judges import Judges
from fastgen.samplers import sample_teacher
from fastgen.teachers import RectifiedFlow, as_rectified_flow
from fastgen.teachers.guided import GuidedNetwork
from support.converted import Bare
from support.exact import normal

SQUARED = {"name": "betas", "schedule": "squared_cosine", "rows": 100}
DECLARATIONS = [
    {"path": SQUARED, "prediction": "eps"},
    {"path": SQUARED, "prediction": "v"},
    {"path": "cosine", "prediction": "x0"},
    {"path": "linear", "prediction": "flow"},
    {"path": "edm", "prediction": "x0"},
]
X = 2 * normal(6, 3)


class Wild(nn.Module):
    """Answers far beyond any data."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 3, dtype=torch.float64)
        with torch.no_grad():
            self.map.weight.copy_(5 * normal(3, 3, seed=1))

    def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        return self.map(x)


@pytest.mark.parametrize("declaration", DECLARATIONS, ids=str)
@pytest.mark.parametrize("t", [0.05, 0.5, 0.97])
def test_x0_is_clipped_and_still_makes_the_sample_with_its_noise(declaration, t):
    network = Wild()
    free = as_rectified_flow(network, **declaration)
    held = as_rectified_flow(network, **declaration, clip_sample=(-1, 0.5))
    expected = free.predict_x0(X, t).clamp(-1.0, 0.5)
    x0, eps = held.ends(X, t)
    torch.testing.assert_close(x0, expected, rtol=1e-12, atol=0)
    assert torch.equal(held.predict_x0(X, t), x0) and x0.detach().max() == 0.5
    torch.testing.assert_close((1 - t) * x0 + t * eps, X, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(held(X, t), eps - x0, rtol=1e-12, atol=0)


def test_what_lies_inside_is_untouched_to_the_last_bit():
    network = Wild()
    free = as_rectified_flow(network, path=SQUARED, prediction="eps")
    held = as_rectified_flow(network, path=SQUARED, prediction="eps", clip_sample=[-1e9, 1e9])
    assert torch.equal(held(X, 0.5), free(X, 0.5))


def test_a_student_outside_learns_the_way_back():
    """A gradient that stopped at the limit would leave it there for ever."""
    student = as_rectified_flow(Wild(), path=SQUARED, prediction="eps", clip_sample=(-1, 1))
    target = 0.3 * torch.ones_like(X)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.1)
    first = None
    for _ in range(200):
        loss = (student.predict_x0(X, 0.5) - target).square().mean()
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first is not None and first > 0.5 and loss.item() < 0.02


def test_a_sampler_stays_within_reach_of_the_data():
    noise = normal(64, 3, seed=2)
    held = as_rectified_flow(Wild(), path=SQUARED, prediction="eps", clip_sample=(-1, 1))
    for method in ("euler", "ab2", "heun"):
        x = sample_teacher(held, noise, 16, method=method)
        assert isinstance(x, Tensor) and float(x.abs().max()) < 2.0


T = torch.full((6,), 0.6, dtype=torch.float64)
COND = 30 * torch.ones(6, dtype=torch.float64)
NULL = torch.zeros(1, dtype=torch.float64)


def guided_once(t: Tensor = T) -> tuple[RectifiedFlow, Tensor]:
    """A network that clips, and the x0 of its guidance by 9: guided as it predicts, then
    clipped."""
    options = {"path": SQUARED, "prediction": "eps"}
    bare = Bare(torch.float64)
    free = as_rectified_flow(bare, **options)
    plain = free.predict_x0(X, t, COND)
    null = free.predict_x0(X, t, NULL.expand(6))
    held = as_rectified_flow(bare, **options, clip_sample=(0, 1))
    return held, (plain + 8.0 * (plain - null)).clamp(0.0, 1.0)


def test_a_guided_prediction_is_clipped_once_after_it_is_guided():
    held, expected = guided_once()
    # Clipped before, too, it would be another one.
    ends = [held.predict_x0(X, T, z) for z in (COND, NULL.expand(6))]
    twice = (ends[0] + 8.0 * (ends[0] - ends[1])).clamp(0.0, 1.0)
    assert float((twice - expected).detach().abs().max()) > 0.1
    guided = GuidedNetwork(held, Guidance(9.0), NULL)
    x0 = guided.predict_x0(X, T, COND)
    torch.testing.assert_close(x0, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(X - 0.6 * guided(X, T, COND), expected, rtol=1e-10, atol=1e-10)


def test_a_pipeline_that_guides_clips_as_a_teacher_that_guides_itself():
    held, expected = guided_once()
    config = DMDConfig(t_list=(0.9, 0.0), vsd_weight=0.0, kd_weight=1.0, guidance_scale=9.0)
    judges = Judges(held, None, None, None, False, config)
    x0 = judges.teacher_x0(X, T, COND, NULL.expand(6))
    torch.testing.assert_close(x0, expected, rtol=1e-10, atol=1e-10)


class OfVoxels(Wild):
    """A network whose author calls other things so."""

    clip_sample = True
    spacing = (1.0, 1.0, 0.5)


def test_an_attribute_of_another_meaning_is_no_declaration():
    network = OfVoxels()
    plain = Wild()
    plain.load_state_dict(network.state_dict())
    noise = normal(4, 3, seed=2)
    found, expected = (sample_teacher(net, noise, 3) for net in (network, plain))
    assert isinstance(found, Tensor) and isinstance(expected, Tensor)
    assert torch.equal(found, expected)
    guided = GuidedNetwork(network, Guidance(3.0), NULL)
    assert torch.isfinite(guided.predict_x0(X, T, COND)).all()


def test_a_folder_states_it_and_a_loaded_student_clips(tmp_path):
    declaration = {"path": SQUARED, "prediction": "eps", "clip_sample": (-0.1, 0.2)}
    student = as_rectified_flow(Bare(), **declaration)
    export_student(tmp_path / "student", student, t_list=[0.5, 0.0], horizon=(3,))
    loaded = load_student(tmp_path / "student", network=Bare())
    stated = loaded.config["parameterization"]["rectified_flow"]
    assert stated["clip_sample"] == [-0.1, 0.2]
    x = loaded.sample(num_samples=50, generator=torch.Generator().manual_seed(0))
    assert x.min() == pytest.approx(-0.1) and x.max() == pytest.approx(0.2)
    assert copy.deepcopy(student).describe() == student.describe() == stated
    assert "clip_sample" not in as_rectified_flow(Bare(), path="cosine").describe()


@pytest.mark.parametrize(
    "clip",
    [(1, -1), (0, 0), (1,), (0, 1, 2), (0, float("inf")), (float("nan"), 1), "ab", 1.0, True],
)
def test_what_is_no_range_is_refused(clip):
    with pytest.raises(ValueError, match="expected clip_sample as two numbers, low < high"):
        as_rectified_flow(Bare(), path=SQUARED, prediction="eps", clip_sample=clip)
