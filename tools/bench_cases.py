"""The cases of `tools/bench.py quality`: tasks with a teacher, and recipes to compare on them.

Cases whose bars hold at an equal budget name, for KD alone, the row that it has to spend as much as
(`Case.equal`): how many pairs and updates that is follows from the other run
(:mod:`bench_budgets`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# A discriminator that keeps modes: relativistic, R1 and R2 of weight 30 on perturbations of .05.
GAN = [
    "dmd.gan_loss=relativistic",
    "dmd.gan_r1_reg_weight=0.15",
    "dmd.gan_r2_reg_weight=0.15",
    "dmd.gan_r1_reg_alpha=0.05",
    "dmd.gan_use_same_t_noise=true",
]
ON_SAMPLES = [
    *GAN,
    "dmd.gan_features=sample",
    "dmd.gan_t={time_dist_type: uniform, min_t: 0.0, max_t: 0.1}",
]
ON_FEATURES = [
    *GAN,
    "dmd.gan_loss=softplus",
    "dmd.gan_t={time_dist_type: uniform, min_t: 0.02, max_t: 0.3}",
]
FAR = [
    "train.student_optimizer.lr=0.002",
    "train.student_optimizer.warmup_steps=30",
    "student.ema.decay=0.995",
]
NO_VSD = ["dmd.vsd_weight=0"]
PATHS = ("energy_ratio", "success", "mode_error", "clearance", "spread")


class Measure(NamedTuple):
    """What is measured of exported students beside the report.

    Attributes:
        of_student: folder of a student -> scores.
        prepare: writes what the recipes need into the folder of the case, which overrides name
            `{folder}`; None: nothing.
        of_teacher: folder of the case -> rows of the teacher; None: it isn't measured.
        of_data: scores of fresh data; None: they aren't measured.
    """

    of_student: Callable[[Path], dict[str, float]]
    prepare: Callable[[Path], None] | None = None
    of_teacher: Callable[[Path], dict[str, dict[str, float]]] | None = None
    of_data: Callable[[], dict[str, float]] | None = None


class Case(NamedTuple):
    """A task with a teacher, and recipes to compare on it.

    Attributes:
        config: of the distillation.
        rows: name -> overrides.
        weak: overrides of the training of a weak teacher, with its config; None: the shipped
            teacher.
        scores: what the table shows.
        teachers: row -> further overrides of its own weak teacher, of which one is trained with
            each seed. {} where all rows share one.
        equal: row of KD alone -> the row whose teacher evaluations and CPU seconds it is given.
        measure: what is measured of exported students beside the report, by its name in
            `bench_quality.MEASURES`; "": nothing.
        timed: whether the training of the shipped teacher is timed, which costs are compared with.
        peer: row of another package (:mod:`bench_peer`) -> the row whose CPU seconds it is given.
        folder: the case whose runs it shares; "": its own.
    """

    config: str
    rows: dict[str, list[str]]
    weak: tuple[str, list[str]] | None = None
    scores: tuple[str, ...] = PATHS
    teachers: dict[str, list[str]] = {}
    equal: dict[str, str] = {}
    measure: str = ""
    timed: bool = False
    peer: dict[str, str] = {}
    folder: str = ""


NEAR = (*PATHS, "success_near", "spread_near")
WEAVES = (
    "success",
    "energy_ratio",
    "amplitude",
    "amplitude_spread",
    "periods_spread",
    "spread",
    "off_sine",
    "off_seam",
)
IMAGES = ("frechet", "coverage", "precision", "recall", "class_accuracy", "spread")
POINTS = ("energy_distance", "success", "coverage", "spread", "mode_error")
# The scores of a weak teacher that its students' tables need, and no more: each takes thousands of
# paths.
FEW_CALLS = ["calls=[100]", "ab2_calls=[8]"]
DATA = ["dmd.real_data_weight=1"]
POINT_DATA = [
    *DATA,
    "dmd.real_data_kernel=mmd",
    "dmd.real_data_conditional=false",
    "dmd.real_data_samples=256",
]
DMD = ["method=dmd2", "train.steps=300"]
# Each rung of four is easier to learn.
FOUR = ["student.steps=4", "train.kd_steps=3000"]
ALONE = ["method=kd"]
MATCHED = ["method=dmd2", "keep=dmd"]
# The discriminator of fashion.yaml.
NO_GAN = [
    "dmd.gan_loss_weight_gen=0",
    "dmd.gan_r1_reg_weight=0",
    "dmd.gan_r2_reg_weight=0",
]
IMAGES_ALONE = [*ALONE, *NO_GAN]
# A discriminator would draw guided students back to the data. Averages are not chosen by their
# distance to the data, which guidance leaves, and the report measures the teacher with one call.
GUIDED = [
    *NO_GAN,
    "teacher.null_cond={folder}/no-class.npz",
    "dmd.guidance_scale=2.5",
    "train.kd_pairs=1000",
    "train.keep_best=false",
    "teacher.calls=[1]",
    "teacher.ab2_calls=[]",
]
UNEQUAL = [
    "data.name=file",
    "data.path={folder}/unequal-modes.safetensors",
    "teacher.folder=null",
    "teacher.factory=bench_teachers:Denoiser",
    "teacher.weights={folder}/teacher.safetensors",
    "teacher.calls=[1, 100]",
    "teacher.ab2_calls=[24]",
]
# So few pairs that the modes' weights are off by more than a tenth.
WEAK_KD = ["train.kd_pairs=16", "train.kd_steps=300"]
WIDENED = [
    "dmd.vsd_norm=batch",
    "dmd.vsd_widen_from=0.6",
    "dmd.vsd_widen_updates=1500",
    "train.steps=3000",
]
# At most 30,000 evaluations, those of validations and of the report among them.
FEW_PAIRS = ["train.kd_pairs=500", "train.kd_steps=600", "train.steps=200"]
# Nothing is asked of the teacher but the weights that the student starts from.
DRIFT = [
    "method=drift",
    *NO_GAN,
    "dmd.gan_features=teacher",
    "train.kd_steps=0",
    "train.steps=2500",
    "dmd.set_samples=16",
]
# What ring.yaml has beyond two-rings.yaml.
LIKE_RING = [
    "student.layers=6",
    "dmd.vsd_norm=batch",
    "dmd.fake_steps_per_student_step=5",
    "dmd.fake_score_warmup_steps=50",
    "train.kd_pairs=3000",
    "train.kd_steps=2800",
    "train.steps=150",
    "train.student_optimizer.lr=5.0e-5",
]
CASES = {
    "modes": Case(
        "modes.yaml",
        {
            "KD + DMD": DMD,
            "KD + DMD + KD loss": [*DMD, "dmd.kd_weight=0.25"],
        },
        scores=POINTS,
        timed=True,
    ),
    "weak modes": Case(
        "modes.yaml",
        {
            "KD + DMD": ["train.kd_steps=600", *DMD],
            "KD + GAN": [
                "train.kd_steps=600",
                "method=ladd",
                "train.steps=1000",
                "train.batch_size=256",
                *ON_SAMPLES,
                *FAR,
            ],
            "KD + data": [
                "train.kd_steps=600",
                "method=dmd2",
                "train.steps=2000",
                "train.batch_size=256",
                *POINT_DATA,
                *NO_VSD,
                *FAR,
                "train.student_optimizer.betas=[0.9, 0.99]",
                "train.student_optimizer.lr=0.003",
            ],
            "auto": ["train.kd_steps=600", "method=auto"],
        },
        ("modes-teacher.yaml", ["train.steps=425", "train.optimizer.final_lr_ratio=0.85"]),
        POINTS,
    ),
    "ring": Case(
        "ring-kd.yaml",
        {
            "KD": [],
            "KD + DMD + KD loss": [*DMD, "dmd.kd_weight=0.25", "train.kd_steps=4000"],
            "KD, 4 steps": FOUR,
        },
        scores=NEAR,
        timed=True,
    ),
    "two rings": Case(
        "two-rings.yaml",
        {
            "1 step": [],
            "4 steps": FOUR,
        },
        timed=True,
    ),
    "weak ring": Case(
        "ring-kd.yaml",
        {
            "KD + data": [
                "train.kd_steps=2000",
                "method=dmd2",
                "train.steps=1000",
                *DATA,
                *NO_VSD,
                *FAR,
            ],
            "KD + GAN + data": [
                "train.kd_steps=2000",
                "method=dmd2",
                "train.steps=500",
                "dmd.gan_loss_weight_gen=1",
                *DATA,
                *NO_VSD,
                *ON_FEATURES,
                *FAR,
                "train.student_optimizer.lr=0.0005",
            ],
            "auto": ["train.kd_steps=2000", "method=auto"],
        },
        (
            "ring-teacher.yaml",
            ["train.steps=2000", "train.optimizer.final_lr_ratio=0.85", *FEW_CALLS],
        ),
    ),
    # A twentieth of the demonstrations, drawn anew with each seed, as is the teacher.
    "little data": Case(
        "ring-kd.yaml",
        {
            name: ["train.kd_steps=1500", "train.kd_pairs=16000", "data.size=200"]
            for name in ("equivariant", "dense")
        },
        (
            "ring-teacher.yaml",
            [
                "train.steps=2000",
                "train.ema_decay=0.99",
                "data.size=200",
                "calls=[]",
                "ab2_calls=[16]",
            ],
        ),
        (*PATHS, "success_near", "kept"),
        {"equivariant": [], "dense": ["model.equivariant=false"]},
        measure="turned",
    ),
    # Images of clothes, at budgets that a user with a large teacher would have.
    "fashion": Case(
        "fashion.yaml",
        {
            "KD + DMD": [],
            "KD, as many evaluations": IMAGES_ALONE,
            "500 pairs + DMD": FEW_PAIRS,
            "KD, as many as 500 pairs + DMD": IMAGES_ALONE,
            "4 calls": ["student.steps=4"],
            "KD, 4 calls": ["student.steps=4", *IMAGES_ALONE],
            "DMD alone": ["train.kd_steps=0", "train.steps=500"],
            "drift": DRIFT,
        },
        scores=IMAGES,
        equal={
            "KD, as many evaluations": "KD + DMD",
            "KD, as many as 500 pairs + DMD": "500 pairs + DMD",
            "KD, 4 calls": "4 calls",
        },
    ),
    # What `auto` chooses, beside KD alone with as much.
    "weave": Case(
        "weave.yaml",
        {"auto": [], "KD alone": ALONE},
        scores=WEAVES,
        equal={"KD alone": "auto"},
    ),
    "ring auto": Case(
        "ring.yaml",
        {"auto": [], "KD alone": ALONE},
        scores=NEAR,
        equal={"KD alone": "auto"},
    ),
    "two rings auto": Case(
        "two-rings.yaml",
        {"auto": ["method=auto", *LIKE_RING], "KD alone": [*LIKE_RING, *ALONE]},
        scores=(*PATHS, "share_error"),
        equal={"KD alone": "auto"},
    ),
    "ring, any budget": Case("ring-kd.yaml", {"KD, 6 layers": ["student.layers=6"]}, scores=NEAR),
    # One student of any number of calls beside students of one, for half as many updates again.
    "ring, any number": Case(
        "ring-kd.yaml",
        {
            **{f"{k} alone": [f"student.steps={k}", "train.kd_steps=2000"] for k in (1, 2, 4)},
            "any": ["student.steps=any", "train.kd_steps=3000"],
        },
        scores=NEAR,
    ),
    "fashion, any number": Case(
        "fashion.yaml",
        {
            f"{k} alone": [f"student.steps={k}", "train.kd_steps=1000", *IMAGES_ALONE]
            for k in (1, 2, 4)
        }
        | {"any": ["student.steps=any", "train.kd_steps=1500", *IMAGES_ALONE]},
        scores=IMAGES,
    ),
    # Students that go on from given waypoints, of a teacher that was trained to.
    "ring, prefixes": Case(
        "ring-kd.yaml",
        {"prefixes": ["train.prefix_max=8", "train.kd_steps=2000"]},
        (
            "ring-teacher.yaml",
            ["train.prefix_max=8", "train.steps=3000", "train.ema_decay=0.995", *FEW_CALLS],
        ),
        ("energy_ratio", "success", "success_4", "success_8", "kept_4", "kept_8"),
        measure="prefixes",
    ),
    # Two ways to join the rungs. `keep=dmd`: students by DMD are compared, better than KD or not.
    "ring, 4 calls": Case(
        "ring.yaml",
        {
            kind: [*MATCHED, "student.steps=4", f"student.sample_type={kind}"]
            for kind in ("sde", "ode")
        },
        scores=NEAR,
    ),
    # Students of a teacher that is guided: how near they are to its own samples.
    "guided": Case(
        "fashion.yaml",
        {"KD + DMD": [*GUIDED, *MATCHED], "KD": [*GUIDED, *ALONE]},
        scores=("guided_frechet", "guided_coverage", "guided_spread", "pixels_outside", "frechet"),
        equal={"KD": "KD + DMD"},
        measure="guided",
    ),
    # Modes of unequal weights, from a start whose weights are wrong.
    "modes, unequal weights": Case(
        "modes.yaml",
        {
            "weak KD": [*UNEQUAL, *WEAK_KD, *ALONE],
            "KD + DMD": [*UNEQUAL, *WEAK_KD, *MATCHED, *WIDENED],
            "KD + DMD, one weight a sample": [*UNEQUAL, *WEAK_KD, *MATCHED, "train.steps=600"],
        },
        scores=("weights_off", "in_modes", "energy_distance"),
        measure="weights",
    ),
    # Recorded flights, whose teacher isn't shipped.
    "flights": Case(
        "flights.yaml",
        {"KD + DMD": []},
        ("flights-teacher.yaml", []),
        ("min_fde", "min_ade"),
    ),
    # A peer for as many seconds as the run of `fashion` takes.
    "peer": Case(
        "fashion.yaml",
        {"KD + DMD": [], "modelopt": []},
        scores=IMAGES,
        peer={"modelopt": "KD + DMD"},
        folder="fashion",
    ),
}
