"""An encoder makes Z of raw observations once: what it made is kept, a run that is killed goes on
with the same bits, another encoder is not taken for it, and the exported student takes raw
observations."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import fastgen
from fastgen.data.encoded import RowEncoder, encoded_episodes
from fastgen.data.formats.detection import open_source
from fastgen.distillation import distill
from fastgen.jobs.encoders import encoder_of, task_of
from fastgen.jobs.planning import plan_distillation
from support.pictures import (
    BATCH,
    COLUMNS,
    Encoder,
    Judge,
    build_encoder,
    config,
    save_episodes,
)
from support.toy import without_pictures


def encoder(**changes: Any) -> RowEncoder:
    torch.manual_seed(0)
    module = Encoder(**changes).eval().requires_grad_(False)
    return RowEncoder(module, COLUMNS, BATCH)


def features(path: Path, by: RowEncoder) -> Tensor:
    return encoded_episodes(open_source(path), by, None)[0]["observations"]


def calls(by: RowEncoder) -> int:
    assert isinstance(by.module, Encoder)
    return by.module.calls


def cache(path: Path) -> dict[str, bytes]:
    """What was kept, by the name of its file. The order of a header isn't told."""
    folder = path.with_name(f"{path.name}.encoded")
    return {file.name: load_file(file)["features"].numpy().tobytes() for file in folder.iterdir()}


# ---- The cache -----------------------------------------------------------------------------------


def test_rows_are_encoded_once_as_the_encoder_answers(tmp_path):
    path = save_episodes(tmp_path)
    by = encoder()
    found = features(path, by)
    rows = {name: torch.from_numpy(np.load(path)[name]) for name in COLUMNS}
    parts = [
        by.module({name: rows[name][i : i + BATCH] for name in COLUMNS})
        for i in range(0, len(found), BATCH)
    ]
    assert torch.equal(found, torch.cat(parts))
    again = encoder()
    assert torch.equal(features(path, again), found) and calls(again) == 0


def test_other_weights_and_other_rows_are_encoded_anew(tmp_path):
    path = save_episodes(tmp_path)
    found = features(path, encoder())
    other = encoder()
    assert isinstance(other.module, Encoder)
    with torch.no_grad():
        other.module.head.bias.add_(1.0)
    assert torch.allclose(features(path, other), found + 1.0) and calls(other) == 7
    arrays = dict(np.load(path))
    arrays["image"][20] += 1
    np.savez(path, **arrays)
    third = encoder()
    changed = (features(path, third) != found).any(1)
    # The rows of one batch.
    assert calls(third) == 1 and changed.nonzero().flatten().tolist() == [20]


def test_a_folder_that_is_said_from_within_has_its_cache_beside_it(tmp_path, monkeypatch):
    source = open_source(save_episodes(tmp_path))
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path / "set")
    encoded_episodes(replace(source, path=Path(".")), encoder(), None)
    assert len(list((tmp_path / "set.encoded").iterdir())) == -(-source.rows // BATCH)
    assert not list((tmp_path / "set").iterdir())


def test_what_is_damaged_is_made_again(tmp_path):
    path = save_episodes(tmp_path)
    found = features(path, encoder())
    before = cache(path)
    victim = path.with_name(f"{path.name}.encoded") / min(before)
    victim.write_bytes(victim.read_bytes()[:-9])
    again = encoder()
    assert torch.equal(features(path, again), found) and calls(again) == 1
    assert cache(path) == before


def _die(path: Path) -> None:
    features(path, encoder(dies_at=4))


def test_a_run_that_is_killed_goes_on_with_the_same_bits(tmp_path):
    whole = save_episodes(tmp_path)
    expected = features(whole, encoder())
    (tmp_path / "killed").mkdir()
    path = save_episodes(tmp_path / "killed")
    process = multiprocessing.get_context("fork").Process(target=_die, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -9 and len(cache(path)) == 3
    rest = encoder()
    assert torch.equal(features(path, rest), expected) and calls(rest) == 4
    assert cache(path) == cache(whole)


class Odd(nn.Module):
    """Answers something else than a row of numbers a row."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, rows: dict[str, Tensor]) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.zeros(BATCH), r"answers \(16, d\) to 16 rows, got \(16,\)"),
        (torch.zeros(3, 2), r"answers \(16, d\) to 16 rows, got \(3, 2\)"),
        (torch.zeros(BATCH, 2).long(), "answers real numbers"),
        (torch.full((BATCH, 2), torch.nan), "answers finite numbers"),
        ([1.0], r"answers real numbers \(B, d\), got list"),
    ],
)
def test_an_encoder_that_answers_something_else_is_refused(tmp_path, answer, message):
    path = save_episodes(tmp_path)
    with pytest.raises(ValueError, match=message):
        features(path, RowEncoder(Odd(answer), COLUMNS, BATCH))
    assert not cache(path)


# ---- A run ---------------------------------------------------------------------------------------


def test_the_exported_student_takes_raw_observations(tmp_path, capsys):
    save_episodes(tmp_path)
    cfg = config(tmp_path, "run")
    task = task_of(cfg)
    with without_pictures():
        run = distill(cfg)
    assert "0 of 108 rows were encoded now" in capsys.readouterr().err
    # Nothing of the encoder but its class is needed: its numbers are others until it is loaded.
    torch.manual_seed(5)
    student = fastgen.load_student(run / "student", network=Judge(), encoder=build_encoder())
    rows = {name: torch.from_numpy(np.load(tmp_path / "pictures.npz")[name]) for name in COLUMNS}
    # As two windows see the first rows of an episode.
    seen = {name: torch.stack([values[0:2], values[1:3]]) for name, values in rows.items()}
    noise = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0))
    x = student.sample(seen, noise=noise, steps=1)
    windows = [task.split(part) for part in task.rows]  # pyright: ignore
    known = fastgen.load_student(run / "student", network=Judge())
    z = torch.cat([z for _, z in windows])
    z = z[torch.cat([task.rows[part] for part in task.rows]).argsort()][:2]  # pyright: ignore
    torch.testing.assert_close(x, known.sample(z, noise=noise, steps=1), rtol=1e-5, atol=1e-5)
    moved = {**seen, "image": seen["image"].flip(2)}
    assert not torch.allclose(student.sample(moved, noise=noise, steps=1), x)
    assert "encoder of Z | Encoder, called with image, speed" in (
        run / "student" / "README.md"
    ).read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="expected raw observations image, speed, got image"):
        student.sample({"image": seen["image"]}, noise=noise)
    with pytest.raises(TypeError, match="expected raw observations by name, image, speed, got Te"):
        student.sample(z, noise=noise)
    real = {**seen, "image": seen["image"] / 255}
    with pytest.raises(TypeError, match="image in uint8, as the encoder .* got float32"):
        student.sample(real, noise=noise)
    cut = {**seen, "image": seen["image"][:, :, 1:]}
    with pytest.raises(
        ValueError, match=r"image of shape \(B, T_z, 6, 6, 1\), got \(2, 2, 5, 6, 1"
    ):
        student.sample(cut, noise=noise)
    wide = {**seen, "speed": seen["speed"].double()}
    assert torch.equal(student.sample(wide, noise=noise, steps=1), x)


def test_a_run_is_not_resumed_with_another_encoder(tmp_path, monkeypatch):
    save_episodes(tmp_path)
    with without_pictures():
        distill(config(tmp_path, "run"))
    before = Encoder.__init__

    def other(self: Encoder, **changes: Any) -> None:
        before(self, **changes)
        with torch.no_grad():
            self.head.bias.add_(0.5)

    monkeypatch.setattr(Encoder, "__init__", other)
    resumed = config(tmp_path, "run").model_copy(update={"resume": True})
    with pytest.raises(ValueError, match="encoder"), without_pictures():
        distill(resumed)


def test_a_dry_run_says_what_was_encoded(tmp_path):
    save_episodes(tmp_path)
    plan = plan_distillation(config(tmp_path, "run"))
    assert "observations are 3 numbers a row that the encoder made of image, speed" in plan
    # Weights and running statistics of the encoder; a batch of 36 pixels and one float32 each row.
    weights = sum(value.nbytes for value in Encoder().state_dict().values())
    lines = [line.split() for line in plan.splitlines()]
    held = [line for line in lines if line[:1] == ["encoder"] and len(line) == 8]
    assert [line[2] for line in held] == [f"{weights / 1e6:.2f}"] * 2
    (rows,) = [line for line in lines if line[:3] == [str(BATCH), "raw", "rows"]]
    assert rows[-1] == f"{BATCH * (36 + 4) / 1e6:.2f}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factory": "support.pictures:none"}, "teacher.encoder.factory .* has no such name"),
        ({"weights": "none.safetensors"}, "expected teacher.encoder.weights at none.safetensors"),
        ({"columns": ["picture"]}, "columns to name columns of .*, got 'picture'"),
        ({"columns": ["image", "image"]}, "with each column once"),
        ({"columns": ["speed"]}, "expected an encoder of the rows"),
    ],
)
def test_what_cannot_be_used_is_said_before_work(tmp_path, changes, message):
    save_episodes(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        distill(config(tmp_path, "run", **changes))
    assert "\n" not in str(caught.value) and not (tmp_path / "run" / "checkpoints").exists()


def test_an_encoder_and_observations_contradict_each_other(tmp_path):
    save_episodes(tmp_path)
    cfg = config(tmp_path, "run")
    with pytest.raises(ValueError, match="expected data.observations or teacher.encoder.columns"):
        task_of(cfg.model_copy(update={"data": cfg.data.model_copy(
            update={"observations": ["speed"]})}))  # fmt: skip
    with pytest.raises(ValueError, match="expected data.name=file for teacher.encoder, got ring"):
        encoder_of(cfg.model_copy(update={"data": cfg.data.model_copy(update={"name": "ring"})}))
