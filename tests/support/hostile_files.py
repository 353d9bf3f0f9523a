"""The files that `hostile` harms, and how each is loaded."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from fastgen._core.tensor_files import load_tensors, save_tensors, sha256
from fastgen.config import DistillConfig
from fastgen.config.files import dump_yaml, load_config
from fastgen.data.files import file_task
from fastgen.data.formats.array_files import read_tensors
from fastgen.export import export_student, load_network, save_network, schema
from fastgen.export.folders import load_student
from fastgen.models import build_model
from fastgen.normalizer import Normalizer
from fastgen.records.checkpoints import load_newest_checkpoint, save_checkpoint
from fastgen.teachers.weights import load_weights
from support import hostile_records
from support.hostile import Mutation, instead_of, of_any_file, run
from support.hostile_formats import altered, npz_of, of_json, safetensors_of, split
from support.hostile_yaml import of_yaml
from support.toy import PointTeacher

ROOT = Path(__file__).parents[2]
SIZES = {
    "in_horizon": 4,
    "cond_horizon": 1,
    "num_layers": 1,
    "num_attention_heads": 2,
    "embedding_dim": 8,
}
DENSE = {"class": "CondTransformerRegressor", "in_dim": 2, "out_dim": 2, "cond_dim": 3, **SIZES}
SYMMETRIC = {
    "class": "eCondTransformerRegressor",
    "group": "C2",
    "in_rep": ["sign"] * 2,
    "cond_rep": ["sign"] * 3,
    "out_rep": ["sign"] * 2,
    **SIZES,
}


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of a folder, by its name inside."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.read_bytes()


# ---- Unharmed files ------------------------------------------------------------------------------


def make_config(folder: Path) -> None:
    lines = dump_yaml(load_config(DistillConfig, ROOT / "recipes" / "configs" / "ring.yaml"))
    (folder / "config.yaml").write_text("# A config in full.\n" + lines)


def make_checkpoint(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"student.{i}.weight": torch.randn(8, 9, generator=generator) for i in range(6)}
    tensors |= {
        "step": torch.tensor(7),
        "opt.0.exp_avg": torch.randn(3, dtype=torch.float64, generator=generator),
    }
    tensors["rng"] = generator.get_state()
    save_checkpoint(
        folder,
        3,
        tensors,
        {"stage": "dmd", "best": 0.25, "history": [1.5, 2.5], "losses": {"a": 1}},
        keep=2,
    )


def make_student(folder: Path) -> None:
    torch.manual_seed(0)
    normalizers = {"x_normalizer": Normalizer.identity(2), "z_normalizer": Normalizer.identity(3)}
    export_student(
        folder,
        build_model(DENSE),
        t_list=[0.9, 0.5, 0.0],
        **normalizers,
        description={"task": "none"},
    )


def make_teacher(folder: Path) -> None:
    torch.manual_seed(0)
    save_network(folder, build_model(SYMMETRIC), description={"prediction": "flow"})


def numbers() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "X": rng.normal(size=(40, 3, 2)).astype("f4"),
        "Z": rng.normal(size=(40, 1, 2)).astype("f4"),
    }


def make_npz(folder: Path) -> None:
    np.savez(folder / "data.npz", **numbers())


def make_safetensors(folder: Path) -> None:
    save_file(
        {name: torch.from_numpy(array) for name, array in numbers().items()},
        folder / "data.safetensors",
    )


def make_weights(folder: Path) -> None:
    save_file(PointTeacher().state_dict(), folder / "weights.safetensors")


# ---- Loading them --------------------------------------------------------------------------------


def config(folder: Path) -> Any:
    cfg = load_config(DistillConfig, folder / "config.yaml")
    text = dump_yaml(cfg)
    (folder / "again.yaml").write_text(text)
    assert load_config(DistillConfig, folder / "again.yaml") == cfg, (
        "another config when it is read again"
    )
    return text


def student(folder: Path) -> Any:
    loaded = load_student(folder)
    config = {key: value for key, value in loaded.config.items() if key != "checksum"}
    rest = (
        loaded.t_list,
        loaded.steps,
        loaded.sample_type,
        loaded.horizon,
        loaded.cond_horizon,
        loaded.pack,
    )
    return loaded.network.state_dict(), config, rest


def teacher(folder: Path) -> Any:
    network, description = load_network(folder)
    return network.state_dict(), description


def data(name: str) -> Callable[[Path], Any]:
    def load(folder: Path) -> Any:
        task = file_task(folder / name)
        return [task.split(part) for part in ("train", "validation", "test")]

    return load


def as_it_says(folder: Path) -> Any:
    """Data without a checksum: what is loaded must be what a plain reading of the file finds."""
    path = folder / "data.safetensors"
    tensors = read_tensors(path)
    header, body = split(path.read_bytes())
    kinds = {
        "F64": "f8",
        "F32": "f4",
        "F16": "f2",
        "I64": "i8",
        "I32": "i4",
        "I16": "i2",
        "I8": "i1",
        "U8": "u1",
        "BOOL": "?",
    }
    assert set(tensors) == set(header) - {"__metadata__"}, "other names"
    for key, tensor in tensors.items():
        entry = header[key]
        start, stop = entry["data_offsets"]
        if entry["dtype"] in kinds:
            expected = np.frombuffer(body[start:stop], kinds[entry["dtype"]]).reshape(
                entry["shape"]
            )
            assert np.array_equal(tensor.numpy(), expected, equal_nan=expected.dtype.kind == "f"), (
                "other numbers"
            )
    return data("data.safetensors")(folder)


def make_pairs(folder: Path) -> None:
    save_tensors(
        folder / "pairs.safetensors",
        {"states": torch.randn(5, 3, generator=torch.Generator().manual_seed(0))},
    )


def weights(folder: Path) -> Any:
    network = PointTeacher()
    load_weights(network, folder / "weights.safetensors")
    return network.state_dict()


# ---- What is done to them ------------------------------------------------------------------------


def harmed_config(good: Path, rng: random.Random) -> Iterator[Mutation]:
    text = (good / "config.yaml").read_bytes()
    yield from instead_of("config.yaml", empty="sound")
    yield from of_any_file("config.yaml", text, "sound", rng, 60)
    yield from of_yaml("config.yaml", text, rng, 160)


def harmed_folder(good: Path, rng: random.Random, each: int) -> Iterator[Mutation]:
    """Every file of a folder whose checksums cover what it holds."""
    for name, content in files(good):
        if name.endswith(".md"):
            continue
        yield from instead_of(name)
        yield from of_any_file(name, content, "same", rng, each)
        if name.endswith(".json"):
            yield from of_json(name, content, rng, each)
        if name.endswith(".safetensors"):
            for what, harmed in safetensors_of(content, rng, each // 2):
                yield Mutation(f"{name}: {what}", "same", writer(name, harmed))


def forged_folder(good: Path, rng: random.Random, number: int) -> Iterator[Mutation]:
    """A folder whose author made every checksum agree."""
    document = json.loads((good / "config.json").read_text())
    name = document["tensors"]["file"]
    for _ in range(number):
        way, harmed = altered(
            {k: v for k, v in document.items() if k not in ("checksum", "tensors")}, rng
        )
        yield Mutation(
            f"forged: {way}", "sound", forger({**harmed, "tensors": document["tensors"]})
        )
    for what, harmed in safetensors_of((good / name).read_bytes(), rng, number // 3):
        yield Mutation(f"forged {name}: {what}", "sound", tensor_forger(document, name, harmed))


def writer(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def forger(document: dict[str, Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        text = json.dumps({**document, "checksum": schema.config_checksum(document)})
        (folder / "config.json").write_text(text)

    return apply


def tensor_forger(document: dict[str, Any], name: str, content: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        path.write_bytes(content)
        entry = {**document["tensors"], "bytes": path.stat().st_size, "sha256": sha256(path)}
        rest = {key: value for key, value in document.items() if key != "checksum"}
        forger({**rest, "tensors": entry})(folder)

    return apply


def harmed_npz(good: Path, rng: random.Random) -> Iterator[Mutation]:
    content = (good / "data.npz").read_bytes()
    yield from instead_of("data.npz")
    yield from of_any_file("data.npz", content, "same", rng, 100)
    for what, harmed in npz_of(content):
        yield Mutation(
            f"data.npz: {what}",
            "sound" if " called " in what else "refused",
            writer("data.npz", harmed),
        )


def harmed_safetensors(
    name: str, law: str = "sound"
) -> Callable[[Path, random.Random], Iterator[Mutation]]:
    def harmed(good: Path, rng: random.Random) -> Iterator[Mutation]:
        content = (good / name).read_bytes()
        yield from instead_of(name)
        yield from of_any_file(name, content, law, rng, 50)
        for what, changed in safetensors_of(content, rng, 20):
            yield Mutation(
                f"{name}: {what}",
                "refused" if what == "a name twice" else law,
                writer(name, changed),
            )

    return harmed


KINDS: dict[
    str, tuple[Callable[[Path], None], Callable[[Path], Any], Callable[..., Iterator[Mutation]]]
] = {
    "config": (make_config, config, harmed_config),
    "checkpoint": (
        make_checkpoint,
        load_newest_checkpoint,
        lambda good, rng: harmed_folder(good, rng, 50),
    ),
    "student": (make_student, student, lambda good, rng: harmed_folder(good, rng, 40)),
    "forged student": (make_student, student, lambda good, rng: forged_folder(good, rng, 100)),
    "teacher": (make_teacher, teacher, lambda good, rng: forged_folder(good, rng, 60)),
    "npz": (make_npz, data("data.npz"), harmed_npz),
    "safetensors": (make_safetensors, as_it_says, harmed_safetensors("data.safetensors")),
    "pairs": (
        make_pairs,
        lambda folder: load_tensors(folder / "pairs.safetensors"),
        harmed_safetensors("pairs.safetensors", "same"),
    ),
    "weights": (make_weights, weights, harmed_safetensors("weights.safetensors")),
    **hostile_records.KINDS,
}


def main(folder: Path, seed: int = 0) -> None:
    torch.set_num_threads(1)
    for kind, (make, load, harm) in KINDS.items():
        good = folder / kind / "good"
        good.mkdir(parents=True)
        make(good)
        mutations = list(harm(good, random.Random(f"{seed} {kind}")))
        run(kind, good, load, mutations, folder / kind / "work")
