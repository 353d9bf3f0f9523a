"""Files that recipes read and write: named as the user does, and never written over."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastgen.config import DistillConfig
from fastgen.config.files import load_config
from fastgen.export import load_network
from support.recipes import content, the_error

pytestmark = pytest.mark.slow


@pytest.fixture
def z(tmp_path) -> torch.Tensor:
    z = torch.randn(5, 2, 2, generator=torch.Generator().manual_seed(1))
    save_file({"Z": z}, tmp_path / "z.safetensors")
    return z


def test_samples_are_not_written_over_their_input_or_a_student(home, call, z, tmp_path):
    shutil.copytree(home / "runs" / "walks" / "student", tmp_path / "student")
    (tmp_path / "mine.csv").write_text("years of work")
    before = content(tmp_path)
    for out in ("z.safetensors", "student/student.safetensors", "mine.csv", "student"):
        code, said, err = call("sample.py", "student", "z=z.safetensors", f"out={out}")
        assert (code, said) == (2, "") and "expected out" in the_error(err)
    code, _, err = call("sample.py", "student", "z=z.safetensors", "overwrite=yes")
    assert code == 2 and "expected overwrite as true or false, got 'yes'" in the_error(err)
    assert content(tmp_path) == before
    code, *_ = call("sample.py", "student", "z=z.safetensors", "out=mine.csv", "overwrite=true")
    assert code == 0 and (tmp_path / "mine.csv").read_text().startswith("condition,sample,step,")
    for seed in (1, 2):  # its own samples are no loss
        assert call("sample.py", "student", "z=z.safetensors", f"seed={seed}")[0] == 0


def test_every_format_holds_the_same_samples(home, call, z, tmp_path):
    student = home / "runs" / "walks" / "student"
    for suffix in ("safetensors", "npz", "npy"):
        assert call("sample.py", student, "z=z.safetensors", f"out=x.{suffix}")[0] == 0
    x = load_file(tmp_path / "x.safetensors")["X"].numpy()
    assert np.array_equal(np.load(tmp_path / "x.npy"), x)
    assert np.array_equal(np.load(tmp_path / "x.npz")["X"], x)
    assert np.array_equal(np.load(tmp_path / "x.npz")["Z"], z.numpy())


def linked(folder: Path, file: Path) -> Path:
    """`file` in the cache of a hub: a link to a name that says no format."""
    blobs = folder / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    blob = blobs / f"{len(list(blobs.iterdir())):040x}"
    shutil.copy(file, blob)
    link = folder / "snapshots" / "main" / file.name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(Path("..") / ".." / "blobs" / blob.name)
    return link


@pytest.mark.usefixtures("blank_pictures")
def test_files_in_the_cache_of_a_hub_are_read_by_their_names(home, call, z, tmp_path):
    hub = tmp_path / "hub"
    data = linked(hub, home / "walks.npz")
    linked(hub, home / "student.yaml")
    teacher = home / "runs" / "walks-teacher" / "teacher"
    weights = [linked(hub, teacher / name).parent for name in ("model.safetensors", "config.json")]
    few = ("train.kd_steps=2", "train.steps=0", "teacher.calls=[1]", "teacher.ab2_calls=[]")
    # The config says data.path: walks.npz, which lies beside the link.
    named = (hub / "snapshots" / "main" / "student.yaml", f"teacher.folder={weights[0]}", *few)
    code, _, err = call("distill.py", *named, "run_dir=run")
    assert code == 0, err
    saved = load_config(DistillConfig, tmp_path / "run" / "config.yaml")
    assert saved.data.path == str(data)
    code, _, err = call("distill.py", *named, "run_dir=run", "--resume")
    assert code == 0, err
    conditions = linked(hub, tmp_path / "z.safetensors")
    assert call("sample.py", "run/student", f"z={conditions}")[0] == 0


def test_scores_are_written_over_scores_alone(home, call, tmp_path):
    shutil.copytree(home / "runs" / "walks-teacher" / "teacher", tmp_path / "teacher")
    (tmp_path / "teacher" / "scores.json").write_text('{"mine": 1}\n')
    before = content(tmp_path)
    code, out, err = call("evaluate.py", "teacher")
    assert (code, out) == (2, "") and re.search("scores.json, got something else", the_error(err))
    assert content(tmp_path) == before
    assert load_network(tmp_path / "teacher")


@pytest.mark.parametrize("name", ["origin.json", "tracker_id", ".lock", "student", "report"])
def test_a_run_does_not_begin_where_something_else_is_called_like_its_files(
    home, call, tmp_path, name
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    before = content(tmp_path)
    for flags in ([], ["--resume"]):
        code, _, err = call("distill.py", home / "student.yaml", "run_dir=run", *flags)
        assert code == 2 and f"holds {name} but no config.yaml" in the_error(err)
        assert content(tmp_path) == before
