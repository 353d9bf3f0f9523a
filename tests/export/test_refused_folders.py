"""A student folder that is damaged, forged or impossible is refused in one line."""

import inspect
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fastgen
from fastgen._core import tensor_files
from fastgen.export import built_in, folders, load_network, load_student, save_network, schema
from fastgen.export.built_in import NETWORKS
from fastgen.models import build_model
from fastgen.normalizer import Normalizer
from support.folders import T_LIST, conditions, export_, seeded
from support.networks import dense, equivariant, shaken


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return export_(tmp_path_factory.mktemp("good") / "s", description={"task": "ring"})


@pytest.fixture
def folder(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "s"))


def refused(folder: Path, message: str) -> None:
    """Loading raises one line that names the folder's file and says `message`."""
    with pytest.raises(ValueError, match=message) as caught:
        load_student(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def edit(folder: Path, change, *, forge: bool = False) -> None:
    """Change config.json; `forge` also makes its checksum agree, as a hostile author would."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    if forge:
        schema.write_config(folder, config)
    else:
        (folder / "config.json").write_text(json.dumps(config))


def retensor(folder: Path, change, *, forge: bool) -> None:
    """Change the tensors; `forge` also makes size and checksums agree."""
    path = folder / "student.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    if forge:
        entry = {"bytes": path.stat().st_size, "sha256": tensor_files.sha256(path)}
        edit(folder, lambda config: config["tensors"].update(entry), forge=True)


@pytest.mark.parametrize("name", ["student.safetensors", "config.json"])
def test_a_missing_or_truncated_file_is_named(folder, name):
    path = folder / name
    data = path.read_bytes()
    for size in (0, 1, 7, len(data) // 2, len(data) - 2):
        path.write_bytes(data[:size])
        refused(folder, f"{name}: expected .*(truncated|edited)")
    path.unlink()
    refused(folder, f"{name}: expected a file, found none; export it again or copy it anew")
    path.mkdir()
    refused(folder, f"{name}: expected a file, found something that is not a file")


@pytest.mark.parametrize("name", ["student.safetensors", "config.json"])
def test_any_flipped_bit_is_found(folder, name):
    data = (folder / name).read_bytes()
    places = torch.randperm(len(data), generator=seeded())[:60].tolist()
    for place in [0, 8, len(data) - 2, *places]:
        changed = bytearray(data)
        changed[place] ^= 1
        (folder / name).write_bytes(changed)
        refused(folder, "expected")


def test_spaces_and_the_order_of_keys_may_change(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(dict(reversed(config.items()))))
    load_student(folder)


def test_an_edited_value_is_found(folder):
    edit(folder, lambda c: c["t_list"].__setitem__(1, 0.71))
    refused(folder, "config.json: .*checksum.*the file was edited")


def test_other_kinds_of_folder_are_told_apart(folder, tmp_path):
    refused(tmp_path / "nothing", "config.json: expected a file, found none")
    save_network(tmp_path / "t", dense())
    refused(tmp_path / "t", "expected format 'fastgen-student', got 'fastgen-network'")
    with pytest.raises(
        ValueError, match="expected format 'fastgen-network', got 'fastgen-student'"
    ):
        load_network(folder)
    edit(folder, lambda c: c.update(format_version=2), forge=True)
    refused(folder, "expected format_version 1, got 2; use the fastgen-distill that wrote it")


@pytest.mark.parametrize(
    "name", ["../s/student.safetensors", "/etc/passwd", "model.safetensors", "", None, 3, ["x"]]
)
def test_the_tensor_file_has_one_name(folder, name):
    edit(folder, lambda c: c["tensors"].update(file=name), forge=True)
    refused(folder, "expected the tensor file 'student.safetensors', got")


def test_tensors_must_be_those_of_the_network(folder):
    changes = {
        "unexpected ../../evil": lambda t: t.update({"../../evil": torch.zeros(2)}),
        "missing head.bias, head.weight": lambda t: (t.pop("head.bias"), t.pop("head.weight")),
        r"expected head.bias of shape \(4,\), got \(5,\)": lambda t: t.update(
            {"head.bias": torch.zeros(5)}
        ),
        "expected head.bias of dtype torch.float32, got F64": lambda t: t.update(
            {"head.bias": torch.zeros(4).double()}
        ),
        "expected head.bias of dtype torch.float32, got I32": lambda t: t.update(
            {"head.bias": torch.zeros(4).int()}
        ),
    }
    original = (folder / "student.safetensors").read_bytes()
    for message, change in changes.items():
        (folder / "student.safetensors").write_bytes(original)
        retensor(folder, change, forge=False)
        refused(folder, "student.safetensors: expected .* (bytes|sha256)")
        retensor(folder, lambda t: None, forge=True)
        refused(folder, f"student.safetensors: expected .*{message.removeprefix('expected ')}")


def test_a_file_that_only_looks_like_safetensors_is_refused(folder):
    path = folder / "student.safetensors"
    size = path.stat().st_size
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    ).encode()
    for data in (
        b"\x80\x02cposix\nsystem",
        b"\xff" * 64,
        len(header).to_bytes(8, "little") + header,
        b"",
    ):
        path.write_bytes(data.ljust(size, b"\0"))
        entry = {"bytes": path.stat().st_size, "sha256": tensor_files.sha256(path)}
        edit(folder, lambda config, entry=entry: config["tensors"].update(entry), forge=True)
        refused(folder, "student.safetensors: expected a safetensors file")


@pytest.mark.parametrize(
    "key", ["embedding_dim", "in_horizon", "num_layers", "num_cond_layers", "num_attention_heads"]
)
@pytest.mark.parametrize("value", [10**9, 10**30, -1, 8.0, "8", None, True])
def test_sizes_beyond_the_tensors_cost_nothing(folder, key, value):
    edit(folder, lambda c: c["network"].update({key: value}), forge=True)
    started = time.perf_counter()
    refused(folder, "config.json: expected")
    assert time.perf_counter() - started < 2.0


def test_shapes_are_compared_before_memory_is_allocated(folder, monkeypatch):
    # As large as the tensors make believable: a long table, and a network of that length which was
    # never there.
    retensor(folder, lambda t: t.update({"pos_emb.weight": torch.zeros(50_000, 2)}), forge=True)
    edit(folder, lambda c: c["network"].update(in_horizon=50_000, in_dim=4), forge=True)
    edit(folder, lambda c: c.update(horizon=[100_000, 2]), forge=True)
    devices = set()
    monkeypatch.setattr(
        built_in, "build_model", lambda c: devices.add(torch.empty(0).device.type) or build_model(c)
    )
    refused(folder, r"expected pos_emb.weight of shape \(50000, 8\), got \(50000, 2\)")
    assert devices == {"meta"}


@pytest.mark.parametrize(
    "name", ["os.system", "eCondTransformerRegressor", "torch.nn.Linear", "", None, ["x"], {}]
)
def test_a_student_names_dense_built_in_networks_only(folder, name):
    edit(folder, lambda c: c["network"].update({"class": name}), forge=True)
    refused(folder, "expected network.class among CondTransformerRegressor, PatchTransformer, Traj")


def leaves(value, path=()):
    if isinstance(value, dict | list):
        yield path, value
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, (*path, key))
    else:
        yield path, value


@pytest.mark.slow
def test_no_forged_value_does_worse_than_an_error(folder):
    original = json.loads((folder / "config.json").read_text())
    values = [None, True, -1, 10**30, 1e308, "\ud800", [[]], {"a": 1}]
    refusals = 0
    for path, _ in list(leaves(original))[1:]:
        if path == ("checksum",):
            continue
        for value in values:
            config = json.loads(json.dumps(original))
            place = config
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
            text = json.dumps({**config, "checksum": schema.config_checksum(config)})
            (folder / "config.json").write_text(text)
            try:
                load_student(folder)
            except ValueError as error:
                refusals += 1
                assert "\n" not in str(error) and len(str(error)) < 1500
    assert refusals > 300


def test_an_equivariant_config_is_bounded_too(tmp_path):
    save_network(tmp_path / "t", equivariant())
    original = (tmp_path / "t" / "config.json").read_text()
    for key, value in {
        "group": "D400000",
        "embedding_dim": 10**9,
        "num_layers": 10**9,
        "in_rep": ["irrep:" + "(" * 10_000],
        "cond_rep": [{"irreps": [[9, 9]], "change_of_basis": [[1.0]]}],
        "out_rep": [{"matrices": "/etc/passwd"}],
        "in_horizon": 4,
    }.items():
        (tmp_path / "t" / "config.json").write_text(original)
        edit(
            tmp_path / "t",
            lambda c, key=key, value=value: c["network"].update({key: value}),
            forge=True,
        )
        with pytest.raises(ValueError, match=str(tmp_path)) as caught:
            load_network(tmp_path / "t")
        assert "\n" not in str(caught.value)


def test_the_schema_knows_every_argument_of_the_networks():
    for name, arguments in NETWORKS.items():
        signature = set(inspect.signature(getattr(fastgen.models, name).__init__).parameters) - {
            "self"
        }
        assert set(arguments) - {"group"} == signature
    assert set(dense().config) == {"class", *NETWORKS["CondTransformerRegressor"]}
    assert set(equivariant().config) == {"class", *NETWORKS["eCondTransformerRegressor"]}


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("t_list strictly decreasing from at most 1.0 to 0.0", {"t_list": [0.9, 0.5]}),
        ("t_list strictly decreasing", {"t_list": [0.5, 0.9, 0.0]}),
        ("t_list strictly decreasing", {"t_list": [1.5, 0.0]}),
        ("t_list strictly decreasing", {"t_list": [0.0]}),
        ("t_list strictly decreasing", {"t_list": [float("nan"), 0.0]}),
        (r"t_list\[0\] < 1 for pred_type eps", {"t_list": [1.0, 0.0], "pred_type": "eps"}),
        (r"steps that divide len\(t_list\) - 1 = 4, each once, got steps=\[3\]", {"steps": [3]}),
        ("steps that divide", {"steps": []}),
        ("steps that divide", {"steps": [2, 2]}),
        ("steps as whole numbers >= 1, each once", {"steps": [2, 2], "t_lists": {2: T_LIST}}),
        (
            r"t_lists with an entry for each of steps",
            {"steps": [1, 3], "t_lists": {1: [0.999, 0.0]}},
        ),
        (r"t_lists\[1\] of 1 times of t_list", {"t_lists": {1: [0.999, 0.4, 0.0]}}),
        (r"t_lists\[1\] of 1 times of t_list", {"t_lists": {1: [0.7, 0.0]}}),
        (r"t_lists\[2\] of 2 times of t_list", {"t_lists": {2: [0.999, 0.5, 0.0]}}),
        (r"t_lists\[2\] of 2 times of t_list", {"t_lists": {2: [0.999, 0.0, 0.4]}}),
        (r"t_lists\[2\] of 2 times of t_list", {"t_lists": {2: [0.999, float("nan"), 0.0]}}),
        (r"t_lists\[1\] of 1 times of t_list", {"t_lists": {1: []}}),
        ("sample_type ode or sde, got sample_type='ddim'", {"sample_type": "ddim"}),
        ("pred_type flow, x0 or eps, got pred_type='v'", {"pred_type": "v"}),
        ("pack as a whole number >= 1 that divides the network's in_dim = 4, got 3", {"pack": 3}),
        ("fit the network's in_horizon, in_dim, out_dim", {"horizon": (8, 2)}),
        (r"cond_horizon \[2, 2\], the network's", {"cond_horizon": (3, 2)}),
        ("x_normalizer of 2 channels, got 3", {"x_normalizer": Normalizer.identity(3)}),
        ("z_normalizer of 2 channels, got 1", {"z_normalizer": Normalizer.identity(1)}),
    ],
)
def test_impossible_students_are_not_exported(tmp_path, message, changes):
    with pytest.raises(ValueError, match=message):
        export_(tmp_path / "s", **changes)
    assert not os.listdir(tmp_path)


def test_a_failed_export_leaves_the_folder_there(folder, monkeypatch):
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    broken = dense()
    broken.head.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity in head.bias"):
        export_(folder, broken)
    with pytest.raises(TypeError, match="description.f to hold numbers"):
        export_(folder, description={"f": object()})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "write_config", full)
    with pytest.raises(OSError, match="cannot write .*s: No space left on device"):
        export_(folder, shaken(dense()))
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before
    assert os.listdir(folder.parent) == ["s"]
    monkeypatch.undo()
    export_(folder, shaken(dense()))
    load_student(folder)
    assert (folder / "student.safetensors").read_bytes() != before["student.safetensors"]


def test_a_network_made_for_longer_samples_is_exported_for_these(tmp_path):
    student = load_student(
        export_(tmp_path / "s", dense(), pack=1, horizon=(2, 4), x_normalizer=None)
    )
    assert student.sample(conditions()).shape == (3, 2, 4)
    with pytest.raises(ValueError, match="horizon and pack = 1 that fit"):
        export_(tmp_path / "t", dense(), pack=1, horizon=(4, 4), x_normalizer=None)
