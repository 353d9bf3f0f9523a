"""Which format a data set has, and what is said of folders and files of another kind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fastgen.data.formats import parts
from fastgen.data.formats.detection import is_data_set, open_source
from support.damaged import check_damaged

TESTS = Path(__file__).parents[2]
SETS = TESTS / "data" / "sets"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("features.json", "TensorFlow Datasets"),
        ("model.safetensors", "a network, no data set"),
        ("dataset_info.json", "a folder of the package datasets"),
        ("other.txt", "one with other.txt"),
        (None, "an empty one"),
    ],
)
def test_a_folder_of_another_kind_is_named(tmp_path, name, said):
    if name is not None:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=said):
        open_source(tmp_path)


def test_files_of_another_kind_and_none_are_refused(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"ends in \.npz.*got a\.pkl"):
        open_source(tmp_path / "a.pkl")
    with pytest.raises(FileNotFoundError, match="nothing there"):
        open_source(tmp_path / "b.csv")
    assert not is_data_set("x.npz") and is_data_set("x.parquet") and is_data_set(tmp_path)


def test_a_missing_package_is_asked_for_by_its_extra(monkeypatch):
    for module in ("pyarrow", "h5py"):
        monkeypatch.setitem(sys.modules, module, None)
    for name, extra in (("episodes.parquet", "parquet"), ("low_dim.hdf5", "hdf5")):
        with pytest.raises(ValueError, match=rf'install it: pip install -e "\.\[{extra}\]"'):
            open_source(SETS / name)


def test_what_memory_has_no_room_for_is_refused(monkeypatch):
    monkeypatch.setattr(parts, "free_memory", lambda: 1000)
    with pytest.raises(ValueError, match="expected data for which there is memory"):
        parts.check_unpacked("x", 2000, 2000)


@pytest.mark.slow
def test_damaged_data_sets_are_errors_or_numbers_never_a_crash(tmp_path):
    """More of them: `python tests/support/hostile_sets.py FOLDER 1000 lerobot3`."""
    check_damaged("hostile_sets.py", tmp_path / "w", 15)
