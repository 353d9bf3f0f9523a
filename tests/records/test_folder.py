"""A run's folder: opened by one run at a time, never overwritten, and resumed only as what it
was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from fastgen.config import DistillConfig
from fastgen.config.base import OldSpelling
from fastgen.config.dmd import STUDENT_KEYS
from fastgen.config.files import load_config
from fastgen.records.folder import claim_run, open_run, run_folder
from fastgen.records.origin import fingerprint
from support.toy import toy_config


def changed(cfg: DistillConfig, key: str, value: object) -> DistillConfig:
    """`cfg` with `key`, dots and all, set to `value`."""
    values = cfg.model_dump()
    *parents, last = key.split(".")
    group = values
    for parent in parents:
        group = group[parent]
    group[last] = value
    return DistillConfig.model_validate(values)


def resumed(cfg: DistillConfig) -> DistillConfig:
    return changed(cfg, "resume", True)


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def run(tmp_path) -> DistillConfig:
    """The config of a run that has begun."""
    cfg = toy_config(tmp_path / "run")
    with open_run(cfg) as folder:
        claim_run(folder, cfg)
        (folder / "metrics.jsonl").write_text("{}\n")
    return cfg


def test_a_run_lives_in_runs_under_its_name_unless_told():
    assert run_folder(DistillConfig(name="mine")) == Path("runs/mine")
    assert run_folder(DistillConfig(name="mine", run_dir="/x/y")) == Path("/x/y")


def test_claiming_saves_the_whole_config(tmp_path):
    cfg = toy_config(tmp_path / "deep" / "er" / "run")
    with open_run(cfg) as folder:
        assert folder == tmp_path / "deep" / "er" / "run"
        claim_run(folder, cfg)
        assert load_config(DistillConfig, folder / "config.yaml") == cfg
        saved = (folder / "config.yaml").read_bytes()
        claim_run(folder, changed(cfg, "train.log_every", 1))  # it says what the run was begun with
        assert (folder / "config.yaml").read_bytes() == saved


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_run_that_comes_to_nothing_before_it_is_claimed_leaves_nothing(tmp_path, error):
    cfg = toy_config(tmp_path / "run")
    with pytest.raises(error), open_run(cfg):
        raise error
    assert os.listdir(tmp_path) == []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(error), open_run(cfg):
        raise error
    assert content(tmp_path) == {"run/notes.txt": b"mine"}


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "student"])
def test_a_folder_with_the_files_of_something_else_is_refused(tmp_path, name):
    (tmp_path / "run" / name).mkdir(parents=True)
    cfg = toy_config(tmp_path / "run")
    for one in (cfg, resumed(cfg)):
        with (
            pytest.raises(ValueError, match=f"holds {name} but no config.yaml of a run"),
            open_run(one),
        ):
            pass
    assert os.listdir(tmp_path / "run") == [name]


def test_a_folder_with_a_run_is_refused_unless_it_is_resumed(run):
    before = content(Path(run.run_dir))
    with (
        pytest.raises(ValueError, match=r"holds a run already: add --resume .* or run_dir="),
        open_run(run),
    ):
        pass
    assert content(Path(run.run_dir)) == before
    with open_run(resumed(run)) as folder:
        assert folder == Path(run.run_dir)
    assert content(Path(run.run_dir)) == before


def test_resuming_where_nothing_is_begins(tmp_path):
    cfg = resumed(toy_config(tmp_path / "run"))
    with open_run(cfg) as folder:
        claim_run(folder, cfg)
    assert load_config(DistillConfig, tmp_path / "run" / "config.yaml") == cfg


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seed", 1, "seed: 0 then, 1 now"),
        ("train.kd_huber_c", 0.5, "train.kd_huber_c: 0.02 then, 0.5 now"),
        ("train.batch_size", 4, "train.batch_size: 8 then, 4 now"),
        ("train.evaluate_every", 2, "train.evaluate_every: 4 then, 2 now"),
        ("student.ema.decay", 0.5, "student.ema.decay: 0.99 then, 0.5 now"),
        ("data.seed", 3, "data.seed: 0 then, 3 now"),
        ("teacher.folder", "t", "teacher.folder: None then, .*/t now"),
        ("teacher.arguments", {"threads": 2}, "teacher.arguments.threads: None then, 2 now"),
        ("keep", "kd", "keep: best then, kd now"),
    ],
)
def test_resuming_with_another_config_is_refused_by_the_key_that_differs(run, key, value, said):
    before = content(Path(run.run_dir))
    with (
        pytest.raises(ValueError, match=said) as raised,
        open_run(resumed(changed(run, key, value))),
    ):
        pass
    assert "\n" not in str(raised.value)
    assert content(Path(run.run_dir)) == before


def test_a_run_begun_by_0_1_0_is_refused_by_name(run):
    folder = Path(run.run_dir)
    values = yaml.safe_load((folder / "config.yaml").read_text())
    student = values.pop("student")
    values["dmd"] |= {old: student[new] for old, new in STUDENT_KEYS.items()}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    before = content(folder)
    with (
        pytest.raises(ValueError, match=r"an earlier version began .*dmd\.student_steps") as raised,
        open_run(resumed(run)),
    ):
        pass
    assert "go on with that version, or choose another run_dir" in str(raised.value)
    assert content(folder) == before
    # What it says can still be read, to evaluate its student.
    with pytest.warns(OldSpelling):
        assert load_config(DistillConfig, folder / "config.yaml") == run


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.checkpoint_every", 1),
        ("train.keep_checkpoints", 9),
        ("train.log_every", 1),
        ("train.threads", 2),
    ]
    + [
        ("train.tracker", "wandb"),
        ("train.most_skipped", 1),
        ("train.gradient_accumulation_steps", 2),
    ]
    + [("train.gradient_checkpointing", True), ("train.ema_on_cpu", True)],
)
def test_keys_that_change_nothing_that_is_computed_may_differ(run, key, value):
    before = content(Path(run.run_dir))
    with open_run(resumed(changed(run, key, value))):
        pass
    assert content(Path(run.run_dir)) == before  # the folder still says what it was begun with


def test_a_folder_may_be_moved_and_resumed(run, tmp_path):
    (tmp_path / "run").rename(tmp_path / "moved")
    with open_run(changed(resumed(run), "run_dir", str(tmp_path / "moved"))) as folder:
        assert folder == tmp_path / "moved"


@pytest.mark.parametrize(
    "text", [b"seed: [1\n", b"\xff\xfe\x00", b"", b"- 1\n", b"!!python/object:os.system {}\n"]
)
def test_a_damaged_config_of_the_run_is_one_line_with_its_folder(run, text):
    (Path(run.run_dir) / "config.yaml").write_bytes(text)
    with pytest.raises(ValueError, match="run") as raised, open_run(resumed(run)):
        pass
    assert "\n" not in str(raised.value) and str(run.run_dir) in str(raised.value)


# ---- What it was begun with ----------------------------------------------------------------------

DATA = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))


def origin(data: Tensor = DATA, **changes: Any) -> dict[str, Any]:
    return {"data": fingerprint([data, data[:5]]), "mixed precision": "no", **changes}


OTHERS = {
    "scaled": 1.001 * DATA,
    "shifted": DATA + 0.001,
    "one row": torch.cat([DATA[:-1], -DATA[-1:]]),
    "reordered": DATA.flip(0),
    "fewer": DATA[1:],
    "none": DATA[:0],
}


@pytest.mark.slow
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_other_data_are_not_gone_on_with(tmp_path, other):
    cfg = toy_config(tmp_path)
    claim_run(tmp_path, cfg, origin())
    claim_run(tmp_path, cfg, origin(DATA.clone()))
    claim_run(tmp_path, cfg, origin(DATA * (1 + 1e-7)))  # the last digits of another machine
    with pytest.raises(
        ValueError, match="begun with another data: resume with its own, or choose another run_dir"
    ):
        claim_run(tmp_path, cfg, origin(other))


def test_what_is_no_number_can_be_gone_on_with_too():
    mask = torch.full((4, 4), -torch.inf).triu(1)
    assert (
        fingerprint([DATA, mask])
        == fingerprint([DATA.clone(), mask.clone()])
        != fingerprint([DATA, mask.T])
    )
    assert fingerprint([DATA, torch.tensor([torch.nan])])[1] < 2.0


def test_another_precision_or_a_run_that_does_not_say_is_refused(tmp_path):
    cfg = toy_config(tmp_path)
    claim_run(tmp_path, cfg, origin())
    with pytest.raises(ValueError, match=r"another mixed precision \(no then, bf16 now\)"):
        claim_run(tmp_path, cfg, origin(**{"mixed precision": "bf16"}))
    with pytest.raises(ValueError, match="another teacher"):
        claim_run(tmp_path, cfg, origin(teacher=[1.0, 2.0]))
    (tmp_path / "origin.json").unlink()
    with pytest.raises(ValueError, match=r"expected origin\.json in"):
        claim_run(tmp_path, cfg, origin())


def test_what_a_killed_run_was_writing_is_removed_and_nothing_else(run):
    folder = Path(run.run_dir)
    (folder / ".student.new-12ab").mkdir()
    for name in (
        ".student.new-12ab/student.safetensors",
        ".metrics.jsonl.new-3",
        "stages/.kd.safetensors.new-4",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("half")
    for name in ("notes.new-1", "stages/mine"):
        (folder / name).write_text("mine")
    with open_run(resumed(run)):
        pass
    left = content(folder)
    assert left.keys() >= {"notes.new-1", "stages/mine"} and b"half" not in left.values()
    assert not (folder / ".student.new-12ab").exists()


# ---- One at a time -------------------------------------------------------------------------------

HOLDER = """
import fcntl, sys, time
handle = open(sys.argv[1], "a")
fcntl.flock(handle, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


def test_a_second_process_is_refused_while_one_runs_and_let_in_when_that_one_is_killed(run):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(Path(run.run_dir) / ".lock")],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match="another process is running in .*run"),
            open_run(resumed(run)),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
    with open_run(resumed(run)):
        pass


def test_a_run_that_fails_lets_go_of_its_folder(run):
    with pytest.raises(RuntimeError), open_run(resumed(run)):
        raise RuntimeError
    with open_run(resumed(run)):
        pass


def test_one_process_of_many_writes_and_locks(tmp_path):
    cfg = toy_config(tmp_path / "run")
    with pytest.raises(ValueError, match="expected all processes to see .*run, got one"):
        with open_run(cfg, main_process=False):
            pass
    assert not (tmp_path / "run").exists()
    with open_run(cfg), open_run(cfg, main_process=False) as folder:
        assert folder == tmp_path / "run"


# ---- No place to write ---------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["file/run", "file", "/proc/run"])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, place):
    # Rights stop no one who tests as root; below a file nobody can make a folder.
    (tmp_path / "file").write_text("mine")
    cfg = toy_config(tmp_path / place)
    with (
        pytest.raises(OSError, match=r"cannot write in .*: .+; choose another run_dir") as raised,
        open_run(cfg),
    ):
        pass
    assert "\n" not in str(raised.value) and str(tmp_path / place) in str(raised.value)
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "mine"


def test_one_that_is_refused_while_another_prepares_takes_nothing_from_it(tmp_path):
    # Until it is claimed a folder holds nothing but the lock, which is then the only sign of the
    # other run.
    cfg = toy_config(tmp_path / "run")
    with open_run(cfg) as folder:
        for _ in range(2):
            with pytest.raises(ValueError, match="another process"), open_run(cfg):
                pass
        claim_run(folder, cfg)
    assert load_config(DistillConfig, tmp_path / "run" / "config.yaml") == cfg


def test_what_is_saved_names_its_files_whatever_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = DistillConfig.model_validate(
        {"run_dir": "run", "data": {"name": "file", "path": "trajectories.npz"}}
    )
    with open_run(cfg) as folder:
        claim_run(folder, cfg)
    assert load_config(DistillConfig, folder / "config.yaml").data.path == str(
        tmp_path / "trajectories.npz"
    )
    with open_run(resumed(cfg)):
        pass
