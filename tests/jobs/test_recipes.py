"""The recipes, end to end, as a user runs them: train, distil, look, sample."""

from __future__ import annotations

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from fastgen.config import DistillConfig, TrainTeacherConfig
from fastgen.config.files import load_config
from fastgen.export import load_network
from fastgen.export.folders import load_student
from fastgen.records.checkpoints import checkpoint_folders
from fastgen.records.log import read_log
from support.recipes import KD_STEPS, content, python, the_error

pytestmark = pytest.mark.slow

# ---- What a run leaves ---------------------------------------------------------------------------


def test_the_run_folder_holds_what_is_promised(home):
    run = home / "runs" / "walks"
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "student", "report"} <= set(
        os.listdir(run)
    )
    assert set(os.listdir(run / "student")) == {"student.safetensors", "config.json", "README.md"}
    pictures = {
        "trajectories.png",
        "score_vs_nfe.png",
        "score_vs_evaluations.png",
        "training.png",
        "diagnostics.png",
    }
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
    scores = {"min_ade", "min_fde", "energy_score", "energy_distance", "outside", "missed"}
    assert {"1", "2", "ab2-4"} == set(report["teacher"]) and {"1", "2"} == set(
        report["student"]
    ) == set(report["kd"])
    for part in ("teacher", "student", "kd", "dmd"):
        assert all(
            set(row) == scores and all(map(np.isfinite, row.values()))
            for row in report[part].values()
        )
    assert report["student"] == report[report["selected"]] and report["selected"] in ("kd", "dmd")
    assert report["choice"].startswith(f"kept {report['selected']}: ")
    assert "energy_distance" in report["choice"] and "missed" in report["choice"]
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
    assert starts["dmd"] in [
        row["energy_score"] for row in rows if row["stage"] == "kd" and "energy_score" in row
    ]
    assert any("energy_distance" in row.get("compared", {}) for row in rows)
    for stage in ("kd", "dmd"):
        assert "energy_score" in [row for row in rows if row["stage"] == stage][-1]


def test_the_end_of_the_output_is_the_table_and_where_to_look(home):
    printed = (home / "printed.txt").read_text()
    choice = json.loads((home / "runs" / "walks" / "report" / "report.json").read_text())["choice"]
    table = (
        choice,
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
student = fastgen.load_student("student", dtype=torch.float64)
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
    here = load_student(tmp_path / "student", dtype=torch.float64)
    assert here.steps == (1, 2) and len(here.t_list) == 3
    # Another process may share a product among another number of threads, which rounds elsewhere.
    one = here.sample(z, steps=1, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(one, x["one"], rtol=0, atol=1e-10)
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
        (
            ["z=short.safetensors"],
            r"Z of shape \(B, 2, 2\), as the student was trained, got \(5, 1,",
        ),
    ],
)
def test_what_cannot_be_sampled_is_one_line(home, call, tmp_path, arguments, said):
    save_file({"Z": torch.zeros(5, 2, 2)}, tmp_path / "z.safetensors")
    save_file({"Z": torch.zeros(5, 1, 2)}, tmp_path / "short.safetensors")
    before = content(tmp_path)
    code, out, err = call("sample.py", home / "runs" / "walks" / "student", *arguments)
    assert (code, out) == (2, "") and re.search(said, the_error(err))
    assert content(tmp_path) == before


class Plain:
    """Stands for a student with a network of one's own, which `load_student` can't build from a
    folder alone."""

    cond_horizon, steps = None, (1,)
    horizon = (3, 4, 4)
    encoder = None

    def __init__(self, condition: str) -> None:
        self.config = {"description": {"condition": condition}}

    def sample(self, cond, *, num_samples, steps, generator):
        rows = 1 if cond is None else len(cond)
        x = torch.randn(rows, num_samples, 3, 4, 4, generator=generator)
        return x if cond is None else x + cond.view(-1, 1, 1, 1, 1)


def test_samples_without_a_condition_and_of_any_shape(call, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "fastgen.commands.sample.load_run_student",
        lambda folder, factory, encoder: Plain(condition),
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


@pytest.mark.usefixtures("blank_pictures")
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
