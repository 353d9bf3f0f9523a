"""One process and many, one batch and its micro-batches: the same losses and the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from torch import nn

from fastgen.config import OptimizerConfig
from fastgen.records.log import read_log
from fastgen.training.accelerator import start_accelerator
from fastgen.training.launching import Launch, launch_of, launch_warning
from fastgen.training.trained_network import TrainedNetwork
from support import processes
from support.agreement import assert_equal_runs, assert_equal_up_to_rounding, tensors_of
from support.launching import TESTS, forked, launched, torchrun
from support.processes import dtypes_of, name

# Whatever the processor: equal in float64, and in float32 up to what roundings do to this run.
DTYPES = [pytest.param(torch.float32, marks=pytest.mark.kernels), torch.float64]


@pytest.fixture(scope="module")
def two(request, tmp_path_factory) -> Path:
    """A folder with the same runs of two processes."""
    folder = tmp_path_factory.mktemp("two")
    asked = dtypes_of(request.session.items, "two")
    for done in forked(TESTS / "support" / "processes.py", folder, *asked, processes=2):
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_processes_and_micro_batches_make_the_run_of_one(one, two, nudged, dtype):
    whole = one(dtype, 1)
    saved = [key for key in tensors_of(whole) if key.startswith("checkpoints")]
    networks = {key.split()[1].partition(".")[0] for key in saved}
    assert {"student", "fake_score", "discriminator"} <= networks
    logged = {key for row in read_log(whole) for key in row}
    assert {
        "vsd",
        "gan_gen",
        "real_data",
        "kd",
        "fake_score",
        "gan_disc",
        "r1",
        "r2",
        "diagnostics",
    } <= logged
    for other in (one(dtype, 2), two / name(dtype, 1), two / name(dtype, 2)):
        still = [x for key, x in tensors_of(other).items() if key.endswith("still.weight")]
        assert still and all(x.eq(torch.tensor(0.05, dtype=x.dtype)).all() for x in still)
        # A part of a batch may need no null condition; of two processes none is forgotten.
        asked = [read_log(run)[-1]["teacher_evaluations"] for run in (whole, other)]
        assert asked[0] / 2 < asked[1] <= asked[0]
        if dtype == torch.float64:
            assert_equal_runs(whole, other)
        else:
            assert_equal_up_to_rounding(whole, other, nudged)


@pytest.mark.slow
def test_another_seed_makes_another_run(tmp_path, one):
    # The agreement above is not that of networks which don't move.
    other = processes.run(tmp_path, torch.float64, 1, seed=1)
    a = tensors_of(one(torch.float64, 1))
    b = tensors_of(other)
    moved = [key for key in a if ".weights." in key and (a[key] - b[key]).abs().max() > 1e-3]
    assert {key.split()[1].partition(".")[0] for key in moved} == {
        "student",
        "fake_score",
        "discriminator",
    }
    with pytest.raises(AssertionError, match="further apart"):
        assert_equal_runs(one(torch.float64, 1), other)


# ---- Launches ------------------------------------------------------------------------------------

LAUNCHED = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
STARTED = (
    "import sys; from fastgen.training.accelerator import start_accelerator; "
    "print(start_accelerator(1).num_processes)"
)


@pytest.mark.parametrize(
    ("started", "environment", "parent", "said"),
    [
        (
            1,
            LAUNCHED,
            ["accelerate", "launch", "--num_processes", "3", "x.py"],
            "asked for 3 processes and started 1",
        ),
        (
            1,
            LAUNCHED,
            ["accelerate", "launch", "--num-processes=3", "x.py"],
            "torchrun --nproc_per_node 3 x.py a=1",
        ),
        (
            1,
            LAUNCHED,
            ["accelerate", "launch", "--config_file", "c.yaml"],
            "torchrun --nproc_per_node N x.py a=1",
        ),
        (1, LAUNCHED, [], "asked for several processes"),
        (1, LAUNCHED, ["accelerate", "launch", "--num_processes", "1", "x.py"], None),
        (2, LAUNCHED, ["accelerate", "launch", "--num_processes", "2", "x.py"], None),
        (1, {**LAUNCHED, "RANK": "0", "WORLD_SIZE": "1"}, [], None),
        (1, {"MASTER_ADDR": "node1", "MASTER_PORT": "1"}, ["bash"], None),
        (1, {"ACCELERATE_MIXED_PRECISION": "no"}, ["accelerate", "launch", "x.py"], None),
    ],
)
def test_a_launch_that_got_fewer_processes_than_it_asked_for_is_told(
    started, environment, parent, said
):
    found = launch_warning(started, environment=environment, parent=parent, script=["x.py", "a=1"])
    assert found is None if said is None else said in (found or "") and "\n" not in found


@pytest.mark.slow
@pytest.mark.parametrize("asked", [1, 2])
def test_accelerate_on_a_cpu_starts_one_process_and_the_run_says_so(tmp_path, asked):
    (tmp_path / "script.py").write_text(STARTED)
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", asked)
    done = launched(*launch, tmp_path / "script.py")
    assert done.returncode == 0 and done.stdout.split() == ["1"], done.stderr
    warned = [
        line for line in done.stderr.splitlines() if line.startswith("warning: accelerate launch")
    ]
    assert len(warned) == (asked > 1)
    assert asked == 1 or f"torchrun --nproc_per_node 2 {tmp_path / 'script.py'}" in warned[0]


@pytest.mark.slow
def test_torchrun_on_a_cpu_makes_a_group(tmp_path):
    (tmp_path / "script.py").write_text(STARTED)
    done = torchrun(tmp_path / "script.py")
    assert done.returncode == 0 and "".join(done.stdout.split()) == "22", (
        done.stderr
    )  # two writers, one pipe
    assert "warning: accelerate" not in done.stderr


# ---- Micro-batches of one network ----------------------------------------------------------------


def trained(network: nn.Module) -> TrainedNetwork:
    return TrainedNetwork(
        network, OptimizerConfig(lr=0.1, clip_grad_norm=0.1), 9, start_accelerator(1)
    )


def test_micro_batches_are_clipped_as_one():
    x = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    networks = []
    for parts in (1, 4):
        torch.manual_seed(0)
        network = trained(nn.Linear(3, 1).double())
        alive = [
            lambda rows=rows, n=network: n.network(rows).square().mean() for rows in x.chunk(parts)
        ]
        done = [network.update(alive, step) for step in range(3)]
        networks.append((network.bare.state_dict(), float(done[-1]["grad_norm"])))
    (one, norm), (many, other) = networks
    assert all(torch.allclose(one[key], many[key], rtol=0, atol=1e-14) for key in one)
    assert norm == pytest.approx(other, rel=1e-12) and norm > 0.1
    with pytest.raises(ValueError, match="at least one micro-batch"):
        network.update([], 0)


def test_statistics_of_a_part_of_the_batch_are_refused():
    network = trained(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    losses = [lambda rows=rows: network.network(rows).square().mean() for rows in x.chunk(2)]
    with pytest.raises(
        ValueError, match="expected no batch normalisation in train mode .* BatchNorm1d at '1'"
    ):
        network.update(losses, 0)
    network.update(losses[:1], 0)
    network.bare.eval()
    network.update(losses, 1)


# ---- Example configs of accelerate ---------------------------------------------------------------

EXAMPLES = TESTS.parent / "recipes" / "accelerate"
KINDS = {"gpus8": ("MULTI_GPU", 1, 8), "nodes2x8": ("MULTI_GPU", 2, 16), "fsdp2": ("FSDP", 1, 8)}


def test_every_example_is_tested():
    assert {file.stem for file in EXAMPLES.glob("*.yaml")} == KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_accelerate_launches_by_the_example_configs(monkeypatch, kind):
    distributed, machines, number = KINDS[kind]
    file = str(EXAMPLES / f"{kind}.yaml")
    config = load_config_from_file(file)
    assert config.distributed_type == distributed
    arguments = launch_command_parser().parse_args(["--config_file", file, "recipes/distill.py"])
    # The very path of `accelerate launch`, up to where it would start processes.
    asked = []
    monkeypatch.setattr("accelerate.commands.launch.multi_gpu_launcher", asked.append)
    launch_command(arguments)
    (arguments,) = asked
    environment = prepare_multi_gpu_env(arguments)
    assert (arguments.num_machines, arguments.num_processes) == (machines, number)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert (environment.get("FSDP_VERSION") == "2") == (kind == "fsdp2")
    found = launch_of({**environment, "RANK": "0", "WORLD_SIZE": str(number)}, torch.device("cuda"))
    assert found == Launch(number, "cuda", sharded=kind == "fsdp2")
    if kind == "fsdp2":
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
        assert not plugin.cpu_ram_efficient_loading and plugin.auto_wrap_policy is None


SHARDED = {"RANK": "0", "WORLD_SIZE": "8", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize(
    ("environment", "accelerator", "expected"),
    [
        ({}, None, Launch()),
        ({"WORLD_SIZE": "8", "RANK": "0"}, "cuda", Launch(8, "cuda")),
        (SHARDED, "cuda", Launch(8, "cuda", sharded=True)),
        (SHARDED | {"FSDP_VERSION": "1"}, "cuda", Launch(8, "cuda")),
        (SHARDED | {"ACCELERATE_USE_FSDP": "false"}, "cuda", Launch(8, "cuda")),
        (SHARDED, None, Launch(8)),
        (SHARDED | {"ACCELERATE_USE_CPU": "True"}, "cuda", Launch(8)),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "cuda", Launch(1, "cuda")),
    ],
)
def test_a_launch_is_known_from_its_variables(environment, accelerator, expected):
    found = launch_of(environment, None if accelerator is None else torch.device(accelerator))
    assert found == expected and found.shards == (8 if expected.sharded else None)
