"""Laws of the averaged weights."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastgen.ema import ExponentialMovingAverage


def config(**changes):
    defaults = {
        "decay": 0.9,
        "start_iter": 0,
        "gamma": 4.0,
        "halflife_kimg": 1.0,
        "rampup_ratio": None,
    }
    return SimpleNamespace(
        **{"type": "constant", "batch_size": 100, "dtype": "float64", **defaults, **changes}
    )


def scalar(value: float, dtype: torch.dtype = torch.float64) -> nn.Module:
    net = nn.Module()
    net.weight = nn.Parameter(torch.tensor([value], dtype=dtype))
    return net


def run(cfg, values, start=0.0):
    """The shadow after each of the updates `values`."""
    net = scalar(start)
    ema, seen = ExponentialMovingAverage(net, cfg), []
    for n, value in enumerate(values, start=1):
        net.weight.data.fill_(value)
        ema.update(net, iteration=n)
        seen.append(ema.state_dict()["weight"].item())
    return seen


def test_constant_decay_forgets_geometrically():
    seen = run(config(decay=0.9), [1.0] * 20)
    assert seen == pytest.approx([1 - 0.9**n for n in range(1, 21)])


def test_halflife_halves_the_past_every_half_life():
    """1000 samples at 100 a step: ten steps leave one half of the initial weights."""
    seen = run(config(type="halflife", halflife_kimg=1.0), [0.0] * 20, start=1.0)
    assert seen[9] == pytest.approx(0.5) and seen[19] == pytest.approx(0.25)


def test_halflife_ramps_up_with_the_samples_seen():
    """With ratio r the half-life is r n steps until it is the configured one."""
    ema = ExponentialMovingAverage(
        scalar(0.0), config(type="halflife", rampup_ratio=0.5, halflife_kimg=1.0)
    )
    assert ema.beta(4) == pytest.approx(0.5 ** (1 / 2)) and ema.beta(10) == pytest.approx(
        0.5 ** (1 / 5)
    )
    assert ema.beta(20) == ema.beta(10_000) == pytest.approx(0.5 ** (1 / 10))


def test_power_weights_the_past_by_a_power_of_time():
    """The weight of update n among N is close to (gamma + 1) n^gamma / N^(gamma + 1), so w = n
    averages to N (gamma + 1) / (gamma + 2), and the initial weights are forgotten at once."""
    gamma, n = 4.0, 4000
    assert run(config(type="power", gamma=gamma), [3.0], start=100.0) == [3.0]
    seen = run(config(type="power", gamma=gamma), [float(k) for k in range(1, n + 1)])
    assert seen[-1] / n == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-3)


@pytest.mark.parametrize("kind", ["constant", "halflife", "power"])
def test_constant_weights_stay_what_they_are(kind):
    value = 0.1
    assert set(run(config(type=kind, rampup_ratio=0.05), [value] * 50, start=value)) == {value}


def test_before_start_iter_the_shadow_is_the_network():
    seen = run(config(start_iter=3, decay=0.5), [1.0, 2.0, 3.0, 7.0, 7.0])
    assert seen == pytest.approx([1.0, 2.0, 3.0, 5.0, 6.0])


def test_a_bfloat16_network_has_a_float32_shadow_that_moves():
    """1 + 2^-7 is the next bfloat16 after 1; a bfloat16 shadow would stay at 1 for ever."""
    net = scalar(1.0, torch.bfloat16)
    ema = ExponentialMovingAverage(net, config(decay=0.99, dtype="float32"))
    net.weight.data.fill_(1 + 2**-7)
    for n in range(1, 70):
        ema.update(net, iteration=n)
    shadow = ema.state_dict()["weight"]
    assert shadow.dtype == torch.float32
    assert shadow.item() == pytest.approx(1 + 2**-7 * (1 - 0.99**69), rel=1e-6)


def test_copy_to_and_state_dict_are_round_trips():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ema = ExponentialMovingAverage(net, config(dtype="float32"))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    net(torch.randn(8, 3))  # moves the running statistics
    ema.update(net, iteration=1)
    averaged = copy.deepcopy(net)
    ema.copy_to(averaged)
    torch.testing.assert_close(averaged[0].weight, net[0].weight - 0.9)
    # Buffers are states, not weights: copied.
    assert torch.equal(averaged[1].running_mean, net[1].running_mean)
    assert averaged[1].num_batches_tracked == 1
    other = ExponentialMovingAverage(net, config(dtype="float32"))
    other.load_state_dict({name: x.clone() for name, x in ema.state_dict().items()})
    assert all(torch.equal(x, other.state_dict()[name]) for name, x in ema.state_dict().items())


def test_the_shadow_shares_no_memory_with_the_network():
    net = scalar(1.0, torch.float32)
    ema = ExponentialMovingAverage(net, config(dtype="float32"))
    net.weight.data.fill_(5.0)
    assert ema.state_dict()["weight"].item() == 1.0
    assert not ema.state_dict()["weight"].requires_grad


def test_buffers_outside_the_state_dict_are_left_alone():
    net = nn.Linear(2, 2)
    net.register_buffer("table", torch.arange(3), persistent=False)
    assert set(ExponentialMovingAverage(net, config()).state_dict()) == {"weight", "bias"}


def test_other_networks_are_refused_by_name_and_shape():
    ema = ExponentialMovingAverage(nn.Linear(2, 2), config())
    with pytest.raises(ValueError, match=r"missing \['bias'\], unexpected \[\]"):
        ema.update(nn.Linear(2, 2, bias=False), iteration=1)
    with pytest.raises(ValueError, match=r"expected weight of shape \(2, 2\), got \(2, 3\)"):
        ema.copy_to(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"missing \['weight'\], unexpected \['w'\]"):
        ema.load_state_dict({"w": torch.zeros(2, 2), "bias": torch.zeros(2)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"type": "linear"},
            "unknown EMA type 'linear', expected one of: constant, halflife, power",
        ),
        ({"dtype": "bfloat16"}, "expected EMA dtype float32 or float64"),
        ({"decay": 1.0}, r"expected EMA decay in \[0, 1\)"),
    ],
)
def test_bad_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ExponentialMovingAverage(scalar(0.0), config(**changes))


def test_a_weight_that_is_replaced_in_its_network_is_followed():
    model = nn.Linear(2, 1, bias=False).double()
    ema = ExponentialMovingAverage(model, config(decay=0.5, dtype="float64"))
    start = model.weight.detach().clone()
    ema.update(model, iteration=1)
    model.weight = nn.Parameter(start + 2.0)
    ema.update(model, iteration=2)
    torch.testing.assert_close(ema.shadow["weight"], start + 1.0, rtol=0, atol=1e-15)
    twin = copy.deepcopy(ema)
    nn.init.constant_(model.weight, 9.0)
    twin.update(model, iteration=3)
    torch.testing.assert_close(twin.shadow["weight"], 0.5 * (start + 1.0) + 4.5, rtol=0, atol=1e-15)
    # Another network of the same weights is another one.
    other = copy.deepcopy(model)
    nn.init.constant_(other.weight, 7.0)
    ema.update(other, iteration=3)
    torch.testing.assert_close(ema.shadow["weight"], 0.5 * (start + 1.0) + 3.5, rtol=0, atol=1e-15)
