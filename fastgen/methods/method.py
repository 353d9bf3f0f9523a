"""A method of distillation: what one value of the config key `method` stands for.

A method lives in one file of this folder and has one line in :mod:`fastgen.methods.registry`. It
says what its config implies, refuses what it does not serve, builds its stage of training, and
names the networks and losses whose memory a plan measures. Everything else a run does - pairs, the
loop, checkpoints, the choice of a student, its export and the report - asks the registry and knows
no method by name.

The smallest method has a stage, a title and :meth:`Method.build`:

    class Again(Method):
        stage = "again"
        title = "KD again"

        def build(self, run):
            student = run.student(run.cfg.train.student_optimizer, run.cfg.train.steps)
            return on_pairs(run, student, self.stage, run.cfg.train.steps)

A method that trains on the teacher's pairs, as this one does, also says so by :meth:`uses_pairs`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from ..config.groups import EMAConfig
from ..config.schemas import DistillConfig
from ..config.training import OptimizerConfig
from ..networks import Cond
from ..training.draws import Draws
from ..training.stage import Stage
from ..training.trained_network import TrainedNetwork

__all__ = [
    "Batch",
    "Method",
    "Networks",
    "PlannedNetwork",
    "Run",
    "refuse_distribution_losses",
    "refuse_divergence",
    "refuse_fake_score",
]


class Batch(NamedTuple):
    """One micro-batch of a plan: data (B, ...), noise like it, and a condition of B rows."""

    x0: Tensor
    noise: Tensor
    cond: Cond


class Networks(Protocol):
    """The networks that every method starts from; :class:`fastgen.jobs.setup.Setup` makes them.

    Attributes:
        cfg: the config, with what the method implies.
        teacher: what is distilled, called `teacher(x_t, t, cond)`; it guides itself if asked to.
        unguided: the same without its guidance.
        uncounted: the same, whose evaluations aren't counted: for networks made of the teacher's
            own weights, which are no teacher.
        x0, cond: the training data as networks see them, N rows each.
        prefix_tokens: most tokens of a sample that its condition gives; 0: none are.
    """

    cfg: DistillConfig
    teacher: nn.Module
    unguided: nn.Module
    uncounted: nn.Module
    x0: Tensor
    cond: Cond
    prefix_tokens: int

    def student(self) -> nn.Module:
        """What is trained, in full precision: a copy of the teacher, deeper or shallower if the
        config says so, or a network of the user's."""
        ...

    def teacher_copy(self) -> nn.Module:
        """A trainable copy of the teacher's weights, in full precision. What is frozen in a partly
        frozen teacher stays frozen."""
        ...

    def prediction_at(self, time: float) -> Tensor:
        """What the teacher answers for two samples at RF time `time`.

        Raises:
            ValueError: it cannot be called so, or its answer is not finite or not of their shape.
        """
        ...


class Run(Protocol):
    """What a stage is built from: the networks of a run, and how it trains them.

    Attributes:
        cfg: as that of `networks`.
        rank, world: number of this process, and how many share the batch.
    """

    cfg: DistillConfig
    rank: int
    world: int

    @property
    def networks(self) -> Networks:
        """Those of the run."""
        ...

    def student(
        self, optimizer: OptimizerConfig, updates: int, ema: EMAConfig | None = None
    ) -> TrainedNetwork:
        """The student as the stage before left it; before the first, as `Networks.student` makes
        it."""
        ...

    def trained(
        self,
        network: nn.Module,
        optimizer: OptimizerConfig,
        updates: int,
        ema: EMAConfig | None = None,
    ) -> TrainedNetwork:
        """`network` with an optimiser for that many updates, and an average if asked for."""
        ...

    def teacher_in_training(self) -> nn.Module:
        """The teacher as losses call it: compiled if the config asks for it."""
        ...

    def pairs(self) -> tuple[Tensor, Cond]:
        """The teacher's states at the student's rungs (N, K + 1, ...), and their conditions."""
        ...

    def draws(self, stage: str) -> Draws:
        """The random numbers of the stage of that name."""
        ...


@dataclass(frozen=True)
class PlannedNetwork:
    """A network that a stage holds beside the teacher, as a plan counts its memory.

    Attributes:
        name: of its row.
        network: of the kind and size that is trained.
        loss: what one of its updates differentiates, to be measured; None: it is not measured.
        ema: of its average; None without one.
        trained: whether it has gradients and an optimiser.
        warmup: its updates before the first of the student.
        turns: its updates for each of the student.
    """

    name: str
    network: nn.Module
    loss: Callable[[], Tensor] | None = None
    ema: EMAConfig | None = None
    trained: bool = True
    warmup: int = 0
    turns: int = 1


class Method(ABC):
    """One way to distil, after the warm start by KD.

    Attributes:
        stage: name of its stage: in the log, in `stages/`, in the report, and for `keep`.
        title: what the report calls a student of this method.
        colour: of its curves and pictures, as matplotlib reads colours.
        heading: over the panel of its losses; "" for the title.
        remedy: what a warning of its stage advises.
        serves_prefixes: whether its losses know tokens that a condition gives.
    """

    stage: str
    title: str
    colour: str = "#009E73"
    heading: str = ""
    remedy: str = "stop earlier, or lower the learning rate"
    serves_prefixes: bool = False

    def updates(self, cfg: DistillConfig) -> int:
        """Updates of the student; a stage of 0 is not run."""
        return cfg.train.steps

    def complete(self, cfg: DistillConfig) -> DistillConfig:
        """`cfg` with what the method implies.

        Raises:
            ValueError: keys that contradict the method.
        """
        return cfg

    def check(self, networks: Networks, *, processes: int, sharded: bool) -> None:
        """Refuse a config or a teacher that the method does not serve, before anything is trained.

        Args:
            networks: of the run; its config is complete.
            processes: that share the batch.
            sharded: whether FSDP shares each network among the processes.

        Raises:
            ValueError: which key, what is expected of it, what to do.
        """
        refuse_distribution_losses(networks.cfg)

    def asks_scores(self, cfg: DistillConfig) -> bool:
        """Whether the stage takes the teacher's predictions on noised samples for scores: it then
        needs a teacher whose data and noise were drawn independently."""
        return False

    def uses_pairs(self, cfg: DistillConfig) -> bool:
        """Whether the stage holds the teacher's pairs in memory."""
        return False

    @abstractmethod
    def build(self, run: Run) -> Stage:
        """The stage, with its networks and optimisers."""

    def plan(self, networks: Networks, batch: Batch) -> Sequence[PlannedNetwork]:
        """The networks that the stage holds beside the teacher, the student first."""
        return [PlannedNetwork("student", networks.student(), ema=networks.cfg.student.ema)]


# ---- What only distribution matching trains ------------------------------------------------------

_MATCHING_WEIGHTS = (
    "gan_loss_weight_gen",
    "gan_r1_reg_weight",
    "gan_r2_reg_weight",
    "real_data_weight",
    "kd_weight",
    "set_weight",
)


def refuse_distribution_losses(cfg: DistillConfig) -> None:
    """Refuse every key of a loss or a network that only distribution matching trains.

    Raises:
        ValueError: a GAN, a distance to real data, a divergence, or a fake score is asked for.
    """
    unused = [name for name in _MATCHING_WEIGHTS if getattr(cfg.dmd, name)]
    if unused:
        asked = ", ".join(f"dmd.{name}={getattr(cfg.dmd, name):g}" for name in unused)
        raise ValueError(
            f"expected no weight of a loss that method={cfg.method} does not train, got {asked}; "
            "set it to 0, or method=dmd2"
        )
    refuse_divergence(cfg)
    refuse_fake_score(cfg, f"method={cfg.method}")


def refuse_divergence(cfg: DistillConfig) -> None:
    """Refuse an f-divergence where there is no VSD loss that it could weigh."""
    if cfg.dmd.f_divergence != "reverse_kl":
        raise ValueError(
            f"expected dmd.f_divergence=reverse_kl with method={cfg.method}, which has no VSD loss "
            f"to weigh, got {cfg.dmd.f_divergence}; or set method=dmd2"
        )


def refuse_fake_score(cfg: DistillConfig, why: str) -> None:
    """Refuse keys of a fake score where none is trained; `why` names the key that says so."""
    asked = {
        "fake_score_weight": cfg.dmd.fake_score_weight,
        "fake_score_pred_type": cfg.dmd.fake_score_pred_type,
        "fake_score_pull": cfg.dmd.fake_score_pull or None,
    }
    unused = [f"{name}={value}" for name, value in asked.items() if value not in (None, "none")]
    if unused:
        raise ValueError(
            f"expected no dmd.{' and dmd.'.join(unused)} with {why}, which trains no fake score; "
            "leave it out, or train one by method=dmd2 with dmd.vsd_weight > 0"
        )
    if cfg.train.fake_score_rank is not None:
        raise ValueError(
            "expected train.fake_score_rank=null where no fake score is trained, got "
            f"{cfg.train.fake_score_rank}; leave it out, or set method=dmd2 with train.steps > 0 "
            "and dmd.vsd_weight > 0"
        )
