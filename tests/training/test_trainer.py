"""The trainer: what it reports and keeps, and nothing is overwritten."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgen._core.timing import Stopwatch
from fastgen.config import LoopConfig
from fastgen.methods.kd import KnowledgeDistillation
from fastgen.records.checkpoints import checkpoint_folders, load_newest_checkpoint
from fastgen.records.folder import open_run
from fastgen.records.log import read_log
from fastgen.training.processes import OneProcess
from fastgen.training.trainer import Trainer
from support.runs import SCORES, Counter, follow, kept, train, weights
from support.toy import toy_config


@pytest.mark.parametrize(
    ("name", "said"), [("elsewhere.npz", "[Errno 2] No such file"), (None, "cannot write")]
)
def test_an_error_about_a_file_of_somebody_else_is_not_called_a_failed_write(tmp_path, name, said):
    def broken(step: int) -> dict:
        raise FileNotFoundError(2, "No such file", name and str(tmp_path.parent / name))

    stage = Counter()
    stage.update = broken
    with pytest.raises(OSError, match=re.escape(said)) as raised:
        follow(tmp_path, SCORES, stages=[stage])
    assert "nothing was saved yet" in str(raised.value) and ("room" in str(raised.value)) == (
        name is None
    )


class OneOfTwo(OneProcess):
    """A process whose main process found the opposite scores."""

    def __init__(self) -> None:
        super().__init__()
        self.num_processes = 2

    def gather(self, x: Tensor) -> Tensor:
        return torch.cat([x, x])

    def of_main(self, value: Any) -> Any:
        return {name: -score for name, score in value.items()}


def test_all_processes_decide_by_the_scores_of_the_main_one(tmp_path):
    # The largest of its own scores.
    assert kept(follow(tmp_path, SCORES, processes=OneOfTwo())) == 1


@pytest.mark.slow
def test_other_seeds_give_other_weights(tmp_path, uninterrupted):
    # Without this the test above could pass on a run that does nothing.
    train(toy_config(tmp_path).model_copy(update={"seed": 1}))
    whole = weights(uninterrupted)
    other = weights(tmp_path)
    assert not any(torch.equal(whole[key], other[key]) for key in whole)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path, uninterrupted):
    before = weights(uninterrupted)
    with pytest.raises(ValueError, match="--resume"), open_run(toy_config(uninterrupted)):
        pass
    changed = toy_config(uninterrupted, kd_huber_c=0.5).model_copy(update={"resume": True})
    with pytest.raises(ValueError, match="train.kd_huber_c"), open_run(changed):
        pass
    assert all(torch.equal(before[k], v) for k, v in weights(uninterrupted).items())


def test_two_runs_cannot_share_a_folder(tmp_path):
    cfg = toy_config(tmp_path / "run")
    with open_run(cfg), pytest.raises(ValueError, match="another process"):
        with open_run(cfg.model_copy(update={"resume": True})):
            pass


def test_a_diverging_run_stops_and_keeps_its_checkpoint(tmp_path, monkeypatch):
    update = KnowledgeDistillation.update

    def poison(self, at):
        if at >= 4:
            self.states = self.states * float("nan")
        return update(self, at)

    monkeypatch.setattr(KnowledgeDistillation, "update", poison)
    with pytest.raises(FloatingPointError, match="not finite"):
        train(toy_config(tmp_path, kd_steps=40))
    found = load_newest_checkpoint(tmp_path)
    assert found is not None and all(bool(torch.isfinite(v).all()) for v in found[0].values())


def test_nothing_to_train_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="kd_steps"):
        train(toy_config(tmp_path, kd_steps=0, steps=0))


def test_only_the_newest_checkpoints_are_kept(uninterrupted):
    assert len(checkpoint_folders(uninterrupted)) == LoopConfig().keep_checkpoints


def test_trainer_reports_scores_of_every_stage(uninterrupted):
    rows = read_log(uninterrupted)
    assert {row["stage"] for row in rows} == {"kd", "dmd"}
    assert all("energy" in [r for r in rows if r["stage"] == stage][-1] for stage in ("kd", "dmd"))
    iterations = [row["iteration"] for row in rows]
    assert iterations == sorted(iterations) and isinstance(Trainer, type)


def test_a_stopwatch_adds_up_its_laps_and_leaves_out_what_a_restart_forgets(monkeypatch):
    wall = iter([0.0, 1.0, 10.0, 12.0])
    cpu = iter([0.0, 3.0, 30.0, 35.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(wall))
    monkeypatch.setattr("time.process_time", lambda: next(cpu))
    seconds = {"kd": 5.0}
    watch = Stopwatch(seconds, "kd")
    watch.lap()
    watch.restart()  # 1 -> 10 is somebody else's time
    watch.lap()
    assert seconds == {"kd": 5.0 + 1.0 + 2.0, "kd_cpu": 3.0 + 5.0}
