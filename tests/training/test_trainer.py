"""A run can be stopped anywhere: resumed equals uninterrupted, bit for bit, and nothing is
overwritten."""

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.tensor_files import load_tensors
from fastgen._core.timing import Stopwatch
from fastgen.config import LoopConfig
from fastgen.distillation import distill
from fastgen.methods.kd import KnowledgeDistillation
from fastgen.methods.matching import DistributionMatching
from fastgen.records.checkpoints import checkpoint_folders, load_newest_checkpoint, save_checkpoint
from fastgen.records.folder import open_run
from fastgen.records.log import read_log, timeless
from fastgen.training.processes import OneProcess
from fastgen.training.trainer import Trainer
from support.runs import Counter, follow, train, weights
from support.toy import Pulled, ToyTask, ToyTeacher, plug_pulled, toy_config, with_everything


@contextmanager
def changed_checkpoint(run_dir: Path) -> Iterator[tuple[dict[str, Tensor], dict]]:
    """Tensors and JSON of the newest checkpoint, to change; it is written again with checksums that
    are right."""
    newest = checkpoint_folders(run_dir)[-1]
    found = load_newest_checkpoint(run_dir)
    assert found is not None
    yield found
    save_checkpoint(run_dir, int(newest.name.removeprefix("step_")), *found, keep=9)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole")
    train(toy_config(run_dir))
    return run_dir


@pytest.mark.parametrize(
    ("stage", "step"),
    [
        (KnowledgeDistillation, 1),
        (KnowledgeDistillation, 5),
        (DistributionMatching, 2),
        (DistributionMatching, 7),
    ],
)
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, uninterrupted, stage, step):
    with plug_pulled(stage, step):
        train(toy_config(tmp_path))
    train(toy_config(tmp_path).model_copy(update={"resume": True}))
    whole = weights(uninterrupted)
    resumed = weights(tmp_path)
    assert whole.keys() == resumed.keys() and any(key.startswith("dmd") for key in whole)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert [*map(timeless, read_log(tmp_path))] == [*map(timeless, read_log(uninterrupted))]


class Dropping(ToyTeacher):
    """A network that drops half of its inputs where it learns."""

    def forward(self, x_t: Tensor, t: Tensor | float, cond: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x_t, 0.5, torch.is_grad_enabled()), t, cond)


@pytest.mark.parametrize(("stage", "step"), [(KnowledgeDistillation, 5), (DistributionMatching, 7)])
def test_dropout_is_drawn_again_as_it_was(tmp_path, stage, step):
    def dropped(name: str, resume: bool = False) -> dict[str, Tensor]:
        cfg = toy_config(tmp_path / name).model_copy(update={"resume": resume})
        distill(cfg, teacher=Dropping(), task=ToyTask())
        return weights(tmp_path / name)

    torch.manual_seed(0)
    whole = dropped("whole")
    torch.manual_seed(1)
    with plug_pulled(stage, step):
        dropped("killed")
    torch.manual_seed(2)
    again = dropped("killed", resume=True)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


@pytest.mark.parametrize("what", ["data", "teacher"])
def test_a_run_does_not_go_on_with_other_data_or_another_teacher(tmp_path, what):
    with plug_pulled(KnowledgeDistillation, 4):
        distill(toy_config(tmp_path), teacher=ToyTeacher(), task=ToyTask())
    task = ToyTask()
    teacher = ToyTeacher()
    if what == "data":
        task.train.X[:] *= 3.0
    else:
        nn.init.normal_(teacher.linear.bias)
    cfg = toy_config(tmp_path).model_copy(update={"resume": True})
    with pytest.raises(ValueError, match=f"begun with another {what}: resume with its own"):
        distill(cfg, teacher=teacher, task=task)
    distill(cfg, teacher=ToyTeacher(), task=ToyTask())


def test_a_damaged_checkpoint_that_is_passed_again_is_in_nobodys_way(tmp_path, uninterrupted):
    with plug_pulled(DistributionMatching, 7):
        train(toy_config(tmp_path))
    newest = checkpoint_folders(tmp_path)[-1]
    (newest / "notes.txt").write_bytes(b"x")
    train(toy_config(tmp_path).model_copy(update={"resume": True}))
    assert all(torch.equal(v, weights(tmp_path)[k]) for k, v in weights(uninterrupted).items())
    assert (newest.parent / newest.name.replace("step", "damaged") / "notes.txt").exists()


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


def test_a_resume_of_nothing_says_so(tmp_path, capsys):
    follow(tmp_path, SCORES, resume=True)
    assert (
        f"nothing to resume in {tmp_path}: the run starts at its beginning"
        in capsys.readouterr().err
    )
    follow(tmp_path, SCORES, resume=True)
    assert "nothing to resume" not in capsys.readouterr().err


def test_processes_that_find_different_checkpoints_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "fastgen.training.resuming.gather_objects", lambda value: [value, (1, 2, 3)]
    )
    with pytest.raises(ValueError, match="expected all processes to find the same checkpoint in"):
        follow(tmp_path, SCORES, resume=True)


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


def test_a_resumed_run_knows_the_scores_and_seconds_of_what_was_done(tmp_path):
    whole = follow(tmp_path, SCORES, stages=[Counter("kd", 3), Counter("dmd", 3)])
    again = follow(tmp_path, SCORES, stages=[Counter("kd", 3), Counter("dmd", 3)], resume=True)
    assert (
        again.state.scores == whole.state.scores == {"kd": {"energy": 0.6}, "dmd": {"energy": 0.6}}
    )
    assert again.seconds == whole.seconds and whole.seconds["dmd"] > 0


def test_other_seeds_give_other_weights(tmp_path, uninterrupted):
    # Without this the test above could pass on a run that does nothing.
    train(toy_config(tmp_path).model_copy(update={"seed": 1}))
    whole = weights(uninterrupted)
    other = weights(tmp_path)
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


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, uninterrupted, caplog):
    with plug_pulled(DistributionMatching, 7):
        train(toy_config(tmp_path))
    newest = checkpoint_folders(tmp_path)[-1] / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-3])
    train(toy_config(tmp_path).model_copy(update={"resume": True}))
    assert "damaged" in caplog.text
    assert all(torch.equal(v, weights(tmp_path)[k]) for k, v in weights(uninterrupted).items())


def test_a_checkpoint_of_another_version_is_refused_by_what_it_lacks(tmp_path):
    with pytest.raises(Pulled):
        follow(tmp_path, SCORES, pull_at=6)
    with changed_checkpoint(tmp_path) as (_, meta):
        del meta["progress"], meta["seconds"]
    with pytest.raises(
        ValueError, match="got one of another, without seconds, progress; go on with the version"
    ):
        follow(tmp_path, SCORES, resume=True)


def spoil(tensors: dict[str, Tensor], meta: dict, what: str) -> None:
    """Take out of a checkpoint what `what` names: a prefix of tensors, or a key of the JSON after
    "meta."."""
    if what.startswith("meta."):
        *groups, last = what.split(".")[1:]
        for key in groups:
            meta = meta[key]
        del meta[last]
        return
    names = [name for name in tensors if name.startswith(f"{what}.") or name == what]
    assert names
    for name in names:
        del tensors[name]


PARTS = [
    *(
        "student",
        "fake_score",
        "discriminator",
        "best",
        "student.ema",
        "student.weights",
        "fake_score.optimizer",
    ),
    *(
        "student.optimizer.0",
        "discriminator.optimizer",
        "fake_score.optimizer.1.exp_avg",
        "student.skipped",
    ),
    *("meta.position", "meta.step", "meta.scores", "meta.progress.dmd", "meta.progress.dmd.stale"),
    *("meta.progress.dmd.best", "meta.progress.kd.best_step", "meta.iteration"),
]


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory) -> Path:
    """A run with everything on, of which the plug was pulled in DMD."""
    run_dir = tmp_path_factory.mktemp("broken-off")
    with plug_pulled(DistributionMatching, 7):
        train(with_everything(run_dir, evaluate_every=1))
    return run_dir


@pytest.mark.parametrize("what", PARTS)
def test_a_checkpoint_that_lacks_a_part_is_an_error_that_names_it(tmp_path, broken_off, what):
    shutil.copytree(broken_off, tmp_path / "run")
    with changed_checkpoint(tmp_path / "run") as (tensors, meta):
        spoil(tensors, meta, what)
    cfg = with_everything(tmp_path / "run", evaluate_every=1).model_copy(update={"resume": True})
    with pytest.raises(ValueError) as raised:
        train(cfg)
    for word in what.removeprefix("meta.").split("."):
        assert word.replace("optimizer", "optimiser") in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("file", ["stages/kd.best.safetensors", "pairs.safetensors"])
def test_what_lies_beside_the_checkpoints_is_checked_too(tmp_path, broken_off, file):
    shutil.copytree(broken_off, tmp_path / "run")
    data = bytearray((tmp_path / "run" / file).read_bytes())
    data[-2] ^= 1
    (tmp_path / "run" / file).write_bytes(data)
    with pytest.raises(ValueError, match=f"cannot read .*{file}: it does not match its checksum"):
        train(
            with_everything(tmp_path / "run", evaluate_every=1).model_copy(update={"resume": True})
        )


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


# ---- The best, patience, warnings ----------------------------------------------------------------

NAN = float("nan")


def kept(trainer: Trainer, name: str = "dmd") -> int:
    """The number of updates after which the result of a stage was taken."""
    return int(trainer.result(name)["weight"])


#          start  1    2    3    4    5    6    7    8
SCORES = [0.5, 0.9, 0.8, 0.6, 0.7, 0.9, 0.8, 0.9, 0.7]


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
    assert [stage.updates for stage in stages] == [5, 5] and kept(trainer, "kd") == kept(
        trainer, "dmd"
    ) == 3
    rows = [row for row in read_log(tmp_path) if "stopped_early" in row]
    assert [(row["stage"], row["step"]) for row in rows] == [("kd", 5), ("dmd", 5)]
    said = "dmd update 5: stopped early, energy was best at update 3: 0.6; validations since: 2"
    assert rows[1]["stopped_early"] == said and said in capsys.readouterr().err
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
    assert waiting[0].updates == 8


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
