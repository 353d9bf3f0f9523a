"""The recipe that samples takes raw observations of a student that was trained with an encoder."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import fastgen
from fastgen.data.observations import load_observations
from fastgen.distillation import distill
from support.pictures import COLUMNS, Judge, build_encoder, config, save_episodes
from support.toy import without_pictures

ROOT = Path(__file__).parents[2]
ENCODER = "encoder=support.pictures:build_encoder"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_episodes(folder)
    with without_pictures():
        return distill(config(folder, "run"))


@pytest.fixture
def sample(run, monkeypatch, capsys):
    """Calls the recipe; its error, or None."""

    def call(*options: str) -> str | None:
        argv = ["sample.py", str(run / "student"), "factory=support.pictures:build_judge", *options]
        monkeypatch.setattr(sys, "argv", argv)
        try:
            runpy.run_path(str(ROOT / "recipes" / "sample.py"), run_name="__main__")
        except SystemExit:
            return capsys.readouterr().err
        return None

    return call


def seen(run: Path, rows: int = 2) -> dict[str, torch.Tensor]:
    """The observations of the first windows, (B, 2, ...)."""
    arrays = np.load(run.parent / "pictures.npz")
    given = {name: torch.from_numpy(arrays[name]) for name in COLUMNS}
    return {
        name: torch.stack([value[k : k + 2] for k in range(rows)]) for name, value in given.items()
    }


def test_samples_of_raw_observations_are_those_of_the_student(run, sample, tmp_path):
    given = seen(run)
    save_file(given, str(tmp_path / "seen.safetensors"))
    out = tmp_path / "x.safetensors"
    asked = [f"observations={tmp_path / 'seen.safetensors'}", ENCODER, f"out={out}"]
    assert sample(*asked, "num_samples=3", "steps=1") is None
    student = fastgen.load_student(run / "student", network=Judge(), encoder=build_encoder())
    generator = torch.Generator().manual_seed(0)
    expected = student.sample(given, num_samples=3, steps=1, generator=generator)
    found = load_file(out)
    assert torch.equal(found["X"], expected)
    assert student.encoder is not None
    assert torch.equal(found["Z"], student.encoder.encode(given))


def test_pictures_are_the_frames_of_one_row(run, sample, tmp_path):
    given = seen(run, 1)
    np.savez(tmp_path / "speed.npz", speed=given["speed"].numpy())
    files = [tmp_path / "speed.npz"]
    for t in range(2):
        files.append(tmp_path / f"{t}.png")
        Image.fromarray(given["image"][0, t, :, :, 0].numpy()).save(files[-1])
    found = load_observations(files, COLUMNS)
    assert all(torch.equal(found[name], given[name]) for name in COLUMNS)
    out = tmp_path / "x.npz"
    asked = f"observations={','.join(map(str, files))}"
    assert sample(asked, ENCODER, f"out={out}", "num_samples=2") is None
    assert np.load(out)["X"].shape == (1, 2, 4, 2)


def test_what_cannot_be_sampled_from_is_said_in_a_line(run, sample, tmp_path):
    given = {name: value.numpy() for name, value in seen(run).items()}
    files = {
        "good": given,
        "alone": {"image": given["image"]},
        "speed": {"speed": given["speed"]},
        "real": {**given, "image": given["image"] / 255},
        "cut": {**given, "image": given["image"][:, :, 1:]},
        "none": {**given, "speed": np.full((2, 2, 1), np.nan)},
    }
    for name, arrays in files.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    Image.new("RGB", (6, 6)).save(tmp_path / "colour.png")
    out = f"out={tmp_path / 'x.npz'}"

    def error(*names: str) -> str:
        asked = ",".join(str(tmp_path / name) for name in names)
        return sample(f"observations={asked}", ENCODER, out) or "nothing"

    assert "expected raw observations image, speed" in error("alone.npz")
    assert "image in uint8, as the encoder was given them" in error("real.npz")
    assert "image of shape (B, T_z, 6, 6, 1), got (2, 2, 5, 6, 1)" in error("cut.npz")
    assert "expected finite numbers in raw observations 'speed'" in error("none.npz")
    assert "expected pictures for one of the observations" in error("good.npz", "colour.png")
    assert "in one file, got them in" in error("good.npz", "alone.npz")
    assert "expected a picture at" in error("speed.npz", "none.png")
    assert "files of .npz, .safetensors, .png" in error("x.gif")
    good = f"observations={tmp_path / 'good.npz'}"
    assert "expected encoder=... beside observations" in (sample(good, out) or "")
    assert "expected observations=... beside encoder" in (sample(ENCODER, out) or "")
    assert "got both" in (sample(good, ENCODER, f"z={tmp_path / 'good.npz'}", out) or "")
    assert not (tmp_path / "x.npz").exists()
