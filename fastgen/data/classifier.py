"""The classifier of small grey images, in whose features generated images are compared with data.

Distances between pixels say little of images. So samples and data go through a network that was
trained once to tell the classes of the data apart, and the numbers before its last layer are
compared, as the Frechet inception distance does with a larger network.

References: Heusel et al. 2017, arXiv:1706.08500.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._core.tensor_files import read_safetensors

__all__ = ["FEATURES", "ImageClassifier", "load_classifier"]

FEATURES = 64
# Images that go through the network at once.
_ROWS = 1000


class ImageClassifier(nn.Module):
    """Two convolutions and two linear maps: 38,000 numbers for ten classes.

    Args:
        classes: number of classes.
        size: pixels of an image's side, a multiple of 4.
    """

    def __init__(self, classes: int = 10, size: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.third = nn.Linear(32 * (size // 4) ** 2, FEATURES)
        self.head = nn.Linear(FEATURES, classes)

    def features(self, x: Tensor) -> Tensor:
        """Features (B, 64), not negative, of images x (B, 1, size, size) in [-1, 1]."""
        y = F.max_pool2d(F.relu(self.first(x)), 2)
        y = F.max_pool2d(F.relu(self.second(y)), 2)
        return F.relu(self.third(y.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images x (B, 1, size, size) in [-1, 1]."""
        return self.head(self.features(x))

    @torch.no_grad()
    def describe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 64) in float64 and the likeliest class (B,), counted from 0, of images x
        (B, 1, size, size), in chunks of rows and without gradient."""
        features = torch.cat([self.features(rows) for rows in x.float().split(_ROWS)])
        return features.double(), self.head(features).argmax(1)


def load_classifier(path: Path) -> ImageClassifier:
    """The classifier whose weights, in any floating dtype, lie in a safetensors file; in float32
    and eval mode.

    Raises:
        ValueError: no such file, a damaged one, or tensors of another network.
    """
    tensors = read_safetensors(path)
    with torch.random.fork_rng(devices=[]):
        network = ImageClassifier()
    try:
        network.load_state_dict({name: value.float() for name, value in tensors.items()})
    except RuntimeError as error:
        raise ValueError(f"{path}: expected weights of an ImageClassifier: {error}") from error
    return network.eval().requires_grad_(False)
