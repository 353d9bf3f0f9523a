"""States give back what they were given, bit for bit, or say that they cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fastgen._core.tensor_files import load_tensors, save_tensors
from fastgen.records.checkpoints import (
    add_prefix,
    flatten_optimizer,
    load_newest_checkpoint,
    save_checkpoint,
    unflatten_optimizer,
    with_prefix,
)
from support.bits import normal, same_bits


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool]
)
def test_tensors_come_back_bit_for_bit(tmp_path, dtype):
    shared = (100 * normal(4, 6)).to(dtype)
    tensors = {
        "matrix": shared,
        "view": shared[1],
        "transposed": shared.T,
        "number": shared[0, 0],
        "none": shared[:0],
    }
    save_tensors(tmp_path / "deep" / "x.safetensors", tensors)
    back = load_tensors(tmp_path / "deep" / "x.safetensors")
    assert back.keys() == tensors.keys()
    assert all(same_bits(back[name], value) for name, value in tensors.items())


def test_bfloat16_and_numbers_that_are_none_come_back(tmp_path):
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45, 3.3e38])
    save_tensors(tmp_path / "x", {"odd": odd, "half": normal(5, dtype=torch.bfloat16)})
    back = load_tensors(tmp_path / "x")
    assert same_bits(back["odd"], odd)
    assert back["half"].dtype == torch.bfloat16 and torch.equal(
        back["half"], normal(5, dtype=torch.bfloat16)
    )


def test_weights_saved_with_gradients_come_back_without(tmp_path):
    save_tensors(tmp_path / "x", {"w": torch.nn.Parameter(normal(3))})
    assert not load_tensors(tmp_path / "x")["w"].requires_grad


def test_what_a_checkpoint_says_of_itself_comes_back(tmp_path):
    meta = {
        "step": 3,
        "seconds": {"kd": 0.1 + 0.2},
        "scores": {"kd": {"energy": 1 / 3}},
        "stage": "kd",
    }
    save_checkpoint(tmp_path, 3, {"x": normal(2)}, meta, keep=1)
    found = load_newest_checkpoint(tmp_path)
    assert found is not None and same_bits(found[0]["x"], normal(2))
    assert {key: value for key, value in found[1].items() if key in meta} == meta


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.Adam])
def test_an_optimiser_goes_on_as_if_it_had_not_stopped(
    tmp_path, make: Callable[..., torch.optim.Optimizer]
):
    def network() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)
        ).double()

    def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            model(normal(8, 3, dtype=torch.float64, seed=step)).square().sum().backward()
            optimizer.step()

    whole = network()
    first = network()
    second = network()
    train(whole, make(whole.parameters(), lr=0.1), range(6))
    optimizer = make(first.parameters(), lr=0.1)
    train(first, optimizer, range(3))
    state = add_prefix("w", first.state_dict()) | flatten_optimizer(optimizer, "adam")
    save_tensors(tmp_path / "x", state)
    back = load_tensors(tmp_path / "x")
    second.load_state_dict(with_prefix(back, "w"))
    optimizer = make(second.parameters(), lr=0.1)
    unflatten_optimizer(optimizer, "adam", back)
    assert all(
        same_bits(value, state[f"adam.{key}"]) for key, value in with_prefix(back, "adam").items()
    )
    train(second, optimizer, range(3, 6))
    assert all(
        torch.equal(whole.state_dict()[key], value) for key, value in second.state_dict().items()
    )
    # Without its moments it would not: the test above can fail.
    third = network()
    third.load_state_dict(with_prefix(back, "w"))
    train(third, make(third.parameters(), lr=0.1), range(3, 6))
    assert not torch.equal(third.state_dict()["0.weight"], second.state_dict()["0.weight"])


def stepped(*parameters: torch.nn.Parameter, used: int = 2) -> torch.optim.Optimizer:
    """AdamW after a step for which only the first `used` parameters had a gradient."""
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters[:used]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def parameters() -> tuple[torch.nn.Parameter, ...]:
    return tuple(torch.nn.Parameter(normal(n)) for n in (2, 3, 4))


@pytest.mark.parametrize("used", [0, 2, 3])
def test_parameters_that_have_not_begun_have_nothing_to_save_and_come_back_so(used):
    state = flatten_optimizer(stepped(*parameters(), used=used), "adam")
    assert len(state) == 1 + 3 * used and state["adam.begun"].tolist() == list(range(used))
    other = stepped(*parameters(), used=1)  # whatever it was before
    unflatten_optimizer(other, "adam", state)
    back = flatten_optimizer(other, "adam")
    assert back.keys() == state.keys() and all(same_bits(back[name], state[name]) for name in state)


LOST: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "all of it": (lambda state: state.clear(), "expected the state of adam, got none"),
    "all but what had begun": (
        lambda state: [state.pop(name) for name in list(state)[:-1]],
        "without 0.exp_avg, 0.exp",
    ),
    "one parameter": (
        lambda state: [state.pop(f"adam.1.{n}") for n in ("step", "exp_avg", "exp_avg_sq")],
        "1.step",
    ),
    "one moment of all": (
        lambda state: [state.pop(f"adam.{i}.exp_avg_sq") for i in (0, 1)],
        "without 0.exp_avg_sq, 1",
    ),
    "what had begun": (lambda state: state.pop("adam.begun"), "got none"),
    "a shape": (
        lambda state: state.update({"adam.1.exp_avg": torch.zeros(1)}),
        r"1.exp_avg of adam to be \(3,\)",
    ),
    "a dtype": (
        lambda state: state.update({"adam.0.exp_avg": torch.zeros(2).half()}),
        "float32, got .*float16",
    ),
    "other parameters": (
        lambda state: state.update({"adam.begun": torch.tensor([0, 7])}),
        "got \\[7\\]",
    ),
}


@pytest.mark.parametrize(("lose", "said"), LOST.values(), ids=LOST.keys())
def test_an_optimiser_that_has_lost_something_is_refused_and_stays_what_it_was(lose, said):
    state = flatten_optimizer(stepped(*parameters()), "adam")
    lose(state)
    other = torch.optim.AdamW(parameters())
    with pytest.raises(ValueError, match=said) as raised:
        unflatten_optimizer(other, "adam", state)
    assert "\n" not in str(raised.value) and not other.state_dict()["state"]


def test_a_prefix_taken_off_is_the_inverse_of_one_put_on():
    tensors = {"a.b": normal(1), "c": normal(2)}
    both = add_prefix("x", tensors) | add_prefix("xy", {"z": normal(3)})
    assert with_prefix(both, "x").keys() == tensors.keys() and with_prefix(both, "xy").keys() == {
        "z"
    }
