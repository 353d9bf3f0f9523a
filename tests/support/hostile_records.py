"""The files that a run reads back of itself, for `hostile`: log, state, manifest, origin, scores.

Their checksums, where they have some, are made to agree: what is believed has to be sound, and a
state that is gone on from has to stand where the good one stood.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from fastgen._core.tensor_files import save_tensors, sha256
from fastgen.config.training import LoopConfig
from fastgen.jobs.checks import stored_scores
from fastgen.records.checkpoints import checkpoint_folders, load_newest_checkpoint, save_checkpoint
from fastgen.records.log import RunLog, numbers, read_log
from fastgen.records.origin import check_origin, fingerprint, run_identity, write_origin
from fastgen.report.curves import diagnostic_curves, training_curves
from fastgen.training.processes import OneProcess
from fastgen.training.resuming import RunFiles
from fastgen.training.run_state import RunState
from fastgen.training.validation import Progress
from support.folders import mark_as_export
from support.hostile import Mutation, instead_of, of_any_file
from support.hostile_formats import VALUES, altered, of_json
from support.toy import toy_config

__all__ = ["KINDS"]

STAGES = ("kd", "dmd")
PLACE = (1, 3, 23)  # stages done, updates of the next, updates in all
RESULTS = {"primary": "energy", "teacher": {"1": {"energy": 0.5}}}
DATA = torch.arange(12.0).reshape(4, 3)
ORIGIN = {
    "data": {"what a network sees": fingerprint([DATA]), "score": "energy"},
    "mixed precision": "no",
}
Mutations = Iterator[Mutation]


def writer(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def as_law(mutations: Mutations, law: str, *names: str) -> Mutations:
    """The mutations, those that are called so under another law."""
    for mutation in mutations:
        if any(mutation.name.endswith(name) for name in names):
            mutation = Mutation(mutation.name, law, mutation.apply)
        yield mutation


# ---- The log -------------------------------------------------------------------------------------


def make_log(folder: Path) -> None:
    log = RunLog(folder, batch_size=8, main_process=True)
    for stage, updates in (("kd", 20), ("dmd", 5)):
        for step in range(0, updates, 2):
            row = {"iteration": step, "stage": stage, "step": step, "loss": 0.5, "energy": None}
            row |= {"seconds": 0.25, "warnings": ["x"]}
            row["diagnostics"] = {"t": [0.0, 1.0], "gap": [2]}
            row["skipped"] = {"student": {"in_a_row": 1, "in_all": 2, "rows": [3, 4]}}
            log.write(row)


def load_log(folder: Path) -> Any:
    rows = read_log(folder)
    # What a report and a tracker do with them.
    training_curves(RESULTS, rows, {})
    diagnostic_curves(RESULTS, rows)
    for row in rows:
        numbers(row)
    path = folder / "metrics.jsonl"
    before = path.read_bytes() if path.exists() else None
    RunLog(folder, batch_size=8, main_process=True).truncate(STAGES, 1, 3)
    kept = read_log(folder)
    if before is not None:
        path.write_bytes(before)
    return rows, kept


def harmed_log(good: Path, rng: random.Random) -> Mutations:
    name = "metrics.jsonl"
    data = (good / name).read_bytes()
    yield from as_law(instead_of(name, empty="sound"), "sound", ": nothing", "terabyte of zeros")
    yield from of_any_file(name, data, "sound", rng, 200)
    lines = data.splitlines()
    for what, line in {
        "deep": b"[" * 100_000 + b"]" * 100_000,
        "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        "many digits": b'{"step": ' + b"9" * 100_000 + b"}",
        "NaN": b'{"stage": "kd", "step": 1, "loss": NaN}',
        "a key twice": b'{"stage": "kd", "step": 1, "step": 2}',
        "20 MB": b'{"stage": "' + b"x" * (20 << 20) + b'"}',
        "zeros": bytes(1000),
        "a list": b"[]",
        "a number": b"3",
    }.items():
        changed = b"\n".join([*lines[:3], line, *lines[3:]]) + b"\n"
        yield Mutation(f"{name}: {what}", "refused", writer(name, changed))
    for _ in range(320):
        at = rng.randrange(len(lines))
        way, harmed = altered(json.loads(lines[at]), rng)
        changed = b"\n".join([*lines[:at], encoded(harmed), *lines[at + 1 :]]) + b"\n"
        yield Mutation(f"{name}: {way}", "sound", writer(name, changed))


# ---- Checkpoints ---------------------------------------------------------------------------------


def make_state(folder: Path) -> None:
    position, updates, iteration = PLACE
    progress = {}
    for stage in STAGES:
        progress[stage] = Progress(stage, "energy")
        progress[stage].add(2, {"energy": 0.5, "spread": 1.0})
    state = RunState(
        position,
        updates,
        iteration,
        [iteration - updates],
        {"kd": {"energy": 0.5}, "dmd": {"energy": 0.25}},
        {"kd": 1.5, "kd_cpu": 3},
        progress,
    )
    tensors = {"student.w": torch.arange(4.0), "best.w": torch.arange(4.0)}
    save_checkpoint(folder, state.number, tensors, state.to_json(), keep=1)
    for stage in STAGES:
        for name in (stage, f"{stage}.best"):
            save_tensors(folder / "stages" / f"{name}.safetensors", {"w": torch.ones(2)})


def load_state(folder: Path) -> Any:
    files = RunFiles(folder, LoopConfig(), OneProcess())
    state = files.restore(STAGES, "energy")
    assert (state.position, state.updates, state.iteration) == PLACE, "another place"
    for progress in state.progress.values():
        progress.add(7, {"energy": 0.25, "spread": 0.5})
        progress.out_of_patience(3)
        progress.lost_patience()
    return state.to_json()


def state_file(folder: Path) -> Path:
    return checkpoint_folders(folder)[0] / "state.json"


def forger(content: bytes) -> Callable[[Path], None]:
    """Another state.json, with a manifest that agrees."""

    def apply(folder: Path) -> None:
        path = state_file(folder)
        path.write_bytes(content)
        manifest = json.loads((path.parent / "manifest.json").read_text())
        manifest["files"]["state.json"] = {"bytes": len(content), "sha256": sha256(path)}
        (path.parent / "manifest.json").write_text(json.dumps(manifest))

    return apply


def harmed_state(good: Path, rng: random.Random) -> Mutations:
    document = json.loads(state_file(good).read_text())
    for key in document:
        for value in [*VALUES, 1, 3, 99, 23, 24, 0.5, 1.0]:
            harmed = {**document, key: value}
            what = f"state.json: {key} is {str(value)[:40]}"
            yield Mutation(what, "sound", forger(encoded(harmed)))
    for _ in range(400):
        way, harmed = altered(document, rng)
        yield Mutation(f"state.json: {way}", "sound", forger(encoded(harmed)))
    text = encoded(document)
    for what, content in {
        "deep": text[:-1] + b', "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "a key twice": b'{"position": 2,' + text[1:],
        "NaN": text[:-1] + b', "n": NaN}',
        "a list": b"[]",
        "no text": b"\xff\xfe\x00",
    }.items():
        yield Mutation(f"state.json: {what}", "refused", forger(content))


def harmed_manifest(good: Path, rng: random.Random) -> Mutations:
    path = state_file(good).parent / "manifest.json"
    name = path.relative_to(good).as_posix()
    yield from instead_of(name)
    yield from of_any_file(name, path.read_bytes(), "same", rng, 150)
    yield from of_json(name, path.read_bytes(), rng, 350)


# ---- Origin and scores ---------------------------------------------------------------------------


def make_origin(folder: Path) -> None:
    write_origin(folder, ORIGIN, {"seed": 0})


def load_origin(folder: Path) -> Any:
    return check_origin(folder, ORIGIN), run_identity(folder)


def make_scores(folder: Path) -> None:
    rows = {"1": {"energy": 0.5}, "2": {"energy": None}, "ab2-4": {"energy": 0.25}}
    data = toy_config(folder).data.model_dump(mode="json")
    (folder / "scores.json").write_bytes(
        encoded({"data": data, "teacher": rows, "floor": {"energy": 0.1}})
    )
    mark_as_export(folder)


def load_scores(folder: Path) -> Any:
    values = toy_config(folder).model_dump()
    values["teacher"]["folder"] = str(folder)
    found = stored_scores(type(toy_config(folder)).model_validate(values))
    if found is not None:
        for row in (*found[0].values(), found[1]):
            assert all(value is None or abs(value) < 1e300 for value in row.values()), "no scores"
    return found


def harmed_json(name: str, *, missing: str) -> Callable[[Path, random.Random], Mutations]:
    """A JSON file that may hold what its author likes; `missing`: the law of none."""

    def harmed(good: Path, rng: random.Random) -> Mutations:
        data = (good / name).read_bytes()
        yield from as_law(instead_of(name), missing, ": nothing", "a link to nothing", "to itself")
        yield from of_any_file(name, data, "sound", rng, 150)
        for mutation in of_json(name, data, rng, 350):
            law = "refused" if mutation.law == "refused" else "sound"
            yield Mutation(mutation.name, law, mutation.apply)

    return harmed


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any], Callable[..., Mutations]]] = {
    "log": (make_log, load_log, harmed_log),
    "state": (make_state, load_state, harmed_state),
    "manifest": (make_state, load_newest_checkpoint, harmed_manifest),
    "origin": (make_origin, load_origin, harmed_json("origin.json", missing="refused")),
    "scores": (make_scores, load_scores, harmed_json("scores.json", missing="sound")),
}
