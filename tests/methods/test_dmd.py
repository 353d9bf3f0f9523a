"""Distribution matching: gradients reach what they are meant for, data are the fixed point."""

import copy

import pytest
import torch

from fastgen._core.seeds import generator_for
from fastgen.config import DMDConfig
from fastgen.dmd import DMDPipeline, RungConditioned, create_fake_score
from fastgen.flow_matching import add_noise, pred_x0_from_flow, sample_timesteps
from fastgen.guidance import classifier_free_guidance
from fastgen.vsd import VSD_NORMS, vsd_loss
from support.exact import Affine, GaussianTeacher, TrainableGaussian, normal
from support.pipeline import COND, NOISE, T_LIST, X0, Net, build, networks, student_x0

# ---- Routing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backward_simulation", [True, False])
@pytest.mark.parametrize("student_sample_type", ["ode", "sde"])
@pytest.mark.parametrize("loss", ["student", "fake_score", "discriminator"])
def test_gradients_reach_only_the_network_named(loss, student_sample_type, backward_simulation):
    """Nothing is frozen by the caller: every parameter of every network asks for gradients."""
    pipeline = build(
        gan=True,
        t_list=T_LIST,
        student_sample_type=student_sample_type,
        backward_simulation=backward_simulation,
        gan_loss_weight_gen=0.1,
        gan_r1_reg_weight=1.0,
    )
    compute = getattr(pipeline, f"compute_{loss}_loss")
    compute(X0, NOISE, COND, generator=generator_for(0))["total"].backward()
    for name, net in networks(pipeline).items():
        gradients = [p.grad for p in net.parameters()]
        if name == loss:
            assert all(
                g is not None and torch.isfinite(g).all() and g.abs().sum() > 0 for g in gradients
            )
        else:
            assert all(g is None for g in gradients), name
        assert all(p.requires_grad for p in net.parameters()), name


def test_the_gan_term_reaches_the_student_through_both_networks():
    """Only the GAN term is kept, so what arrives came through discriminator and teacher
    features."""
    pipeline = build(gan=True, gan_loss_weight_gen=0.1)
    losses = pipeline.compute_student_loss(X0, NOISE, COND, generator=generator_for(0))
    torch.testing.assert_close(losses["total"], losses["vsd"] + 0.1 * losses["gan_gen"])
    losses["gan_gen"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pipeline.student.parameters())
    assert all(p.grad is None for p in pipeline.teacher.parameters())


def test_losses_are_named_as_promised():
    plain = build()
    gan = build(gan=True, gan_loss_weight_gen=0.1, gan_r1_reg_weight=1.0)
    draw = {"generator": generator_for(0)}
    assert set(plain.compute_student_loss(X0, NOISE, COND, **draw)) == {"vsd", "total"}
    assert set(plain.compute_fake_score_loss(X0, NOISE, COND, **draw)) == {"fake_score", "total"}
    assert set(gan.compute_student_loss(X0, NOISE, COND, **draw)) == {"vsd", "gan_gen", "total"}
    assert set(gan.compute_discriminator_loss(X0, NOISE, COND, **draw)) == {
        "gan_disc",
        "r1",
        "total",
    }


# ---- Formulas ------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance_scale", [None, 3.0])
@pytest.mark.parametrize("vsd_norm", VSD_NORMS)
def test_student_loss_is_the_formula(vsd_norm, guidance_scale):
    pipeline = build(vsd_norm=vsd_norm, guidance_scale=guidance_scale)
    negative = torch.zeros_like(COND)
    loss = pipeline.compute_student_loss(
        X0, NOISE, COND, negative_cond=negative, generator=generator_for(0)
    )["vsd"]

    generator = generator_for(0)
    t = sample_timesteps(6, pipeline.config.vsd_t, device="cpu", generator=generator)
    eps = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    x = student_x0(pipeline, 0.999 * NOISE, 0.999)
    x_t = add_noise(x.detach(), eps, t)
    teacher, unguided, fake = (
        pred_x0_from_flow(net(x_t, t.double(), cond), x_t, t)
        for net, cond in (
            (pipeline.teacher, COND),
            (pipeline.teacher, negative),
            (pipeline.fake_score, COND),
        )
    )
    if guidance_scale is not None:
        teacher = classifier_free_guidance(teacher, unguided, guidance_scale)
    expected = vsd_loss(x, teacher, fake, norm=vsd_norm)
    torch.testing.assert_close(loss, expected)
    weights = list(pipeline.student.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("space", ["flow", "x0", "eps"])
def test_fake_score_loss_is_denoising_on_student_samples(space):
    """In x0 space it is the flow loss times t^2, in eps space times (1 - t)^2."""
    pipeline = build(fake_score_pred_type=space)
    loss = pipeline.compute_fake_score_loss(X0, NOISE, COND, generator=generator_for(0))[
        "fake_score"
    ]
    generator = generator_for(0)
    t = sample_timesteps(
        6, pipeline.config.fake_score_t, device="cpu", generator=generator
    ).double()
    eps = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    x = student_x0(pipeline, 0.999 * NOISE, 0.999)
    x_t = add_noise(x, eps, t)
    weight = {"flow": torch.ones_like(t), "x0": t**2, "eps": (1 - t) ** 2}[space]
    per_sample = (pipeline.fake_score(x_t, t, COND) - (eps - x)).square().mean(1)
    torch.testing.assert_close(loss, (weight * per_sample).mean())


def test_at_the_start_fake_score_and_teacher_agree_and_nothing_moves():
    teacher = Net(2)
    fake = create_fake_score(teacher.requires_grad_(False))
    assert all(p.requires_grad for p in fake.parameters()) and not any(
        p.requires_grad for p in teacher.parameters()
    )
    pipeline = DMDPipeline(Net(1), teacher, fake, DMDConfig())
    loss = pipeline.compute_student_loss(X0, NOISE, COND, generator=generator_for(0))["total"]
    loss.backward()
    assert loss == 0 and all(not p.grad.any() for p in pipeline.student.parameters())


def test_r1_perturbs_the_data_and_nothing_else():
    pipeline = build(gan=True, gan_r1_reg_weight=3.0, gan_r1_reg_alpha=0.05)
    losses = pipeline.compute_discriminator_loss(X0, NOISE, COND, generator=generator_for(0))
    (_, _), (real, t_real), (perturbed, t_perturbed) = pipeline.teacher.seen
    assert torch.equal(t_real, t_perturbed)
    moved = (perturbed - real) / (1 - t_real[:, None])  # the same eps cancels, (1 - t) a n is left
    generator = generator_for(0)
    for _ in range(2):
        sample_timesteps(6, pipeline.config.gan_t, device="cpu", generator=generator)
        torch.randn(6, 3, dtype=torch.float64, generator=generator)
    n = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(moved, 0.05 * n)
    torch.testing.assert_close(
        losses["total"], losses["gan_disc"] + 3.0 / (2 * 0.05**2) * losses["r1"]
    )


@pytest.mark.parametrize("same", [True, False])
def test_real_and_generated_samples_can_share_time_and_noise(same):
    pipeline = build(gan=True, gan_use_same_t_noise=same)
    pipeline.compute_discriminator_loss(X0, NOISE, COND, generator=generator_for(0))
    (fake, t_fake), (real, t_real) = pipeline.teacher.seen
    assert torch.equal(t_fake, t_real) == same
    if same:
        x = student_x0(pipeline, 0.999 * NOISE, 0.999)
        torch.testing.assert_close(real - fake, (1 - t_real[:, None]) * (X0 - x))


def test_a_teacher_that_offers_x0_is_asked_for_it():
    pipeline = build()
    pipeline.teacher.predict_x0 = lambda x_t, t, cond: torch.full_like(x_t, 0.5)
    generator = generator_for(0)
    loss = pipeline.compute_student_loss(X0, NOISE, COND, generator=generator)["vsd"]
    t = sample_timesteps(
        6, pipeline.config.vsd_t, device="cpu", generator=(generator := generator_for(0))
    )
    x = student_x0(pipeline, 0.999 * NOISE, 0.999)
    x_t = add_noise(x, torch.randn(6, 3, dtype=torch.float64, generator=generator), t)
    fake = pred_x0_from_flow(pipeline.fake_score(x_t, t.double(), COND), x_t, t)
    torch.testing.assert_close(loss, vsd_loss(x, torch.full_like(x, 0.5), fake))


# ---- Rungs and the fake score --------------------------------------------------------------------


def test_rung_zero_is_the_plain_network_and_others_differ():
    net = Net(1)
    conditioned = RungConditioned(net, 4)
    t = torch.rand(6, dtype=torch.float64)
    plain = net(NOISE, t, COND)
    assert torch.equal(conditioned(NOISE, t, COND), plain)
    outputs = [conditioned(NOISE, t, COND, rung=rung) for rung in range(4)]
    assert torch.equal(outputs[0], plain)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(outputs, outputs[1:], strict=False))
    mixed = conditioned(NOISE, t, COND, rung=torch.arange(6) % 4)
    torch.testing.assert_close(mixed, torch.stack([outputs[row % 4][row] for row in range(6)]))
    with pytest.raises(ValueError, match=r"expected rung in \[0, 4\), got 4"):
        conditioned(NOISE, t, COND, rung=4)


def test_rung_conditioning_refuses_networks_that_clamp_their_time():
    net = Net(1)
    net.t_max = 0.99
    with pytest.raises(ValueError, match="clamps them to its own range"):
        RungConditioned(net, 2)


@pytest.mark.parametrize("backward_simulation", [True, False])
@pytest.mark.parametrize("loss", ["student", "fake_score"])
def test_the_fake_score_is_told_the_rung(loss, backward_simulation):
    teacher = Net(2)
    fake = create_fake_score(teacher, num_rungs=4)
    assert isinstance(fake, RungConditioned)
    pipeline = DMDPipeline(
        Net(1), teacher, fake, DMDConfig(t_list=T_LIST, backward_simulation=backward_simulation)
    )
    getattr(pipeline, f"compute_{loss}_loss")(X0, NOISE, COND, generator=generator_for(2))
    ((_, t),) = fake.network.seen
    _, _, rung = pipeline.student_input(X0, NOISE, COND, generator=generator_for(2))
    assert torch.equal(t.floor().long(), torch.as_tensor(rung).expand(6)) and t.max() > 1


# ---- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "extra", "message"),
    [
        ({"gan_loss_weight_gen": 0.1}, {}, "expected discriminator= for gan_loss_weight_gen=0.1"),
        ({}, {"rank": 2, "world_size": 2}, "expected 0 <= rank < world_size"),
    ],
)
def test_bad_pipelines_are_refused(settings, extra, message):
    with pytest.raises(ValueError, match=message):
        DMDPipeline(Net(1), Net(2), Net(3), DMDConfig(**settings), **extra)


def test_a_t_list_that_contradicts_student_steps_is_refused():
    config = DMDConfig(t_list=T_LIST).model_copy(update={"student_steps": 2})
    with pytest.raises(ValueError, match="expected student_steps=4 for t_list="):
        DMDPipeline(Net(1), Net(2), Net(3), config)


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match="expected negative_cond with guidance_scale=2.0"):
        build(guidance_scale=2.0).compute_student_loss(X0, NOISE, COND)
    with pytest.raises(ValueError, match=r"expected x0 of shape \(6, 3\), got \(6, 2\)"):
        build().compute_fake_score_loss(X0[:, :2], NOISE, COND)
    with pytest.raises(ValueError, match="expected a pipeline with discriminator="):
        build().compute_discriminator_loss(X0, NOISE, COND)


# ---- The fixed point -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("vsd_norm", ["mean_abs", "rms"])
def test_the_students_fixed_point_is_the_teachers_law(vsd_norm):
    """From N(-0.5, 1.5^2), with a fake score that follows, to the teacher's N(0.7, 0.4^2)."""
    teacher = GaussianTeacher(mean=0.7, std=0.4)
    student = Affine()
    fake = TrainableGaussian(0.0, 1.0)
    pipeline = DMDPipeline(student, teacher, fake, DMDConfig(vsd_norm=vsd_norm))
    optimizers = {
        "student": torch.optim.Adam(student.parameters(), lr=0.01, betas=(0.0, 0.99)),
        "fake_score": torch.optim.Adam(fake.parameters(), lr=0.05, betas=(0.0, 0.99)),
    }
    for step in range(300):
        for k, name in enumerate(["fake_score", "fake_score", "student"]):
            compute = getattr(pipeline, f"compute_{name}_loss")
            loss = compute(
                None, normal(128, 2, seed=3 * step + k), generator=generator_for(step, k)
            )["total"]
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step()
    assert student.b.item() == pytest.approx(0.7, abs=0.05)
    assert abs(student.a.item()) == pytest.approx(0.4, abs=0.05)


def test_the_pipeline_leaves_its_networks_as_they_are():
    pipeline = build(gan=True)
    before = {name: copy.deepcopy(net.state_dict()) for name, net in networks(pipeline).items()}
    pipeline.compute_student_loss(X0, NOISE, COND)
    pipeline.compute_fake_score_loss(X0, NOISE, COND)
    pipeline.compute_discriminator_loss(X0, NOISE, COND)
    for name, net in networks(pipeline).items():
        assert all(torch.equal(value, before[name][key]) for key, value in net.state_dict().items())


def test_a_rung_conditioned_fake_score_decays_what_its_network_decays():
    from fastgen.models.transformer import CondTransformerRegressor

    network = CondTransformerRegressor(2, 2, 3, 4, 1, 1, 2, 8)
    groups = RungConditioned(network, 2).get_optim_groups(0.1)
    own = network.get_optim_groups(0.1)
    assert [[id(p) for p in g["params"]] for g in groups] == [
        [id(p) for p in g["params"]] for g in own
    ]
    (everything,) = RungConditioned(Net(1), 2).get_optim_groups(0.1)
    assert len(everything["params"]) == len(list(Net(1).parameters()))
