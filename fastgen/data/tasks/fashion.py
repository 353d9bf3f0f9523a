"""The embedded task `fashion`: small grey images of clothes, by class.

The data are 14,000 images of Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747; MIT licence) at
16x16, in numbers from -1 (black) to 1: 12,000 to train on, 2,000 held out, every class equally
often. How they were made stands beside them, in `data/embedded/`.

X is (N, 1, 16, 16), Z the class as a label (N,) from 1 to 10. Label 0 stands for no class, which is
what a teacher is guided away from.

Samples and data are compared in the 64 features of a small classifier (`data/classifier.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...comparisons import LEVEL, Comparison, compare_frechet, compare_means
from ...frechet import frechet_distance
from ...neighbours import Region, precision_recall_density_coverage
from ..classifier import ImageClassifier, load_classifier
from ..formats.array_files import read_tensors
from ..samples import SampleData
from ..scoring import answered, evaluation_generator
from ..trajectories import check_pack

__all__ = ["CLASSES", "FashionTask", "beyond", "score"]

EMBEDDED = Path(__file__).parents[1] / "embedded"
CLASSES = 10
# Of classes 1 .. 10.
NAMES = (
    "T-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
# Neighbours of a held-out image, in precision, recall and coverage.
NEIGHBOURS = 5
# Training images that two students are compared beside.
_COMPARED = 4000


# ---- Images -------------------------------------------------------------------------------------


@cache
def images(part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 16, 16) in [-1, 1], float32, and labels (N,) from 1 to 10, classes taking
    turns.

    Args:
        part: "train" (12,000) or "held_out" (2,000).
    """
    arrays = read_tensors(EMBEDDED / "fashion.npz")
    X = arrays[f"{part}_images"][:, None].float() / 127.5 - 1.0
    return X, arrays[f"{part}_classes"].long() + 1


@cache
def classifier() -> ImageClassifier:
    """The classifier that lies beside the images."""
    return load_classifier(EMBEDDED / "fashion-classifier.safetensors")


# ---- Scores -------------------------------------------------------------------------------------


class Described(NamedTuple):
    """Images as the scores see them.

    Attributes:
        features: (N, 64), float64.
        labels: (N,), from 1.
    """

    features: Tensor
    labels: Tensor


def within_class_variance(described: Described) -> float:
    """Mean over classes of the total variance of a class's features."""
    spreads = [
        described.features[described.labels == label].var(0).sum()
        for label in described.labels.unique()
    ]
    return float(torch.stack(spreads).mean())


def neighbour_scores(samples: Tensor, data: Tensor) -> dict[str, float]:
    """Precision, recall and coverage of features of samples (N, d) beside those of data (M, d), as
    in `precision_recall_density_coverage`; its density is left out."""
    scores = precision_recall_density_coverage(data, samples, NEIGHBOURS)
    return {name: float(scores[name]) for name in ("precision", "recall", "coverage")}


def score(x: Tensor, labels: Tensor, reference: Described, neighbours: Tensor) -> dict[str, float]:
    """Scores of images beside data.

    Args:
        x: images (N, 1, 16, 16); what lies outside [-1, 1] is clamped.
        labels: those they were asked for (N,).
        reference: data that moments are compared with.
        neighbours: features (M, 64) of the data that neighbours are looked for among.

    Returns:
        frechet: 100 `frechet_distance` / total variance of the reference's features, in %.
        precision, recall, coverage: `neighbour_scores`, mean over blocks of M samples, so that
            fresh data have a coverage of about 1 - 2^-5 = .969 however many samples there are.
        class_accuracy: share of images whose class the classifier recognises.
        spread: `within_class_variance` over that of the reference; 1 for the data's law.
    """
    features, found = classifier().describe(x.clamp(-1.0, 1.0))
    described = Described(features, labels)
    unit = float(reference.features.var(0).sum())
    blocks = [
        neighbour_scores(block, neighbours)
        for block in features.split(len(neighbours))
        if len(block) == min(len(neighbours), len(features))
    ]
    near = {name: sum(block[name] for block in blocks) / len(blocks) for name in blocks[0]}
    return {
        "frechet": 100.0 * float(frechet_distance(features, reference.features)) / unit,
        **near,
        "class_accuracy": float((found + 1 == labels).double().mean()),
        "spread": within_class_variance(described) / within_class_variance(reference),
    }


def beyond(found: Comparison, a: float, b: float, *, least: float) -> Comparison:
    """The comparison of two means a and b, each raised to `least` where it is less.

    Blurred images are easier to classify than data, which is no merit.
    """
    shift = max(least - b, 0.0) - max(least - a, 0.0)
    return replace(
        found,
        difference=found.difference + shift,
        low=found.low + shift,
        high=found.high + shift,
    )


# ---- The task -----------------------------------------------------------------------------------


class FashionTask:
    """Images of clothes to train on, held-out ones and one fixed noise draw to score on.

    Full scores are those of 4000 samples: moments beside the training images, neighbours among the
    2000 held-out images. Quick ones are those of 1000 samples, with neighbours among 1000 training
    images, and another draw of noise.

    Args:
        pack: 1.
        seed: without effect; the images are what they are.
        symmetry: None; images have none.

    Raises:
        ValueError: other values.
    """

    name = "fashion"
    primary = "frechet"
    SAMPLES = 4000
    QUICK_SAMPLES = 1000

    def __init__(self, *, pack: int = 1, seed: int = 0, symmetry: dict | None = None) -> None:
        check_pack(pack, 1)
        if symmetry is not None:
            raise ValueError("expected no data.symmetry for the task fashion; leave it out")
        self.pack = pack
        self.seed = seed

    @property
    def train(self) -> SampleData:
        """The training set, read on first use."""
        return self._train

    @cached_property
    def _train(self) -> SampleData:
        return SampleData(*images("train"))

    def evaluate(
        self, sample: Callable[[Any, Tensor], Tensor], *, quick: bool = False
    ) -> dict[str, float]:
        """Scores of a sampler, as `score` gives them.

        Args:
            sample: called with labels Z (4000,) and noise (4000, 1, 16, 16), answers with X of the
                noise's shape. The noise is the same for every sampler, and so are the labels, of
                which there are equally many of every class.
            quick: 1000 samples.
        """
        split = "validation" if quick else "all"
        count = self.QUICK_SAMPLES if quick else self.SAMPLES
        noise = torch.randn(count, 1, 16, 16, generator=evaluation_generator(self.name, split))
        labels = torch.arange(count) % CLASSES + 1
        drawn = answered(sample(labels, noise), noise)
        return score(drawn, labels, _described("train"), _neighbours(split))

    def compare(self, a: Tensor, b: Tensor) -> dict[str, Comparison]:
        """Two samplers by what they answered in `evaluate(quick=True)`, each (1000, 1, 16, 16).

        Returns:
            the difference of `frechet`, beside 4000 training images, which are enough for its
            noise; of the share of samples `outside` the data, and of the share of the data `missed`
            by them (:class:`fastgen.neighbours.Region`); and of `class_error`, the share in another
            class than asked for, as far as it is larger than that of held-out images. Samples that
            miss less are no better by that alone, as `recorded.compare_rows` says.
        """
        data = _described("train").features[:_COMPARED]
        unit = float(data.var(0).sum()) / 100.0
        region = _region()
        level = 1 - (1 - LEVEL) / 4
        features = {}
        losses = {}
        for name, samples in (("a", a), ("b", b)):
            features[name], found = classifier().describe(samples.float().clamp(-1.0, 1.0))
            x = features[name]
            labels = torch.arange(len(x)) % CLASSES + 1
            losses[name] = {
                "outside": region.outside(x).double(),
                "missed": region.missed(x).double(),
                "class_error": (found + 1 != labels).double(),
            }
        scale = unit**0.5
        frechet = compare_frechet(
            features["a"] / scale, features["b"] / scale, data / scale, level=level
        )
        others = {
            name: compare_means(of_a, losses["b"][name], level=level, chooses=name != "missed")
            for name, of_a in losses["a"].items()
        }
        errors = [float(losses[name]["class_error"].mean()) for name in ("a", "b")]
        others["class_error"] = beyond(others["class_error"], *errors, least=_class_error())
        return {"frechet": frechet, **others}

    def floor(self) -> dict[str, float]:
        """Scores of data. frechet, class_accuracy and spread are those of the 2000 held-out
        images; fewer samples have a larger frechet. precision, recall and coverage are those of as
        many training images, beside the held-out ones."""
        x, labels = images("held_out")
        neighbours = _neighbours("all")
        scores = score(x, labels, _described("train"), neighbours)
        fresh = _described("train").features[: len(neighbours)]
        return {**scores, **neighbour_scores(fresh, neighbours)}

    def nearest(self, x: Tensor) -> Tensor:
        """The training image whose pixels are nearest to each of the images x (n, 1, 16, 16): what
        was learned by heart has itself beside it."""
        X = self.train.X
        own = x.clamp(-1.0, 1.0).flatten(1).to(X.dtype)
        return X[torch.cdist(own, X.flatten(1)).argmin(1)]

    def scene(self) -> dict:
        """What to draw: images, six samples of each class."""
        return {"obstacles": [], "limits": None, "equal": True, "kind": "images", "samples": 6}

    def examples(self, n: int | None = None) -> tuple[Tensor, Tensor]:
        """Labels and held-out images of n rows, classes taking turns; None for one of each."""
        x, labels = images("held_out")
        n = CLASSES if n is None else n
        return labels[:n], x[:n]


@cache
def _described(part: str) -> Described:
    x, labels = images(part)
    return Described(classifier().describe(x)[0], labels)


@cache
def _region() -> Region:
    """Where training images lie in features; others of them stand for fresh data."""
    features = _described("train").features
    fresh = FashionTask.QUICK_SAMPLES
    return Region.of(features[fresh : fresh + _COMPARED], features[:fresh], k=NEIGHBOURS)


@cache
def _class_error() -> float:
    """Share of held-out images that the classifier takes for another class."""
    x, labels = images("held_out")
    found = classifier().describe(x)[1] + 1
    return float((found != labels).double().mean())


def _neighbours(split: str) -> Tensor:
    """Features (M, 64) of the data that neighbours are looked for among."""
    if split == "all":
        return _described("held_out").features
    return _described("train").features[: FashionTask.QUICK_SAMPLES]
