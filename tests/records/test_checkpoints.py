"""Checkpoints give back what they were given, bit for bit, or say that they cannot."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastgen._core.tensor_files import load_tensors, save_tensors
from fastgen.records import checkpoints as checkpoint
from fastgen.records.checkpoints import (
    add_prefix,
    check_checkpoint,
    checkpoint_folders,
    flatten_optimizer,
    load_newest_checkpoint,
    save_checkpoint,
    set_aside,
    unflatten_optimizer,
    with_prefix,
)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).to(dtype)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and a.numpy(force=True).tobytes() == b.numpy(force=True).tobytes()
    )


def saved(run_dir: Path, *steps: int, keep: int = 9) -> Path:
    """The newest of a few checkpoints; the step stands in the tensors too."""
    for step in steps:
        folder = save_checkpoint(
            run_dir, step, {"x": torch.full((50,), float(step))}, {"step": step}, keep=keep
        )
    return folder


# ---- Round trips ---------------------------------------------------------------------------------


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


# ---- Which checkpoint ----------------------------------------------------------------------------


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert load_newest_checkpoint(tmp_path) is None and checkpoint_folders(tmp_path) == []


def test_the_newest_is_the_one_with_most_steps_whatever_the_order_of_letters(tmp_path):
    saved(tmp_path, 9, 10, 100, 99999)
    found = load_newest_checkpoint(tmp_path)
    assert found is not None and found[1]["step"] == 99999


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_are_kept(tmp_path, keep):
    saved(tmp_path, 1, 2, 3, 4, keep=keep)
    kept = [int(folder.name.removeprefix("step_")) for folder in checkpoint_folders(tmp_path)]
    assert kept == [1, 2, 3, 4][-keep:]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        f"step_{n:08d}" for n in kept
    }


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    saved(tmp_path, 5)
    save_checkpoint(tmp_path, 5, {"x": torch.zeros(1)}, {"step": 5}, keep=1)
    found = load_newest_checkpoint(tmp_path)
    assert found is not None and torch.equal(found[0]["x"], torch.zeros(1))


def test_a_save_that_fails_leaves_those_before_it(tmp_path, monkeypatch):
    saved(tmp_path, 1)

    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_json", no_room)
    with pytest.raises(OSError, match="No space left"):
        saved(tmp_path, 2, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_never_saved(tmp_path, value):
    saved(tmp_path, 1)
    with pytest.raises(FloatingPointError, match="NaN or infinity in fake.w$"):
        save_checkpoint(
            tmp_path, 2, {"x": normal(2), "fake.w": torch.tensor([0.0, value])}, {}, keep=1
        )
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]


def test_a_checkpoint_is_removed_at_once_or_not_at_all(tmp_path, monkeypatch):
    """Where the plug is pulled while an old one is removed, no folder is left that looks like one
    and is half gone."""
    saved(tmp_path, 1)
    rmtree = shutil.rmtree

    def half(folder: Path, **options: object) -> None:
        if ".new-" not in folder.name:
            next(folder.iterdir()).unlink()
        else:
            rmtree(folder, **options)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", half)
    saved(tmp_path, 2, keep=1)
    monkeypatch.undo()
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["step_00000002"]
    saved(tmp_path, 3, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000003"]


def test_a_checkpoint_is_renamed_only_when_all_of_it_is_there(tmp_path, monkeypatch):
    rename = os.rename
    seen = []

    def look(old: Path, new: Path) -> None:
        seen.append(new.name)
        check_checkpoint(Path(old))
        assert not Path(new).exists()
        rename(old, new)

    monkeypatch.setattr("os.rename", look)
    saved(tmp_path, 1)
    assert seen == ["step_00000001"]


# ---- Damage --------------------------------------------------------------------------------------


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def manifest(change: Callable[[dict], object]) -> Callable[[Path], object]:
    return lambda folder: edit(folder / "manifest.json", change)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "tensors cut": lambda folder: cut(folder / "state.safetensors", 150),
    "tensors empty": lambda folder: cut(folder / "state.safetensors", 0),
    "one bit flipped": lambda folder: flip(folder / "state.safetensors"),
    "tensors gone": lambda folder: (folder / "state.safetensors").unlink(),
    "JSON cut": lambda folder: cut(folder / "state.json", 5),
    "JSON empty": lambda folder: cut(folder / "state.json", 0),
    "JSON gone": lambda folder: (folder / "state.json").unlink(),
    "JSON is a list": lambda folder: (folder / "state.json").write_text("[]"),
    "JSON is no text": lambda folder: (folder / "state.json").write_bytes(b"\xff\xfe\x00"),
    "JSON says another number": lambda folder: edit(
        folder / "state.json", lambda meta: meta.update(step=1)
    ),
    "manifest gone": lambda folder: (folder / "manifest.json").unlink(),
    "manifest cut": lambda folder: cut(folder / "manifest.json", 60),
    "manifest is a list": lambda folder: (folder / "manifest.json").write_text("[]"),
    "no checksum": manifest(lambda value: value["files"]["state.json"].pop("sha256")),
    "no entry": manifest(lambda value: value["files"].pop("state.json")),
    "an entry too many": manifest(lambda value: value["files"].update({"../x": {}})),
    "an entry that is a number": manifest(lambda value: value["files"].update({"state.json": 3})),
    "a file too many": lambda folder: (folder / "other.json").write_text("{}"),
    "nothing in it": lambda folder: [path.unlink() for path in folder.iterdir()],
    "a file": lambda folder: (shutil.rmtree(folder), folder.write_text("")),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_newest_gives_way_to_the_one_before_and_says_so(tmp_path, caplog, damage):
    damage(saved(tmp_path, 1, 2))
    found = load_newest_checkpoint(tmp_path)
    assert found is not None and found[1]["step"] == 1 and bool((found[0]["x"] == 1).all())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "step_00000002 is damaged" in caplog.text


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_run_of_which_every_checkpoint_is_damaged_is_an_error_not_a_new_start(tmp_path, damage):
    saved(tmp_path, 1, 2)
    for folder in checkpoint_folders(tmp_path):
        damage(folder)
    with pytest.raises(ValueError, match="no checkpoint in .* is intact"):
        load_newest_checkpoint(tmp_path)


@pytest.mark.parametrize("size", [0, 4, 60, 150])
def test_a_truncated_tensor_file_is_refused_with_its_name(tmp_path, size):
    save_tensors(tmp_path / "x.safetensors", {"x": normal(50)})
    cut(tmp_path / "x.safetensors", size)
    with pytest.raises(ValueError, match="cannot read .*x.safetensors"):
        load_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("at", [9, 20, -60, -1])
def test_a_flipped_bit_in_a_tensor_file_is_refused_with_its_name(tmp_path, at):
    save_tensors(tmp_path / "x.safetensors", {"x": normal(50)})
    data = bytearray((tmp_path / "x.safetensors").read_bytes())
    data[at] ^= 1
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="cannot read .*x.safetensors"):
        load_tensors(tmp_path / "x.safetensors")


def test_a_tensor_file_without_a_checksum_is_refused(tmp_path):
    save_file({"x": normal(50)}, tmp_path / "x.safetensors")
    with pytest.raises(
        ValueError, match="cannot read .*x.safetensors: it does not match its checksum"
    ):
        load_tensors(tmp_path / "x.safetensors")


def test_what_was_loaded_does_not_change_with_its_file(tmp_path):
    save_tensors(tmp_path / "x", {"x": normal(1000)})
    back = load_tensors(tmp_path / "x")["x"]
    flip(tmp_path / "x")
    assert same_bits(back, normal(1000))


def test_a_missing_or_foreign_tensor_file_is_refused_with_its_name(tmp_path):
    (tmp_path / "text").write_text("not tensors, but long enough to hold a header's length")
    for name in ("text", "nothing"):
        with pytest.raises(ValueError, match=f"cannot read .*{name}"):
            load_tensors(tmp_path / name)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_one_is_set_aside_and_its_number_saved_again(tmp_path, damage):
    """Twice: whatever it is, it stays for whoever wants to look at it."""
    saved(tmp_path, 1)
    for _ in range(2):
        damage(saved(tmp_path, 2))
        set_aside(tmp_path, 1)
        assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["step_00000001"]
        saved(tmp_path, 2, keep=2)
        found = load_newest_checkpoint(tmp_path)
        assert found is not None and found[1]["step"] == 2
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()} - {
        "step_00000001",
        "step_00000002",
    }
    assert names == {"damaged_00000002", "damaged_00000002-again"}


def test_a_copy_that_a_user_made_is_no_checkpoint_of_the_run(tmp_path):
    copied = saved(tmp_path, 1).with_name("step_before_change")
    shutil.copytree(copied.with_name("step_00000001"), copied)
    saved(tmp_path, 2, 3, keep=1)
    found = load_newest_checkpoint(tmp_path)
    assert found is not None and found[1]["step"] == 3 and (copied / "state.json").exists()


@pytest.mark.parametrize("name", [".DS_Store", ".nfs0000001"])
def test_a_hidden_file_of_somebody_else_harms_nothing(tmp_path, name, caplog):
    (saved(tmp_path, 1, 2) / name).write_bytes(b"x")
    found = load_newest_checkpoint(tmp_path)
    assert found is not None and found[1]["step"] == 2 and not caplog.records
    saved(tmp_path, 3, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000003"]


def test_one_that_is_newer_takes_no_place_among_those_that_are_kept(tmp_path):
    saved(tmp_path, 1, 2, 9, keep=3)
    saved(tmp_path, 3, keep=2)
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == [
        f"step_{n:08d}" for n in (2, 3, 9)
    ]


def test_going_on_from_the_one_before_a_damaged_newest_keeps_what_is_saved_then(tmp_path):
    flip(saved(tmp_path, 6, 9) / "state.safetensors")
    # Another interval between checkpoints than before: the damaged one has a higher step than the
    # next.
    folder = saved(tmp_path, 7, keep=1)
    assert folder.exists()
    found = load_newest_checkpoint(tmp_path)
    assert found is not None and found[1]["step"] == 7
