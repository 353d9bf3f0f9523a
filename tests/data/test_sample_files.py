"""Files of samples: the suffix is the format, and nothing that others wrote is lost."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastgen.data.formats.array_files import read_tensors
from fastgen.data.sample_files import WRITERS, check_sample_file, write_samples


def samples(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 2, generator=generator, dtype=torch.float64)
    z = torch.randn(2, 1, 5, generator=generator, dtype=torch.float64)
    return {"X": x.to(dtype), "Z": z.to(dtype)}


def table(path: Path) -> tuple[list[str], Tensor]:
    """Header and numbers of a CSV file."""
    header, *_ = path.read_text().splitlines()
    return header.split(","), torch.from_numpy(np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".NPZ"])
def test_files_with_conditions_read_back_as_they_were(tmp_path, suffix, dtype):
    path = check_sample_file(tmp_path / f"x{suffix}")
    write_samples(path, samples(dtype))
    found = read_tensors(path)
    assert found.keys() == {"X", "Z"}
    assert all(torch.equal(found[name], value) for name, value in samples(dtype).items())
    assert all(found[name].dtype == dtype for name in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_files_of_samples_alone_hold_every_digit(tmp_path, dtype):
    x = samples(dtype)["X"]
    write_samples(check_sample_file(tmp_path / "x.npy"), samples(dtype))
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "x.npy")), x)
    write_samples(check_sample_file(tmp_path / "x.csv"), samples(dtype))
    names, numbers = table(tmp_path / "x.csv")
    assert names == ["condition", "sample", "step", "x_0", "x_1"]
    assert torch.equal(numbers[:, 3:].reshape(x.shape).to(dtype), x)
    places = numbers[:, :3].long()
    assert torch.equal(x[tuple(places.T)], numbers[:, 3:].to(dtype))


def test_a_table_without_conditions_and_of_other_axes(tmp_path):
    x = samples()["X"]
    for shape, names in (((8, 6), []), ((2, 2, 2, 6), ["axis_0", "axis_1"]), ((4, 2, 6), ["step"])):
        path = tmp_path / f"{len(shape)}.csv"
        write_samples(path, {"X": x.reshape(shape)})
        header, numbers = table(path)
        assert header == ["sample", *names, *(f"x_{i}" for i in range(6))]
        assert torch.equal(numbers[:, -6:].float().reshape(shape), x.reshape(shape))


def test_bfloat16_samples_keep_their_values_where_numpy_has_no_such_dtype(tmp_path):
    x = samples(torch.bfloat16)
    for suffix in (".npz", ".safetensors"):
        write_samples(tmp_path / f"x{suffix}", x)
        assert torch.equal(read_tensors(tmp_path / f"x{suffix}")["X"].bfloat16(), x["X"])
    write_samples(tmp_path / "x.npy", x)
    assert torch.equal(torch.from_numpy(np.load(tmp_path / "x.npy")).bfloat16(), x["X"])


@pytest.mark.parametrize("name", ["x.pt", "x", "x.npz.gz", "", ".", "..", "npz", "x.csv "])
def test_another_suffix_is_refused_with_the_list(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"out to end in one of .npz, .npy, .safetensors, .csv"):
        check_sample_file(name)


@pytest.mark.parametrize("suffix", WRITERS)
def test_what_others_wrote_is_kept_unless_it_may_be_lost(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"years of work")
    with pytest.raises(ValueError, match="would be lost: .*overwrite=true"):
        check_sample_file(path)
    assert path.read_bytes() == b"years of work"
    write_samples(check_sample_file(path, overwrite=True), samples())
    assert path.read_bytes() != b"years of work"


def test_the_same_tensors_from_elsewhere_are_not_ours(tmp_path):
    save_file(samples(), tmp_path / "x.safetensors")
    np.savez(tmp_path / "x.npz", **{name: x.numpy() for name, x in samples().items()})
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match="would be lost"):
            check_sample_file(path)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_samples_of_ours_are_replaced_but_not_where_they_are_the_input(
    tmp_path, monkeypatch, suffix
):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / f"x{suffix}"
    write_samples(path, samples())
    write_samples(check_sample_file(path), {"X": torch.ones(2, 3)})
    assert torch.equal(read_tensors(path)["X"], torch.ones(2, 3))
    (tmp_path / f"link{suffix}").symlink_to(path)
    os.link(path, tmp_path / f"hard{suffix}")
    for name in (path, tmp_path / f"link{suffix}", tmp_path / f"hard{suffix}", f"~/x{suffix}"):
        with pytest.raises(ValueError, match="that the conditions are read from"):
            check_sample_file(path, inputs=[name])


def test_links_folders_and_pipes_are_not_written_over(tmp_path):
    (tmp_path / "folder.npz").mkdir()
    os.mkfifo(tmp_path / "pipe.npz")
    for name in ("folder.npz", "pipe.npz"):
        for overwrite in (False, True):
            with pytest.raises(ValueError, match="which is no file"):
                check_sample_file(tmp_path / name, overwrite=overwrite)
    (tmp_path / "link.npz").symlink_to(tmp_path / "nowhere.npz")
    with pytest.raises(ValueError, match="would be lost"):
        check_sample_file(tmp_path / "link.npz")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="where .*file is none"):
        check_sample_file(tmp_path / "file" / "x.npz")


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.safetensors"
    write_samples(path, samples())
    before = load_file(path)
    with pytest.raises(AttributeError):
        write_samples(path, {"X": None})  # pyright: ignore[reportArgumentType]
    assert torch.equal(load_file(path)["X"], before["X"])
    assert os.listdir(tmp_path) == ["x.safetensors"]
