"""Students at a budget of teacher evaluations: KD alone that spends as much, and bars."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file

import bench_guided
import bench_quality
import bench_weights
from bench_bars import bars_of
from bench_budget_bars import budget_bars
from bench_budgets import kd_of_equal_budget, spent
from bench_cases import CASES
from fastgen.config import DistillConfig
from fastgen.config.files import dump_yaml, load_config, validate
from fastgen.teachers.weights import load_weights


def report(
    student: dict[str, float],
    *,
    kd: dict[str, float] | None = None,
    pairs: int = 1600,
    dmd: int = 0,
) -> dict:
    """A report of a run of one call, with 100 pairs of 16 evaluations."""
    rows = {"kd": {"1": kd or student}, "dmd": {"1": student}}
    return {
        **rows,
        "student": {"1": student},
        "selected": "dmd" if dmd else "kd",
        "validation": {stage: {} for stage in rows},
        "seconds": {"pairs_cpu": 2.0, "kd_cpu": 10.0, "dmd_cpu": 5.0, "hand_over_cpu": 7.0},
        "teacher_evaluations": {
            "pairs": pairs,
            "kd": 0,
            "dmd": dmd,
            "report": 99,
            "total": pairs + dmd + 99,
        },
    }


def test_the_report_is_no_part_of_what_a_run_has_spent():
    assert spent(report({}, dmd=640)) == (2240, 17.0)


def finished(folder: Path, kd_steps: int, *, made: int = 200) -> Path:
    """A run of DMD2 after KD that was to make `kd_steps` updates and made `made`."""
    (folder / "report").mkdir(parents=True)
    (folder / "report" / "report.json").write_text(json.dumps(report({}, dmd=640)))
    rows = [{"iteration": made, "stage": "kd", "step": made}]
    rows += [{"iteration": made + 9, "stage": "dmd", "step": 9}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = validate(DistillConfig, {"train": {"kd_pairs": 100, "kd_steps": kd_steps}})
    (folder / "config.yaml").write_text(dump_yaml(cfg))
    return folder


@pytest.mark.parametrize("kd_steps", [200, 500])
def test_kd_alone_takes_as_many_evaluations_and_seconds(tmp_path, kd_steps):
    """2240 evaluations are 140 pairs, which take 2.8 of 17 seconds; 14.2 are left, of which an
    update takes .05, however many were planned."""
    asked = kd_of_equal_budget(finished(tmp_path / "run", kd_steps))
    assert asked == ["train.kd_pairs=140", "train.kd_steps=280"]


def test_a_run_without_kd_says_nothing_of_what_kd_would_take(tmp_path):
    with pytest.raises(ValueError, match="began with KD"):
        kd_of_equal_budget(finished(tmp_path / "run", kd_steps=0))


def test_differences_from_kd_alone_pair_the_seeds():
    reports = {
        "DMD": [report({"frechet": f}, kd={"frechet": 9.0}, dmd=1) for f in (1.0, 2.0)],
        "KD": [report({"frechet": f}) for f in (4.0, 4.5)],
    }
    found = bench_quality.gains_over_kd("DMD", {"KD": "DMD"}, reports)
    assert found == {"frechet": [-3.0, -2.5]}
    # Without such a row, from the KD that the run began with.
    assert bench_quality.gains_over_kd("DMD", {}, reports) == {"frechet": [-8.0, -7.0]}
    assert bench_quality.gains_over_kd("KD", {}, reports) == {}


@pytest.mark.parametrize("name", CASES)
def test_the_recipes_of_every_case_are_configs(name: str):
    case = CASES[name]
    for row, overrides in case.rows.items():
        asked = [text.replace("{folder}", "anywhere") for text in overrides]
        load_config(DistillConfig, bench_quality.CONFIGS / case.config, asked)
        other = case.equal.get(row)
        if other is not None:
            rows = list(case.rows)
            assert rows.index(other) < rows.index(row)  # its budget must be known by then


def test_a_peer_that_cannot_be_imported_leaves_its_row_out(tmp_path, monkeypatch, capsys):
    def distil(run: Path, config: str, overrides: list[str]) -> dict:
        (run / "report").mkdir(parents=True)
        found = report({"frechet": 1.0}) | {"teacher": {"1": {}}, "floor": {}}
        (run / "report" / "report.json").write_text(json.dumps(found))
        return found

    def peer(run: Path, seed: int, seconds: float) -> dict:
        assert seconds == 17.0  # those of the row that it is compared with
        raise ImportError("no such peer")

    monkeypatch.setattr(bench_quality, "distil", distil)
    monkeypatch.setattr(bench_quality.bench_peer, "distil_by_peer", peer)
    options = bench_quality.Options([0])
    found = bench_quality.run_quality(["peer"], options, tmp_path)["peer"]
    assert found["rows"].keys() == {"KD + DMD"} and "bars" not in found
    assert "modelopt is left out: no such peer" in capsys.readouterr().out
    # Its runs are those of the images' own case.
    assert (tmp_path / "fashion" / "KD-DMD-0").is_dir()


# ---- What is measured beside reports -------------------------------------------------------------


def test_the_mass_in_wrong_modes_is_measured():
    assert bench_weights.of_data()["weights_off"] < 0.008
    weights = torch.tensor(bench_weights.WEIGHTS)
    weights[0] -= 0.1
    weights[1] += 0.1
    counts = (1000 * weights).round().long()
    x = bench_weights.mode_means().repeat_interleave(counts, 0)
    found = bench_weights.weight_scores(x)
    assert found["weights_off"] == pytest.approx(0.1) and found["in_modes"] == 1.0
    assert bench_weights.weight_scores(x + 0.32)["in_modes"] == 0.0


def test_the_files_that_cases_prepare_are_what_recipes_read(tmp_path, monkeypatch):
    bench_guided.prepare(tmp_path / "guided")
    assert numpy.load(tmp_path / "guided" / bench_guided.NO_CLASS)["Z"].tolist() == [0]
    asked = bench_quality.filled(bench_quality.CASES["guided"].rows["KD"], tmp_path / "guided")
    assert f"teacher.null_cond={tmp_path / 'guided' / bench_guided.NO_CLASS}" in asked
    network = bench_weights.Denoiser()
    monkeypatch.setattr(bench_weights, "train_network", lambda *_, **__: network)
    bench_weights.prepare(tmp_path)
    assert load_file(tmp_path / bench_weights.DATA)["X"].shape == (20_000, 2)
    load_weights(bench_weights.Denoiser(), tmp_path / bench_weights.TEACHER)


# ---- Bars ----------------------------------------------------------------------------------------


PATHS = {
    "energy_ratio": 1.1,
    "success": 0.99,
    "success_near": 0.98,
    "mode_error": 0.02,
    "clearance": 1.0,
    "spread": 1.0,
    "spread_near": 1.1,
}
IMAGES = {"frechet": 0.4, "coverage": 0.86}


def row(*students: dict[str, float], **facts: int) -> dict:
    return bench_quality.summary([report(student, **facts) for student in students])


def missed(case: str, rows: dict, teacher: dict | None = None) -> set[str]:
    result = {"rows": rows, "teacher": teacher or {}}
    bars = budget_bars(case, CASES[case].equal, result)
    return {label for label, bar in bars.items() if not bar.met()}


def auto_rows(**changes: float) -> dict:
    return {"auto": row(PATHS | changes), "KD alone": row(PATHS)}


def test_auto_has_to_be_better_in_one_score_and_worse_in_none():
    better = "auto: scores better than KD's"
    worse = "auto: scores worse than KD's"
    assert missed("ring auto", auto_rows()) == {better}
    assert missed("ring auto", auto_rows(energy_ratio=1.05)) == set()
    assert missed("ring auto", auto_rows(energy_ratio=1.05, success_near=0.97)) == {worse}
    # Too wide is as bad as too narrow.
    assert missed("ring auto", auto_rows(spread=1.1)) == {better, worse}
    assert missed("ring auto", auto_rows(spread_near=0.95, energy_ratio=1.05)) == set()


def test_weaves_are_held_against_kd_by_every_score_of_theirs():
    better, worse = "auto: scores better than KD's", "auto: scores worse than KD's"
    kd = {"success": 0.94, "energy_ratio": 1.01, "amplitude": 0.973, "off_seam": 0.009}
    flat = {"KD alone": row(kd), "auto": row(kd)}
    assert missed("weave", flat) == {better}
    assert missed("weave", {**flat, "auto": row(kd | {"amplitude": 0.989})}) == set()
    late = row(kd | {"amplitude": 0.989, "off_seam": 0.015})
    assert missed("weave", {**flat, "auto": late}) == {worse}


def test_seeds_that_differ_say_how_much_noise_is():
    rows = auto_rows()
    rows["auto"] = row(*(PATHS | {"energy_ratio": e} for e in (0.9, 1.05, 1.2)), dmd=1)
    rows["KD alone"] = row(*[PATHS] * 3, dmd=1)
    assert missed("ring auto", rows) == {"auto: scores better than KD's"}


def test_budgets_that_count_as_equal_are_within_a_tenth():
    rows = auto_rows(energy_ratio=1.05)
    rows["KD alone"] = row(PATHS, pairs=1440)
    assert missed("ring auto", rows) == set()
    rows["KD alone"] = row(PATHS, pairs=1400)
    assert missed("ring auto", rows) == {"KD alone: teacher evaluations as those of auto, off by"}


def image_rows() -> dict:
    rows = {name: row(IMAGES) for name in CASES["fashion"].rows}
    for name in ("KD, as many evaluations", "KD, 4 calls"):
        rows[name] = row(IMAGES | {"frechet": 1.0})
    rows["4 calls"] = row(IMAGES | {"frechet": 0.3})
    return rows


@pytest.mark.parametrize(
    ("name", "change", "bars"),
    [
        ("4 calls", {"frechet": 0.3}, set()),
        (
            "KD + DMD",
            {"frechet": 0.65},
            {
                "1 call: Frechet distance",
                "1 call: Frechet distance over that of KD alone",
                "1 call: Frechet distance, below the teacher's by AB2-12",
            },
        ),
        ("KD + DMD", {"coverage": 0.79}, {"1 call: coverage, the teacher's by AB2-12"}),
        ("500 pairs + DMD", {"frechet": 0.7}, {"500 pairs: Frechet distance"}),
        ("4 calls", {"frechet": 0.3, "coverage": 0.84}, {"4 calls: coverage"}),
        ("4 calls", {"frechet": 0.35}, {"4 calls: Frechet distance"}),
    ],
)
def test_each_score_of_images_has_its_bar(name, change, bars):
    teacher = {"ab2-12": {"frechet": 0.59, "coverage": 0.8}}
    assert missed("fashion", image_rows() | {name: row(IMAGES | change)}, teacher) == bars


def test_a_budget_counts_the_report():
    rows = image_rows()
    teacher = {"ab2-12": {"frechet": 0.59, "coverage": 0.8}}
    for name in ("500 pairs + DMD", "KD, as many as 500 pairs + DMD"):
        rows[name] = row(IMAGES, pairs=30_000 - 98)
    assert missed("fashion", rows, teacher) == {"500 pairs: teacher evaluations"}


def test_any_budget_and_four_calls_have_the_bars_of_ring():
    assert (
        missed("ring, any budget", {"KD, 6 layers": row(PATHS | {"success_near": 0.988})}) == set()
    )
    assert missed("ring, any budget", {"KD, 6 layers": row(PATHS)}) == {"success near opposition"}
    kinds = {kind: {"dmd": {"4": row(PATHS)["dmd"]["1"]}} for kind in ("ode", "sde")}
    assert missed("ring, 4 calls", kinds) == {"ode: numbers of calls offered"}


def one(**scores: float) -> dict:
    return row(scores, dmd=1)


def test_a_guided_student_is_held_against_kd_by_the_teachers_own_samples():
    kd = one(guided_frechet=3.0, guided_coverage=0.6, pixels_outside=0.0)
    same = {"KD": kd, "KD + DMD": kd}
    assert missed("guided", same) == set()
    worse = one(guided_frechet=3.1, guided_coverage=0.5, pixels_outside=0.01)
    assert len(missed("guided", {"KD": kd, "KD + DMD": worse})) == 3


def test_weights_of_modes_must_be_the_teachers_after_dmd_from_a_start_that_is_off():
    rows = {name: one(weights_off=0.016) for name in CASES["modes, unequal weights"].rows}
    teacher = {"ab2-24": {"weights_off": 0.01}}
    both = {"weights of the start, off by", "weights after DMD, off by"}
    assert missed("modes, unequal weights", rows, teacher) == both
    rows["weak KD"] = one(weights_off=0.1)
    rows["KD + DMD"] = one(weights_off=0.015)
    assert missed("modes, unequal weights", rows, teacher) == set()


def test_flights_and_the_peer_have_one_bar_each():
    flights = {"KD + DMD": one(min_fde=3.4)}
    assert len(missed("flights", flights, {"100": {"min_fde": 3.3}})) == 1
    assert missed("flights", flights, {"100": {"min_fde": 3.4}}) == set()
    assert len(missed("flights", flights)) == 1  # the report left the teacher's row out
    rows = {"KD + DMD": one(frechet=3.4), "modelopt": one(frechet=3.3)}
    assert len(missed("peer", rows)) == 1


def test_auto_is_no_worse_than_the_best_row_of_a_weak_teacher():
    names = ("KD + data", "auto")
    points = {"success": 0.9, "energy_distance": 0.0, "coverage": 0.86, "spread": 1.0}
    rows = {name: one(**points, mode_error=0.02) for name in names}
    result = {"rows": rows, "teacher": {"100": points}}
    label = "auto: scores worse than those of KD + data"
    assert bars_of("weak modes", result)[label].met()
    rows["auto"] = one(**points | {"coverage": 0.84}, mode_error=0.02)
    assert not bars_of("weak modes", result)[label].met()
