"""Distil a teacher into a student that generates in 1-4 network calls.

    accelerate launch recipes/distill.py [config.yaml] [key.sub=value ...] [--resume] [--dry-run]
    [--help]

Without a config: the embedded task `weave` with the teacher in recipes/teachers/weave, by KD and
then DMD2, of which the better student is kept; minutes on a laptop CPU. The run folder
(run_dir=..., default runs/<name>) holds config.yaml, metrics.jsonl, checkpoints/, student/ and
report/.
"""

from __future__ import annotations

import os

# Before torch is loaded: threads that wait for work sleep, and leave the cores to other programs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pathlib import Path

from fastgen.config import DistillConfig
from fastgen.distillation import distill
from fastgen.jobs.command_line import parse_command_line, user_errors
from fastgen.jobs.planning import plan_distillation
from fastgen.training.launching import is_first_process

DEFAULT = Path(__file__).parent / "configs" / "weave.yaml"


def main() -> None:
    with user_errors(resumable=True):
        command = parse_command_line(DistillConfig, default=DEFAULT, doc=__doc__)
        if command.dry_run:
            if is_first_process():
                print(plan_distillation(command.config))
        else:
            distill(command.config)


if __name__ == "__main__":
    main()
