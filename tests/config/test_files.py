"""Config files and overrides: what is read is what was meant, and everything else is refused by
name."""

from pathlib import Path

import pytest

from fastgen.config import (
    DistillConfig,
    DMDConfig,
    EMAConfig,
    SampleTimestepConfig,
    TrainTeacherConfig,
)
from fastgen.config.files import describe, dump_yaml, load_config, validate
from fastgen.jobs.command_line import parse_command_line, user_errors

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path):
    path = write(tmp_path, "seed: 3\ntrain: {steps: 5, kd_steps: 7}\n")
    cfg = load_config(DistillConfig, path, ["train.steps=9", "student.steps=4", "run_dir=out"])
    assert (cfg.seed, cfg.train.steps, cfg.train.kd_steps, cfg.run_dir) == (3, 9, 7, "out")
    assert len(cfg.student.t_list) == 5
    assert cfg.train.batch_size == DistillConfig().train.batch_size


@pytest.mark.parametrize("schema", [DistillConfig, TrainTeacherConfig])
def test_the_resolved_config_reads_back_equal(tmp_path, schema):
    cfg = validate(schema, {"seed": 5})
    assert load_config(schema, write(tmp_path, dump_yaml(cfg))) == cfg


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.stepz=3", "'train.stepz', did you mean 'train.steps'"),
        ("vsd_norm=rms", "did you mean 'dmd.vsd_norm'"),
        ("train.steps=many", "train.steps"),
        ("student.steps=0", "student.steps"),
        ("dmd.student_steps=0", r"student.steps \(dmd.student_steps\)"),
        ("student.t_list=[0.5,0.7,0.0]", "strictly decreasing"),
        ("student.t_list=[0.5,0.2]", "end at 0.0"),
        ("seed=[1", "not valid YAML"),
        ("seed.x=1", "seed"),
        ("dmd.vsd_t={min_t: 0.9, max_t: 0.1}", "min_t < max_t"),
        ("train.kd_optimizer.lr=.inf", "train.kd_optimizer.lr"),
    ],
)
def test_a_wrong_override_is_refused_by_its_full_name(tmp_path, override, said):
    with pytest.raises(ValueError, match=said.replace("[", r"\[")):
        load_config(DistillConfig, write(tmp_path, "seed: 1\n"), [override])


@pytest.mark.parametrize(
    "text", ["- a\n- b\n", "a: [1\n", "!!python/object/apply:os.system ['true']\n"]
)
def test_a_corrupt_file_is_refused_with_its_name(tmp_path, text):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match="config.yaml"):
        load_config(DistillConfig, path)


def test_paths_in_a_file_are_relative_to_it_and_in_an_override_to_the_working_directory(tmp_path):
    path = write(tmp_path, "teacher: {folder: ../teacher}\n")
    assert load_config(DistillConfig, path).teacher.folder == str(
        (tmp_path.parent / "teacher").resolve()
    )
    here = str(Path.cwd() / "t")
    assert load_config(DistillConfig, path, ["teacher.folder=t"]).teacher.folder == here
    assert load_config(DistillConfig, path, ["teacher={folder: t}"]).teacher.folder == here
    path = write(tmp_path, "teacher: {null_cond: null.npz}\n")
    assert load_config(DistillConfig, path).teacher.null_cond == str(
        (tmp_path / "null.npz").resolve()
    )
    assert (
        load_config(DistillConfig, path, ["teacher.null_cond=zeros"]).teacher.null_cond == "zeros"
    )


def test_student_steps_and_t_list_must_agree():
    assert DMDConfig(t_list=(0.9, 0.5, 0.0)).student_steps == 2
    with pytest.raises(ValueError, match="student_steps"):
        DMDConfig(student_steps=3, t_list=(0.9, 0.5, 0.0))


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_default_rungs_start_at_t_max_and_fall_to_zero(steps, shift):
    t_list = DMDConfig(student_steps=steps, t_list_shift=shift).t_list
    assert len(t_list) == steps + 1 and t_list[0] == 0.999 and t_list[-1] == 0.0
    assert all(a > b for a, b in zip(t_list, t_list[1:], strict=False))


def test_an_eps_student_cannot_start_at_one():
    with pytest.raises(ValueError, match="t_list"):
        DMDConfig(pred_type="eps", t_list=(1.0, 0.0))


def test_configs_are_immutable():
    with pytest.raises(ValueError, match="frozen"):
        EMAConfig().decay = 0.5  # pyright: ignore[reportAttributeAccessIssue]


def test_help_names_every_key_once_with_a_meaning():
    lines = describe(DistillConfig).splitlines()
    names = [line.split()[0] for line in lines]
    assert len(set(names)) == len(names)
    assert {
        "train.steps",
        "student.steps",
        "dmd.vsd_t.min_t",
        "student.ema.decay",
        "resume",
    } <= set(names)
    assert all(line.rstrip()[-1] != ")" or "(" in line.split(")", 1)[1] for line in lines)
    assert not {"dmd.vsd_t.t_list", "dmd.gan_t.t_list"} & set(names)  # nothing draws from it
    vsd = next(line for line in lines if line.split()[0] == "dmd.vsd_t.min_t")
    assert "(0.02)" in vsd  # the group's own default, not the class'


@pytest.mark.parametrize("name", sorted(p.name for p in CONFIGS.glob("*.yaml")))
def test_shipped_configs_hold_only_what_differs(name):
    schema = TrainTeacherConfig if "teacher" in name else DistillConfig
    cfg, default = load_config(schema, CONFIGS / name), schema()
    for line in (CONFIGS / name).read_text(encoding="utf-8").splitlines():
        assert line.strip() != "resume: false"
    assert cfg.name == name.removesuffix(".yaml")
    assert type(cfg) is type(default)


def test_command_line_flags(tmp_path):
    path = write(tmp_path, "seed: 2\n")
    command = parse_command_line(
        DistillConfig, default=path, doc="", argv=["seed=4", "--resume", "--dry-run"]
    )
    assert command.dry_run and command.config.resume and command.config.seed == 4
    with pytest.raises(ValueError, match="--resum"):
        parse_command_line(DistillConfig, default=path, doc="", argv=["--resum"])
    with pytest.raises(ValueError, match="one config file"):
        parse_command_line(DistillConfig, default=path, doc="", argv=["a.yaml", "b.yaml"])


def test_user_errors_are_one_line_and_code_2(capsys):
    with pytest.raises(SystemExit) as raised, user_errors():
        raise ValueError("expected this\n   got that")
    assert raised.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: expected this got that (FASTGEN_TRACEBACK=1 shows where)"
    ]
    with pytest.raises(KeyError), user_errors():
        raise KeyError("a defect of ours keeps its traceback")


def test_timestep_bounds_are_ordered():
    with pytest.raises(ValueError, match="min_t < max_t"):
        SampleTimestepConfig(min_t=0.5, max_t=0.5)
