"""Teachers come from a folder, a factory or the caller; what doesn't fit is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastgen.config import TrainTeacherConfig
from fastgen.config.files import dump_yaml
from fastgen.data import build_data
from fastgen.export import export_student, save_network
from fastgen.jobs.pretraining import build_network
from fastgen.jobs.sources import load_run_student, load_teacher
from fastgen.samplers import sample_student
from fastgen.teachers import KeywordNetwork, RectifiedFlow, as_rectified_flow
from support.sources import built, config
from support.toy import PointTeacher

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
