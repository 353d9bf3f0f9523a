"""Styles of a report: the names and colours under which tables and pictures show things.

A thing has one colour in all pictures. The colours are from the palette of Okabe and Ito, which
colour-blind readers can tell apart, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "COLOURS",
    "GREY",
    "INK",
    "MATPLOTLIB",
    "PALE",
    "SCORES",
    "ScoreStyle",
    "StageStyle",
    "Stages",
    "score_style",
    "stage_style",
]

INK = "#000000"
GREY = "#6b6b6b"
PALE = "#c9c9c9"
# Of what is no stage of a training: the stages bring their own.
COLOURS = {
    "teacher": "#0072B2",
    "ab2": "#56B4E9",
    "student": "#D55E00",
    "gradient": "#009E73",
    "other": "#CC79A7",
}
MATPLOTLIB: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "lines.linewidth": 1.8,
    "legend.fontsize": 12,
    "legend.frameon": False,
    "savefig.dpi": 110,
}


@dataclass(frozen=True)
class StageStyle:
    """How a report shows one stage of a training.

    Attributes:
        title: its short name, for rows of the table, legends and headings ("DMD").
        colour: of its curves, as matplotlib reads colours ("#009E73").
        heading: over the panel of its losses; the title, where this is empty.
    """

    title: str
    colour: str
    heading: str = ""


# Stage, as the rows of a log name it -> its style. Tables and legends keep the mapping's order.
Stages = Mapping[str, StageStyle]


def stage_style(stage: str, stages: Stages) -> StageStyle:
    """The style of a stage. One that `stages` doesn't name is grey and keeps its own name."""
    neutral = StageStyle(title=stage.replace("_", " "), colour=GREY)
    return stages.get(stage, neutral)


@dataclass(frozen=True)
class ScoreStyle:
    """How a report shows one score.

    Attributes:
        title: what a person calls it.
        meaning: which way is good.
        scale: of its axis: "linear", "log", or "logit" for shares of 1.
    """

    title: str
    meaning: str
    scale: str


SCORES = {
    "success": ScoreStyle("success", "higher is better", "logit"),
    "mode_error": ScoreStyle("mode error", "lower is better", "log"),
    "energy_ratio": ScoreStyle(
        "energy distance to the data", "1 = demonstrations, lower is better", "log"
    ),
    "clearance": ScoreStyle("clearance / that of the data", "1 = demonstrations", "linear"),
    "spread": ScoreStyle("spread within a mode / data's", "1 = demonstrations", "linear"),
    "amplitude": ScoreStyle("amplitude / data's", "1 = demonstrations", "linear"),
    "amplitude_spread": ScoreStyle("spread of amplitudes / data's", "1 = demonstrations", "linear"),
    "periods_spread": ScoreStyle("spread of frequencies / data's", "1 = demonstrations", "linear"),
    "off_sine": ScoreStyle("what a sine leaves of a weave", "lower is better", "log"),
    "off_seam": ScoreStyle("most distance ahead or behind", "lower is better", "log"),
    "share_error": ScoreStyle("error of class shares", "lower is better", "log"),
    "coverage": ScoreStyle("share of the data covered", "higher is better", "logit"),
    "mismatch": ScoreStyle("mismatch to the data", "not covered + energy distance", "log"),
    "min_ade": ScoreStyle("minADE, best of 6 samples", "lower is better", "log"),
    "min_fde": ScoreStyle("minFDE, best of 6 samples", "lower is better", "log"),
    "energy_distance": ScoreStyle(
        "energy distance to the data", "0 = same law, lower is better", "linear"
    ),
    "frechet": ScoreStyle(
        "Frechet distance in features, % of their variance", "lower is better", "log"
    ),
    "precision": ScoreStyle("share of samples among the data", "higher is better", "logit"),
    "recall": ScoreStyle("share of data among the samples", "higher is better", "logit"),
    "class_accuracy": ScoreStyle("share in the class asked for", "higher is better", "logit"),
    "outside": ScoreStyle("share of samples outside the data", "0.01 = the data's law", "linear"),
    "missed": ScoreStyle("share of the data missed", "0.01 = the data's law", "linear"),
    "energy_score": ScoreStyle("energy score", "lower is better", "log"),
    "mean_error": ScoreStyle("error of the mean / spread of the data", "lower is better", "log"),
    "std_ratio": ScoreStyle("spread / that of the data", "1 = the data's", "linear"),
}


def score_style(name: str, meaning: str = "") -> ScoreStyle:
    """The style of a score. One that isn't in `SCORES` keeps its own name, over a linear axis.

    Args:
        name: of the score, without the suffix of a set of conditions.
        meaning: which way is good, of a score that isn't in `SCORES`.
    """
    return SCORES.get(name, ScoreStyle(name.replace("_", " "), meaning, "linear"))
