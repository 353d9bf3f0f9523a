"""Writes the same few episodes in every format that `fastgen/data/formats` reads, by the writers
that people use; what it wrote lies in tests/data/sets.

    python tools/make_datasets.py WRITER FOLDER

WRITER is one of `plain` (npz, safetensors, CSV, Parquet), `lerobot3` (lerobot 0.4), `lerobot21`
(lerobot 0.3), `zarr2`, `zarr3`, `hdf5` (h5py, in robomimic's layout), `minari`, `minari_pictures`
(three short episodes with pictures large enough for it to pack) and `policies` (what lerobot 0.4
saves of the normalisation of a policy, and what that makes of the rows). Each needs its
own packages, in an environment of its own; tests/data/sets/README.md names the versions.
"""

# The writers are not in the environment of this package.
# pyright: reportMissingImports=false

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np

LENGTHS = (9, 14, 11, 24, 8, 17, 12, 10)
RATE = 10
STATE = ["x", "y", "heading"]
PLACE = ["goal_x", "goal_y"]
ACTION = ["vx", "vy"]


def episodes() -> list[dict[str, np.ndarray]]:
    """A point that is driven towards a goal; float32, and a small picture of each row."""
    rng = np.random.default_rng(7)
    made = []
    for length in LENGTHS:
        state = np.zeros((length + 1, 3), np.float32)
        state[0] = rng.normal(size=3)
        goal = rng.normal(size=2).astype(np.float32)
        action = np.zeros((length, 2), np.float32)
        for t in range(length):
            action[t] = 0.2 * (goal - state[t, :2]) + 0.05 * rng.normal(size=2)
            state[t + 1, :2] = state[t, :2] + action[t]
            state[t + 1, 2] = np.arctan2(action[t, 1], action[t, 0])
        image = rng.integers(0, 4, size=(length, 8, 8, 3)).astype(np.uint8)
        made.append(
            {
                "state": state[:length],
                "last_state": state[length],
                "place": np.repeat(goal[None], length, 0),
                "action": action,
                "image": image,
            }
        )
    return made


def joined(name: str) -> np.ndarray:
    """One array of all rows."""
    return np.concatenate([episode[name] for episode in episodes()])


def ends() -> np.ndarray:
    return np.cumsum(LENGTHS).astype(np.int64)


def write_plain(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from safetensors.torch import save_file

    state = joined("state")
    place = joined("place")
    action = joined("action")
    arrays: dict[str, Any] = {
        "actions": action,
        "observations": np.concatenate([state, place], 1),
        "episode_ends": ends(),
    }
    np.savez(folder / "episodes.npz", **arrays)
    tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
    save_file(tensors, str(folder / "episodes.safetensors"))

    episode = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    seconds = np.concatenate([np.arange(n) / RATE for n in LENGTHS])
    with open(folder / "episodes.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = [f"state_{i}" for i in range(3)] + ["goal_x", "goal_y", "action_0", "action_1"]
        writer.writerow(["episode", "timestamp", *names, "remark"])
        for row in range(len(action)):
            numbers = [*state[row], *place[row], *action[row]]
            texts = [f"{value:.9g}" for value in numbers]
            writer.writerow([episode[row], f"{seconds[row]:g}", *texts, "driven, by hand"])

    def listed(values: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])

    columns = {
        "episode_index": pa.array(episode),
        "timestamp": pa.array(seconds),
        "state": listed(state),
        "goal_x": pa.array(place[:, 0]),
        "goal_y": pa.array(place[:, 1]),
        "action": listed(action),
        "remark": pa.array(["driven"] * len(action)),
    }
    pq.write_table(pa.table(columns), folder / "episodes.parquet", row_group_size=32)


def write_lerobot(folder: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    def channels(names: list[str]) -> dict:
        return {"dtype": "float32", "shape": (len(names),), "names": names}

    features = {
        "observation.state": channels(STATE),
        "observation.environment_state": channels(PLACE),
        "observation.image": {
            "dtype": "image",
            "shape": (8, 8, 3),
            "names": ["height", "width", "channels"],
        },
        "action": channels(ACTION),
    }
    dataset = LeRobotDataset.create(
        "fastgen/drive", RATE, features, root=folder, use_videos=False, image_writer_threads=0
    )
    for episode in episodes():
        for t in range(len(episode["action"])):
            frame = {
                "observation.state": episode["state"][t],
                "observation.environment_state": episode["place"][t],
                "observation.image": episode["image"][t],
                "action": episode["action"][t],
            }
            add_frame(dataset, frame)
        dataset.save_episode()
    # Of the 0.3 series there is nothing to close.
    if hasattr(dataset, "finalize"):
        dataset.finalize()


def add_frame(dataset, frame: dict) -> None:
    """A frame with its task, which 0.4 takes among the values and 0.3 beside them."""
    import inspect

    task = "drive to the goal"
    if "task" in inspect.signature(dataset.add_frame).parameters:
        dataset.add_frame(frame, task=task)
    else:
        dataset.add_frame({**frame, "task": task})


def write_zarr2(folder: Path) -> None:
    import numcodecs
    import zarr

    stores = {
        "buffer.zarr": zarr.DirectoryStore(str(folder / "buffer.zarr")),
        "buffer.zarr.zip": zarr.ZipStore(str(folder / "buffer.zarr.zip"), mode="w"),
    }
    for store in stores.values():
        root = zarr.group(store)
        data = root.create_group("data")
        packed = numcodecs.Blosc(cname="zstd", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE)
        data.create_dataset("state", data=joined("state"), chunks=(40, 3), compressor=packed)
        data.create_dataset("place", data=joined("place"), chunks=(40, 2))
        data.create_dataset("action", data=joined("action"), chunks=(25, 2), compressor=packed)
        data.create_dataset("img", data=joined("image"), chunks=(64, 8, 8, 3), compressor=packed)
        root.create_group("meta").create_dataset("episode_ends", data=ends(), compressor=None)
        if hasattr(store, "close"):
            store.close()


def write_zarr3(folder: Path) -> None:
    import zarr

    stores = {
        "buffer3.zarr": zarr.storage.LocalStore(folder / "buffer3.zarr"),
        "buffer3.zarr.zip": zarr.storage.ZipStore(folder / "buffer3.zarr.zip", mode="w"),
    }
    for store in stores.values():
        root = zarr.create_group(store, zarr_format=3)
        data = root.create_group("data")
        data.create_array("state", data=joined("state"), chunks=(40, 3))
        blosc = zarr.codecs.BloscCodec(cname="lz4", clevel=5, typesize=4)
        data.create_array("place", data=joined("place"), chunks=(40, 2), compressors=[blosc])
        data.create_array("action", data=joined("action"), chunks=(25, 2), compressors=None)
        gzip = zarr.codecs.GzipCodec(level=5)
        data.create_array("img", data=joined("image"), chunks=(64, 8, 8, 3), compressors=[gzip])
        root.create_group("meta").create_array("episode_ends", data=ends())
        store.close()


def write_hdf5(folder: Path) -> None:
    import h5py

    with h5py.File(folder / "low_dim.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(LENGTHS)
        data.attrs["env_args"] = '{"env_name": "Drive", "type": 1, "env_kwargs": {}}'
        for index, episode in enumerate(episodes()):
            length = LENGTHS[index]
            demo = data.create_group(f"demo_{index}")
            demo.attrs["num_samples"] = length
            demo.create_dataset("actions", data=episode["action"].astype(np.float64))
            demo.create_dataset("dones", data=(np.arange(length) == length - 1).astype(np.int64))
            demo.create_dataset("rewards", data=np.zeros(length))
            obs = demo.create_group("obs")
            obs.create_dataset("robot0_eef_pos", data=episode["state"].astype(np.float64))
            obs.create_dataset("object", data=episode["place"].astype(np.float64))
            obs.create_dataset("image", data=episode["image"], compression="gzip")
        names = np.array([f"demo_{i}" for i in range(len(LENGTHS))], dtype="S")
        mask = file.create_group("mask")
        mask.create_dataset("train", data=names[:6])
        mask.create_dataset("valid", data=names[6:])


def write_minari(folder: Path) -> None:
    import os

    os.environ["MINARI_DATASETS_PATH"] = str(folder.resolve())
    import minari
    from gymnasium import spaces
    from minari.data_collector.episode_buffer import EpisodeBuffer

    box = {"low": -np.inf, "high": np.inf, "dtype": np.float32}
    observation_space = spaces.Dict(
        {
            "state": spaces.Box(shape=(3,), **box),
            "place": spaces.Box(shape=(2,), **box),
            "mission": spaces.Text(32),
        }
    )
    for kind in ("hdf5", "arrow", "parquet"):
        buffers = []
        for index, episode in enumerate(episodes()):
            length = LENGTHS[index]
            last = episode["last_state"][None]
            observations = {
                "state": np.concatenate([episode["state"], last]),
                "place": np.concatenate([episode["place"], episode["place"][-1:]]),
                "mission": ["drive to the goal"] * (length + 1),
            }
            buffers.append(
                EpisodeBuffer(
                    id=index,
                    observations=observations,
                    actions=episode["action"],
                    rewards=[0.0] * length,
                    terminations=[t == length - 1 for t in range(length)],
                    truncations=[False] * length,
                )
            )
        minari.create_dataset_from_buffers(
            f"drive/{kind}-v0",
            buffers,
            observation_space=observation_space,
            action_space=spaces.Box(shape=(2,), **box),
            data_format=kind,
        )


def write_minari_pictures(folder: Path) -> None:
    import os

    os.environ["MINARI_DATASETS_PATH"] = str(folder.resolve())
    import minari
    from gymnasium import spaces
    from minari.data_collector.episode_buffer import EpisodeBuffer

    bounds = {"low": -np.inf, "high": np.inf, "dtype": np.float32}
    picture = spaces.Box(0, 255, (32, 32, 3), np.uint8)
    state = spaces.Box(shape=(2,), **bounds)
    for kind in ("hdf5", "arrow", "parquet"):
        buffers = []
        for index, length in enumerate((4, 6, 5)):
            place = np.linspace(index, index + 3, length + 1, dtype=np.float32)
            rows, columns = np.indices((32, 32)) / 8
            level = np.cos(rows + place[:, None, None]) + np.sin(columns * (index + 1))
            level = (64 * level + 127).astype(np.uint8)
            pictures = np.stack([level, level[:, ::-1], 255 - level], -1)
            buffers.append(
                EpisodeBuffer(
                    id=index,
                    observations={
                        "picture": list(pictures),
                        "state": np.stack([place, -place], 1),
                    },
                    actions=np.stack([place, place**2], 1)[:length],
                    rewards=[0.0] * length,
                    terminations=[t == length - 1 for t in range(length)],
                    truncations=[False] * length,
                )
            )
        minari.create_dataset_from_buffers(
            f"pictures/{kind}-v0",
            buffers,
            observation_space=spaces.Dict({"picture": picture, "state": state}),
            action_space=spaces.Box(shape=(2,), **bounds),
            data_format=kind,
        )


def write_policies(folder: Path) -> None:
    """The preprocessors of policies for `lerobot3`, which must lie in the folder, and the rows as
    they see them: one by least and largest number, as LeRobot's Diffusion Policy, one by others."""
    import json

    stats = json.loads((folder / "lerobot3" / "meta" / "stats.json").read_text())
    limits = {"STATE": "MIN_MAX", "ACTION": "MIN_MAX", "ENV": "MEAN_STD"}
    write_policy(folder / "policy", stats, limits)
    moments = {"STATE": "MEAN_STD", "ACTION": "QUANTILES"}
    write_policy(folder / "policy_moments", stats, moments)


def write_policy(folder: Path, stats: dict, norm_map: dict[str, str]) -> None:
    import torch
    from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.processor import (
        AddBatchDimensionProcessorStep,
        DeviceProcessorStep,
        NormalizerProcessorStep,
        PolicyProcessorPipeline,
        RenameObservationsProcessorStep,
    )

    features = {
        "observation.state": PolicyFeature(FeatureType.STATE, (len(STATE),)),
        "observation.environment_state": PolicyFeature(FeatureType.ENV, (len(PLACE),)),
        "action": PolicyFeature(FeatureType.ACTION, (len(ACTION),)),
    }
    modes = {FeatureType(key): NormalizationMode(mode) for key, mode in norm_map.items()}
    used = {key: stats[key] for key in features}
    steps = [
        RenameObservationsProcessorStep(rename_map={}),
        AddBatchDimensionProcessorStep(),
        DeviceProcessorStep(device="cpu"),
        NormalizerProcessorStep(features=features, norm_map=modes, stats=used),
    ]
    pipeline = PolicyProcessorPipeline(steps=steps, name="policy_preprocessor")
    pipeline.save_pretrained(folder)
    rows = {
        "observation.state": torch.from_numpy(joined("state")),
        "observation.environment_state": torch.from_numpy(joined("place")),
        "action": torch.from_numpy(joined("action")),
    }
    seen = pipeline(rows)
    np.savez(folder / "seen.npz", **{name: seen[name].numpy() for name in rows})


WRITERS = {
    "plain": write_plain,
    "lerobot3": lambda folder: write_lerobot(folder / "lerobot3"),
    "lerobot21": lambda folder: write_lerobot(folder / "lerobot21"),
    "zarr2": write_zarr2,
    "zarr3": write_zarr3,
    "hdf5": write_hdf5,
    "minari": write_minari,
    "minari_pictures": write_minari_pictures,
    "policies": write_policies,
}


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in WRITERS:
        sys.exit(f"usage: make_datasets.py {{{','.join(WRITERS)}}} FOLDER")
    out = Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    WRITERS[sys.argv[1]](out)
