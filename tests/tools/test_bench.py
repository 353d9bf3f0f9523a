"""What benchmarks conclude from scores: bars of hand-made results, and which runs are repeated."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import bench_quality
import bench_trainer
from bench_bars import Bar, bars_of
from fastgen.data.tasks.ring import draw_references


def scores(**changes: float) -> dict[str, dict[str, float]]:
    """Scores of three seeds that agree, those of a perfect student unless changed."""
    perfect = {
        "success": 1.0,
        "success_near": 1.0,
        "energy_ratio": 1.0,
        "mode_error": 0.02,
        "clearance": 1.0,
    }
    return {
        name: {"median": value, "least": value, "most": value}
        for name, value in (perfect | {"spread": 1.0} | changes).items()
    }


def ring_result(kd: dict | None = None, dmd: dict | None = None, seconds: float = 10.0) -> dict:
    one = {
        "kd": {"1": kd or scores()},
        "dmd": {"1": dmd or scores()},
        "cpu seconds": {"pairs": 1.0, "kd": seconds},
    }
    four = {"kd": {"2": scores(), "4": scores()}, "cpu seconds": {"pairs": 1.0, "kd": seconds}}
    full = {"success": 1.0, "success_near": 0.99, "energy_ratio": 1.09}
    return {
        "rows": {"KD": one, "KD + DMD + KD loss": one, "KD, 4 steps": four},
        "teacher": {"100": full, "ab2-8": full | {"energy_ratio": 1.12}},
        "floor": {"mode_error_floor": 0.02},
        "teacher seconds": 100.0,
    }


def missed(result: dict) -> set[str]:
    return {name for name, bar in bars_of("ring", result).items() if not bar.met()}


def test_a_bar_is_met_at_its_value_and_missed_beyond_it():
    assert Bar(0.98, 0.98, least=True).met() and not Bar(0.9799, 0.98, least=True).met()
    assert Bar(1.12, 1.12).met() and not Bar(1.1201, 1.12).met()


@pytest.mark.parametrize(
    ("changes", "bar"),
    [
        ({"success_near": 0.979}, "1 call: success near"),
        ({"energy_ratio": 1.121}, "1 call: energy ratio"),
        ({"mode_error": 0.0301}, "1 call: mode error"),
        ({"clearance": 0.969}, "1 call: |clearance - 1|"),
        ({"clearance": 1.031}, "1 call: |clearance - 1|"),
        ({"spread": 0.89}, "1 call: |spread - 1|"),
    ],
)
def test_each_score_of_a_one_call_student_has_its_bar(changes, bar):
    nothing_gained = "KD + DMD + KD loss: scores better than KD's"
    assert missed(ring_result()) == {nothing_gained}
    assert bar in missed(ring_result(kd=scores(**changes)))


def test_cost_is_a_share_of_the_teachers_training():
    assert "4 calls: CPU seconds / the teacher's" in missed(ring_result(seconds=34.1))
    assert missed(ring_result(seconds=34.0)) == missed(ring_result())
    assert "1 call: CPU seconds / the teacher's" in missed(ring_result(seconds=79.1))


def test_a_gain_counts_beyond_the_noise_between_seeds_only():
    name = "KD + DMD + KD loss: scores {} than KD's"
    better = bars_of("ring", ring_result(kd=scores(spread=1.3), dmd=scores(spread=1.1)))
    assert better[name.format("better")].got == 1 and better[name.format("worse")].got == 0
    noisy = scores(spread=1.1)
    noisy["spread"] |= {"least": 0.9, "most": 1.4}
    assert (
        bars_of("ring", ring_result(kd=scores(spread=1.3), dmd=noisy))[name.format("better")].got
        == 0
    )
    worse = bars_of("ring", ring_result(kd=scores(), dmd=scores(energy_ratio=1.03, spread=0.95)))
    assert worse[name.format("worse")].got == 2


def test_a_run_of_another_recipe_is_not_taken_for_this_one(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(
        bench_quality.subprocess, "run", lambda command, check, env: started.append(command)
    )
    done, asked = tmp_path / "run" / "done", [f"run_dir={tmp_path / 'run'}", "seed=1"]
    bench_quality.call("distill.py", "ring.yaml", asked, done)
    assert started[0][:2] == [
        sys.executable,
        str(Path(bench_quality.ROOT) / "recipes" / "distill.py"),
    ]
    assert "--resume" not in started[0]
    (done.parent / "config.yaml").touch()  # what a run leaves that was killed
    bench_quality.call("distill.py", "ring.yaml", asked, done)
    assert started[1][-1] == "--resume"
    done.touch()
    bench_quality.call("distill.py", "ring.yaml", asked, done)
    assert len(started) == 2
    with pytest.raises(ValueError, match="another recipe"):
        bench_quality.call("distill.py", "ring.yaml", [*asked, "train.kd_steps=1"], done)


def test_medians_and_ranges_are_those_of_the_seeds():
    reports = [
        {
            "selected": "kd",
            "validation": {"kd": {}},
            "kd": {"1": {"success": value}},
            "student": {"1": {"success": value}},
            "seconds": {"kd": 9, "kd_cpu": cpu, "hand_over_cpu": 5.0},
            "teacher_evaluations": {"pairs": 16, "kd": 0, "report": 4, "total": 20},
        }
        for value, cpu in ((0.9, 3.0), (0.7, 1.0), (0.8, 8.0))
    ]
    found = bench_quality.summary(reports)
    assert found["kd"]["1"]["success"] == {"median": 0.8, "least": 0.7, "most": 0.9}
    assert found["student"] == found["kd"]
    assert found["cpu seconds"] == {"kd": 3.0, "hand_over": 5.0}
    assert found["evaluations"]["total"] == 20
    assert found["spent"][1] == {"evaluations": 16, "seconds": 1.0}


class Straight:
    """A student that ignores the scene: every path is one of the demonstrations of the scene as it
    is."""

    def __init__(self, paths: torch.Tensor, equivariant: bool) -> None:
        self.paths, self.equivariant = paths, equivariant

    def sample(self, Z: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        if not self.equivariant:
            return self.paths
        # The turn that was made is read off the first row of the scenes.
        g = torch.linalg.lstsq(self.Z[0], Z[0]).solution.T
        return self.paths @ g.T


@pytest.mark.slow
@pytest.mark.parametrize("equivariant", [True, False])
def test_paths_that_turn_with_the_scene_are_kept_and_others_are_not(monkeypatch, equivariant):
    references, _ = bench_quality.RingTask().references("all")
    Z = references.Z.repeat_interleave(bench_quality.RingTask.SAMPLES, 0).float()
    generator = torch.Generator().manual_seed(0)
    drawn = draw_references(references.Z, bench_quality.RingTask.SAMPLES, generator)
    student = Straight(drawn.X.flatten(0, 1).float(), equivariant)
    student.Z = Z
    monkeypatch.setattr(bench_quality, "load_student", lambda folder: student)
    kept = bench_quality.kept_when_turned(Path("anywhere"))
    assert kept == 1.0 if equivariant else kept < 0.6


def test_cases_of_several_calls_share_one_file(tmp_path, monkeypatch):
    import bench

    monkeypatch.setattr(
        bench_quality,
        "run_quality",
        lambda cases, options, out: {case: {"seeds": options.seeds} for case in cases},
    )
    for case in ("modes", "ring"):
        monkeypatch.setattr(
            sys, "argv", ["bench.py", "quality", "--cases", case, "--out", str(tmp_path)]
        )
        bench.main()
    assert json.loads((tmp_path / "bench.json").read_text()).keys() == {"modes", "ring"}


# ---- What the trainer costs ----------------------------------------------------------------------


def seconds(*rounds: tuple[float, float]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rounds of (trainer, bare) by their wall seconds an iteration; on the CPU clock both take half
    as long."""
    unit = bench_trainer.UPDATES * torch.tensor([1.0, 0.5], dtype=torch.float64)
    return [(first * unit, second * unit) for first, second in rounds]


def overhead(rounds: list[tuple[float, float]], saving: float = 0.0, every: int = 500) -> dict:
    """The row of these rounds with a checkpoint of `saving` wall seconds, the median of three, each
    `every` updates."""
    saved = [torch.tensor([wall, 0.0], dtype=torch.float64) for wall in (0.0, saving, 9e9)]
    return bench_trainer.overhead_row("kd", seconds(*rounds), {"checkpoint": (saved, every)})


def test_loops_are_compared_by_the_median_round_and_by_their_sums():
    found = bench_trainer.compared(
        seconds((2.0, 1.0), (3.0, 1.0), (9.0, 2.0)), torch.tensor([0.5, 0.25])
    )
    assert found["rounds"] == 3
    assert found["wall"] == pytest.approx(
        {"first": 3, "second": 1, "ratio": 3, "ratio_of_sums": 15.5 / 4}
    )
    assert found["cpu"] == pytest.approx(
        {"first": 1.5, "second": 0.5, "ratio": 3, "ratio_of_sums": 7.75 / 2}
    )


@pytest.mark.parametrize(
    ("rounds", "saving", "met"),
    [
        ([(1.0, 0.98)] * 3, 0.0, True),
        ([(1.0, 0.96)] * 3, 0.0, False),
        # The median doesn't see one slow round of five, nor what is in no round.
        ([(1.0, 0.98)] * 4 + [(1.2, 0.98)], 0.0, False),
        ([(1.0, 0.98)] * 3, 20.0, False),
        ([(1.0, 0.98)] * 3, 2.0, True),
        # Nor do the sums see that most rounds are slow.
        ([(1.0, 0.96)] * 4 + [(0.8, 0.98)], 0.0, False),
    ],
)
def test_the_bar_of_the_trainer_is_met_in_the_median_and_by_the_sums(rounds, saving, met):
    row = overhead(rounds, saving)
    assert row["wall"]["met"] is met
    assert ("(bar 3 %, met)" in bench_trainer.overhead_text(row, "wall")) is met


def test_a_checkpoint_has_its_share_of_the_sums_by_the_clock_that_it_took():
    """1 in 100 updates of 1 second, saved in 5 seconds: 1.05 beside the bare 0.98, no CPU
    seconds."""
    row = overhead([(1.0, 0.98)] * 3, 5.0, every=100)
    assert row["wall"]["checkpoint_share"] == 0.05 and row["cpu"]["checkpoint_share"] == 0.0
    assert row["wall"]["overhead_of_sums"] == pytest.approx(1 - 0.98 / 1.05)
    assert row["cpu"]["overhead_of_sums"] == pytest.approx(0.02) == row["wall"]["overhead"]
    assert "checkpoints 50.000 ms" in bench_trainer.overhead_text(row, "wall")


class Counted:
    """A clock that each look at moves on by a second."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self) -> torch.Tensor:
        self.looks += 1
        return torch.full((2,), float(self.looks), dtype=torch.float64)


def test_checkpoints_and_validations_are_in_no_round(monkeypatch):
    """Between two looks at the clock passes a second: a round takes one, a checkpoint of a network
    two pieces of one, a validation three of which scoring takes one."""
    monkeypatch.setattr(bench_trainer, "now", Counted())
    network = SimpleNamespace(tensors=lambda: {"w": torch.zeros(1)})
    stage = SimpleNamespace(update=lambda step: None, trained=lambda: {"student": network})
    trainer = SimpleNamespace(evaluate=lambda net: {}, save=lambda tensors, best_of=None: None)
    trainer.validate = lambda stage: trainer.evaluate(None)
    halted = bench_trainer.Halted(stage, lambda n: None, skip=bench_trainer.UPDATES)
    halted.watch(trainer)
    for step in range(4 * bench_trainer.UPDATES):
        stage.update(step)
        if step % bench_trainer.UPDATES == 7:
            trainer.validate(stage)
            trainer.save(network.tensors(), best_of="kd")
    trainer.save({})
    rounds = [[float(wall) for wall, _ in halted.seconds[who]] for who in ("trainer", "bare")]
    # A look at each end of a piece: of what lies between pieces a second each counts.
    assert rounds == [[4.0, 4.0], [1.0, 1.0, 1.0]]
    assert [[float(wall) for wall, _ in found] for found in halted.events.values()] == [
        [2.0] * 3,
        [2.0] * 3,
    ]
