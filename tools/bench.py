"""Benchmarks: runs that take minutes and end in a table and a JSON file.

    python tools/bench.py ring [--seeds 0 1 2] [--steps 1 2 4] [--out runs/bench-ring] [key.sub=value ...]
    python tools/bench.py teachers [--seeds 0 1 2] [--out runs/bench-teachers]
    python tools/bench.py backbone [--rounds 15] [--batches 1 64 256] [--groups "D4 D=256" ...]
        [--parts exact size speed] [--out runs/bench-backbone]
    python tools/bench.py quality [--cases modes "weak modes" ...] [--seeds 0 1 2] [--out runs/bench-quality]
    python tools/bench.py step [--rounds 25] [--out runs/bench-step]
    python tools/bench.py trainer [--rounds 25] [--out runs/bench-trainer]

`ring` distils the shipped teacher with each seed and number of student steps by the default recipe, and sets the
medians over the seeds against the bars. `teachers` distils networks that were trained on other paths, predictions and
clocks, and sets their students beside those of a native one. `backbone` sets the equivariant networks against their
bars, beside dense ones of their width, torch's and, if it can be imported, symm-learning's. `quality` compares methods
on tasks whose law is known. `step` times an iteration of DMD2 beside one of NVIDIA's modelopt, if it can be imported.
`trainer` sets what the training loop costs beyond forward, backward and optimiser against its bar.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bench_backbone
import bench_quality
import bench_step
import bench_teachers
import bench_trainer

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    of_ring = benchmarks.add_parser("ring")
    of_ring.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    of_ring.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4])
    of_ring.add_argument("--out", type=Path, default=Path("runs/bench-ring"))
    of_ring.add_argument("overrides", nargs="*", help="key.sub=value, for every run")
    of_backbone = benchmarks.add_parser("backbone")
    of_backbone.add_argument("--rounds", type=int, default=15, help="pairs A-B of which a number is the median")
    of_backbone.add_argument("--batches", type=int, nargs="+", default=[1, 64, 256])
    of_backbone.add_argument(
        "--groups", nargs="+", default=list(bench_backbone.CONFIGS), choices=bench_backbone.CONFIGS
    )
    of_backbone.add_argument("--parts", nargs="+", default=list(bench_backbone.PARTS), choices=bench_backbone.PARTS)
    of_backbone.add_argument("--out", type=Path, default=Path("runs/bench-backbone"))
    of_teachers = benchmarks.add_parser("teachers")
    of_teachers.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    of_teachers.add_argument("--out", type=Path, default=Path("runs/bench-teachers"))
    of_quality = benchmarks.add_parser("quality")
    of_quality.add_argument("--cases", nargs="+", default=list(bench_quality.CASES), choices=bench_quality.CASES)
    of_quality.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    of_quality.add_argument("--out", type=Path, default=Path("runs/bench-quality"))
    of_step = benchmarks.add_parser("step")
    of_step.add_argument("--rounds", type=int, default=25)
    of_step.add_argument("--out", type=Path, default=Path("runs/bench-step"))
    of_trainer = benchmarks.add_parser("trainer")
    of_trainer.add_argument("--rounds", type=int, default=25)
    of_trainer.add_argument("--out", type=Path, default=Path("runs/bench-trainer"))
    words = sys.argv[1:]
    if words and words[0] == "ring":  # its overrides may stand between its options, which subparsers can't read
        args = of_ring.parse_intermixed_args(words[1:])
        ring(args.out, args.steps, args.seeds, args.overrides)
        return
    args = parser.parse_args(words)
    if args.benchmark == "teachers":
        bench_teachers.run_teachers(args.seeds, args.out)
        return
    if args.benchmark == "quality":
        result = bench_quality.run_quality(args.cases, args.seeds, args.out)
    elif args.benchmark == "step":
        result = bench_step.run_step(args.rounds)
    elif args.benchmark == "trainer":
        result = bench_trainer.run_trainer(args.rounds)
    else:
        result = bench_backbone.backbone(args.groups, args.batches, args.rounds, args.parts)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "bench.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


def ring(out_dir: Path, steps: list[int], seeds: list[int], overrides: list[str]) -> None:
    runs = {(k, s): distil(out_dir / f"steps{k}-seed{s}", k, s, overrides) for k in steps for s in seeds}
    rows = {}
    for k in steps:
        reports = [runs[k, s] for s in seeds]
        for method in ("kd", "dmd", "student"):
            if all(method in r for r in reports):
                rows[f"{k} steps, {method}"] = medians([r[method][str(k)] for r in reports])
        rows[f"{k} steps, seconds"] = medians([{**r["seconds"], "wall": r["wall"]} for r in reports])
    teacher, floor = runs[steps[0], seeds[0]]["teacher"], runs[steps[0], seeds[0]]["floor"]
    checks = {
        name: check for k in steps for name, check in bars(k, rows[f"{k} steps, student"], teacher, floor).items()
    }
    selected = {f"steps {k}, seed {s}": r["selected"] for (k, s), r in runs.items()}
    out = {"rows": rows, "teacher": teacher, "floor": floor, "selected": selected, "checks": checks}
    (out_dir / "bench.json").write_text(json.dumps(out, indent=1), encoding="utf-8")
    for name, row in rows.items():
        print(f"{name:<24}" + "  ".join(f"{key} {value:.4f}" for key, value in row.items()))
    for name, check in checks.items():
        print(f"{'met   ' if check['met'] else 'MISSED'} {name}: {check['got']:.4f} against {check['bar']:.4f}")


def distil(run_dir: Path, steps: int, seed: int, overrides: list[str]) -> dict[str, Any]:
    """One run of the default recipe, kept if it is there already; its report with the wall seconds."""
    report, wall = run_dir / "report" / "report.json", run_dir / "wall.json"
    if not wall.exists():
        started = time.perf_counter()
        command = [sys.executable, str(ROOT / "recipes" / "distill.py"), f"run_dir={run_dir}", f"seed={seed}"]
        # What an earlier call was stopped in goes on.
        resume = ["--resume"] if (run_dir / "config.yaml").exists() else []
        subprocess.run([*command, f"dmd.student_steps={steps}", *overrides, *resume], check=True)
        wall.write_text(json.dumps(time.perf_counter() - started), encoding="utf-8")
    return {**json.loads(report.read_text(encoding="utf-8")), "wall": json.loads(wall.read_text(encoding="utf-8"))}


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    """Median of every score."""
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def bars(
    steps: int, row: dict[str, float], teacher: dict[str, Any], floor: dict[str, float]
) -> dict[str, dict[str, Any]]:
    """What a student of `steps` calls must reach: name -> {got, bar, met}."""
    full = teacher["100"]
    at_least: dict[str, tuple[float, float]] = {}
    at_most: dict[str, tuple[float, float]] = {}
    if steps == 1:
        at_least["success"] = (row["success"], full["success"] - 0.01)
        at_least["success near opposition"] = (row["success_near"], full["success_near"] - 0.04)
        at_most["mode error"] = (row["mode_error"], floor["mode_error_floor"] + 0.015)
        at_most["spread"] = (row["spread"], 1.25)
        at_most["spread near opposition"] = (row["spread_near"], 1.25)
        at_most["energy ratio"] = (row["energy_ratio"], teacher["ab2-4"]["energy_ratio"] + 0.05)
    else:
        bar = teacher["ab2-4"]["success_near"] if steps == 2 else teacher["ab2-8"]["success_near"] - 0.005
        at_least["success near opposition"] = (row["success_near"], bar)
        at_most["|clearance - 1|"] = (abs(row["clearance"] - 1.0), 0.03)
    checks = {name: {"got": got, "bar": bar, "met": got >= bar} for name, (got, bar) in at_least.items()}
    checks |= {name: {"got": got, "bar": bar, "met": got <= bar} for name, (got, bar) in at_most.items()}
    return {f"{steps} step{'s' * (steps > 1)}, {name}": check for name, check in checks.items()}


if __name__ == "__main__":
    main()
