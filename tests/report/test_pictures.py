"""Pictures of samples of any shape hold the numbers they were given, in the data's range."""

from __future__ import annotations

import math

import pytest
import torch
from matplotlib.colors import to_hex

from fastgen.report import write_report
from fastgen.report.pictures import sample_figure
from fastgen.report.styles import COLOURS

LABELS = {"teacher": "teacher, 100 calls", "student": "student, 1 call"}


def examples(shape: tuple[int, ...], kind: str, n: int = 5, each: int = 3) -> dict:
    generator = torch.Generator().manual_seed(0)
    drawn = {
        who: torch.randn(n, each, *shape, generator=generator) for who in ("teacher", "student")
    }
    X = torch.randn(n, *shape, generator=generator)
    return {
        "Z": None,
        "X_true": X,
        **drawn,
        "scene": {"kind": kind, "samples": each},
        "labels": LABELS,
    }


def visible(figure) -> list:
    return [ax for ax in figure.axes if ax.get_visible()]


@pytest.mark.parametrize("shape", [(2,), (1, 2)])
def test_points_are_scattered_over_the_data_to_one_scale(shape):
    given = examples(shape, "points")
    axes = visible(sample_figure(given))
    assert [ax.get_title() for ax in axes] == ["data", *LABELS.values()]
    assert len({ax.get_xlim() + ax.get_ylim() for ax in axes}) == 1
    for ax, who in zip(axes[1:], ("teacher", "student"), strict=True):
        data, samples = ax.get_lines()
        assert torch.equal(torch.tensor(data.get_xydata()), given["X_true"].reshape(-1, 2).double())
        assert torch.equal(torch.tensor(samples.get_xydata()), given[who].reshape(-1, 2).double())
        assert to_hex(samples.get_color()) == COLOURS[who].lower()


def test_the_nearest_training_images_are_drawn_beside_the_samples():
    given = examples((1, 4, 4), "images", 2, 3)
    given["nearest"] = given["student"] + 0.1
    given["labels"] = {**LABELS, "nearest": "training images"}
    axes = visible(sample_figure(given))
    assert [ax.get_title() for ax in axes] == ["data", *LABELS.values(), "training images"]


@pytest.mark.parametrize(
    ("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (4, [0, 1, 2])]
)
@pytest.mark.parametrize(("n", "each", "grid"), [(3, 4, (3, 4)), (10, 1, (3, 4)), (2, 1, (1, 2))])
def test_images_are_mosaics_in_the_range_of_the_data(channels, shown, n, each, grid):
    given = examples((channels, 5, 6), "images", n, each)
    axes = visible(sample_figure(given))
    data, low = given["X_true"][:, shown], given["X_true"][:, shown].min()
    scaled = ((given["student"][:, :, shown] - low) / (data.max() - low)).clamp(0, 1).double()
    picture = torch.tensor(axes[2].images[0].get_array())
    rows, columns = grid
    assert picture.shape == (rows * 6 - 1, columns * 7 - 1, 3)
    for k, tile in enumerate(scaled.flatten(0, 1)):
        top, left = k // columns * 6, k % columns * 7
        assert torch.allclose(
            picture[top : top + 5, left : left + 6], tile.permute(1, 2, 0), atol=1e-6
        )
    assert bool((picture[5::6] == 1).all())  # white between them


def test_a_constant_image_and_samples_without_a_number_can_be_drawn():
    given = examples((1, 4, 4), "images")
    given["X_true"].zero_()
    given["student"][:] = float("nan")
    assert len(visible(sample_figure(given))) == 3


@pytest.mark.parametrize(("shape", "panels"), [((1,), 1), ((5,), 5), ((4, 3), 6), ((5, 4, 4), 6)])
def test_other_samples_are_histograms_of_their_first_numbers(shape, panels):
    given = examples(shape, "values", n=40)
    given["student"][0, 0] = 1e6
    axes = visible(sample_figure(given))
    assert len(axes) == panels and axes[-1].get_title() == f"number {panels} of {math.prod(shape)}"
    for k, ax in enumerate(axes):
        values = given["X_true"].flatten(1)[:, k]
        low, high = ax.get_xlim()
        assert low < float(values.min()) and high > float(values.max()) and high < 10
        assert len(ax.patches) == 3


@pytest.mark.slow
def test_the_report_names_the_picture_for_what_it_shows(tmp_path):
    folder = write_report(
        tmp_path, results={}, curves=[], examples=examples((2,), "points"), stages={}
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.json",
        "report.md",
        "samples.png",
        "score_vs_nfe.png",
        "training.png",
    ]
    assert "](samples.png)" in (folder / "report.md").read_text()
    # A second report takes the place of the first, whatever it shows.
    trajectories = examples((4, 2), "", each=2)
    trajectories |= {"scene": {}, "Z": torch.zeros(5, 2, 2)}
    write_report(tmp_path, results={}, curves=[], examples=trajectories, stages={})
    assert not (folder / "samples.png").exists() and (folder / "trajectories.png").exists()
