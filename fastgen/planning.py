"""What is found out before work starts: whether config, teacher and data fit together, and what a
run will take."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ._files import brief, check_names, read_json
from ._tensor import cond_text, cond_to, evaluating, map_tensors, take_rows, tensors_in
from .cli import dump_yaml, validate
from .config import DataConfig, DistillConfig, DMDConfig, EMAConfig, LoopConfig, TrainTeacherConfig
from .consistency import consistency_loss, consistency_times
from .data import Data, build_data
from .data.checks import data_notes
from .data.trajectories import load_conditions
from .declarations import judge_declaration
from .discriminators import discriminator_for
from .dmd import DMDPipeline, create_fake_score
from .draws import check_shares
from .ema import SHADOW_DTYPES
from .export import SCORES
from .flow_matching import add_noise
from .guidance import Guidance, GuidedNetwork
from .kd import kd_loss
from .launching import Launch, launch_of
from .losses import dsm_loss
from .memory import Footprint, activation_bytes, footprint, memory_table
from .networks import Bfloat16Network, Cond, network_dtype, parameters_to
from .pretraining import build_network
from .recompute import recompute_blocks
from .sources import fit_to_teacher, is_changed, load_teacher
from .stages import ConsistencyDistillation

__all__ = ["check_fit", "check_plan", "plan_distillation", "plan_teacher", "stored_scores"]

STAGE_OF_METHOD = {"dmd2": "dmd", "kd": None, "ladd": "ladd", "consistency": "consistency"}


def with_method(cfg: DistillConfig) -> DistillConfig:
    """The config with what its method implies: KD alone has no further updates, LADD a GAN (of
    weight 1 unless said otherwise) and no VSD."""
    if cfg.method == "kd":
        return cfg.model_copy(update={"train": cfg.train.model_copy(update={"steps": 0})})
    if cfg.method == "ladd":
        if cfg.dmd.vsd_weight not in (0.0, DMDConfig().vsd_weight):
            raise ValueError(
                "expected no dmd.vsd_weight with method=ladd, which has no VSD loss, got "
                f"{cfg.dmd.vsd_weight}; leave it out, or set method=dmd2"
            )
        gan = cfg.dmd.gan_loss_weight_gen or 1.0
        changed = {"vsd_weight": 0.0, "gan_loss_weight_gen": gan}
        if cfg.dmd.gan_features == "fake_score":
            raise ValueError(
                "expected dmd.gan_features teacher or sample for method=ladd, which has no fake "
                "score"
            )
        return cfg.model_copy(update={"dmd": cfg.dmd.model_copy(update=changed)})
    return cfg


def guided_teacher(cfg: DistillConfig, network: nn.Module, data: Data) -> nn.Module:
    """The teacher that guides itself as `cfg.dmd` says; `network` as it is without a guidance
    scale.

    Raises:
        ValueError: a null condition that can't be read, or that isn't shaped like one row of the
            data's condition.
    """
    dmd = cfg.dmd
    source = cfg.teacher.null_cond
    if dmd.guidance_scale is None or source is None:
        return network
    _, cond = data.network_inputs()
    row = take_rows(cond, slice(1))
    if source == "zeros":
        if not tensors_in(row) or not all(value.is_floating_point() for value in tensors_in(row)):
            raise ValueError(
                "expected a condition of real numbers for teacher.null_cond=zeros, got "
                f"{cond_text(row)}; name a file that holds the null condition as Z"
            )
        null = map_tensors(torch.zeros_like, row)
    else:
        null = load_conditions(source)[:1]
        null = null if data.z_normalizer is None else data.z_normalizer.normalize(null)
        if cond_text(null) != cond_text(row):
            raise ValueError(
                f"expected Z in {source} like one condition, {cond_text(row)}, got "
                f"{cond_text(null)}"
            )
    guidance = Guidance(dmd.guidance_scale, dmd.guidance_interval, dmd.guidance_rescale)
    null = cond_to(null, dtype=network_dtype(network, torch.float32))
    return GuidedNetwork(network, guidance, null, pred_type=dmd.pred_type).eval()


def new_discriminator(cfg: DistillConfig, teacher: nn.Module, x0: Tensor, cond: Cond) -> nn.Module:
    """The discriminator that `cfg.dmd` asks for, untrained."""
    on_samples = cfg.dmd.gan_features == "sample"
    blocks = cfg.dmd.gan_blocks or None
    return discriminator_for(teacher, x0, cond, on_samples=on_samples, blocks=blocks, seed=cfg.seed)


def check_plan(
    cfg: DistillConfig, teacher: nn.Module, x0: Tensor, cond: Cond, *, processes: int = 1
) -> None:
    """Refuse a distillation that could not be carried to its end as configured.

    Args:
        teacher: called as `teacher(x_t, t, cond)`.
        x0, cond: the training data as networks see them, (N, ...) each.
        processes: that share the batch.

    Raises:
        ValueError: nothing to train, a student to keep that isn't trained, keys that the recipe
            can't serve, a batch that can't be shared, a teacher that doesn't fit the data.
    """
    train = cfg.train
    dmd = cfg.dmd
    if not train.kd_steps and not train.steps:
        raise ValueError(
            "expected train.kd_steps > 0 or train.steps > 0, got 0 for both: there is nothing to "
            "train"
        )
    stages = ["kd"] * bool(train.kd_steps) + [STAGE_OF_METHOD[cfg.method]] * bool(train.steps)
    if cfg.keep not in ("best", *stages):
        raise ValueError(
            f"expected keep to be best or a stage that runs ({', '.join(map(str, stages))}), got "
            f"{cfg.keep}"
        )
    if cfg.method in ("ladd", "consistency") and not train.steps:
        raise ValueError(
            f"expected train.steps > 0 with method={cfg.method}, got 0, which leaves KD alone; "
            "say train.steps=300, or method=kd"
        )
    _check_used(cfg)
    if (dmd.guidance_scale is None) != (cfg.teacher.null_cond is None):
        raise ValueError(
            "expected dmd.guidance_scale and teacher.null_cond (what to guide away from: zeros, "
            f"or a file) both or neither, got {dmd.guidance_scale} and {cfg.teacher.null_cond}"
        )
    if (dmd.gan_r1_reg_weight or dmd.gan_r2_reg_weight) and not dmd.trains_discriminator:
        raise ValueError(
            "expected dmd.gan_loss_weight_gen > 0 with dmd.gan_r1_reg_weight or "
            "gan_r2_reg_weight, which are of a discriminator, got 0"
        )
    check_shares(train.batch_size, processes, train.gradient_accumulation_steps)
    size = train.batch_size // (processes * train.gradient_accumulation_steps)
    if dmd.real_data_weight and size % dmd.real_data_samples:
        of = "a process" if train.gradient_accumulation_steps == 1 else "a process' micro-batch"
        raise ValueError(
            f"expected dmd.real_data_samples to divide the {size} samples of {of}, got "
            f"{dmd.real_data_samples}"
        )
    check_fit(teacher, x0, cond)
    matches = bool(train.steps) and cfg.method in ("dmd2", "ladd")
    if matches and dmd.gan_features == "fake_score" and not dmd.vsd_weight:
        raise ValueError(
            "expected dmd.gan_features teacher or sample with dmd.vsd_weight=0, which has no fake "
            "score"
        )
    if matches and dmd.trains_discriminator:
        new_discriminator(cfg, teacher, x0, cond)
    if (
        train.steps
        and cfg.method == "consistency"
        and dmd.t_list[0] < ConsistencyDistillation.least_first_rung
    ):
        least = ConsistencyDistillation.least_first_rung
        raise ValueError(
            f"expected dmd.t_list[0] >= {least} for method=consistency, got {dmd.t_list[0]}"
        )
    if train.fake_score_rank is not None:
        if not matches or not dmd.vsd_weight:
            raise ValueError(
                "expected train.fake_score_rank=null where no fake score is trained, got "
                f"{train.fake_score_rank}; leave it out, or set method=dmd2 with train.steps > 0 "
                "and dmd.vsd_weight > 0"
            )
        create_fake_score(teacher, rank=train.fake_score_rank)
    rungs = len(dmd.t_list) - 1
    if matches and dmd.vsd_weight and dmd.fake_score_rung_conditioned and rungs > 1:
        hint = (
            "a fake score that knows its rung is called with times up to the number of rungs; set "
        )
        hint += (
            "dmd.fake_score_rung_conditioned=false for a network that isn't made for times beyond 1"
        )
        try:
            early, late = (check_fit(teacher, x0, cond, rungs - before) for before in (0.5, 0.25))
        except ValueError as error:
            raise ValueError(f"{hint}: {error}") from error
        if torch.equal(early, late):
            raise ValueError(
                f"{hint}: this one answers the same at t = {rungs - 0.5} and {rungs - 0.25}"
            )


def _check_used(cfg: DistillConfig) -> None:
    """Refuse what is asked of losses that the method does not train."""
    dmd = cfg.dmd
    method = cfg.method
    if method in ("kd", "consistency"):
        weights = (
            "gan_loss_weight_gen",
            "gan_r1_reg_weight",
            "gan_r2_reg_weight",
            "real_data_weight",
            "kd_weight",
        )
        if unused := [f"{name}={getattr(dmd, name):g}" for name in weights if getattr(dmd, name)]:
            raise ValueError(
                f"expected no weight of a loss that method={method} does not train, got "
                f"dmd.{', dmd.'.join(unused)}; set it to 0, or method=dmd2"
            )
    if method != "dmd2" and dmd.f_divergence != "reverse_kl":
        raise ValueError(
            f"expected dmd.f_divergence=reverse_kl with method={method}, which has no VSD loss to "
            f"weigh, got {dmd.f_divergence}; or set method=dmd2"
        )
    if method != "dmd2" or not dmd.vsd_weight:
        why = "dmd.vsd_weight=0" if method == "dmd2" else f"method={method}"
        asked = {
            "fake_score_weight": dmd.fake_score_weight,
            "fake_score_pred_type": dmd.fake_score_pred_type,
        }
        if unused := [
            f"{name}={value}" for name, value in asked.items() if value not in (None, "none")
        ]:
            raise ValueError(
                f"expected no dmd.{' and dmd.'.join(unused)} with {why}, which trains no fake "
                "score; leave it out, or train one by method=dmd2 with dmd.vsd_weight > 0"
            )


@torch.no_grad()
def check_fit(network: nn.Module, x0: Tensor, cond: Cond, time: float = 0.5) -> Tensor:
    """What the network answers for two samples at `time`: ValueError unless it is finite and of the
    data's shape."""
    parameter = next(network.parameters(), None)
    if parameter is None:
        raise ValueError(
            f"expected a teacher with parameters to copy and train, got {type(network).__name__} "
            "without"
        )
    x, z = (
        cond_to(take_rows(part, slice(2)), parameter.device, parameter.dtype) for part in (x0, cond)
    )
    t = torch.full((len(x),), time, device=x.device)
    given = f"x_t {tuple(x.shape)}, t {tuple(t.shape)}, cond {cond_text(z)}"
    try:
        with evaluating(network):
            pred = network(x, t, z)
    except (
        RuntimeError,
        LookupError,
        AttributeError,
        AssertionError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(
            f"expected a teacher that can be called with {given}, got: {brief(error)}"
        ) from error
    if not isinstance(pred, Tensor) or pred.shape != x.shape:
        got = tuple(pred.shape) if isinstance(pred, Tensor) else type(pred).__name__
        raise ValueError(f"expected the teacher to answer {given} with the shape of x_t, got {got}")
    if not bool(torch.isfinite(pred).all()):
        raise ValueError(
            f"expected finite numbers from the teacher, got NaN or infinity at t = {time} on two "
            "samples"
        )
    return pred


def stored_scores(
    cfg: DistillConfig,
) -> tuple[dict[str, dict[str, float]], dict[str, float]] | None:
    """Teacher rows and floor that lie beside its weights, if they answer what is asked: same data,
    every row there.

    Raises:
        ValueError: the file is there and damaged.
    """
    if (
        cfg.teacher.folder is None
        or cfg.teacher.measure
        or is_changed(cfg.teacher)
        or cfg.dmd.guidance_scale is not None
        or not (Path(cfg.teacher.folder) / SCORES).exists()
    ):
        return None
    file = Path(cfg.teacher.folder) / SCORES
    known = read_json(file)
    check_names(known, ("data", "teacher", "floor"), str(file))
    rows = [*map(str, cfg.teacher.calls), *(f"ab2-{calls}" for calls in cfg.teacher.ab2_calls)]
    # Compared as configs: a file of an earlier version lacks the keys that came later.
    if validate(DataConfig, known["data"]) != cfg.data or not known["teacher"].keys() >= set(rows):
        return None
    return {row: known["teacher"][row] for row in rows}, known["floor"]


def frozen_teacher(
    cfg: DistillConfig, network: nn.Module
) -> tuple[torch.dtype, nn.Module, nn.Module]:
    """(the dtype it had, the plain network, what is called as the teacher), with `network` changed
    in place as `teacher.dtype` and `train.gradient_checkpointing` ask.

    Raises:
        ValueError: a teacher in float64 that is to be in bfloat16; no blocks to compute twice.
    """
    dtype = network_dtype(network, torch.float32)
    if cfg.teacher.dtype is not None and dtype == torch.float64:
        raise ValueError(
            f"expected teacher.dtype=null for a teacher in float64, got {cfg.teacher.dtype}"
        )
    if cfg.train.gradient_checkpointing:
        recompute_blocks(network)
    return dtype, network, network if cfg.teacher.dtype is None else Bfloat16Network(network).eval()


def plan_distillation(cfg: DistillConfig, *, launch: Launch | None = None) -> str:
    """The resolved config, the memory that each stage takes in a process with what its losses keep
    for one micro-batch, measured, and how well the teacher denoises the data, after everything was
    seen to fit together.

    Args:
        launch: None: the one that this process is of.
    """
    teacher = load_teacher(cfg)
    cfg, notes = fit_to_teacher(with_method(cfg), teacher)
    task = build_data(cfg.data)
    launch = launch or _launch()
    x0, cond = task.train.network_inputs()
    cond = cond_to(cond, dtype=network_dtype(teacher, x0.dtype))
    check_plan(cfg, teacher, x0, cond, processes=launch.processes)
    notes += data_notes(task, cfg.train.batch_size)
    notes += judge_declaration(teacher, x0, cond, pred_type=cfg.dmd.pred_type, search=True)
    tables: list[str] = []
    for stage, rows in distillation_footprints(cfg, teacher, task.train, launch=launch).items():
        tensors = {"data": _bytes(x0, cond)}
        if stage == "kd" or (stage != "consistency" and cfg.dmd.kd_weight):
            tensors["teacher pairs"] = pair_bytes(cfg, x0, cond)
        tables.append(memory_table(rows, tensors, title=stage, device=launch.device))
    return "\n".join(
        [dump_yaml(cfg) + "\n".join(tables), _process_note(cfg.train, launch), "", *notes]
    )


def pair_bytes(cfg: DistillConfig, x0: Tensor, cond: Cond) -> int:
    """Bytes of the teacher's pairs: states in the dtype that noise is drawn in, and a row of `cond`
    for each."""
    states = len(cfg.dmd.t_list) * x0[0].numel() * torch.get_default_dtype().itemsize
    return cfg.train.kd_pairs * (states + _bytes(x0[:0], take_rows(cond, slice(1))))


def distillation_footprints(
    cfg: DistillConfig, teacher: nn.Module, data: Data, *, launch: Launch | None = None
) -> dict[str, list[Footprint]]:
    """What teacher, student and the networks trained or kept beside it take in a process, by stage;
    without a launch in the only one, on a CPU. `teacher` is changed as `frozen_teacher` says."""
    train = cfg.train
    dmd = cfg.dmd
    launch = launch or Launch()
    x0, cond = data.network_inputs()
    cond = cond_to(cond, dtype=network_dtype(teacher, x0.dtype))
    dtype, plain, frozen = frozen_teacher(cfg, teacher)
    student = parameters_to(copy.deepcopy(plain), dtype).requires_grad_(True)
    guided = guided_teacher(cfg, frozen, data)
    size = micro_batch(train, launch.processes)
    rows = torch.arange(size) % len(x0)
    x0 = x0[rows]
    cond = take_rows(cond, rows)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    method = STAGE_OF_METHOD[cfg.method] if train.steps else None

    def kd() -> Tensor:
        states = torch.stack([noise] * len(dmd.t_list), 1)
        rungs = torch.zeros(size, dtype=torch.int64)
        kind = dmd.student_sample_type
        options = {"pred_type": dmd.pred_type, "huber_c": train.kd_huber_c, "sample_type": kind}
        return kd_loss(student, states, dmd.t_list, cond, rungs, **options)

    def consistent() -> Tensor:
        kind = dmd.student_sample_type
        t, s, end = consistency_times(
            size, 0.0, dmd.t_list, sample_type=kind, first=4, last=16, generator=generator
        )
        options = {"pred_type": dmd.pred_type, "huber_c": train.kd_huber_c}
        return consistency_loss(student, guided, x0, noise, t, s, cond, end=end, **options)

    def stage(
        activations: int, ema: EMAConfig | None, others: Sequence[Footprint] = ()
    ) -> list[Footprint]:
        shadow = None if ema is None else SHADOW_DTYPES[ema.dtype]
        on_cpu = train.ema_on_cpu and launch.device != "cpu"
        kept = {
            "ema": shadow,
            "ema_on_cpu": on_cpu,
            "activations": activations,
            "shards": launch.shards,
        }
        return [
            footprint("teacher", frozen, trained=False),
            footprint("student", student, **kept),
            *others,
        ]

    found: dict[str, list[Footprint]] = {}
    if train.kd_steps:
        found["kd"] = stage(activation_bytes(kd, [student]), EMAConfig())
    if method == "consistency":
        # A whole copy even of a sharded student, on its device.
        target = [] if dmd.ema is None else [footprint("target", student, trained=False)]
        found[method] = stage(activation_bytes(consistent, [student, guided]), dmd.ema, target)
    elif method is not None:
        fake: nn.Module | None = None
        discriminator: nn.Module | None = None
        if dmd.vsd_weight:
            rungs = dmd.student_steps if dmd.fake_score_rung_conditioned else 1
            rank = train.fake_score_rank
            fake = create_fake_score(
                student if rank is None else frozen, num_rungs=rungs or 1, rank=rank
            )
        if dmd.trains_discriminator:
            discriminator = new_discriminator(cfg, student, x0, cond)
        unguided = dmd.model_copy(update={"guidance_scale": None})
        pipeline = DMDPipeline(student, guided, fake, unguided, discriminator=discriminator)
        networks = [
            network for network in (student, guided, fake, discriminator) if network is not None
        ]

        def matched() -> Tensor:
            total = pipeline.compute_student_loss(x0, noise, cond, generator=generator)["total"]
            return total + kd() if dmd.kd_weight else total

        judges: list[Footprint] = []
        losses = {
            "fake score": pipeline.compute_fake_score_loss,
            "discriminator": pipeline.compute_discriminator_loss,
        }
        for (name, loss), network in zip(losses.items(), (fake, discriminator), strict=True):
            if network is not None:
                run = functools.partial(loss, x0, noise, cond, generator=generator)
                kept = activation_bytes(run, networks)
                judges.append(footprint(name, network, activations=kept, shards=launch.shards))
        found[method] = stage(activation_bytes(matched, networks), dmd.ema, judges)
    return found


def plan_teacher(cfg: TrainTeacherConfig, *, launch: Launch | None = None) -> str:
    """Memory of the training of a teacher, with what its loss keeps for one micro-batch; and notes
    on its data."""
    task = build_data(cfg.data)
    train = cfg.train
    launch = launch or _launch()
    x0, cond = task.train.network_inputs()
    data = _bytes(x0, cond)
    network = build_network(cfg, task)
    if train.gradient_checkpointing:
        recompute_blocks(network)
    rows = torch.arange(micro_batch(train, launch.processes)) % len(x0)
    x0 = x0[rows]
    cond = take_rows(cond, rows)
    t = torch.full((len(rows),), 0.5)
    eps = torch.ones_like(x0)

    def loss() -> Tensor:
        return dsm_loss("flow", network(add_noise(x0, eps, t), t, cond), x0=x0, eps=eps, t=t)

    row = footprint(
        "network",
        network,
        ema=SHADOW_DTYPES[EMAConfig().dtype],
        ema_on_cpu=train.ema_on_cpu and launch.device != "cpu",
        activations=activation_bytes(loss, [network]),
        shards=launch.shards,
    )
    plan = [memory_table([row], {"data": data}, device=launch.device), _process_note(train, launch)]
    return "\n".join([*plan, "", *data_notes(task, train.batch_size)]).rstrip()


def micro_batch(train: LoopConfig, processes: int) -> int:
    """Samples whose losses are differentiated at once in a process."""
    return max(1, train.batch_size // (processes * train.gradient_accumulation_steps))


def _process_note(train: LoopConfig, launch: Launch) -> str:
    size = micro_batch(train, launch.processes)
    note = f"in each of {launch.processes} process(es); activations of one loss at a time, measured on {size} samples"
    return (
        note + "; what is gathered of sharded networks while they run comes on top" * launch.sharded
    )


def _launch() -> Launch:
    there = torch.accelerator.is_available()
    return launch_of(os.environ, torch.accelerator.current_accelerator() if there else None)


def _bytes(x0: Tensor, cond: Cond) -> int:
    return sum(value.numel() * value.element_size() for value in (x0, *tensors_in(cond)))
