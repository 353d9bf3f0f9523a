"""Laws that users can ask of their own networks: a symmetry, and all that a distillation needs.

Made for the tests of a project that uses this package; nothing in the package imports it.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ._core.caches import renew_before_calls
from ._core.calls import call_intact
from ._core.conditions import tensors_in
from ._core.copies import copied
from ._core.messages import first_names
from ._core.modules import evaluating
from ._core.precision import in_full_precision, trainable
from .channel_kinds import KindNormalizer
from .config.dmd import DMDConfig
from .export.folders import export_student, has_custom_network, load_student
from .export.group_action import acting_on, group_of
from .export.normalizers import more_channels
from .export.student import Student
from .methods.dmd import DMDPipeline
from .methods.fake_scores import create_fake_score
from .methods.kd import kd_loss, teacher_pairs
from .networks import Cond, Network, network_dtype, time_range, unwrap
from .samplers.student import sample_student

__all__ = ["assert_equivariant", "check_distills"]

# Largest relative L2 error of `assert_equivariant` by dtype. An order above what rounding does to
# networks of several layers, and orders below what an unsymmetric weight does.
TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}
UPDATES = 2
LEARNING_RATE = 1e-4
# Of what a student loaded from a folder samples, against the network itself: a folded network
# rounds elsewhere, a wrong one is off by as much as it is large.
EXPORT_TOLERANCE = 1e-3


# ---- Symmetry ------------------------------------------------------------------------------------


def assert_equivariant(
    model_or_student: nn.Module | Student,
    tolerance: float | None = None,
    *,
    in_rep: Any = None,
    cond_rep: Any = None,
) -> None:
    """Fail unless a network or a student commutes with every element of its group.

    For each g, the relative L2 error of

        f(rho_in(g) x, t, rho_cond(g) z) = rho_out(g) f(x, t, z)

    on random inputs is at most `tolerance`. Of a student, x is its noise, z its condition and f its
    samples, in original units. Where a student draws fresh noise at its rungs, the samples are
    those of its "ode" sampler: that noise can't be turned with the rest.

    Args:
        model_or_student: a module with `in_rep`, `cond_rep`, `out_rep`, `in_horizon` and
            `cond_horizon`, called (x, t, z); or what `load_student` returns, of trajectories, with
            a group in its config.
        tolerance: None: by the dtype, 1e-5 in float32 and 1e-10 in float64.
        in_rep, cond_rep: of a student, whose folder names the group alone: how the group acts on
            the channels of a waypoint and of an observation, as in a config, such as
            `["standard"]`. None: copies of `standard`, or `trivial` for one channel.

    Raises:
        AssertionError: an error above `tolerance`; it names the worst element.
        TypeError: a module without representations.
        ValueError: a student without a group or without a condition of fixed size, or a
            representation that doesn't fit its channels.
    """
    # Imported here because escnn is not needed for the other checks.
    from .models.equivariance import check_equivariance

    if isinstance(model_or_student, Student):
        model: nn.Module = _SampledByStudent(model_or_student, in_rep, cond_rep)
        dtype = model_or_student.dtype
    elif in_rep is not None or cond_rep is not None:
        raise ValueError("expected no in_rep and cond_rep for a module, which has its own")
    else:
        model = model_or_student
        dtype = network_dtype(model, torch.float32)
    allowed = TOLERANCES[dtype] if tolerance is None else tolerance
    errors = check_equivariance(model)
    # Written so that an error that is no number fails, too.
    broken = {element: error for element, error in errors.items() if not error <= allowed}
    if broken:
        worst = max(broken, key=lambda element: broken[element])
        raise AssertionError(
            f"expected a relative error of at most {allowed:g} under every element of the group, "
            f"got {broken[worst]:.3g} under {worst}, and more than allowed under {len(broken)} of "
            f"{len(errors)}"
        )


class _SampledByStudent(nn.Module):
    """A student's samples as a map of noise and condition, with the representations of both."""

    def __init__(self, student: Student, in_rep: Any, cond_rep: Any) -> None:
        super().__init__()
        group = group_of(student)
        assert student.cond_horizon is not None
        self.in_horizon, channels = student.noise_shape
        self.cond_horizon, cond_channels = student.cond_horizon
        cond_channels += more_channels(student.z_normalizer)
        self.in_rep = acting_on(group, "in_rep", in_rep, channels)
        self.out_rep = self.in_rep
        self.cond_rep = acting_on(group, "cond_rep", cond_rep, cond_channels)
        self.network = student.network
        self.student = copy.copy(student)
        self.student.sample_type = "ode"

    def forward(self, noise: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        # The group acts on angles and rotations as networks see them.
        x_normalizer, z_normalizer = self.student.x_normalizer, self.student.z_normalizer
        if isinstance(z_normalizer, KindNormalizer):
            cond = z_normalizer.kinds.collapse(cond)
        x = self.student.sample(cond, noise=noise)
        return x_normalizer.kinds.expand(x) if isinstance(x_normalizer, KindNormalizer) else x


# ---- Distillation --------------------------------------------------------------------------------


def check_distills(
    network: nn.Module, x0: Tensor, cond: Cond = None, *, pred_type: str = "flow"
) -> None:
    """Fail unless a network has all that a distillation asks of it, tried on the CPU in seconds.

    The network is copied, answers, is trained as student and fake score by two updates of KD and of
    DMD each, exported, loaded and sampled. It stays as it is, and so does torch's generator.

    Args:
        network: the teacher, called `network(x_t, t, cond)`, or what `as_rectified_flow` returns.
            Parameters that nothing is meant to use, or to train, have `requires_grad=False`.
        x0: some rows of data (B, ...) as the network sees them, B >= 2.
        cond: their conditions.
        pred_type: what the network predicts.

    Raises:
        ValueError: what failed, and of a gradient that does not arrive the parameters.
    """
    given = [x0, *tensors_in(cond)]
    if any(x.device.type != "cpu" for x in [*given, *network.parameters()]):
        raise ValueError("expected network, x0 and cond on the CPU")
    if not x0.is_floating_point() or x0.ndim < 2 or len(x0) < 2:
        raise ValueError(
            f"expected x0 of shape (B, ...) with B >= 2, got {x0.dtype} {tuple(x0.shape)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = _copied(network).requires_grad_(False).eval()
        _check_answer(teacher, x0, cond)
        config = _config(time_range(teacher), pred_type)
        student = trainable(in_full_precision(_copied(network)), network)
        idle = {name for name, p in student.named_parameters() if not p.requires_grad}
        _update_by_kd(student, teacher, x0, cond, config, idle)
        with _trying("making a fake score of the teacher"):
            rungs = len(config.t_list) - 1 if config.fake_score_rung_conditioned else 1
            fake_score = create_fake_score(network, num_rungs=rungs)
        pipeline = DMDPipeline(student, teacher, fake_score, config)
        _update_by_dmd(pipeline, fake_score, x0, cond, idle)
        _check_export(student.eval(), network, x0, cond, config)


def _config(times: tuple[float, float], pred_type: str) -> DMDConfig:
    """DMD of a student of two rungs, at times within those of the network."""
    low, high = times
    within = {"min_t": max(0.02, low), "max_t": min(0.98, high)}
    values = {
        "student_steps": 2,
        "t_max": min(0.5 if pred_type == "eps" else 0.999, high),
        "pred_type": pred_type,
        "student_sample_type": "ode",
        "vsd_t": within,
        "fake_score_t": within,
        # A fake score is told the rung by times beyond 1, which a clock of another range clamps.
        "fake_score_rung_conditioned": high == 1.0,
    }
    return DMDConfig.model_validate(values)


@contextlib.contextmanager
def _trying(what: str) -> Iterator[None]:
    """Inside, whatever is raised becomes a ValueError that says what was tried."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} failed: {type(error).__name__}: {error}") from error


def _copied(network: nn.Module) -> nn.Module:
    with _trying("copying the network"):
        clone = copied(network)
        renew_before_calls(unwrap(clone))
    ours = {parameter.data_ptr() for parameter in network.parameters()}
    shared = sum(parameter.data_ptr() in ours for parameter in clone.parameters())
    if shared:
        raise ValueError(
            "expected a copy of the network to have parameters of its own, got "
            f"{shared} that it shares with the network"
        )
    return clone


def _check_answer(network: Network, x0: Tensor, cond: Cond) -> None:
    """An answer has the shape of its input, and is of finite numbers."""
    low, high = time_range(network)
    t = torch.full((len(x0),), (low + high) / 2, dtype=x0.dtype)
    with _trying("calling network(x_t, t, cond)"), torch.no_grad():
        answer = call_intact(network, x0, t, cond)
    if not isinstance(answer, Tensor) or answer.shape != x0.shape:
        got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise ValueError(
            f"expected network(x_t, t, cond) to answer in the shape of x_t, {tuple(x0.shape)}, "
            f"got {got}"
        )
    if not bool(answer.isfinite().all()):
        raise ValueError("expected network(x_t, t, cond) to answer finite numbers, got NaN or inf")


def _update_by_kd(
    student: nn.Module,
    teacher: nn.Module,
    x0: Tensor,
    cond: Cond,
    config: DMDConfig,
    idle: set[str],
) -> None:
    optimizer = _optimizer(student)
    with _trying("drawing the teacher's pairs"), torch.no_grad():
        options: dict[str, Any] = {"calls": 2, "pred_type": config.pred_type}
        states = teacher_pairs(teacher, torch.randn_like(x0), cond, config.t_list, **options)
    for update in range(UPDATES):
        rungs = (torch.arange(len(x0)) + update) % (len(config.t_list) - 1)
        with _trying("an update of KD"):
            loss = kd_loss(
                student,
                states,
                config.t_list,
                cond,
                rungs,
                pred_type=config.pred_type,
                sample_type=config.student_sample_type,
            )
            loss.backward()
        _check_gradients("KD", student, idle)
        optimizer.step()
        optimizer.zero_grad()


def _update_by_dmd(
    pipeline: DMDPipeline,
    fake_score: nn.Module,
    x0: Tensor,
    cond: Cond,
    idle: set[str],
) -> None:
    turns = (
        ("DMD's fake score", fake_score, pipeline.compute_fake_score_loss),
        ("DMD's student", pipeline.student, pipeline.compute_student_loss),
    )
    optimizers = {who: _optimizer(network) for who, network, _ in turns}
    for _ in range(UPDATES):
        for who, network, compute in turns:
            with _trying(f"an update of {who}"):
                compute(x0, torch.randn_like(x0), cond)["total"].backward()
            _check_gradients(who, network, idle)
            optimizers[who].step()
            optimizers[who].zero_grad()


def _optimizer(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)


def _check_gradients(who: str, network: nn.Module, idle: set[str]) -> None:
    """Every parameter but the idle ones has a gradient, each of finite numbers, and one of them is
    not 0."""
    gradients = {
        name: parameter.grad
        for name, parameter in network.named_parameters()
        # A fake score may have the network inside a wrapper.
        if name not in idle and name.removeprefix("network.") not in idle
    }
    missing = [name for name, gradient in gradients.items() if gradient is None]
    if missing:
        raise ValueError(
            f"expected a gradient of {who} in every parameter, got none in "
            f"{first_names(missing)}; set requires_grad=False where nothing is meant to use one"
        )
    present = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    broken = [name for name, gradient in present.items() if not bool(gradient.isfinite().all())]
    if broken:
        raise ValueError(
            f"expected finite gradients of {who}, got NaN or inf in {first_names(broken)}"
        )
    if not any(bool(gradient.any()) for gradient in present.values()):
        raise ValueError(f"expected a gradient of {who} that is not 0 everywhere")


def _check_export(
    student: nn.Module, network: nn.Module, x0: Tensor, cond: Cond, config: DMDConfig
) -> None:
    noise = torch.randn_like(x0)
    options: dict[str, Any] = {
        "sample_type": config.student_sample_type,
        "pred_type": config.pred_type,
    }
    with tempfile.TemporaryDirectory() as folder:
        with _trying("exporting the student and loading it again"):
            export_student(
                folder,
                student,
                t_list=list(config.t_list),
                horizon=tuple(x0.shape[1:]),
                **options,
            )
            given = copied(network) if has_custom_network(folder) else None
            loaded = load_student(folder, network=given)
        with _trying("sampling from the loaded student"), evaluating(student):
            samples = loaded.sample(cond, noise=noise).to(noise.dtype)
            expected: Any = sample_student(student, noise, config.t_list, cond, **options)
    if not float((samples - expected).norm()) <= EXPORT_TOLERANCE * float(expected.norm()):
        raise ValueError(
            "expected the loaded student to sample as the network that was exported; is there a "
            "buffer or attribute that its state_dict() doesn't hold?"
        )
