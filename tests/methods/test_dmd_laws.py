"""Laws of the method where the truth is known: the gradient is that of a KL, its fixed point the
teacher's law, and an equivariant pipeline's losses are invariant."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.seeds import generator_for
from fastgen.config import DMDConfig
from fastgen.data.mixtures import GaussianMixture
from fastgen.discriminators import heads_for
from fastgen.dmd import DMDPipeline
from fastgen.flow_matching import add_noise, pred_x0_from_flow
from fastgen.losses import NORM_EPSILON, vsd_loss
from fastgen.methods.rollouts import SharedDraws
from fastgen.models.ediscriminators import eFourierDiscriminator
from fastgen.models.etransformer import eCondTransformerRegressor
from fastgen.models.specs import parse_group, parse_representation
from support.exact import Affine, GaussianTeacher, TrainableGaussian, normal
from support.exact_mixture import ExactTeacher

# ---- Gaussians -----------------------------------------------------------------------------------


def kl_of_noised(a: Tensor, b: Tensor, mean: float, std: float, t: float) -> Tensor:
    """KL of the noised laws of a z + b and of N(mean, std^2), both x_t = (1 - t) x + t eps."""
    ours, theirs = ((1 - t) ** 2 * v + t**2 for v in (a**2, std**2))
    return 0.5 * (
        ours / theirs - 1 - torch.log(ours / theirs) + ((1 - t) * (b - mean)) ** 2 / theirs
    )


@pytest.mark.parametrize("norm", ["mean_abs", "rms"])
@pytest.mark.parametrize("t", [0.1, 0.4, 0.8])
def test_the_vsd_gradient_is_that_of_the_kl(norm, t):
    """x0_fake - x0_teacher = t^2 / (1 - t) (score_fake - score_teacher), and the gradient of the KL
    in the student is the mean of (1 - t) (score_fake - score_teacher) dx: without its weight w, VSD
    is t^2 / (1 - t)^2 times the KL's."""
    a, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.9, -0.3))
    teacher = GaussianTeacher(mean=0.7, std=0.4)
    fake = GaussianTeacher(mean=-0.3, std=0.9)
    z = normal(400_000, 1, seed=1)
    eps = normal(400_000, 1, seed=2)
    x = a * z + b
    times = torch.full((400_000,), t, dtype=torch.float64)
    x_t = add_noise(x.detach(), eps, t)
    teacher_x0, fake_x0 = (
        pred_x0_from_flow(net(x_t, times, None), x_t, t) for net in (teacher, fake)
    )
    # In one dimension both norms are |x - teacher_x0|; undone, every sample weighs the same.
    undo = (x.detach() - teacher_x0).abs().squeeze(1) + NORM_EPSILON
    ours = torch.stack(
        torch.autograd.grad(vsd_loss(x, teacher_x0, fake_x0, undo, norm=norm), (a, b))
    )
    exact = torch.stack(torch.autograd.grad(kl_of_noised(a, b, 0.7, 0.4, t), (a, b)))
    assert torch.nn.functional.cosine_similarity(ours, exact, dim=0) > 0.999
    assert (ours.norm() / exact.norm()).item() == pytest.approx(t**2 / (1 - t) ** 2, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("vsd_norm", ["mean_abs", "rms"])
def test_with_an_exact_fake_score_the_fixed_point_is_the_teachers_law_within_a_percent(vsd_norm):
    teacher = GaussianTeacher(mean=0.7, std=0.4)
    student = Affine()
    pipeline = DMDPipeline(
        student, teacher, TrainableGaussian(0.0, 1.0), DMDConfig(vsd_norm=vsd_norm)
    )
    optimizer = torch.optim.Adam(student.parameters(), lr=0.03, betas=(0.0, 0.99))
    tail = []
    for step in range(500):
        with torch.no_grad():  # what the student makes now is N(b, a^2)
            pipeline.fake_score.mean.copy_(student.b)
            pipeline.fake_score.log_std.copy_(student.a.abs().log())
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / 500)
        optimizer.zero_grad()
        pipeline.compute_student_loss(
            None, normal(256, 4, seed=step), generator=generator_for(step)
        )["total"].backward()
        optimizer.step()
        tail.append((student.b.item(), abs(student.a.item())))
    mean, std = (sum(values) / 100 for values in zip(*tail[-100:], strict=True))
    assert mean == pytest.approx(0.7, rel=0.01) and std == pytest.approx(0.4, rel=0.01)


class FullAffine(nn.Module):
    """A one-step student x0 = A noise + b, spoken as a flow."""

    def __init__(self, A: list[list[float]]) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.tensor(A, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([-0.5, 0.2], dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, cond: None) -> Tensor:
        t = t[:, None]
        return (x_t - (x_t / t @ self.A.T + self.b)) / t


@pytest.mark.slow
@pytest.mark.parametrize("vsd_norm", ["mean_abs", "rms"])
@pytest.mark.parametrize("A", [[[1.5, 0.0], [0.0, 1.0]], [[0.4, -0.8], [0.9, 0.3]]])
def test_the_fixed_point_has_the_teachers_mean_and_full_covariance_within_a_percent(vsd_norm, A):
    """Unequal variances with a correlation of .6; the covariance in units of its largest
    eigenvalue."""
    mean = torch.tensor([0.7, -0.4]).double()
    covariance = torch.tensor([[0.64, 0.24], [0.24, 0.25]]).double()
    student = FullAffine(A)

    def made() -> GaussianMixture:
        """The law of what the student makes now, N(b, A A^T)."""
        A = student.A.detach()
        return GaussianMixture(student.b.detach()[None], (A @ A.T)[None])

    fake = ExactTeacher(made())
    teacher = ExactTeacher(GaussianMixture(mean[None], covariance[None]))
    pipeline = DMDPipeline(student, teacher, fake, DMDConfig(vsd_norm=vsd_norm))
    optimizer = torch.optim.Adam(student.parameters(), lr=0.03, betas=(0.0, 0.99))
    steps = 600
    tail = []
    for step in range(steps):
        fake.mixture = made()
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / steps)
        optimizer.zero_grad()
        noise = normal(256, 2, seed=step)
        pipeline.compute_student_loss(None, noise, generator=generator_for(step))[
            "total"
        ].backward()
        optimizer.step()
        tail.append((student.b.detach().clone(), (student.A @ student.A.T).detach()))
    found_mean, found = (torch.stack(values[-100:]).mean(0) for values in zip(*tail, strict=True))
    largest = torch.linalg.eigvalsh(covariance).max()
    assert (found_mean - mean).abs().max() < 0.01 and (
        found - covariance
    ).abs().max() < 0.01 * largest


# ---- Symmetry ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TurnedDraws(SharedDraws):
    """Draws of noise that are turned by a group element, as the inputs are."""

    turn: Tensor = field(kw_only=True)

    def normal_like(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return super().normal_like(x, generator) @ self.turn.T


def parts(group_name: str) -> tuple:
    group = parse_group(group_name)
    rep = parse_representation(group, ["standard"])

    def network(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        width = 4 * group.order()
        model = eCondTransformerRegressor(rep, rep, rep, 4, 2, 1, 2, width, 0.0, 0.0).double()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn(p.shape, dtype=p.dtype))
        return model

    return group, rep, network


LOSSES = ("student", "fake_score", "discriminator")


def losses_under(
    turn: Tensor,
    build,
    norm: str,
    features: str,
    *,
    guided: bool = False,
    names: tuple[str, ...] = LOSSES,
) -> dict[str, Tensor]:
    networks, discriminator = build
    # What goes with a relativistic discriminator does not go with a divergence, so that each has
    # its turn.
    kinds = {"gan_loss": "relativistic"}
    if guided:
        kinds = {"f_divergence": "forward_kl", "gan_t": DMDConfig().vsd_t}
        kinds |= {"guidance_scale": 2.5, "guidance_interval": (0.1, 0.9), "guidance_rescale": 0.6}
    config = DMDConfig(
        student_steps=2,
        vsd_norm=norm,
        gan_loss_weight_gen=0.5,
        gan_features=features,
        gan_r1_reg_weight=1.0,
        gan_r2_reg_weight=1.0,
        real_data_weight=1.0,
        **kinds,
    )
    pipeline = DMDPipeline(*networks, config, discriminator=discriminator)
    pipeline.draws = TurnedDraws(turn=turn)
    size = turn.shape[0]
    shapes = ((4, 4, size), (4, 4, size), (4, 2, size), (4, 2, size))
    noise, x0, cond, negative = (
        normal(*shape, seed=seed) @ turn.T for seed, shape in enumerate(shapes)
    )
    return {
        name: getattr(pipeline, f"compute_{name}_loss")(
            x0, noise, cond, negative_cond=negative, generator=generator_for(3)
        )["total"]
        for name in names
    }


def networks_and_discriminator(group_name: str, features: str) -> tuple:
    group, rep, network = parts(group_name)
    networks = [network(seed) for seed in range(3)]
    if features == "teacher":
        x = normal(2, 4, rep.size)
        discriminator = heads_for(
            networks[1], x, torch.full((2,), 0.5).double(), normal(2, 2, rep.size)
        ).double()
    else:
        discriminator = eFourierDiscriminator(rep, rep, 4, 2, num_layers=1, num_heads=2).double()
    return group, rep, (networks, discriminator)


pipelines = pytest.mark.parametrize(
    ("group_name", "features", "guided"),
    [
        (g, f, s)
        for g in ("D3", "C4", "Icosahedral")
        for f in ("teacher", "sample")
        for s in (False, True)
    ],
)


@pytest.mark.slow
@pipelines
def test_an_equivariant_pipelines_losses_are_invariant(group_name, features, guided):
    group, rep, build = networks_and_discriminator(group_name, features)
    identity = torch.eye(rep.size, dtype=torch.float64)
    at_rest = losses_under(identity, build, "rms", features, guided=guided)
    for g in list(group.elements)[:: max(1, group.order() // 6)]:
        turned = losses_under(
            torch.from_numpy(rep(g)).double(), build, "rms", features, guided=guided
        )
        for name in LOSSES:
            torch.testing.assert_close(turned[name], at_rest[name], rtol=1e-9, atol=1e-10)


def test_the_mean_abs_weight_is_not_invariant_and_costs_the_pipeline_its_invariance():
    group, rep, build = networks_and_discriminator("D3", "sample")
    identity = torch.eye(2, dtype=torch.float64)
    at_rest = losses_under(identity, build, "mean_abs", "sample")["student"].detach()
    rotations = [torch.from_numpy(rep(g)).double() for g in group.elements]
    losses = [losses_under(r, build, "mean_abs", "sample")["student"].detach() for r in rotations]
    assert max(float((loss - at_rest).abs()) for loss in losses) > 1e-4 * float(at_rest.abs())


@pytest.mark.slow
@pipelines
def test_gradients_of_an_equivariant_pipeline_are_invariant_too(group_name, features, guided):
    """In the weights of the student, which every loss of its reaches."""
    group, rep, build = networks_and_discriminator(group_name, features)
    weights = list(build[0][0].parameters())

    def gradient(turn: Tensor) -> list[Tensor]:
        losses = losses_under(turn, build, "rms", features, guided=guided, names=("student",))
        return [
            g
            for g in torch.autograd.grad(losses["student"], weights, allow_unused=True)
            if g is not None
        ]

    at_rest = gradient(torch.eye(rep.size, dtype=torch.float64))
    turned = gradient(torch.from_numpy(rep(group.elements[-1])).double())
    assert len(at_rest) > 10 and sum(float(g.abs().sum()) for g in at_rest) > 0
    for one, other in zip(turned, at_rest, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_one_weight_for_the_batch_and_none_are_invariant(norm):
    group, rep, build = networks_and_discriminator("D3", "sample")
    at_rest = losses_under(torch.eye(2, dtype=torch.float64), build, norm, "sample", guided=True)
    for g in group.elements:
        turn = torch.from_numpy(rep(g)).double()
        turned = losses_under(turn, build, norm, "sample", guided=True, names=("student",))
        torch.testing.assert_close(turned["student"], at_rest["student"], rtol=1e-9, atol=1e-10)
