"""Whether two states of the code make the same runs: a record of what small runs computed, and a
comparison.

    python tools/same_runs.py record before.json [case ...]
    python tools/same_runs.py compare before.json [case ...]

A record holds for each case the sha256 of the exported weights, every number of `report.json` but
those of the clock, and the numbers of the plan that `--dry-run` prints. Budgets are tiny: what is
compared is whether the very same numbers come out, bit for bit, not how good they are. Records hold
for the machine and the torch they were made with.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"

TINY = (
    "train.kd_steps=12 train.kd_pairs=96 train.kd_teacher_calls=4 train.batch_size=24 "
    "train.log_every=4 train.evaluate_every=6 train.checkpoint_every=5 train.threads=1 "
    "dmd.fake_score_warmup_steps=3 dmd.gan_disc_warmup_steps=2"
).split()
LADD = "method=ladd dmd.gan_features=sample dmd.gan_r1_reg_weight=0.1 train.steps=8".split()
RATIO = (
    "dmd.f_divergence=js dmd.gan_t.min_t=0.02 dmd.gan_t.max_t=0.98 "
    "train.fake_score_optimizer.lr=0.001"
).split()
REAL = (
    "dmd.real_data_weight=0.5 dmd.kd_weight=0.5 dmd.gan_loss_weight_gen=0.1 "
    "dmd.vsd_alpha_factor=true"
).split()
GUIDED = (
    "teacher.null_cond=zeros dmd.guidance_scale=2 teacher.calls=[2] teacher.ab2_calls=[4]".split()
)

# Name -> (processes, recipe, arguments).
CASES: dict[str, tuple[int, str, list[str]]] = {
    "ring kd": (1, "distill.py", ["configs/ring-kd.yaml", *TINY]),
    "ring dmd2": (
        1,
        "distill.py",
        ["configs/ring-kd.yaml", *TINY, "train.steps=8", "dmd.student_steps=4"],
    ),
    "ring dmd2, 2 processes": (
        2,
        "distill.py",
        ["configs/ring-kd.yaml", *TINY, "train.steps=8", "dmd.student_steps=2"],
    ),
    "ring guided": (1, "distill.py", ["configs/ring-kd.yaml", *TINY, *GUIDED, "train.steps=4"]),
    "modes ladd": (1, "distill.py", ["configs/modes.yaml", *TINY, *LADD]),
    "modes dmd2": (1, "distill.py", ["configs/modes.yaml", *TINY, *RATIO, "train.steps=8"]),
    "two_rings consistency": (
        1,
        "distill.py",
        [
            "configs/two-rings.yaml",
            *TINY,
            "method=consistency",
            "train.steps=8",
            "dmd.student_steps=2",
        ],
    ),
    "two_rings dmd2": (1, "distill.py", ["configs/two-rings.yaml", *TINY, *REAL, "train.steps=8"]),
    "modes teacher": (
        1,
        "train_teacher.py",
        [
            "configs/modes-teacher.yaml",
            "train.steps=12",
            "train.batch_size=24",
            "train.threads=1",
            "calls=[2]",
        ]
        + ["ab2_calls=[4]"],
    ),
}
# What tells how fast a run was, and not what it computed.
CLOCKED = ("seconds", "latency")


def command(case: str, *more: str) -> list[str]:
    """The command of `case`, its config named from the root of the repository."""
    processes, recipe, arguments = CASES[case]
    config = str(RECIPES / arguments[0])
    launcher = [sys.executable]
    if processes > 1:
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            str(processes),
        ]
    return [*launcher, str(RECIPES / recipe), config, *arguments[1:], *more]


def call(arguments: list[str], folder: Path) -> str:
    """Standard output of a command that must succeed."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HOME": os.devnull,
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(arguments)}\nended with {done.returncode}:\n{done.stderr[-3000:]}"
        )
    return done.stdout


def numbers_of_plan(text: str) -> list[str]:
    """Numbers of the tables of memory and of the notes below the printed config, in order."""
    tables = [
        line for line in text.splitlines() if "|" in line or " MB" in line or "process" in line
    ]
    return re.findall(r"\d[\d.,]*", "\n".join(tables))


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Numbers and words of a nested report by the path to them, without those of the clock."""
    if isinstance(value, dict):
        inner = {f"{name}/{key}": part for key, part in value.items() if key not in CLOCKED}
    elif isinstance(value, list):
        inner = {f"{name}/{i}": part for i, part in enumerate(value)}
    else:
        return {name: value}
    return {path: leaf for key, part in inner.items() for path, leaf in leaves(part, key).items()}


def record(case: str) -> dict[str, Any]:
    """What `case` computes: hashes of weights, numbers of the report, numbers of the plan."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        call(command(case, f"run_dir={run_dir}"), Path(folder))
        weights = sorted(run_dir.glob("student/*.safetensors")) + sorted(
            run_dir.glob("teacher/*.safetensors")
        )
        reports = [*run_dir.glob("report/report.json"), *run_dir.glob("teacher/scores.json")]
        plan = (
            call(command(case, "run_dir=plan", "--dry-run"), Path(folder))
            if CASES[case][0] == 1
            else ""
        )
        return {
            "weights": {
                path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in weights
            },
            "report": {
                k: v for path in reports for k, v in leaves(json.loads(path.read_text())).items()
            },
            "plan": numbers_of_plan(plan),
        }


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1] not in ("record", "compare"):
        raise SystemExit(__doc__)
    file = Path(sys.argv[2])
    cases = sys.argv[3:] or list(CASES)
    if sys.argv[1] == "record":
        found = {}
        for case in cases:
            found[case] = record(case)
            print(f"{case}: {len(found[case]['report'])} numbers", flush=True)
        file.write_text(json.dumps(found, indent=1))
        return
    before = json.loads(file.read_text())
    differ = 0
    for case in cases:
        now = record(case)
        changed = [
            f"  {part} {name}: {before[case][part].get(name)} -> {now[part].get(name)}"
            for part in ("weights", "report")
            for name in sorted(before[case][part].keys() | now[part].keys())
            if before[case][part].get(name) != now[part].get(name)
        ]
        if before[case]["plan"] != now["plan"]:
            changed.append(f"  plan: {before[case]['plan']} -> {now['plan']}")
        differ += bool(changed)
        print(
            f"{case}: {'the same' if not changed else 'DIFFERENT'}",
            *changed[:20],
            sep="\n",
            flush=True,
        )
    raise SystemExit(1 if differ else 0)


if __name__ == "__main__":
    main()
