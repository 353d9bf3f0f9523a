"""Guidance of a teacher: the formula, its interval, its rescaling, and the network that guides
itself."""

import pytest
import torch
from torch import nn

from fastgen._core.row_counts import CHECKS, RowCount
from fastgen._core.seeds import generator_for
from fastgen.flow_matching import convert_prediction
from fastgen.guidance import Guidance, guide_x0
from fastgen.samplers import sample_teacher
from fastgen.teachers import as_rectified_flow
from fastgen.teachers.counted import CountedNetwork
from fastgen.teachers.guided import GuidedNetwork, asking_all_rows


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = generator_for(0, "guidance")
    return tuple(torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2))  # pyright: ignore[reportReturnType]


def test_scale_one_is_the_plain_prediction_and_zero_the_other():
    cond, uncond = pair(4, 3, 2)
    assert torch.allclose(guide_x0(cond, uncond, 0.5, Guidance(1.0)), cond)
    assert torch.allclose(guide_x0(cond, uncond, 0.5, Guidance(0.0)), uncond)
    assert torch.allclose(guide_x0(cond, uncond, 0.5, Guidance(3.0)), 3 * cond - 2 * uncond)


def test_outside_the_interval_nothing_is_guided():
    cond, uncond = pair(4, 3)
    t = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    guided = guide_x0(cond, uncond, t, Guidance(2.0, (0.3, 0.6)))
    inside = 2 * cond - uncond
    assert torch.equal(guided[[0, 3]], cond[[0, 3]]) and torch.allclose(
        guided[[1, 2]], inside[[1, 2]]
    )
    assert torch.equal(guide_x0(cond, uncond, 0.1, Guidance(2.0, (0.3, 0.6))), cond)


def rms(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).square().mean(1).sqrt()


def test_rescaling_gives_the_plain_root_mean_square_and_leaves_the_direction():
    cond, uncond = pair(5, 4, 2)
    plain = guide_x0(cond, uncond, 0.5, Guidance(4.0))
    full = guide_x0(cond, uncond, 0.5, Guidance(4.0, rescale=1.0))
    assert torch.allclose(rms(full), rms(cond), rtol=1e-12)  # float64 stays float64
    assert torch.allclose(
        nn.functional.cosine_similarity(full.flatten(1), plain.flatten(1)), torch.ones(5).double()
    )
    half = guide_x0(cond, uncond, 0.5, Guidance(4.0, rescale=0.5))
    assert torch.allclose(half, 0.5 * (full + plain), rtol=1e-12)


def test_a_rescaled_prediction_turns_with_its_inputs():
    cond, uncond = pair(5, 4, 3)
    turn = torch.linalg.qr(pair(3, 3)[0])[0]
    guidance = Guidance(4.0, rescale=0.7)
    turned = guide_x0((cond + 1) @ turn, (uncond + 1) @ turn, 0.5, guidance)
    torch.testing.assert_close(
        turned, guide_x0(cond + 1, uncond + 1, 0.5, guidance) @ turn, rtol=1e-12, atol=1e-12
    )


def test_samples_of_one_number_can_be_rescaled():
    cond, uncond = pair(5, 1)
    full = guide_x0(cond, uncond, 0.5, Guidance(4.0, rescale=1.0))
    torch.testing.assert_close(full.abs(), cond.abs(), rtol=1e-12, atol=0)


def test_padding_does_not_count_in_a_rescaling():
    cond, uncond = pair(3, 4, 2)
    lengths = (4, 1, 2)
    guidance = Guidance(4.0, rescale=0.7)
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    filled = [x.masked_fill(~mask[..., None], float("nan")) for x in (cond, uncond)]
    found = guide_x0(*filled, 0.5, guidance, mask=mask)
    for i, length in enumerate(lengths):
        cut = guide_x0(cond[i : i + 1, :length], uncond[i : i + 1, :length], 0.5, guidance)
        torch.testing.assert_close(found[i : i + 1, :length], cut, rtol=1e-12, atol=0)


class Linear(nn.Module):
    """Predicts a x + b cond."""

    def __init__(self, **clock: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.calls = 0

    def forward(self, x, t, cond):
        self.calls += 1
        return self.a * x + 2.0 * cond


@pytest.mark.parametrize("pred_type", ["flow", "x0", "eps"])
def test_a_network_guides_itself_in_any_prediction(pred_type):
    network = Linear()
    x, cond = pair(6, 2)
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    guided = GuidedNetwork(
        network, Guidance(2.5), torch.zeros(1, 2, dtype=torch.float64), pred_type=pred_type
    )
    # Any linear parameterisation is guided alike, so the prediction itself may be.
    expected = network(x, t, cond) + 1.5 * (
        network(x, t, cond) - network(x, t, torch.zeros_like(cond))
    )
    assert torch.allclose(guided(x, t, cond), expected, rtol=1e-10)
    assert torch.allclose(
        guided.predict_x0(x, t, cond), convert_prediction(expected, x, t, pred_type, "x0")
    )


def test_a_sampler_guided_by_its_network_is_the_guided_sampler():
    network = Linear()
    noise, cond = pair(6, 2)
    null = torch.zeros(1, 2, dtype=torch.float64)
    by_network = sample_teacher(GuidedNetwork(network, Guidance(2.0), null), noise, 12, cond)
    by_sampler = sample_teacher(
        network, noise, 12, cond, guidance_scale=2.0, negative_cond=torch.zeros_like(cond)
    )
    assert torch.allclose(by_network, by_sampler, rtol=1e-9)  # pyright: ignore[reportArgumentType]


def test_outside_its_interval_the_null_condition_costs_no_call():
    network = Linear()
    x, cond = pair(6, 2)
    guided = GuidedNetwork(
        network, Guidance(2.0, (0.5, 1.0)), torch.zeros(1, 2, dtype=torch.float64)
    )
    guided(x, torch.full((6,), 0.2, dtype=torch.float64), cond)
    assert network.calls == 1
    guided(x, torch.full((6,), 0.7, dtype=torch.float64), cond)
    assert network.calls == 3


@pytest.mark.parametrize("rescale", [0.0, 0.4])
@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_a_row_costs_the_same_however_a_batch_is_cut(parts, rescale):
    """Three of six times lie inside of the interval, so nine rows are asked."""
    x, cond = pair(6, 2)
    t = torch.tensor([0.2, 0.6, 0.3, 0.7, 0.8, 0.1], dtype=torch.float64)
    null = torch.zeros(6, 2, dtype=torch.float64)
    rows = RowCount()
    counted = CountedNetwork(Linear(), rows)
    answers = []
    for part in torch.arange(6).chunk(parts):
        guidance = Guidance(2.0, (0.5, 1.0), rescale)
        guided = GuidedNetwork(counted, guidance, null[part])
        answers.append(guided(x[part], t[part], cond[part]))
    assert rows.take(CHECKS) == 9
    # As if all rows were asked twice.
    whole = GuidedNetwork(counted, Guidance(2.0, (0.5, 1.0), rescale), null)
    with asking_all_rows(whole):
        expected = whole(x, t, cond)
    assert rows.take(CHECKS) == 12
    torch.testing.assert_close(torch.cat(answers), expected, rtol=1e-12, atol=1e-12)


def test_a_converted_network_keeps_its_range_when_guided():
    converted = as_rectified_flow(Linear(), path="vp", prediction="eps")
    guided = GuidedNetwork(converted, Guidance(2.0), torch.zeros(1, 2, dtype=torch.float64))
    assert guided.t_max == converted.t_max and guided.predicts_noise
    x, cond = pair(6, 2)
    t = torch.full((6,), 0.4, dtype=torch.float64)
    plain, null = (converted.predict_x0(x, t, c) for c in (cond, torch.zeros_like(cond)))
    assert torch.allclose(guided.predict_x0(x, t, cond), 2 * plain - null)


def test_a_flow_is_guided_as_it_is_and_in_the_networks_dtype():
    network = Linear().bfloat16()
    x, cond = pair(6, 2)
    x = x.bfloat16()
    cond = cond.bfloat16()
    t = torch.full((6,), 0.02)
    guided = GuidedNetwork(network, Guidance(2.0), torch.zeros(1, 2))
    plain = network(x, t, cond)
    null = network(x, t, torch.zeros_like(cond))
    # Through x0 and back, a division by t = .02 would leave two digits of a flow in bfloat16 wrong.
    torch.testing.assert_close(guided(x, t, cond), (2 * plain.float() - null.float()).bfloat16())
    outside = GuidedNetwork(network, Guidance(2.0, (0.5, 1.0)), torch.zeros(1, 2))
    assert torch.equal(outside(x, t, cond), plain)
