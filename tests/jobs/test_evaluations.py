"""Teacher evaluations are counted as a teacher that counts for itself does."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
from torch import Tensor

from fastgen._core.row_counts import RowCount
from fastgen.config import DistillConfig
from fastgen.distillation import distill
from fastgen.jobs.budgets import planned_evaluations
from fastgen.jobs.hand_over import HandOver
from fastgen.jobs.setup import Setup
from fastgen.jobs.teacher_rows import MEASURED, Known, _share, measured_rows
from fastgen.methods.matching import DistributionMatching
from fastgen.records.log import read_log, timeless
from support.folders import mark_as_export
from support.toy import (
    ToyTask,
    ToyTeacher,
    plug_pulled,
    toy_config,
    with_everything,
    without_pictures,
)

ROWS = 48  # of the toy's data
BATCH = 8
PAIRS = 40
CALLS = 4
KD_STEPS = 7
STEPS = 5
# Of DMD's diagnostics: a comparison in each of five bins of t, and one gradient.
DIAGNOSED = 5 + 1


class CountingTeacher(ToyTeacher):
    """The slow twin: it counts its own rows, and not those of its copies."""

    def __init__(self) -> None:
        super().__init__()
        self.born = id(self)
        self.rows = 0

    def forward(self, x_t: Tensor, t: Tensor | float, cond: Tensor) -> Tensor:
        if id(self) == self.born:
            self.rows += len(x_t)
        return super().forward(x_t, t, cond)


def changed(cfg: DistillConfig, **groups) -> DistillConfig:
    values = cfg.model_dump()
    for name, changes in groups.items():
        values[name] = {**values[name], **changes} if isinstance(changes, dict) else changes
    return DistillConfig.model_validate(values)


def run(cfg: DistillConfig, monkeypatch) -> tuple[Path, int, int]:
    """Distil the toy; the folder, the rows that were counted, and those that the twin saw."""
    counted = 0
    add = RowCount.add

    def also(self: RowCount, rows: int) -> None:
        nonlocal counted
        counted += rows
        add(self, rows)

    teacher = CountingTeacher()
    with monkeypatch.context() as patch, without_pictures():
        patch.setattr(RowCount, "add", also)
        folder = distill(cfg, teacher=teacher, task=ToyTask())
    return folder, counted, teacher.rows


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report" / "report.json").read_text())


GUIDED = {"guidance_scale": 2.0}
GAN = {
    "gan_loss_weight_gen": 0.1,
    "gan_blocks": ["linear"],
    "gan_r1_reg_weight": 0.1,
    "gan_disc_warmup_steps": 3,
}
CASES = {
    "kd": ({"method": "kd"}, 1, 0),
    "dmd": ({}, 1, STEPS),
    "guided": ({"dmd": GUIDED, "teacher": {"null_cond": "zeros"}}, 2, 2 * STEPS),
    # VSD and GAN judge the student. The discriminator sees fake, real and r1, in its warm-up, too.
    "gan": ({"dmd": GAN}, 1, STEPS * (2 + 3) + 3 * 3),
    # A midpoint step.
    "consistency": (
        {"method": "consistency", "dmd": {"fake_score_warmup_steps": 0}},
        1,
        2 * STEPS,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_evaluations_are_those_of_a_counting_teacher(tmp_path, monkeypatch, case):
    groups, of_a_row, rows_of_batch = CASES[case]
    cfg = changed(toy_config(tmp_path / "run"), **groups)
    folder, counted, seen = run(cfg, monkeypatch)
    assert counted == seen > 0

    found = report_of(folder)["teacher_evaluations"]
    stage = {"kd": "kd", "consistency": "consistency"}.get(case, "dmd")
    assert found["pairs"] == PAIRS * CALLS * of_a_row
    assert found[stage] == rows_of_batch * BATCH
    assert found["total"] == sum(count for part, count in found.items() if part != "total")
    spent = found["pairs"] + found["kd"] + (found[stage] if stage != "kd" else 0)
    assert read_log(folder)[-1]["teacher_evaluations"] == spent

    phases = report_of(folder)["teacher_calls"]
    assert phases["pairs"] + phases["training"] == spent
    assert sum(phases.values()) == found["total"]


def test_a_resumed_run_has_the_counts_of_an_uninterrupted_one(tmp_path, monkeypatch):
    def config(name: str) -> DistillConfig:
        return with_everything(tmp_path / name)

    whole, _, _ = run(config("whole"), monkeypatch)
    with plug_pulled(DistributionMatching, 6):
        run(config("again"), monkeypatch)
    again, _, _ = run(config("again").model_copy(update={"resume": True}), monkeypatch)
    assert report_of(again)["teacher_evaluations"] == report_of(whole)["teacher_evaluations"]
    rows = [[row["teacher_evaluations"] for row in read_log(folder)] for folder in (whole, again)]
    assert rows[0] == rows[1]


def test_a_plan_counts_what_a_run_takes(tmp_path, monkeypatch):
    cfg = changed(toy_config(tmp_path / "run"), dmd=GAN | {"gan_disc_steps_per_student_step": 2})
    planned = planned_evaluations(Setup(cfg, ToyTeacher().eval(), ToyTask().train))
    folder, _, _ = run(cfg, monkeypatch)
    found = report_of(folder)["teacher_evaluations"]
    assert planned.pairs == found["pairs"]
    assert planned.stages == {stage: found[stage] for stage in ("kd", "dmd")}


def test_a_budget_ends_a_stage_and_a_resumed_run_ends_where_it_did(tmp_path, monkeypatch):
    """An update takes 8: of 185, 160 for pairs, three of five updates are paid."""

    def config(name: str, **changes) -> DistillConfig:
        cfg = toy_config(tmp_path / name, teacher_calls=185)
        return cfg.model_copy(update=changes)

    whole, _, _ = run(config("whole"), monkeypatch)
    rows = read_log(whole)
    assert rows[-1]["step"] == 4 + 3 and rows[-1]["teacher_evaluations"] == 184
    said = rows[-1]["stopped_early"]
    assert "dmd update 7: stopped early, of train.teacher_calls=185 184 are spent" in said
    told = report_of(whole)["decisions"]
    words = "dmd ended early, after 7 of 9 updates, without a cool-down"
    assert any(text.startswith(words) for text in told)
    with plug_pulled(DistributionMatching, 6):
        run(config("again"), monkeypatch)
    again, _, _ = run(config("again", resume=True), monkeypatch)
    assert [*map(timeless, read_log(again))] == [*map(timeless, rows)]


@pytest.mark.parametrize(
    ("budget", "words"),
    [(150, "lower train.kd_pairs to 37"), (165, "expected train.teacher_calls >= 168")],
)
def test_a_budget_that_pays_for_too_little_is_refused(tmp_path, monkeypatch, budget, words):
    cfg = toy_config(tmp_path / "run", teacher_calls=budget)
    with pytest.raises(ValueError, match=words):
        run(cfg, monkeypatch)
    assert not (tmp_path / "run" / "pairs.safetensors").exists()


def test_a_report_measures_what_a_quarter_pays_for_and_a_resumed_one_counts_the_same(
    tmp_path, monkeypatch
):
    """A row of one call takes 48: 160 of pairs pay for none but the first, 2560 for all."""

    def config(name: str, pairs: int, **changes) -> DistillConfig:
        cfg = toy_config(tmp_path / name, kd_pairs=pairs, steps=0)
        return changed(cfg, method="kd").model_copy(update=changes)

    poor, _, _ = run(config("poor", 40), monkeypatch)
    assert set(report_of(poor)["teacher"]) == {"1"}
    assert "left out: ab2-4, 2" in report_of(poor)["decisions"][-1]

    with monkeypatch.context() as patch:
        patch.setattr(HandOver, "_latency", lambda *_: {})
        patch.setattr(HandOver, "examples", lambda *_: {})
        patch.setattr("fastgen.jobs.hand_over.write_report", lambda *_, **__: None)
        rich, _, _ = run(config("rich", 640), patch)
    once = json.loads((rich / MEASURED).read_text())
    (known,) = once.values()
    assert known["evaluations"] == {"1": ROWS, "ab2-4": 4 * ROWS, "2": 2 * ROWS}


# ---- Rows beside the teacher ---------------------------------------------------------------------


def measured(
    teacher: Path, run_dir: Path, calls: list[int], most: int = 10_000
) -> tuple[Known, list[str]]:
    """What a run measures in its folder, of Euler rows of the toy in the folder `teacher`."""
    for folder in (teacher, run_dir):
        folder.mkdir(exist_ok=True)
    mark_as_export(teacher)
    rows = {"folder": str(teacher), "calls": calls, "ab2_calls": []}
    cfg = toy_config(run_dir)
    cfg = cfg.model_copy(update={"teacher": cfg.teacher.model_copy(update=rows)})
    task = ToyTask()
    setup = Setup(cfg, ToyTeacher().eval(), task.train)
    with setup.rows.part("report"):
        return measured_rows(setup, task, run_dir, "key", part="report", most=most)


@pytest.mark.parametrize("text", ["mine", '{"key": 1}', "[]"])
def test_a_file_of_something_else_stays_beside_the_teacher(tmp_path, capsys, text):
    file = tmp_path / "teacher" / MEASURED
    file.parent.mkdir()
    file.write_text(text)
    measured(file.parent, tmp_path / "run", [1])
    assert file.read_text() == text
    assert f"{file} is damaged or no file of measured scores" in capsys.readouterr().err
    assert (tmp_path / "run" / MEASURED).exists()


def test_nothing_is_written_into_a_folder_of_another_library(tmp_path):
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "config.json").write_text('{"type": "diffusion", "input_features": {}}')
    measured(teacher, tmp_path / "run", [1])
    assert [file.name for file in teacher.iterdir()] == ["config.json"]
    assert (tmp_path / "run" / MEASURED).exists()


def test_nothing_is_written_beside_scores_of_the_teachers_own(tmp_path):
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "scores.json").write_text("{}")
    measured(teacher, tmp_path / "run", [1])
    assert not (teacher / MEASURED).exists() and (tmp_path / "run" / MEASURED).exists()


def test_rows_of_other_runs_stay_beside_the_teacher(tmp_path):
    teacher = tmp_path / "teacher"
    measured(teacher, tmp_path / "first", [1, 4])
    measured(teacher, tmp_path / "second", [2])
    known = json.loads((teacher / MEASURED).read_text())["key"]
    assert set(known["teacher"]) == {"1", "2", "4"} and known["floor"]
    assert known["evaluations"] == {"1": ROWS, "2": 2 * ROWS, "4": 4 * ROWS}
    # The run folder says what its own run has paid for.
    own = json.loads((tmp_path / "second" / MEASURED).read_text())["key"]
    assert own["evaluations"] == {"2": 2 * ROWS}


def _share_many(path: Path, name: str) -> None:
    for k in range(20):
        _share(path, f"key {k}", Known({f"{name}-{k}": {"energy": 1.0}}, {}, {}))


def test_two_runs_that_share_a_teacher_lose_none_of_each_others_rows(tmp_path):
    file = tmp_path / MEASURED
    fork = multiprocessing.get_context("fork")
    runs = [fork.Process(target=_share_many, args=(file, name)) for name in ("one", "other")]
    for process in runs:
        process.start()
    for process in runs:
        process.join()
    assert [process.exitcode for process in runs] == [0, 0]
    known = json.loads(file.read_text())
    for k in range(20):
        assert set(known[f"key {k}"]["teacher"]) == {f"one-{k}", f"other-{k}"}


def test_the_cheapest_row_is_measured_where_the_cost_of_others_is_known(tmp_path):
    measured(tmp_path / "teacher", tmp_path / "first", [1])
    known, left_out = measured(tmp_path / "teacher", tmp_path / "second", [2, 8], most=0)
    assert set(known.teacher) == {"2"} and left_out == ["8"]
