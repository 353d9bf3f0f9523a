"""The recipes, end to end, as a user runs them: train, distil, look, sample; stopped, resumed,
refused.

One teacher is trained and distilled once for the whole file, on a file of random walks small enough
for seconds.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from fastgen.config import DistillConfig, TrainTeacherConfig
from fastgen.config.files import load_config
from fastgen.export import load_network
from fastgen.export.folders import load_student
from fastgen.jobs.distillation import Distillation
from fastgen.records.checkpoints import checkpoint_folders
from fastgen.records.log import read_log, timeless

RECIPES = Path(__file__).parents[2] / "recipes"
PATIENCE = 300  # seconds: an end for tests that hang, not a promise of speed
DATA = """
data:
  name: file
  path: walks.npz
  pack: 2
  symmetry: {group: D4, in_rep: [standard], cond_rep: [standard]}
"""
TEACHER = f"""
name: walks-teacher
{DATA}
model: {{embedding_dim: 16, num_layers: 1, num_attention_heads: 2}}
train: {{steps: 10, batch_size: 16, log_every: 5, evaluate_every: 5, threads: 1}}
calls: [1, 2]
ab2_calls: [4]
"""
STUDENT = f"""
name: walks
{DATA}
teacher: {{folder: runs/walks-teacher/teacher, calls: [1, 2], ab2_calls: [4]}}
student: {{steps: 2}}
dmd: {{fake_score_warmup_steps: 6, vsd_norm: rms}}
train: {{kd_steps: 30, kd_pairs: 64, kd_teacher_calls: 4, steps: 10, batch_size: 16, log_every: 5,
  evaluate_every: 10, threads: 1}}
"""
KD_STEPS = 30


def walks(n: int = 120) -> dict[str, np.ndarray]:
    """Random walks of four points that start at the last of two observed ones."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n, 2, 2))
    return {"X": z[:, -1:] + 0.3 * rng.normal(size=(n, 4, 2)).cumsum(1), "Z": z}


# ---- Running -------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    # One thread, and nobody's accelerate config: what is computed must not depend on the machine.
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": os.devnull}


def python(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A Python process of its own, to its end."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """A Python process that is left running."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop(
    process: subprocess.Popen[str], with_signal: int, when: Callable[[], bool]
) -> tuple[int, str]:
    """Send a signal as soon as `when()`; exit code and stderr."""
    deadline = time.monotonic() + PATIENCE
    try:
        while not when():
            assert process.poll() is None, (
                f"ended before it could be stopped: {process.communicate()[1]}"
            )
            assert time.monotonic() < deadline, "never came to the point where it was to be stopped"
            time.sleep(0.002)
        process.send_signal(with_signal)
        return process.wait(PATIENCE), process.communicate()[1]
    finally:
        process.kill()


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name`, filled by `make` once a test session, whichever worker process comes
    first."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / name
    with open(base / f"{name}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / f"{name}.made").exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            (base / f"{name}.made").touch()
    return folder


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """A user's folder: data, two configs, a teacher in runs/walks-teacher and its student in
    runs/walks."""

    def make(folder: Path) -> None:
        np.savez(folder / "walks.npz", **walks())
        (folder / "teacher.yaml").write_text(TEACHER)
        (folder / "student.yaml").write_text(STUDENT)
        done = python(RECIPES / "train_teacher.py", "teacher.yaml", cwd=folder)
        assert done.returncode == 0, done.stderr
        # As README says it: through accelerate's launcher.
        done = python(
            "-m", "accelerate.commands.launch", RECIPES / "distill.py", "student.yaml", cwd=folder
        )
        assert done.returncode == 0, done.stderr
        (folder / "printed.txt").write_text(done.stdout)

    return once(tmp_path_factory, "home", make)


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """`call("distill.py", ...)` is `python recipes/distill.py ...` in `tmp_path`, without the
    seconds that a new process takes to import everything; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    # Recipes take all cores; the tests beside this one want theirs.
    monkeypatch.setattr("fastgen.training.accelerator.use_all_cores", lambda *_, **__: None)

    def run(name: str, *arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", [str(RECIPES / name), *map(str, arguments)])
        capsys.readouterr()
        code: object = 0
        try:
            runpy.run_path(str(RECIPES / name), run_name="__main__")
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def the_error(err: str) -> str:
    """The one line on stderr."""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    return line


# ---- What a run leaves ---------------------------------------------------------------------------


def test_the_run_folder_holds_what_is_promised(home):
    run = home / "runs" / "walks"
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "student", "report"} <= set(
        os.listdir(run)
    )
    assert set(os.listdir(run / "student")) == {"student.safetensors", "config.json", "README.md"}
    pictures = {"trajectories.png", "score_vs_nfe.png", "training.png", "diagnostics.png"}
    assert set(os.listdir(run / "report")) == {"report.json", "report.md", *pictures}
    assert all(re.fullmatch(r"step_\d+", folder.name) for folder in checkpoint_folders(run))
    assert set(os.listdir(home / "runs" / "walks-teacher" / "teacher")) == {
        "model.safetensors",
        "config.json",
        "scores.json",
    }


def test_the_saved_config_is_the_whole_one_that_was_meant(home):
    for name, file, schema in (
        ("walks", "student.yaml", DistillConfig),
        ("walks-teacher", "teacher.yaml", TrainTeacherConfig),
    ):
        saved = home / "runs" / name / "config.yaml"
        assert load_config(schema, saved) == load_config(schema, home / file)
        assert set(yaml.safe_load(saved.read_text())) == set(schema.model_fields)


def test_the_report_has_every_score_seconds_and_latencies(home):
    report = json.loads((home / "runs" / "walks" / "report" / "report.json").read_text())
    assert {"teacher", "student", "kd", "dmd", "floor", "seconds", "latency"} <= set(report)
    scores = {"min_ade", "min_fde", "energy_score", "energy_distance"}
    assert {"1", "2", "ab2-4"} == set(report["teacher"]) and {"1", "2"} == set(
        report["student"]
    ) == set(report["kd"])
    for part in ("teacher", "student", "kd", "dmd"):
        assert all(
            set(row) == scores and all(map(np.isfinite, row.values()))
            for row in report[part].values()
        )
    assert report["student"] == report[report["selected"]] and report["selected"] in ("kd", "dmd")
    best = min(("kd", "dmd"), key=lambda stage: report["validation"][stage][report["primary"]])
    assert report["selected"] == best
    assert {"pairs", "kd", "dmd", "hand_over"} <= set(report["seconds"])
    assert all(value >= 0 for part in ("seconds", "latency") for value in report[part].values())
    assert any("student" in key for key in report["latency"]) and any(
        "teacher" in key for key in report["latency"]
    )


def test_the_teachers_scores_are_those_beside_its_weights(home):
    stored = json.loads((home / "runs" / "walks-teacher" / "teacher" / "scores.json").read_text())
    report = json.loads((home / "runs" / "walks" / "report" / "report.json").read_text())
    assert stored["teacher"] == report["teacher"]


@pytest.mark.parametrize(
    "name", ["trajectories.png", "score_vs_nfe.png", "training.png", "diagnostics.png"]
)
def test_pictures_are_pictures_and_not_blank(home, name):
    from matplotlib.image import imread

    image = imread(home / "runs" / "walks" / "report" / name)
    assert image.ndim == 3 and min(image.shape[:2]) >= 200
    assert float(image[..., :3].std()) > 0.01


def test_the_log_has_rows_of_every_stage_and_its_scores(home):
    rows = read_log(home / "runs" / "walks")
    assert [row["stage"] for row in rows] == sorted(
        (row["stage"] for row in rows), reverse=True
    )  # kd, then dmd
    iterations = [row["iteration"] for row in rows]
    assert iterations == sorted(iterations) and iterations[-1] == KD_STEPS + 6 + 10
    assert all(np.isfinite(row["loss"]) for row in rows if row["step"])
    starts = {row["stage"]: row["energy_score"] for row in rows if row["step"] == 0}
    assert starts.keys() == {"kd", "dmd"}
    # DMD begins with what KD has reached.
    assert starts["dmd"] == min(
        row["energy_score"] for row in rows if row["stage"] == "kd" and "energy_score" in row
    )
    for stage in ("kd", "dmd"):
        assert "energy_score" in [row for row in rows if row["stage"] == stage][-1]


def test_the_end_of_the_output_is_the_table_and_where_to_look(home):
    printed = (home / "printed.txt").read_text()
    table = (
        "teacher Euler 2",
        "teacher AB2 4",
        "KD only 1",
        "KD + DMD 2",
        "<- exported",
        "seconds:",
        "latency:",
    )
    assert all(words in printed for words in table)
    assert printed.splitlines()[-1] == "student: runs/walks/student   report: runs/walks/report"


# ---- The student ---------------------------------------------------------------------------------

BARE = """
import sys
for name in ("escnn", "lie_learn", "accelerate", "matplotlib", "pydantic", "yaml", "tqdm", "scipy"):
    sys.modules[name] = None  # an import of it raises ImportError
import torch
from safetensors.torch import load_file, save_file
import fastgen
student = fastgen.load_student("student")
z, generator = load_file("z.safetensors")["Z"], lambda: torch.Generator().manual_seed(5)
save_file({
    "one": student.sample(z, steps=1, generator=generator()),
    "two": student.sample(z, generator=generator()),
    "fan": student.sample(z, num_samples=3, generator=generator()),
}, "x.safetensors")
"""


def test_the_student_samples_where_there_is_nothing_but_torch_and_safetensors(home, tmp_path):
    shutil.copytree(home / "runs" / "walks" / "student", tmp_path / "student")
    z = torch.randn(5, 2, 2, generator=torch.Generator().manual_seed(1))
    save_file({"Z": z}, tmp_path / "z.safetensors")
    done = python("-c", BARE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    x = load_file(tmp_path / "x.safetensors")
    assert {name: tuple(value.shape) for name, value in x.items()} == {
        "one": (5, 4, 2),
        "two": (5, 4, 2),
        "fan": (5, 3, 4, 2),
    }
    assert all(bool(torch.isfinite(value).all()) for value in x.values())
    here = load_student(tmp_path / "student")
    assert here.steps == (1, 2) and len(here.t_list) == 3
    assert torch.equal(
        here.sample(z, steps=1, generator=torch.Generator().manual_seed(5)), x["one"]
    )
    assert not torch.equal(x["one"], x["two"])


def test_the_exported_student_scores_what_the_report_says(home, call):
    code, out, err = call("evaluate.py", home / "runs" / "walks")
    assert (code, err) == (0, "")
    header, _, *rows = out.splitlines()
    report = json.loads((home / "runs" / "walks" / "report" / "report.json").read_text())["student"]
    assert len(rows) == len(report) == 2
    for row in rows:
        _, calls, *values = row.split()
        # Folded weights differ from the trained ones by rounding, and the table has four digits.
        expected = [report[calls][name] for name in header.split()]
        assert [float(value) for value in values] == pytest.approx(expected, abs=2e-4)


def test_evaluating_a_teacher_measures_it_at_every_number_of_calls(home, call, tmp_path):
    code, *_ = call(
        "train_teacher.py",
        home / "teacher.yaml",
        "run_dir=t",
        "model.equivariant=false",
        "train.steps=2",
    )
    assert code == 0
    first = json.loads((tmp_path / "t" / "teacher" / "scores.json").read_text())
    code, out, err = call("evaluate.py", "t")
    assert (code, err) == (0, "")
    scores = json.loads((tmp_path / "t" / "teacher" / "scores.json").read_text())
    assert list(scores["teacher"]) == ["1", "2", "4", "8", "16", "100", "ab2-4", "ab2-8", "ab2-16"]
    assert all(scores["teacher"][row] == first["teacher"][row] for row in first["teacher"])
    assert f"{scores['teacher']['100']['min_ade']:.4f}" in out
    network, _ = load_network(tmp_path / "t" / "teacher")
    assert type(network).__name__ == "CondTransformerRegressor"


def test_samples_for_conditions_in_a_file(home, call, tmp_path):
    z = torch.randn(5, 2, 2, generator=torch.Generator().manual_seed(1))
    save_file({"Z": z}, tmp_path / "z.safetensors")
    student = home / "runs" / "walks" / "student"
    code, out, err = call("sample.py", student, "z=z.safetensors", "num_samples=3", "seed=7")
    assert (
        (code, err) == (0, "")
        and "samples.safetensors: X (5, 3, 4, 2)" in out
        and "2 network calls" in out
    )
    file = load_file(tmp_path / "samples.safetensors")
    assert torch.equal(file["Z"], z)
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(
        file["X"], load_student(student).sample(z, num_samples=3, generator=generator)
    )
    code, out, _ = call("sample.py", student, "z=z.safetensors", "steps=1", "out=one.safetensors")
    assert code == 0 and tuple(load_file(tmp_path / "one.safetensors")["X"].shape) == (5, 16, 4, 2)
    assert "1 network calls" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["z=none.safetensors"], "expected a data file at none.safetensors"),
        (["z=z.safetensors", "steps=3"], r"steps among those trained, \[1, 2\], got 3"),
        (
            ["z=z.safetensors", "num_sample=3"],
            "unknown option 'num_sample', expected one of: .*num_samples",
        ),
        (
            ["z=z.safetensors", "num_samples=many"],
            "expected num_samples as a whole number, got 'many'",
        ),
        (["z=z.safetensors", "out=z.safetensors/x.safetensors"], "z.safetensors"),
        ([], "expected z=FILE"),
    ],
)
def test_what_cannot_be_sampled_is_one_line(home, call, tmp_path, arguments, said):
    save_file({"Z": torch.zeros(5, 2, 2)}, tmp_path / "z.safetensors")
    before = content(tmp_path)
    code, out, err = call("sample.py", home / "runs" / "walks" / "student", *arguments)
    assert (code, out) == (2, "") and re.search(said, the_error(err))
    assert content(tmp_path) == before


class Plain:
    """Stands for a student with a network of one's own, which `load_student` can't build from a
    folder alone."""

    cond_horizon, steps = None, (1,)

    def __init__(self, condition: str) -> None:
        self.config = {"description": {"condition": condition}}

    def sample(self, cond, *, num_samples, steps, generator):
        rows = 1 if cond is None else len(cond)
        x = torch.randn(rows, num_samples, 3, 4, 4, generator=generator)
        return x if cond is None else x + cond.view(-1, 1, 1, 1, 1)


def test_samples_without_a_condition_and_of_any_shape(call, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "fastgen.jobs.sources.load_run_student", lambda folder, factory: Plain(condition)
    )
    condition = "none"
    code, out, err = call("sample.py", "student", "num_samples=5")
    assert (code, err) == (0, "") and "X (5, 3, 4, 4) for Z None, 1 network calls" in out
    ((name, x),) = load_file(tmp_path / "samples.safetensors").items()
    assert name == "X" and x.shape == (5, 3, 4, 4)
    save_file({"Z": torch.tensor([10, 20])}, tmp_path / "z.safetensors")
    code, _, err = call("sample.py", "student", "z=z.safetensors")
    assert code == 2 and "expected no z for a student without a condition" in the_error(err)
    condition = "integers (B,)"
    code, out, err = call("sample.py", "student", "z=z.safetensors", "num_samples=5")
    assert (code, err) == (0, "") and "X (2, 5, 3, 4, 4) for Z integers (2,)" in out
    file = load_file(tmp_path / "samples.safetensors")
    assert file["Z"].tolist() == [10, 20] and file["Z"].dtype == torch.int64
    assert file["X"].flatten(1).mean(1).round(decimals=-1).tolist() == [10, 20]
    code, _, err = call("sample.py", "student")
    assert (
        code == 2
        and "expected z=FILE with the conditions Z integers (B,), got none" in the_error(err)
    )


def test_data_named_on_the_command_line_are_found_again_from_anywhere(
    home, call, tmp_path, monkeypatch
):
    shutil.copy(home / "walks.npz", tmp_path / "mine.npz")
    few = ("model.equivariant=false", "train.steps=2", "calls=[1]", "ab2_calls=[]")
    code, *_ = call(
        "train_teacher.py", home / "teacher.yaml", "run_dir=t", "data.path=mine.npz", *few
    )
    assert code == 0
    few = ("train.kd_steps=2", "train.steps=0", "teacher.calls=[1]", "teacher.ab2_calls=[]")
    named = ("data.path=mine.npz", "teacher.folder=t/teacher", *few)
    code, _, err = call("distill.py", home / "student.yaml", "run_dir=s", *named)
    assert code == 0 and "teacher 1\n" not in err  # the scores beside the teacher are of these data
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert call("evaluate.py", tmp_path / "s")[0] == 0
    assert call("evaluate.py", tmp_path / "t")[0] == 0


def test_a_folder_that_holds_nothing_to_evaluate_is_one_line(call, tmp_path):
    code, _, err = call("evaluate.py", tmp_path)
    assert code == 2 and "expected a run folder or a teacher's folder" in the_error(err)


# ---- Stopped and resumed -------------------------------------------------------------------------


@pytest.fixture(scope="session")
def stopped(home, tmp_path_factory) -> Path:
    """The run of `home` once more: Ctrl-C in KD, resumed, kill -9 in DMD, resumed to the end; what
    was said between."""

    def make(folder: Path) -> None:
        run, said = folder / "run", {}
        distill = (
            RECIPES / "distill.py",
            "student.yaml",
            f"run_dir={run}",
            "train.checkpoint_every=3",
        )

        def newest() -> int:
            return max((int(path.name[5:]) for path in checkpoint_folders(run)), default=0)

        code, err = stop(start(*distill, cwd=home), signal.SIGINT, lambda: newest() > 0)
        said["interrupted"] = {"code": code, "error": err.splitlines()[-1], "newest": newest()}
        code, err = stop(
            start(*distill, "--resume", cwd=home), signal.SIGKILL, lambda: newest() > KD_STEPS + 1
        )
        said["killed"] = {"code": code, "newest": newest(), "student": (run / "student").exists()}
        done = python(*distill, "--resume", cwd=home)
        said["resumed"] = {"code": done.returncode, "error": done.stderr}
        (folder / "said.json").write_text(json.dumps(said))

    return once(tmp_path_factory, "stopped", make)


def test_ctrl_c_saves_says_how_to_go_on_and_exits_with_130(stopped):
    said = json.loads((stopped / "said.json").read_text())["interrupted"]
    assert said["code"] == 130 and 0 < said["newest"] <= KD_STEPS + 1
    assert re.fullmatch(
        r"stopped: state saved at kd update \d+; --resume goes on from there", said["error"]
    )


def test_kill_9_leaves_a_run_that_can_be_resumed(stopped):
    said = json.loads((stopped / "said.json").read_text())
    assert said["killed"]["code"] == -signal.SIGKILL and said["killed"]["newest"] > KD_STEPS + 1
    assert not said["killed"]["student"]
    assert said["resumed"]["code"] == 0, said["resumed"]["error"]


@pytest.mark.parametrize(
    "file", ["student/student.safetensors", "stages/kd.safetensors", "stages/dmd.safetensors"]
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(home, stopped, file):
    whole, resumed = load_file(home / "runs" / "walks" / file), load_file(stopped / "run" / file)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_a_resumed_run_has_the_log_and_the_scores_of_an_uninterrupted_one(home, stopped):
    whole, resumed = home / "runs" / "walks", stopped / "run"
    rows = [[timeless(row) for row in read_log(run)] for run in (whole, resumed)]
    assert rows[0] == rows[1]
    reports = [json.loads((run / "report" / "report.json").read_text()) for run in (whole, resumed)]
    for part in ("teacher", "student", "kd", "dmd", "validation", "selected"):
        assert reports[0][part] == reports[1][part]


# ---- Refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["distill.py", "train_teacher.py"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train.step=3"], "unknown key 'train.step', did you mean 'train.steps'"),
        (["dat.path=x"], "unknown key 'dat', did you mean 'data'"),
        (["train.steps=many"], "train.steps: .*got 'many'"),
        (["train.batch_size=0"], "train.batch_size: .*got 0"),
        (["train.batch_size=[16]"], "train.batch_size: "),
        (["broken.yaml"], "config broken.yaml is not valid YAML"),
        (["list.yaml"], "expected config list.yaml to be a mapping"),
        (["none.yaml"], "cannot read config none.yaml"),
        (["--resum"], "unknown option --resum, expected --resume"),
    ],
)
def test_a_wrong_config_is_one_line_and_leaves_nothing(call, tmp_path, recipe, arguments, said):
    (tmp_path / "broken.yaml").write_text("train: {steps: 3\n")
    (tmp_path / "list.yaml").write_text("- train\n")
    before = content(tmp_path)
    code, out, err = call(recipe, *arguments, "run_dir=run")
    assert (code, out) == (2, "") and re.search(said, the_error(err))
    assert content(tmp_path) == before and not (tmp_path / "run").exists()


def damaged_data(name: str) -> dict[str, np.ndarray]:
    x, z = walks().values()
    holed = x.copy()
    holed[7, 1, 0] = np.nan
    return {
        "nan": {"X": holed, "Z": z},
        "empty": {"X": x[:0], "Z": z[:0]},
        "rows": {"X": x, "Z": z[:5]},
        "axes": {"X": x[:, 0], "Z": z},
        "channels": {"X": np.concatenate([x, x], -1), "Z": z},
        "few": {"X": x[:2], "Z": z[:2]},
    }[name]


DAMAGED = [
    ("nan", "NaN or infinity in 1 rows: 7"),
    ("empty", r"at least one number, got an empty \(0, 4, 2\)"),
    ("rows", "as many rows in Z as in X, got 5 and 120"),
    (
        "axes",
        r"no data.pack but for trajectories, X \(N, T_x, d_x\) .* got 2 for X \(120, 2\) and "
        r"Z \(120, 2, 2\)",
    ),
    ("channels", "out_rep of dimension 4, the channels of X, got 2"),
    ("few", "at least 3 episodes"),
    ("none", "expected a data file at .*none.npz"),
]


@pytest.mark.parametrize(
    ("recipe", "config"), [("distill.py", "student.yaml"), ("train_teacher.py", "teacher.yaml")]
)
@pytest.mark.parametrize(("name", "said"), DAMAGED)
def test_data_that_cannot_be_used_is_one_line_and_leaves_nothing(
    home, call, tmp_path, recipe, config, name, said
):
    if name != "none":
        np.savez(tmp_path / f"{name}.npz", **damaged_data(name))
    code, out, err = call(recipe, home / config, f"data.path={name}.npz", "run_dir=run")
    assert (code, out) == (2, "") and re.search(said, the_error(err))
    assert not (tmp_path / "run").exists()


def broken_teacher(home: Path, tmp_path: Path, how: str) -> Path:
    folder = shutil.copytree(home / "runs" / "walks-teacher" / "teacher", tmp_path / "teacher")
    if how == "truncated":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "edited":
        config = folder / "config.json"
        config.write_text(config.read_text().replace('"num_layers": 1', '"num_layers": 2'))
    elif how == "gone":
        shutil.rmtree(folder)
    elif how == "no weights":
        (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("truncated", "model.safetensors: expected .* bytes, got .*truncated"),
        ("edited", "config.json"),
        ("gone", "teacher.*: expected a file, found none"),
        ("no weights", "model.safetensors: expected a file, found none"),
    ],
)
def test_a_teacher_that_cannot_be_loaded_is_one_line_and_leaves_nothing(
    home, call, tmp_path, how, said
):
    folder = broken_teacher(home, tmp_path, how)
    code, out, err = call(
        "distill.py", home / "student.yaml", f"teacher.folder={folder}", "run_dir=run"
    )
    assert (code, out) == (2, "") and re.search(said, the_error(err))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.pack=4", r"expected X of shape \(B, T_x <= 2, 4\), got \(2, 1, 8\)"),
        ("data.path=long.npz", r"expected X of shape \(B, T_x <= 2, 4\), got \(2, 4, 4\)"),
        ("data.pack=3", "divides the 4 waypoints, got 3"),
        ("teacher.folder=null", "expected teacher.folder"),
    ],
)
def test_a_teacher_that_does_not_fit_the_data_is_one_line_and_leaves_nothing(
    home, call, tmp_path, override, said
):
    np.savez(tmp_path / "long.npz", X=walks()["X"].repeat(2, axis=1), Z=walks()["Z"])
    code, out, err = call("distill.py", home / "student.yaml", override, "run_dir=run")
    assert (code, out) == (2, "") and re.search(said, the_error(err))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("recipe", "config", "run"),
    [
        ("distill.py", "student.yaml", "walks"),
        ("train_teacher.py", "teacher.yaml", "walks-teacher"),
    ],
)
def test_an_existing_run_is_neither_overwritten_nor_resumed_as_another(
    home, call, recipe, config, run
):
    folder = home / "runs" / run
    before = content(folder)
    code, out, err = call(recipe, home / config, f"run_dir={folder}")
    assert (code, out) == (2, "") and "holds a run already: add --resume" in the_error(err)
    code, out, err = call(recipe, home / config, f"run_dir={folder}", "seed=1", "--resume")
    assert (code, out) == (2, "") and "seed: 0 then, 1 now" in the_error(err)
    assert content(folder) == before


def test_a_place_that_cannot_be_written_is_one_line(home, call, tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/run"):
        code, out, err = call("distill.py", home / "student.yaml", f"run_dir={place}")
        assert (code, out) == (2, "") and f"cannot write in {place}: " in the_error(err)
    assert content(tmp_path) == {"file": b"mine"}


# ---- Looked at before ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "config", "schema", "network"),
    [
        ("distill.py", "student.yaml", DistillConfig, "teacher"),
        ("train_teacher.py", "teacher.yaml", TrainTeacherConfig, "network"),
    ],
)
def test_a_dry_run_prints_config_and_sizes_and_writes_nothing(
    home, call, tmp_path, recipe, config, schema, network
):
    before = content(home)
    code, out, err = call(recipe, home / config, "seed=3", "run_dir=run", "--dry-run")
    assert (code, err) == (0, "")
    resolved, _, plan = out.partition("\n\n")
    (tmp_path / "resolved.yaml").write_text(resolved)
    assert load_config(schema, tmp_path / "resolved.yaml") == load_config(
        schema, home / config, ["seed=3", "run_dir=run"]
    )
    teacher, _ = load_network(home / "runs" / "walks-teacher" / "teacher")
    row = next(line.split() for line in plan.splitlines() if line.startswith(network))
    assert int(row[1].replace(",", "")) == sum(p.numel() for p in teacher.parameters())
    assert "memory, MB" in plan and any(line.startswith("total") for line in plan.splitlines())
    assert ("denoising error of the teacher" in plan) == (network == "teacher")
    assert os.listdir(tmp_path) == ["resolved.yaml"] and content(home) == before


@pytest.mark.parametrize("recipe", ["distill.py", "train_teacher.py", "evaluate.py", "sample.py"])
def test_help_says_how_to_call_it(call, tmp_path, recipe):
    code, out, err = call(recipe, "--help")
    assert (code, err) == (0, "") and f"recipes/{recipe} " in out
    assert os.listdir(tmp_path) == []


def test_no_arguments_mean_the_ring_and_the_teacher_that_is_shipped(call, tmp_path):
    code, out, err = call(
        "distill.py", "--dry-run", "data.size=64"
    )  # fewer demonstrations: seconds less
    assert (code, err) == (0, "") and os.listdir(tmp_path) == []
    values = yaml.safe_load(out.partition("\n\n")[0])
    assert (values["name"], values["data"]["name"], values["student"]["steps"]) == (
        "ring",
        "ring",
        1,
    )
    assert values["method"] == "kd"
    assert Path(values["teacher"]["folder"]) == RECIPES / "teachers" / "ring"
    code, out, err = call("train_teacher.py", "--dry-run", "data.size=64")
    assert (code, err) == (0, "")
    # The same data, so that the scores beside the shipped teacher hold for its student.
    assert yaml.safe_load(out.partition("\n\n")[0])["data"] == values["data"]


def test_updates_after_kd_on_the_shipped_config_are_dmd2_and_a_line_says_so(call):
    code, out, err = call("distill.py", "--dry-run", "data.size=64", "train.steps=300")
    assert code == 0
    assert err.splitlines() == [
        "note: method=dmd2, since train.steps=300 asks for updates after KD; say method=dmd2, or "
        "train.steps=0 for KD alone"
    ]
    values = yaml.safe_load(out.partition("\n\n")[0])
    assert (values["method"], values["train"]["steps"]) == ("dmd2", 300)


@pytest.mark.parametrize("moment", ["pairs", "hand_over"])
def test_ctrl_c_between_the_stages_says_how_to_go_on_too(home, call, tmp_path, monkeypatch, moment):
    def interrupt(self: Distillation) -> None:
        raise KeyboardInterrupt

    few = ("train.kd_steps=2", "train.steps=0", "run_dir=run")
    with monkeypatch.context() as patch:
        patch.setattr(Distillation, moment, interrupt)
        code, _, err = call("distill.py", home / "student.yaml", *few)
    assert code == 130 and "--resume" in err.splitlines()[-1]
    assert call("distill.py", home / "student.yaml", *few, "--resume")[0] == 0
    assert (tmp_path / "run" / "student").exists()
