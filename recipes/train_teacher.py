"""Train a teacher by flow matching, on the embedded tasks or on your trajectories.

    accelerate launch recipes/train_teacher.py [config.yaml] [key.sub=value ...] [--resume]
    [--dry-run] [--help]

Without a config: the D4-equivariant teacher of the task `ring`, recipes/configs/ring-teacher.yaml.
The run folder (run_dir=..., default runs/<name>) holds config.yaml, metrics.jsonl, checkpoints/ and
teacher/ (model.safetensors, config.json, scores.json).
"""

from __future__ import annotations

import os

# Before torch is loaded: threads that wait for work sleep, and leave the cores to other programs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pathlib import Path

from fastgen.config import TrainTeacherConfig
from fastgen.config.files import dump_yaml
from fastgen.jobs.command_line import parse_command_line, user_errors
from fastgen.jobs.planning import plan_teacher
from fastgen.pretraining import train_teacher
from fastgen.training.launching import is_first_process

DEFAULT = Path(__file__).parent / "configs" / "ring-teacher.yaml"


def main() -> None:
    with user_errors(resumable=True):
        command = parse_command_line(TrainTeacherConfig, default=DEFAULT, doc=__doc__)
        if command.dry_run:
            if is_first_process():
                print(dump_yaml(command.config) + plan_teacher(command.config))
        else:
            train_teacher(command.config)


if __name__ == "__main__":
    main()
