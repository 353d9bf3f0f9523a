"""Folders of diffusers, saved by diffusers in the test, are read as teachers: same weights, same
answers, same samples as the library's own sampler; what can't be read is named."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastgen.samplers import sample_teacher
from fastgen.teachers.saved import SavedTeacher, blank_network, read_saved
from support.packages import installed
from support.saved import (
    DIT,
    STABLE,
    UNET,
    Harm,
    check_refused,
    network_of,
    save_pipeline,
    teacher_of,
    with_values,
)

pytestmark = pytest.mark.slow

NOISE = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 2, 1, 1])
NETWORKS = {
    "UNet2DModel": UNET,
    "DiTTransformer2DModel": DIT,
    "Transformer2DModel": {**DIT, "norm_type": "ada_norm_zero"},
}


@pytest.fixture(scope="module")
def diffusers() -> ModuleType:
    return installed("diffusers", since=(3, 11))


@pytest.fixture(scope="module")
def unets(diffusers, tmp_path_factory) -> Path:
    """A pipeline with a UNet that predicts noise."""
    network = network_of(diffusers, "UNet2DModel", **UNET)
    scheduler = diffusers.DDIMScheduler(**STABLE, clip_sample=True)
    return save_pipeline(tmp_path_factory.mktemp("saved") / "p", network, scheduler)


@pytest.fixture
def copied(unets, tmp_path) -> Path:
    """The same, to be harmed."""
    shutil.copytree(unets, tmp_path / "p")
    return tmp_path / "p"


def read(folder: Path) -> SavedTeacher:
    saved = read_saved(folder)
    assert saved is not None
    return saved


# ---- What is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_euler_steps_are_those_of_their_ddim(diffusers, tmp_path, name, prediction):
    network = network_of(diffusers, name, **NETWORKS[name])
    scheduler = diffusers.DDIMScheduler(**STABLE, clip_sample=True, prediction_type=prediction)
    teacher = teacher_of(save_pipeline(tmp_path / "p", network, scheduler))
    calls = 10
    scheduler.set_timesteps(calls)
    x = NOISE
    with torch.no_grad():
        for row in scheduler.timesteps:
            answer = network(x, timestep=row.expand(len(x)), class_labels=LABELS).sample
            step = scheduler.step(answer, row, x, use_clipped_model_output=True)
            x = step.prev_sample
    # They start from noise, we from sigma times noise.
    start = (1 - scheduler.alphas_cumprod[scheduler.timesteps[0]]).sqrt()
    ours = sample_teacher(teacher, NOISE / start, calls, LABELS)
    assert isinstance(ours, Tensor)
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_euler_steps_are_those_of_their_flow_matching(diffusers, tmp_path, name):
    network = network_of(diffusers, name, **NETWORKS[name])
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    teacher = teacher_of(save_pipeline(tmp_path / "p", network, scheduler))
    calls = 8
    scheduler.set_timesteps(sigmas=[1 - i / calls for i in range(calls)])
    x = NOISE
    with torch.no_grad():
        for time in scheduler.timesteps:
            answer = network(x, timestep=time.expand(len(x)), class_labels=LABELS).sample
            x = scheduler.step(answer, time, x).prev_sample
    ours = sample_teacher(teacher, NOISE, calls, LABELS)
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


def test_what_stands_beside_the_folder_wins(unets):
    teacher = teacher_of(unets)
    assert teacher.prediction == "eps" and teacher.clip_sample == (-1.0, 1.0)
    other = teacher_of(unets, clip_sample="unclipped", prediction="v")
    assert other.prediction == "v" and other.clip_sample is None
    names = {"x": "sample", "t": "timestep", "cond": None}
    assert teacher_of(unets, keywords=names).network.names["cond"] is None


def test_a_network_is_read_alone_and_from_within_its_pipeline(unets, copied):
    whole = read(unets)
    part = read(unets / "unet")
    assert whole.declaration == part.declaration and whole.keywords == part.keywords
    shutil.move(copied / "unet", copied.parent / "alone")
    assert read(copied.parent / "alone").declaration is None
    with pytest.raises(ValueError, match="give teacher.scheduler, or teacher.path and teacher.pr"):
        teacher_of(copied.parent / "alone")
    teacher = teacher_of(copied.parent / "alone", scheduler=str(copied))
    assert teacher.describe() == teacher_of(unets).describe()
    teacher = teacher_of(copied.parent / "alone", path="edm", prediction="x0")
    assert teacher.describe()["path"]["name"] == "edm"


def test_shards_and_variants_are_read(unets, copied):
    expected = read(unets).network.state_dict()
    file = copied / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert same(read(copied).network.state_dict(), expected)
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for name, inside in halves.items():
        save_file({key: tensors[key] for key in inside}, file.with_name(name))
    listed = {key: name for name, inside in halves.items() for key in inside}
    index = file.with_name(file.name + ".index.json")
    index.write_text(json.dumps({"weight_map": listed}))
    assert same(read(copied).network.state_dict(), expected)
    index.write_text(json.dumps({"weight_map": {names[0]: "../a.safetensors"}}))
    with pytest.raises(ValueError, match="expected names of .safetensors files beside it"):
        read(copied)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_blank_network_needs_no_weights(unets, copied):
    tensors = read(unets).network.state_dict()
    (copied / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    blank = blank_network(copied, tensors)
    assert isinstance(blank, nn.Module)
    assert blank.state_dict().keys() == tensors.keys()


def test_a_blank_network_is_no_larger_than_what_is_loaded_into_it(unets, copied):
    tensors = read(unets).network.state_dict()
    file = copied / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "block_out_channels": [4, 8192]}))
    with pytest.raises(ValueError, match="expected a network of the .* numbers in .*, got one of"):
        blank_network(copied, tensors)


def test_the_generator_of_the_caller_stays_as_it_is(unets):
    before = torch.get_rng_state()
    read(unets)
    assert torch.equal(torch.get_rng_state(), before)


def test_times_that_are_looked_up_are_whole(diffusers, tmp_path):
    sizes = {**UNET, "time_embedding_type": "learned", "num_train_timesteps": 1000}
    network = network_of(diffusers, "UNet2DModel", **sizes)
    teacher = teacher_of(save_pipeline(tmp_path / "p", network, diffusers.DDPMScheduler()))
    assert teacher(NOISE, 0.5, LABELS).shape == NOISE.shape


def test_a_transformer_without_times_of_each_row_is_refused(diffusers, tmp_path):
    sizes = {**DIT, "num_embeds_ada_norm": 1000, "norm_type": "ada_norm"}
    network = network_of(diffusers, "Transformer2DModel", **sizes)
    folder = save_pipeline(tmp_path / "p", network, diffusers.DDPMScheduler())
    with pytest.raises(ValueError, match="expected norm_type ada_norm_zero, got 'ada_norm'"):
        teacher_of(folder)


# ---- What is refused -----------------------------------------------------------------------------


def pickled(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()


def two_variants(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    for variant in ("ema", "fp16"):
        shutil.copy(file, file.with_name(f"diffusion_pytorch_model.{variant}.safetensors"))
    file.unlink()


def a_pointer(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")


MODEL = "unet/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
HARM: dict[str, Harm] = {
    "no config": (lambda f: (f / MODEL).unlink(), "expected config.json in .*unet, got none"),
    "no weights": (
        lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
        "expected diffusion_pytorch_model.safetensors, got no weights there",
    ),
    "pickled": (
        pickled,
        "diffusion_pytorch_model.bin, which is pickled .* save it anew once",
    ),
    "two variants": (two_variants, "expected one file of weights, got diffusion_pytorch_model.ema"),
    "a pointer": (a_pointer, "got a pointer of git-lfs .*git lfs pull"),
    "another class": (
        with_values(MODEL, _class_name="FluxTransformer2DModel"),
        "expected _class_name among UNet1DModel, .* got 'FluxTransformer2DModel'; give ",
    ),
    "no class": (with_values(MODEL, _class_name="os.system"), "among .*, got 'os.system'"),
    "a learned variance": (
        with_values(MODEL, out_channels=4),
        "expected as many out_channels as in_channels, got 4 for 2",
    ),
    "further arguments": (
        with_values(MODEL, addition_embed_type="text_time"),
        "expected addition_embed_type null, got 'text_time'",
    ),
    "a value of no kind": (
        with_values(MODEL, layers_per_block="many"),
        "expected a config of diffusers.UNet2DModel, got: ",
    ),
    "another network": (
        with_values(MODEL, num_class_embeds=5),
        "another shape: class_embedding.weight .*; config.json is of another network",
    ),
    "a giant": (
        with_values(MODEL, block_out_channels=[4, 1 << 20]),
        "expected a network of the .* numbers in .*, got one of .*; config.json is of another net",
    ),
    "a tower": (
        with_values(MODEL, layers_per_block=1 << 20),
        "expected layers_per_block of at most 4096, got 1048576; copy the folder anew",
    ),
    "a town": (
        with_values(MODEL, down_block_types=["DownBlock2D"] * 5000),
        r"expected down_block_types of at most 4096, got \['DownBlock2D', ",
    ),
    "a number that no float holds": (
        with_values(SCHEDULER, clip_sample_range=10**400),
        "expected clip_sample_range as a finite number, got clip_sample_range=inf",
    ),
    "another scheduler": (
        with_values(SCHEDULER, _class_name="EDMEulerScheduler"),
        "expected a network that is preconditioned itself",
    ),
    "no networks": (
        with_values("model_index.json", unet=[None, None]),
        "expected one network among unet, transformer, got ",
    ),
    "two networks": (
        with_values("model_index.json", transformer=["diffusers", "DiTTransformer2DModel"]),
        "got unet and transformer; say teacher.folder=.*/unet or .*/transformer",
    ),
}


@pytest.mark.parametrize("name", HARM)
def test_what_cannot_be_read_is_said_in_one_line(copied, name):
    check_refused(copied, HARM[name])


def test_the_length_of_a_sound_is_no_giant(diffusers, tmp_path):
    sizes = {"block_out_channels": [8, 8], "layers_per_block": 1, "sample_size": 65536}
    blocks = {
        "down_block_types": ["DownBlock1DNoSkip", "DownBlock1D"],
        "up_block_types": ["UpBlock1D", "UpBlock1DNoSkip"],
    }
    network = network_of(diffusers, "UNet1DModel", **sizes, **blocks, extra_in_channels=16)
    network.save_pretrained(tmp_path)
    found = read_saved(tmp_path)
    assert found is not None and type(found.network) is type(network)


def test_a_table_of_a_giant_picture_is_refused(diffusers, tmp_path):
    network_of(diffusers, "DiTTransformer2DModel", **DIT).save_pretrained(tmp_path)
    with_values("config.json", sample_size=1 << 20)(tmp_path)
    with pytest.raises(ValueError, match="expected sample_size of at most 1024, got 1048576"):
        read_saved(tmp_path)


def test_a_library_that_is_missing_is_named(unets, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"expected the package diffusers .*\[interop\]"):
        read(unets)
