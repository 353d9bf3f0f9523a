"""Benchmarks: runs that take minutes and end in a table and a JSON file.

    python tools/bench.py teachers [--seeds 0 1 2] [--out runs/bench-teachers]
    python tools/bench.py backbone [--rounds 15] [--batches 1 64 256] [--groups "D4 D=256" ...]
        [--parts exact size speed] [--out runs/bench-backbone]
    python tools/bench.py quality [--cases fashion "ring auto" ...] [--rows "KD + DMD" ...]
        [--seeds 0 1 2] [--overrides train.steps=100 ...] [--out runs/bench-quality]
    python tools/bench.py step [--rounds 25] [--out runs/bench-step]
    python tools/bench.py trainer [--rounds 25] [--out runs/bench-trainer]
    python tools/bench.py threads [--rounds 3] [--out runs/bench-threads]
    python tools/bench.py loop [--layers 6] [--rounds 300] [--out runs/bench-loop]
    python tools/bench.py policy [--seeds 0] [--out runs/bench-policy]

- `teachers` distils networks that were trained on other paths, predictions and clocks, and compares
  their students with those of a native one.
- `backbone` holds the equivariant networks against their bars, beside dense ones of their width,
  torch's and, if it can be imported, symm-learning's.
- `quality` compares methods at equal budgets on tasks whose law is known and on images, the default
  recipe among them.
- `step` times an iteration of DMD2 beside one of NVIDIA's modelopt, if it can be imported.
- `trainer` holds what the training loop costs beyond forward, backward and optimiser against its
  bar.
- `threads` runs one thread beside all threads, and ways in which they wait, on a quiet machine and
  beside eight busy processes.
- `loop` times a decision of a student on one core beside its network, its teacher, onnxruntime and
  loading.
- `policy` distils a policy of LeRobot and compares its student with lerobot's own sampler.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import bench_backbone
import bench_loop
import bench_policy
import bench_quality
import bench_step
import bench_teachers
import bench_threads
import bench_trainer

ROOT = Path(__file__).parents[1]


def main() -> None:
    args = parse_arguments()
    if args.benchmark == "teachers":
        bench_teachers.run_teachers(args.seeds, args.out)
        return
    if args.benchmark == "quality":
        options = bench_quality.Options(args.seeds, tuple(args.rows), tuple(args.overrides))
        result = bench_quality.run_quality(args.cases, options, args.out)
    elif args.benchmark == "step":
        result = bench_step.run_step(args.rounds)
    elif args.benchmark == "trainer":
        result = bench_trainer.run_trainer(args.rounds)
    elif args.benchmark == "loop":
        result = bench_loop.run_loop(args.layers, args.rounds)
    elif args.benchmark == "policy":
        result = bench_policy.run_policy(args.seeds, args.out)
    elif args.benchmark == "threads":
        result = bench_threads.run_threads(args.rounds)
    else:
        result = bench_backbone.backbone(args.groups, args.batches, args.rounds, args.parts)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "bench.json"
    if args.benchmark == "quality" and file.exists():  # cases may be run one by one
        result = json.loads(file.read_text(encoding="utf-8")) | result
    file.write_text(json.dumps(result, indent=1), encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    for name in ("backbone", "teachers", "quality", "step", "trainer", "threads", "loop", "policy"):
        benchmark = benchmarks.add_parser(name)
        benchmark.add_argument("--out", type=Path, default=Path(f"runs/bench-{name}"))
        if name == "backbone":
            rounds = "pairs A-B of which a number is the median"
            configs = bench_backbone.CONFIGS
            parts = bench_backbone.PARTS
            benchmark.add_argument("--rounds", type=int, default=15, help=rounds)
            benchmark.add_argument("--batches", type=int, nargs="+", default=[1, 64, 256])
            benchmark.add_argument("--groups", nargs="+", default=list(configs), choices=configs)
            benchmark.add_argument("--parts", nargs="+", default=list(parts), choices=parts)
        if name == "quality":
            cases = bench_quality.CASES
            benchmark.add_argument("--cases", nargs="+", default=list(cases), choices=cases)
            rows = "only these rows of the cases, and no bars"
            benchmark.add_argument("--rows", nargs="+", default=[], help=rows)
            overrides = "key=value for every config; what a row sets itself wins"
            benchmark.add_argument("--overrides", nargs="+", default=[], help=overrides)
        if name in ("teachers", "quality"):
            benchmark.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        if name == "policy":
            benchmark.add_argument("--seeds", type=int, nargs="+", default=[0])
        if name in ("step", "trainer"):
            benchmark.add_argument("--rounds", type=int, default=25)
        if name == "loop":
            benchmark.add_argument("--layers", type=int, default=6, help="of the student")
            benchmark.add_argument("--rounds", type=int, default=300)
        if name == "threads":
            benchmark.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
