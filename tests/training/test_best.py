"""The best result of a stage, patience, and warnings of what goes wrong."""

import json

import pytest
import torch

from fastgen._core.tensor_files import load_tensors
from fastgen.records.log import read_log, timeless
from support.runs import SCORES, Counter, follow, kept
from support.toy import Pulled

NAN = float("nan")


def test_the_result_is_the_best_validated_average_and_the_end_only_if_asked_for(tmp_path):
    best = follow(tmp_path / "best", SCORES)
    assert (
        kept(best) == 3
        and int(load_tensors(tmp_path / "best" / "stages" / "dmd.safetensors")["weight"]) == 8
    )
    last = follow(tmp_path / "last", SCORES, keep_best=False)
    assert kept(last) == 8 and not (tmp_path / "last" / "stages" / "dmd.best.safetensors").exists()
    rising = follow(tmp_path / "rising", SCORES[:-1] + [0.1], evaluate_every=3)
    assert kept(rising) == 8  # the end is a candidate, whatever evaluate_every


@pytest.mark.parametrize(
    ("scores", "best"), [([NAN] * 9, 8), ([NAN, NAN, 0.9, NAN, NAN, 0.8, NAN, 0.9, NAN], 5)]
)
def test_what_is_no_number_never_wins(tmp_path, scores, best):
    assert kept(follow(tmp_path, scores)) == best


def test_patience_ends_a_stage_and_says_so(tmp_path, capsys):
    stages = [Counter("kd"), Counter("dmd", warmup=2)]
    trainer = follow(tmp_path, SCORES, stages=stages, patience=2)
    assert [stage.done for stage in stages] == [5, 5] and kept(trainer, "kd") == kept(
        trainer, "dmd"
    ) == 3
    rows = [row for row in read_log(tmp_path) if "stopped_early" in row]
    assert [(row["stage"], row["step"]) for row in rows] == [("kd", 5), ("dmd", 5)]
    said = "dmd update 5: stopped early, energy was best at update 3: 0.6; validations since: 2"
    assert rows[1]["stopped_early"].startswith(said)
    assert rows[1]["stopped_early"] in capsys.readouterr().err
    # The fake score's warm-up leaves the student as it was: no loss of patience, and no candidate.
    waiting = [Counter("dmd", warmup=4)]
    assert (
        kept(
            follow(
                tmp_path / "waiting", [0.5] * 5 + [0.9, 0.8, 0.7, 0.9], stages=waiting, patience=1
            )
        )
        == 7
    )
    assert waiting[0].done == 8


@pytest.mark.slow
@pytest.mark.parametrize("pull_at", range(2, 7))
def test_a_killed_run_keeps_its_best_and_its_patience(tmp_path, pull_at):
    """Without improvement after update 3, the sixth loses patience; the plug is pulled on every way
    there."""
    whole = follow(tmp_path / "whole", SCORES, patience=3)
    with pytest.raises(Pulled):
        follow(tmp_path / "killed", SCORES, patience=3, pull_at=pull_at)
    again = follow(tmp_path / "killed", SCORES, patience=3, resume=True)
    assert again.state.iteration == whole.state.iteration == 6 and kept(again) == kept(whole) == 3
    assert again.state.progress == whole.state.progress
    whole_rows, killed_rows = (read_log(tmp_path / name) for name in ("whole", "killed"))
    assert [*map(timeless, killed_rows)] == [*map(timeless, whole_rows)]
    # A finished run that is resumed has its best still.
    done = follow(tmp_path / "killed", SCORES, patience=3, resume=True)
    assert kept(done) == 3 and done.state.progress == whole.state.progress


def test_a_best_of_after_the_checkpoint_is_forgotten_with_it(tmp_path):
    """Killed at 4, just after a best at 3 that the checkpoint of 2 knows nothing of; the second
    time it isn't one."""
    with pytest.raises(Pulled):
        follow(tmp_path, SCORES, pull_at=4)
    assert int(load_tensors(tmp_path / "stages" / "dmd.best.safetensors")["weight"]) == 3
    other = SCORES[:3] + [0.85, 0.85, 0.9, 0.9, 0.9, 0.9]
    assert kept(follow(tmp_path, other, resume=True)) == 2


def test_curves_begin_at_the_start_of_each_stage_and_are_not_doubled_by_a_resume(tmp_path):
    def pull(step: int) -> dict:
        raise Pulled

    broken = Counter("dmd", 3)
    broken.update = pull  # after its start was logged
    with pytest.raises(Pulled):
        follow(tmp_path, SCORES, stages=[Counter("kd", 3), broken])
    assert [row["step"] for row in read_log(tmp_path)] == [0, 1, 2, 3, 0]
    follow(tmp_path, SCORES, stages=[Counter("kd", 3), Counter("dmd", 3)], resume=True)
    rows = read_log(tmp_path)
    assert [(row["stage"], row["step"]) for row in rows] == [
        (s, k) for s in ("kd", "dmd") for k in range(4)
    ]
    assert [row["energy"] for row in rows] == SCORES[:4] * 2 and "loss" not in rows[0]


def test_a_collapse_is_warned_of_once_in_the_log_and_on_stderr(tmp_path, capsys):
    spreads = [1.06, 1.0, 0.9, 0.71, 0.6, 0.5, 0.5, 0.5, 0.5]
    trainer = follow(tmp_path, [{"energy": 0.5, "spread": spread} for spread in spreads])
    (row,) = (row for row in read_log(tmp_path) if "warnings" in row)
    assert row["step"] == 3 and row["warnings"] == trainer.warnings and len(trainer.warnings) == 1
    assert (
        "dmd update 3: the spread within modes fell from 1.06 (update 0) to 0.71"
        in trainer.warnings[0]
    )
    assert capsys.readouterr().err.count(f"warning: {trainer.warnings[0]}") == 1
    # It is said of a run that is resumed when all is over, too.
    scores = [{"energy": 0.5, "spread": spread} for spread in spreads]
    assert follow(tmp_path, scores, resume=True).warnings == trainer.warnings


def test_a_steady_run_is_not_warned_of(tmp_path, capsys):
    trainer = follow(tmp_path, [{"energy": 0.5, "spread": 1.0 + 0.1 * (-1) ** n} for n in range(9)])
    assert trainer.warnings == [] and "warning" not in capsys.readouterr().err


def test_what_a_stage_diagnoses_is_logged_beside_its_scores(tmp_path):
    stage = Counter()
    stage.diagnose = lambda step: {"gap": [step, torch.tensor(NAN)], "vsd_grad": 0.5}
    follow(tmp_path, SCORES, stages=[stage], evaluate_every=4)
    rows = {row["step"]: row.get("diagnostics") for row in read_log(tmp_path)}
    assert rows[0] is None and rows[4] == {"gap": [4, None], "vsd_grad": 0.5} and 8 in rows
    assert json.dumps(rows[4])
