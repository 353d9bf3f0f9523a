"""HDF5 files of robomimic and Minari: episodes in order, links elsewhere, promises."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch

from fastgen.data.formats.detection import open_source


def write(path, lengths=(2, 3), **more):
    """`data/demo_<i>` with `actions` that count."""
    with h5py.File(path, "w") as file:
        for index, length in enumerate(lengths):
            demo = file.create_group(f"data/demo_{index}")
            demo["actions"] = np.full((length, 1), index, np.float32)
            demo.attrs["num_samples"] = length
            for name, value in more.items():
                demo[name] = value
    return path


def test_episodes_are_in_the_order_of_their_numbers(tmp_path):
    source = open_source(write(tmp_path / "a.hdf5", lengths=[1 + i % 3 for i in range(12)]))
    actions = source.read(["actions"])["actions"][:, 0]
    assert torch.equal(actions, actions.sort().values) and int(actions.max()) == 11
    assert list(source.ends) == np.cumsum([1 + i % 3 for i in range(12)]).tolist()


def test_links_elsewhere_are_not_followed(tmp_path):
    other = write(tmp_path / "other.hdf5")
    for name, link in {
        "external": h5py.ExternalLink(str(other), "data/demo_0/actions"),
        "soft": h5py.SoftLink("/data/demo_0/actions"),
    }.items():
        path = write(tmp_path / f"{name}.hdf5")
        with h5py.File(path, "a") as file:
            for demo in file["data"].values():
                del demo["actions"]
                demo["actions"] = link
        assert "actions" not in open_source(path).columns


def test_numbers_that_lie_in_another_file_are_refused(tmp_path):
    path = write(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            shape = demo["actions"].shape
            place = [("/etc/hostname", 0, h5py.h5f.UNLIMITED)]
            demo.create_dataset("x", shape, "f4", external=place)
    with pytest.raises(ValueError, match="expected x of demo_0 in this file"):
        open_source(path).read(["x"])


def test_an_episode_without_a_column_is_named(tmp_path):
    path = write(tmp_path / "a.hdf5", reward=np.zeros(3))
    with h5py.File(path, "a") as file:
        del file["data/demo_0/reward"]
        file["data/demo_0/reward"] = np.zeros(2)
        del file["data/demo_1/actions"]
    with pytest.raises(ValueError, match="expected actions in every episode, got none in demo_1"):
        open_source(path).read(["actions"])


def test_more_than_is_stored_is_refused(tmp_path):
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        demo = file.create_group("data/demo_0")
        demo.create_dataset("actions", (1 << 28, 7), "f4", chunks=(1 << 10, 7))
    with pytest.raises(ValueError, match="bytes unpacked"):
        open_source(path).read(["actions"])


def test_images_beside_are_not_read(tmp_path):
    """What isn't chosen may be larger than memory."""
    path = write(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            shape = (*demo["actions"].shape[:1], 1 << 20, 1 << 20, 3)
            demo.create_dataset("image", shape, "u1", chunks=(1, 16, 16, 3))
    source = open_source(path)
    assert source.columns["image"].kind == "image"
    assert len(source.read(["actions"])["actions"]) == 5


def test_text_is_no_number(tmp_path):
    path = tmp_path / "a.hdf5"
    write(path, lengths=(2,), said=np.array([b"a", b"b"]))
    assert open_source(path).columns["said"].kind == "text"


def test_another_hdf5_file_and_none_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["observations"] = np.zeros((3, 2))
    with pytest.raises(ValueError, match="expected data/demo_0 .* got observations"):
        open_source(tmp_path / "a.h5")
    (tmp_path / "b.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(ValueError, match="expected an HDF5 file"):
        open_source(tmp_path / "b.h5")


def test_episodes_of_whole_numbers_beside_others_lose_nothing(tmp_path):
    """A writer that saves an episode of zeros as int64 doesn't say what the others are."""
    path = write(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        file["data/demo_0/x"] = np.zeros(2, np.int64)
        file["data/demo_1/x"] = np.full(3, 0.7)
    assert open_source(path).read(["x"])["x"].tolist() == [0, 0, 0.7, 0.7, 0.7]


def test_groups_of_other_names_are_left_out_with_a_warning(tmp_path):
    path = write(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        file.copy(file["data/demo_0"], file["data"], "demo_0_again")
    source = open_source(path)
    assert len(source.ends) == 2
    assert "demo_0_again" in source.notes[0] and source.notes[0].startswith("warning")


def test_arrays_in_the_place_of_groups_are_named(tmp_path):
    for name, said in {
        "data": "expected /data to be the group",
        "data/demo_0": "a group demo_0",
    }.items():
        path = tmp_path / f"{len(name)}.hdf5"
        with h5py.File(path, "w") as file:
            file[name] = np.ones(3)
        with pytest.raises(ValueError, match=said):
            open_source(path)
    path = write(tmp_path / "a.hdf5")
    with h5py.File(path, "a") as file:
        del file["data/demo_0"].attrs["num_samples"]
        del file["data/demo_0/actions"]
    with pytest.raises(ValueError, match="expected actions in /data/demo_0, got nothing"):
        open_source(path)
