"""A run can be stopped anywhere: resumed equals uninterrupted, bit for bit, and nothing is overwritten."""

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy import ToyTask, ToyTeacher, toy_config

from fastgen.checkpoint import checkpoint_folders, load_newest_checkpoint
from fastgen.config import LoopConfig
from fastgen.distillation import Distillation
from fastgen.runs import claim_run, open_run
from fastgen.stages import DistributionMatching, KnowledgeDistillation
from fastgen.trainer import Stopwatch, Trainer, read_log, start_accelerator


def train(cfg) -> Distillation:
    with open_run(cfg) as run_dir:
        job = Distillation(cfg, run_dir, start_accelerator(1), teacher=ToyTeacher(), task=ToyTask())
        claim_run(run_dir, cfg)
        job.train()
    return job


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return {f"{f.stem}.{k}": v for f in sorted((run_dir / "stages").iterdir()) for k, v in load_file(f).items()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole")
    train(toy_config(run_dir))
    return run_dir


class Pulled(Exception):
    """The plug."""


@pytest.mark.parametrize(
    ("stage", "step"),
    [(KnowledgeDistillation, 1), (KnowledgeDistillation, 5), (DistributionMatching, 2), (DistributionMatching, 7)],
)
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, uninterrupted, monkeypatch, stage, step):
    update = stage.update

    def pull(self, at):
        if at == step:
            raise Pulled
        return update(self, at)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "update", pull)
        with pytest.raises(Pulled):
            train(toy_config(tmp_path))
    train(toy_config(tmp_path).model_copy(update={"resume": True}))
    whole, resumed = weights(uninterrupted), weights(tmp_path)
    assert whole.keys() == resumed.keys() and any(key.startswith("dmd") for key in whole)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    timeless = [{k: v for k, v in row.items() if k != "seconds"} for row in read_log(tmp_path)]
    assert timeless == [{k: v for k, v in row.items() if k != "seconds"} for row in read_log(uninterrupted)]


def test_other_seeds_give_other_weights(tmp_path, uninterrupted):
    # Without this the test above could pass on a run that does nothing.
    train(toy_config(tmp_path).model_copy(update={"seed": 1}))
    whole, other = weights(uninterrupted), weights(tmp_path)
    assert not any(torch.equal(whole[key], other[key]) for key in whole)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, uninterrupted, monkeypatch):
    update = KnowledgeDistillation.update

    def interrupt(self, at):
        if at == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, at)

    with monkeypatch.context() as patch:
        patch.setattr(KnowledgeDistillation, "update", interrupt)
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            train(toy_config(tmp_path))
    found = load_newest_checkpoint(tmp_path)
    assert found is not None and found[1]["step"] == 5
    train(toy_config(tmp_path).model_copy(update={"resume": True}))
    assert all(torch.equal(v, weights(tmp_path)[k]) for k, v in weights(uninterrupted).items())


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, uninterrupted, monkeypatch, caplog):
    update = DistributionMatching.update

    def pull(self, at):
        if at == 7:
            raise Pulled
        return update(self, at)

    with monkeypatch.context() as patch:
        patch.setattr(DistributionMatching, "update", pull)
        with pytest.raises(Pulled):
            train(toy_config(tmp_path))
    newest = checkpoint_folders(tmp_path)[-1] / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-3])
    train(toy_config(tmp_path).model_copy(update={"resume": True}))
    assert "damaged" in caplog.text
    assert all(torch.equal(v, weights(tmp_path)[k]) for k, v in weights(uninterrupted).items())


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
    wall, cpu = iter([0.0, 1.0, 10.0, 12.0]), iter([0.0, 3.0, 30.0, 35.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(wall))
    monkeypatch.setattr("time.process_time", lambda: next(cpu))
    seconds = {"kd": 5.0}
    watch = Stopwatch(seconds, "kd")
    watch.lap()
    watch.restart()  # 1 -> 10 is somebody else's time
    watch.lap()
    assert seconds == {"kd": 5.0 + 1.0 + 2.0, "kd_cpu": 3.0 + 5.0}
