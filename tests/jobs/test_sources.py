"""Teachers come from a folder, a factory or the caller; what doesn't fit is named; times of the
method follow the teacher's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fastgen.config import DistillConfig, StudentConfig, TrainTeacherConfig
from fastgen.config.files import dump_yaml
from fastgen.data import build_data
from fastgen.export import export_student, save_network
from fastgen.jobs.checks import fit_to_teacher
from fastgen.jobs.pretraining import build_network
from fastgen.jobs.sources import load_run_student, load_teacher, load_weights
from fastgen.samplers import sample_student
from fastgen.teachers import KeywordNetwork, RectifiedFlow, as_rectified_flow
from fastgen.teachers.clocks import beta_table
from support.toy import PointTeacher, toy_config

MODULE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=3, *, scale=1.0):
        super().__init__()
        self.scale, self.map = scale, nn.Linear(width, width)

    def forward(self, sample, timestep, cond=None):
        return self.scale * self.map(sample)

    @classmethod
    def wide(cls):
        return cls(width=7)

def text():
    return "a network"

def broken():
    raise TypeError("no such width")

answer = 42
"""


def config(teacher: dict[str, Any] | None = None, **given: Any) -> DistillConfig:
    """The keys of `student` and of `dmd` by their own names."""
    student = {key: value for key, value in given.items() if key in StudentConfig.model_fields}
    dmd = {key: value for key, value in given.items() if key not in student}
    return DistillConfig.model_validate({"teacher": teacher or {}, "student": student, "dmd": dmd})


@pytest.fixture
def nets(tmp_path, monkeypatch) -> Iterator[Path]:
    """The folder a user works in, with a module of their own."""
    (tmp_path / "nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))]
    )
    yield tmp_path
    for name in ("nets", "two", "package", "package.nets", "needy"):
        sys.modules.pop(name, None)


def built(factory: str, **source: Any) -> Any:
    return load_teacher(config({"factory": factory, **source}))


# ---- Factories -----------------------------------------------------------------------------------


def test_a_factory_is_found_where_the_user_is_and_called_with_its_arguments(nets):
    network = built("nets:Net", arguments={"width": 5, "scale": 2.0})
    assert type(network).__name__ == "Net" and network.scale == 2.0 and network.map.in_features == 5
    assert not network.training
    assert built("nets:Net.wide").map.in_features == 7


def test_a_factory_is_found_in_a_package_on_the_path(nets, monkeypatch):
    (nets / "elsewhere" / "package").mkdir(parents=True)
    (nets / "nets.py").rename(nets / "elsewhere" / "package" / "nets.py")
    monkeypatch.syspath_prepend(nets / "elsewhere")
    assert type(built("package.nets:Net")).__name__ == "Net"


@pytest.mark.parametrize(
    ("factory", "source", "error", "message"),
    [
        ("nets", {}, ValueError, "expected teacher.factory as package.module:callable, got 'nets'"),
        (":Net", {}, ValueError, "expected teacher.factory as package.module:callable, got ':Net'"),
        (
            "nets:",
            {},
            ValueError,
            "expected teacher.factory as package.module:callable, got 'nets:'",
        ),
        (
            "nots:Net",
            {},
            ValueError,
            "'nots:Net': No module named 'nots'; install it, or start from the folder where",
        ),
        ("needy:Net", {}, ValueError, "'needy:Net': No module named 'not_installed'; install it"),
        ("nets:Not", {}, ValueError, "'nets:Not': expected 'Not' in nets, which has no such name"),
        ("nets:Net.narrow", {}, ValueError, "expected 'narrow' in nets"),
        (
            "nets:Net",
            {"arguments": {"depth": 2}},
            ValueError,
            r"called with {'depth': 2}: .*unexpected keyword.*depth",
        ),
        (
            "nets:answer",
            {},
            ValueError,
            "'nets:answer' called with {}: 'int' object is not callable",
        ),
        ("nets:broken", {}, ValueError, "'nets:broken' called with {}: no such width"),
        (
            "nets:text",
            {},
            TypeError,
            "expected teacher.factory 'nets:text' to return an nn.Module, got str",
        ),
        ("nets:Net", {"folder": "f"}, ValueError, "expected one teacher, got folder and factory"),
    ],
)
def test_factories_that_make_no_network_are_refused(nets, factory, source, error, message):
    (nets / "needy.py").write_text("import not_installed")
    with pytest.raises(error, match=message):
        built(factory, **source)


def test_one_teacher_is_expected_and_it_predicts_what_the_config_says(tmp_path):
    with pytest.raises(
        ValueError, match=r"expected teacher.folder .* or teacher.factory .*, got neither"
    ):
        load_teacher(config())
    for key in ("folder", "factory"):
        with pytest.raises(ValueError, match=f"expected one teacher, got {key} and a module"):
            load_teacher(config({key: "t"}), PointTeacher())
    with pytest.raises(
        ValueError, match="expected one teacher, got folder and factory and a module"
    ):
        load_teacher(config({"folder": "t", "factory": "t:t"}), PointTeacher())


def test_a_teacher_that_predicts_something_else_is_refused(tmp_path):
    cfg = TrainTeacherConfig.model_validate(
        {
            "data": {"size": 8},
            "model": {"embedding_dim": 16, "num_layers": 1, "num_attention_heads": 2},
        }
    )
    network = build_network(cfg, build_data(cfg.data))
    save_network(tmp_path / "t", network, description={"prediction": "flow"})
    folder = {"folder": str(tmp_path / "t")}
    assert isinstance(load_teacher(config(folder)), type(network))
    with pytest.raises(
        ValueError, match="expected student.pred_type=flow, what the teacher predicts, got x0"
    ):
        load_teacher(config(folder, pred_type="x0"))
    assert isinstance(load_teacher(config({**folder, "prediction": "eps"})), RectifiedFlow)


# ---- Weights -------------------------------------------------------------------------------------


class Tied(nn.Module):
    """Two names for one tensor, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
        self.last.weight = self.first.weight
        self.register_buffer("count", torch.tensor(3))


def numbered(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a network with new numbers, tied ones alike."""
    numbers: dict[int, torch.Tensor] = {}
    for i, value in enumerate(network.state_dict().values()):
        numbers.setdefault(value.data_ptr(), torch.full_like(value, i + 1))
    return {name: numbers[value.data_ptr()].clone() for name, value in network.state_dict().items()}


def saved(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path / "weights.safetensors")
    return path / "weights.safetensors"


def test_weights_are_loaded_into_whatever_network_there_is(nets):
    file = saved(nets, {"map.weight": torch.full((3, 3), 2.0), "map.bias": torch.ones(3)})
    network = built("nets:Net", weights=str(file))
    assert bool((network.map.weight == 2).all())
    keywords = {"x": "sample", "t": "timestep", "cond": "cond"}
    inside = built(
        "nets:Net", weights=str(file), keywords=keywords, prediction="eps"
    ).network.network
    assert bool((inside.map.weight == 2).all())
    network = nn.Sequential()
    network.add_module("map", inside := nn.Linear(3, 3))
    assert load_teacher(config({"weights": str(file)}), network) is network
    assert bool((inside.weight == 2).all())


@pytest.mark.parametrize("left_out", [(), ("first.weight",), ("last.weight",)])
def test_names_of_one_tensor_need_one_entry(tmp_path, left_out):
    network, state = Tied(), numbered(Tied())
    load_weights(
        network, saved(tmp_path, {name: v for name, v in state.items() if name not in left_out})
    )
    assert network.first.weight is network.last.weight
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def refused(network: nn.Module, file: Path, message: str) -> None:
    """In one line that names the file, before a single number of the network is changed."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(network, file)
    assert "\n" not in str(caught.value) and file.name in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_names_that_differ_are_said_up_to_ten_of_a_kind(tmp_path):
    network = nn.ModuleList(nn.Linear(1, 1) for _ in range(6))
    file = saved(
        tmp_path, {f"other.{i:02}": torch.ones(1) for i in range(12)} | {"0.bias": torch.ones(1)}
    )
    refused(
        network,
        file,
        r"11 missing: 0.weight, 1.bias, .*, 5.bias, ... \(11 in all\); 12 unexpected: other.00, ",
    )
    refused(
        network,
        file,
        r"other.09, ... \(12 in all\); are they of this network\? save its own state_dict",
    )
    refused(
        network,
        saved(tmp_path, numbered(network[:5])),
        "2 missing: 5.bias, 5.weight; are they of this network",
    )


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (
            lambda name: "module." + name,
            "take only the names that begin with 'module.', without it",
        ),
        (
            lambda name: "ema.module." + name,
            "take only the names that begin with 'ema.module.', without it",
        ),
        (
            lambda name: name.removeprefix("net."),
            "put 'net.' before every name, or let the factory return the network",
        ),
    ],
)
def test_a_prefix_that_names_differ_by_is_found(tmp_path, rename, message):
    network = PointTeacher()
    tensors = {rename(name): value for name, value in numbered(network).items()}
    refused(network, saved(tmp_path, tensors), message)
    if "take only" in message:
        refused(network, saved(tmp_path, {**tensors, "step": torch.ones(1)}), message)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    network = PointTeacher()
    state = numbered(network)
    wide = {**state, "net.0.weight": torch.ones(16, 5)}
    refused(
        network,
        saved(tmp_path, wide),
        r"1 of another shape: net.0.weight \(16, 5\) for \(16, 3\); give the factory",
    )
    for value in (float("nan"), float("inf")):
        ill = {**state, "net.2.bias": torch.tensor([1.0, value])}
        refused(
            network,
            saved(tmp_path, ill),
            "expected finite weights, got NaN or infinity in net.2.bias",
        )
    (tmp_path / "weights.safetensors").write_bytes(b"\x08" + bytes(20))
    refused(
        network,
        tmp_path / "weights.safetensors",
        "expected a safetensors file, got .*; copy it anew",
    )
    refused(
        network,
        tmp_path / "none.safetensors",
        "expected teacher.weights at .*none.safetensors, got nothing there",
    )
    torch.save(state, tmp_path / "w.pt")
    refused(
        network,
        tmp_path / "w.pt",
        r"as a .safetensors file, got w.pt; convert it once: safetensors.torch.save_fi",
    )


# ---- Declarations --------------------------------------------------------------------------------


def test_a_declaration_is_applied_and_one_of_a_rectified_flow_changes_nothing(nets):
    network = PointTeacher()
    plain = {"path": "linear", "prediction": "flow", "data_at": 0, "time_scale": 1.0}
    assert load_teacher(config(plain), network) is network
    betas = {"name": "betas", "schedule": "linear", "rows": 50, "nearest": True}
    declarations: list[dict[str, Any]] = [
        {"path": "cosine"},
        {"prediction": "v"},
        {"data_at": 1},
        {"path": betas},
    ]
    for changes in [*declarations, {"time_scale": 1000.0}]:
        teacher = load_teacher(config(changes), network)
        assert isinstance(teacher, RectifiedFlow) and teacher.network is network
        assert teacher.describe() == as_rectified_flow(network, **changes).describe()
    only_names = built("nets:Net", keywords={"x": "sample", "t": "timestep", "cond": "cond"})
    assert isinstance(only_names, KeywordNetwork)
    assert only_names.names == {"x": "sample", "t": "timestep", "cond": "cond", "output": "sample"}
    x, t = torch.ones(2, 3), torch.ones(2)
    assert torch.equal(only_names(x, t), only_names.network(x, t))
    usual = load_teacher(config({"keywords": {}}), network)
    assert isinstance(usual, KeywordNetwork) and usual.names["x"] == "hidden_states"


@pytest.mark.parametrize(
    ("teacher", "dmd", "message"),
    [
        ({"path": "ddpm"}, {}, "teacher: unknown path 'ddpm'"),
        ({"path": {"name": "vp", "beta": 1}}, {}, "teacher: expected arguments of the path 'vp'"),
        ({"path": "edm", "data_at": 1}, {}, "teacher: expected data_at=0 for the path 'edm'"),
        (
            {"prediction": "eps"},
            {"pred_type": "x0"},
            "expected pred_type='flow', got 'x0': what the network predicts is",
        ),
    ],
)
def test_declarations_that_contradict_themselves_or_the_method_are_refused(teacher, dmd, message):
    with pytest.raises(ValueError, match=message):
        load_teacher(config(teacher, **dmd), PointTeacher())
    converted = as_rectified_flow(PointTeacher(), path="cosine")
    with pytest.raises(ValueError, match="teacher: expected a network as it was trained"):
        load_teacher(config({"path": "cosine"}), converted)
    assert load_teacher(config(), converted) is converted


# ---- Students ------------------------------------------------------------------------------------


def test_the_network_of_a_student_is_built_by_the_factory_named_not_by_one_of_its_folder(nets):
    teacher = built("nets:Net", arguments={"width": 2}, path="cosine", prediction="eps")
    export_student(nets / "run" / "student", teacher, t_list=[0.5, 0.0], horizon=[2])
    with pytest.raises(
        ValueError, match="expected factory=package.module:callable for the network of .*student"
    ):
        load_run_student(nets / "run" / "student")
    cfg = config(
        {"factory": "nets:Net", "arguments": {"width": 2}, "path": "cosine", "prediction": "eps"}
    )
    (nets / "run" / "config.yaml").write_text(dump_yaml(cfg))
    noise = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    expected = sample_student(teacher, noise, [0.5, 0.0])
    with pytest.raises(ValueError, match="its run was made with nets:Net"):
        load_run_student(nets / "run" / "student")
    assert torch.equal(
        load_run_student(nets / "run" / "student", "nets:Net").sample(None, noise=noise), expected
    )
    (nets / "student").symlink_to(nets / "run" / "student")
    (nets / "two.py").write_text("from nets import Net\n\ndef two():\n    return Net(2)\n")
    assert torch.equal(
        load_run_student(nets / "student", "two:two").sample(None, noise=noise), expected
    )


# ---- The method ----------------------------------------------------------------------------------

VP = as_rectified_flow(PointTeacher(), path="vp")
EPS = as_rectified_flow(PointTeacher(), path="cosine", prediction="eps")
TABLE = as_rectified_flow(
    PointTeacher(), path=beta_table("scaled_linear", 1000, 0.00085, 0.012), prediction="v"
)


def test_nothing_changes_for_networks_of_rectified_flow():
    for cfg in (toy_config("unused"), config(), config(t_max=1.0, steps=3)):
        assert fit_to_teacher(cfg, PointTeacher()) == (cfg, [])
    cfg, notes = fit_to_teacher(
        config(), as_rectified_flow(PointTeacher(), path="cosine", prediction="v")
    )
    assert len(notes) == 1 and notes[0] == "teacher: cosine, v, time_scale=1, t in [0, 1]"
    assert cfg.student.t_list == config().student.t_list


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_student_starts_where_its_teacher_does(steps):
    cfg, notes = fit_to_teacher(config(steps=steps), VP)
    assert cfg.student.t_list == pytest.approx(
        [VP.t_max * (1 - i / steps) for i in range(steps)] + [0.0], rel=1e-12
    )
    assert "the student starts at t = 0.993471 (the teacher is defined up to 0.993471)" in notes
    cfg, notes = fit_to_teacher(config(steps=steps, t_list_shift=2.0), EPS)
    assert (
        cfg.student.t_list[0] == 0.5
        and cfg.student.t_list_shift == 2.0
        and len(cfg.student.t_list) == steps + 1
    )
    assert "the student starts at t = 0.5 (the teacher predicts noise)" in notes
    again = fit_to_teacher(cfg, EPS)[0]
    assert (again.student, again.dmd) == (cfg.student, cfg.dmd)


def test_rungs_that_were_asked_for_are_kept_or_refused():
    for asked in (config(t_list=(0.9, 0.4, 0.0)), config(t_max=0.9, steps=2)):
        cfg, notes = fit_to_teacher(asked, EPS)
        assert cfg.student.t_list == asked.student.t_list and not any(
            "starts" in note for note in notes
        )
    for asked, key in (
        (config(t_list=(0.999, 0.0)), "student.t_list"),
        (config(t_max=0.999), "student.t_max"),
    ):
        with pytest.raises(
            ValueError, match=f"expected {key} to begin at most at 0.993471, .*, got 0.999"
        ):
            fit_to_teacher(asked, VP)


def test_drawn_times_stay_within_the_range_of_the_teacher():
    law = {"time_dist_type": "logitnormal", "p_mean": 0.3, "min_t": 0.1, "max_t": 0.5}
    cfg, notes = fit_to_teacher(config(gan_t=law, fake_score_t={"min_t": 0.0}), TABLE)
    low, high = TABLE.t_min, TABLE.t_max
    assert 0.02 < low < 0.03 and 0.93 < high < 0.94
    for name in ("vsd_t", "fake_score_t"):
        drawn = getattr(cfg.dmd, name)
        assert (drawn.min_t, drawn.max_t, drawn.time_dist_type) == (low, high, "uniform")
        assert f"dmd.{name} is drawn within {low:.6g}..{high:.6g}" in notes
    assert cfg.dmd.gan_t == config(gan_t=law).dmd.gan_t and not any(
        "gan_t" in note for note in notes
    )
    with pytest.raises(
        ValueError,
        match=r"expected dmd.vsd_t to reach into the teacher's RF times .*, got 0.95..0.99",
    ):
        fit_to_teacher(config(vsd_t={"min_t": 0.95, "max_t": 0.99}), TABLE)


def test_a_fake_score_with_a_clock_that_ends_is_not_told_its_rung_unless_asked():
    assert not fit_to_teacher(config(), EPS)[0].dmd.fake_score_rung_conditioned
    assert fit_to_teacher(config(fake_score_rung_conditioned=True), EPS)[
        0
    ].dmd.fake_score_rung_conditioned
    assert fit_to_teacher(config(), PointTeacher())[0].dmd.fake_score_rung_conditioned
