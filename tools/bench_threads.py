"""CPU threads on a quiet and on a busy machine: training and sampling with one thread or all, whose
threads wait for work actively or passively.

Threads of OpenMP that wait actively spin for milliseconds before they sleep. Where other programs
want the cores, they take the time that the thread they wait for would need. How they wait is read
from the environment when torch is loaded, so that each number here is of a process of its own. The
processes of a round follow each other, so that what else the machine does meets all of them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench_measures import Step, training_step

BUSY_PROCESSES = 8
WIDTH = 96
# (width of the network, rows of an update); the products of an update grow with both.
UPDATES = ((96, 128), (96, 512), (192, 128), (192, 512))
SECONDS = 2.0
WAITS: dict[str, dict[str, str]] = {
    "as OpenMP chooses": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
CALLS = (1, 16)  # rows
MEASURES = (
    *(f"update, width {width}, {rows} rows" for width, rows in UPDATES),
    *(f"call for {rows}" for rows in CALLS),
)


def run_threads(rounds: int) -> dict[str, Any]:
    """Milliseconds of an update and of a network call, by load, way of waiting and threads."""
    cores = len(os.sched_getaffinity(0))
    variants = [(wait, threads) for wait in WAITS for threads in (1, cores)]
    result: dict[str, Any] = {}
    for load in (0, BUSY_PROCESSES):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(load)]
        try:
            measured = [{variant: measure(*variant) for variant in variants} for _ in range(rounds)]
        finally:
            for process in busy:
                process.kill()
        result[f"{load} busy processes"] = medians_of(measured, load)
    return result


def measure(wait: str, threads: int) -> dict[str, float]:
    """Milliseconds of the measures, in a new process."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, __file__, str(threads)],
        env=environment | WAITS[wait],
        capture_output=True,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def medians_of(
    measured: Sequence[dict[tuple[str, int], dict[str, float]]], load: int
) -> dict[str, Any]:
    """Print and return the medians over the rounds."""
    print(f"\n{load} busy processes, ms: {', '.join(MEASURES)}")
    medians = {}
    for variant in measured[0]:
        wait, threads = variant
        values = {
            name: statistics.median(of_round[variant][name] for of_round in measured)
            for name in MEASURES
        }
        medians[f"{wait}, {threads}"] = values
        shown = " ".join(f"{value:9.2f}" for value in values.values())
        print(f"{wait:>18}, {threads} threads {shown}", flush=True)
    return medians


def time_of(step: Step) -> float:
    """Milliseconds of a step, the mean over some seconds."""
    for _ in range(2):
        step()
    started = time.perf_counter()
    steps = 0
    while time.perf_counter() - started < SECONDS:
        step()
        steps += 1
    return 1000.0 * (time.perf_counter() - started) / steps


def main(threads: int) -> None:
    """Measure in this process."""
    import torch

    from bench_step import network

    torch.set_num_threads(threads)

    def arguments(rows: int) -> tuple[Any, ...]:
        sizes = ((rows, 4, 8), (rows,), (rows, 2, 2))
        return tuple(torch.rand(size) for size in sizes)

    def update(width: int, rows: int) -> Step:
        return training_step(network(width, 0), arguments(rows))

    net = network(WIDTH, 0).eval()

    def call(rows: int) -> Callable[[], Any]:
        given = arguments(rows)

        def step() -> None:
            with torch.no_grad():
                net(*given)

        return step

    values = [time_of(update(*sizes)) for sizes in UPDATES]
    values += [time_of(call(rows)) for rows in CALLS]
    print(json.dumps(dict(zip(MEASURES, values, strict=True))))


if __name__ == "__main__":
    main(int(sys.argv[1]))
