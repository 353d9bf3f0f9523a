"""A run can be stopped anywhere: resumed equals uninterrupted, bit for bit; damage is named."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastgen.distillation import distill
from fastgen.methods.kd import KnowledgeDistillation
from fastgen.methods.matching import DistributionMatching
from fastgen.records.checkpoints import checkpoint_folders, load_newest_checkpoint, save_checkpoint
from fastgen.records.log import read_log, timeless
from support.runs import SCORES, Counter, follow, train, weights
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


@pytest.mark.slow
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


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.slow
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


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.slow
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


@pytest.mark.slow
def test_a_damaged_checkpoint_that_is_passed_again_is_in_nobodys_way(tmp_path, uninterrupted):
    with plug_pulled(DistributionMatching, 7):
        train(toy_config(tmp_path))
    newest = checkpoint_folders(tmp_path)[-1]
    (newest / "notes.txt").write_bytes(b"x")
    train(toy_config(tmp_path).model_copy(update={"resume": True}))
    assert all(torch.equal(v, weights(tmp_path)[k]) for k, v in weights(uninterrupted).items())
    assert (newest.parent / newest.name.replace("step", "damaged") / "notes.txt").exists()


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


def test_a_resumed_run_knows_the_scores_and_seconds_of_what_was_done(tmp_path):
    whole = follow(tmp_path, SCORES, stages=[Counter("kd", 3), Counter("dmd", 3)])
    again = follow(tmp_path, SCORES, stages=[Counter("kd", 3), Counter("dmd", 3)], resume=True)
    assert (
        again.state.scores == whole.state.scores == {"kd": {"energy": 0.6}, "dmd": {"energy": 0.6}}
    )
    assert again.seconds == whole.seconds and whole.seconds["dmd"] > 0


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
