"""Make the data of the task `fashion` from the files of Fashion-MNIST.

    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb fashion
    python tools/make_fashion.py fashion/usr/share/datasets/fashion-mnist [images|classifier]

Writes into fastgen/data/embedded:

fashion.npz                    12,000 training and 2,000 held-out images of 16x16, uint8, with their
                               classes; the same bytes at each call
fashion-classifier.safetensors the classifier whose features the task compares; another torch or
                               processor rounds differently, so its scores are of other features

The training images are the first 1200 of each class in a shuffled training set, the held-out ones
the first 200 of each class in a shuffled test set; classes take turns, 0 1 ... 9 0 1 ...
"""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen._core.seeds import generator_for
from fastgen._core.tensor_files import write_safetensors
from fastgen.data.classifier import ImageClassifier

OUT = Path(__file__).parents[1] / "fastgen" / "data" / "embedded"
IMAGES = OUT / "fashion.npz"
CLASSIFIER = OUT / "fashion-classifier.safetensors"
SEED = 0
CLASSES = 10
SIZE = 16
TRAIN_PER_CLASS = 1200
HELD_OUT_PER_CLASS = 200
# The larger file unpacks to 60,000 images of 28x28.
MOST_BYTES = 1 << 26

EPOCHS = 20
BATCH = 100


# ---- Images -------------------------------------------------------------------------------------


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of a gzipped IDX file: two zeros, the type 8, the number of axes, their
    sizes as big-endian int32, the numbers."""
    with gzip.open(path) as file:
        raw = file.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES or len(raw) < 4 or raw[:3] != b"\0\0\x08" or not 1 <= raw[3] <= 3:
        raise ValueError(f"expected a gzipped IDX file of bytes at {path}, got another one")
    axes = raw[3]
    start = 4 + 4 * axes
    shape = struct.unpack(f">{axes}I", raw[4:start])
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def shrinking(source: int, target: int) -> np.ndarray:
    """The matrix (target, source) of means over equal parts: entry (i, j) is the share of part i
    that pixel j covers."""
    part = source / target
    left = np.arange(target)[:, None] * part
    pixel = np.arange(source)[None]
    overlap = np.minimum(left + part, pixel + 1) - np.maximum(left, pixel)
    return overlap.clip(min=0.0) / part


def shrink(images: np.ndarray) -> np.ndarray:
    """Images (N, 28, 28) -> (N, 16, 16), uint8, by means over areas."""
    means = shrinking(images.shape[1], SIZE)
    small = np.einsum("ij,njk,lk->nil", means, images.astype(np.float64), means, optimize=True)
    return np.rint(small).astype(np.uint8)


def drawn(labels: np.ndarray, each: int, part: str) -> np.ndarray:
    """Rows of `each` images of every class, classes taking turns."""
    order = torch.randperm(len(labels), generator=generator_for(SEED, "fashion", part)).numpy()
    rows = [order[labels[order] == label][:each] for label in range(CLASSES)]
    return np.stack(rows, 1).reshape(-1)


def make_images(source: Path) -> None:
    arrays = {}
    parts = [("train", "train", TRAIN_PER_CLASS), ("held_out", "t10k", HELD_OUT_PER_CLASS)]
    for part, prefix, each in parts:
        labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")
        images = read_idx(source / f"{prefix}-images-idx3-ubyte.gz")
        rows = drawn(labels, each, part)
        arrays[f"{part}_images"] = shrink(images[rows])
        arrays[f"{part}_classes"] = labels[rows]
    np.savez_compressed(IMAGES, **arrays)
    print(f"{IMAGES}: {IMAGES.stat().st_size:,} bytes")


# ---- Classifier ---------------------------------------------------------------------------------


def load_part(part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 16, 16) in [-1, 1] and classes (N,)."""
    with np.load(IMAGES, allow_pickle=False) as arrays:
        images = torch.from_numpy(arrays[f"{part}_images"])
        classes = torch.from_numpy(arrays[f"{part}_classes"])
    return images[:, None].float() / 127.5 - 1.0, classes.long()


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images moved by up to a pixel each way, all of a batch alike."""
    down, right = (torch.randint(3, (2,), generator=generator)).tolist()
    padded = F.pad(x, (1, 1, 1, 1), value=-1.0)
    return padded[:, :, down : down + SIZE, right : right + SIZE]


def make_classifier() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    generator = generator_for(SEED, "fashion", "classifier")
    x, classes = load_part("train")
    network = ImageClassifier()
    steps = EPOCHS * len(x) // BATCH
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(x), generator=generator)
        for rows in order.split(BATCH):
            logits = network(shifted(x[rows], generator))
            loss = F.cross_entropy(logits, classes[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: held out {accuracy(network):.4f}", flush=True)
    write_safetensors(CLASSIFIER, {k: v.half() for k, v in network.state_dict().items()})
    print(f"{CLASSIFIER}: {CLASSIFIER.stat().st_size:,} bytes")


def accuracy(network: ImageClassifier) -> float:
    x, classes = load_part("held_out")
    return float((network.describe(x)[1] == classes).double().mean())


def main() -> None:
    source = Path(sys.argv[1])
    wanted = sys.argv[2:] or ["images", "classifier"]
    if "images" in wanted:
        make_images(source)
    if "classifier" in wanted:
        make_classifier()


if __name__ == "__main__":
    main()
