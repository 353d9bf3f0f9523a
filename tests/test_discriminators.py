"""Heads on the features of a teacher, and discriminators that see the sample itself."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.config import DMDConfig
from fastgen.discriminators import (
    FourierDiscriminator,
    TokenHeads,
    block_features,
    heads_for,
    sample_features,
)
from fastgen.dmd import DMDPipeline
from fastgen.flow_matching import add_noise
from fastgen.losses import discriminator_accuracy, gan_disc_loss, gan_gen_loss
from fastgen.models.discriminators import FourierFeatures
from fastgen.models.transformer import CondTransformerRegressor
from support.exact import normal

# ---- Heads ---------------------------------------------------------------------------------------


def test_heads_are_their_formula_token_by_token():
    torch.manual_seed(0)
    heads = TokenHeads([5, 3, 2], width=8, time_features=6).double()
    t = torch.linspace(0, 1, 4, dtype=torch.float64)
    tokens = normal(4, 7, 5)
    vector = normal(4, 3, seed=1)
    image = normal(4, 2, 3, 2, seed=2)
    mask = torch.arange(7)[None] < torch.tensor([7, 2, 1, 5])[:, None]
    logits = heads(
        [tokens.masked_fill(~mask[..., None], float("nan")), vector, image], t, None, mask=mask
    )
    assert logits.shape == (4, 3)
    places = image.reshape(4, 2, 6).transpose(1, 2)
    for i, (head, rows) in enumerate(
        zip(heads.heads, [tokens, vector[:, None], places], strict=True)
    ):
        for b in range(4):
            time = head.time(heads.time_emb(t[b : b + 1]))[0]
            real = rows[b][mask[b]] if i == 0 else rows[b]
            parts = [F.silu(head.second(F.silu(head.first(head.norm(row)))) + time) for row in real]
            torch.testing.assert_close(logits[b, i : i + 1], head.out(torch.stack(parts).mean(0)))


def test_heads_refuse_what_does_not_fit_and_group_their_parameters():
    heads = TokenHeads([5, 3])
    t = torch.rand(4)
    good = [torch.ones(4, 2, 5), torch.ones(4, 3)]
    assert heads(good, t).shape == (4, 2) and heads(good, 0.5).dtype == torch.float32
    assert heads([x.bfloat16() for x in good], t).dtype == torch.float32
    with pytest.raises(ValueError, match="expected a list of 2 features, one a head, got 1"):
        heads(good[:1], t)
    with pytest.raises(
        ValueError, match="expected a list of 2 features, one a head, got one Tensor"
    ):
        heads(torch.ones(2, 4, 5), t)
    with pytest.raises(ValueError, match=r"expected feature 1 of shape \(4, 3\), .* got \(4, 5\)"):
        heads([good[0], torch.ones(4, 5)], t)
    with pytest.raises(ValueError, match=r"expected feature 1 of shape \(4, 3\), .* got \(3, 3\)"):
        heads([good[0], torch.ones(3, 3)], t)
    with pytest.raises(ValueError, match=r"expected opt_step to be a scalar or of shape \(4,\)"):
        heads(good, t[:3])
    with pytest.raises(ValueError, match=r"expected mask of shape \(4, 2\)"):
        heads(good, t, mask=torch.ones(4, 3, dtype=torch.bool))
    for dims, message in [
        ([], "non-empty sequence of ints"),
        ([4, 0], r"expected dims\[1\] to be an int >= 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            TokenHeads(dims)
    decay, rest = heads.get_optim_groups(0.1)
    assert len(decay["params"]) + len(rest["params"]) == len(list(heads.parameters()))
    assert decay["weight_decay"] == 0.1 and rest["weight_decay"] == 0


def test_heads_for_a_dense_network_fit_its_features():
    torch.manual_seed(0)
    network = CondTransformerRegressor(2, 2, 3, 4, 1, 3, 2, 8, 0.0, 0.0).double()
    x = normal(5, 4, 2)
    t = torch.rand(5, dtype=torch.float64)
    cond = normal(5, 1, 3)
    for blocks in (None, ["head", "decoder.1"]):
        heads = heads_for(network, x, t, cond, blocks=blocks, width=16)
        assert type(heads) is TokenHeads and heads.heads[0].out.in_features == 16
        logits = heads(block_features(network, blocks)(x, t, cond), t, cond)
        assert logits.shape == (5, 3 if blocks is None else 2) and logits.dtype == torch.float64
    assert [head.size for head in heads.heads] == [
        8,
        2,
    ]  # in the order of the calls, not of the names
    with pytest.raises(
        ValueError, match=r"expected blocks that the network calls, got \['unused'\]"
    ):
        network.unused = nn.Linear(2, 2)
        heads_for(network, x, t, cond, blocks=["unused"])


class Volume(nn.Module):
    """Channels first, and labels as the condition."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(2, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.head(self.body(x_t)) + cond["label"][:, None, None, None]


def test_heads_for_a_convolution_take_its_places_as_tokens():
    network = Volume()
    x = torch.randn(4, 2, 5, 5)
    t = torch.rand(4)
    cond = {"label": torch.arange(4)}
    heads = heads_for(network, x, t, cond, blocks=["body"])
    assert heads(block_features(network, ["body"])(x, t, cond), t, cond).shape == (4, 1)


# ---- Stand-alone ---------------------------------------------------------------------------------


def test_fourier_features_are_their_formula():
    features = FourierFeatures(2, 5, 3.0, generator=torch.Generator().manual_seed(1)).double()
    W = features.frequencies
    x = normal(4, 3, 2)
    torch.testing.assert_close(features(x), torch.cat([x, (x @ W).cos(), (x @ W).sin()], -1))
    again = FourierFeatures(2, 5, 6.0, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(again.frequencies, 2 * W)
    assert "frequencies" in features.state_dict() and not list(features.parameters())
    # the phase of a bfloat16 network is not rounded to bfloat16
    low = features.float().bfloat16()
    phase = x.bfloat16().float() @ low.frequencies.float()
    torch.testing.assert_close(low(x.bfloat16())[..., 2:7].float(), phase.cos(), rtol=0, atol=4e-3)


def fourier(**changes):
    torch.manual_seed(0)
    options = {"num_frequencies": 8, "width": 8, "num_layers": 1, "num_heads": 2, **changes}
    return FourierDiscriminator(2, **options).double()


def test_the_sample_is_what_a_discriminator_of_its_own_sees():
    x = normal(4, 3, 2)
    t = torch.rand(4, dtype=torch.float64)
    assert sample_features(x, t, None)[0] is x and len(sample_features(x, t, None)) == 1
    d = fourier(horizon=3, cond_dim=5, cond_horizon=2)
    z = normal(4, 2, 5)
    logits = d(sample_features(x, t, z), t, z)
    assert logits.shape == (4, 1)
    torch.testing.assert_close(d([x[1:2]], t[1:2], z[1:2]), logits[1:2])  # rows are on their own
    for moved in (d([x + 0.1], t, z), d([x], t, z + 0.1), d([x.flip(1)], t, z)):
        assert (moved - logits).abs().min() > 1e-6
    single = fourier()
    plane = normal(4, 2)
    torch.testing.assert_close(single([plane], t), single([plane[:, None]], t))
    z = normal(4, 5)
    d = fourier(cond_dim=5)
    torch.testing.assert_close(d([plane], t, z), d([plane], t, z[:, None]))


def test_a_padded_sample_has_the_logit_of_the_sample_cut_to_its_length():
    d = fourier(horizon=4, cond_dim=5)
    t = torch.rand(4, dtype=torch.float64)
    x = normal(4, 4, 2)
    z = normal(4, 1, 5)
    lengths = torch.tensor([4, 1, 3, 2])
    mask = torch.arange(4) < lengths[:, None]
    padded = x.masked_fill(~mask[..., None], float("nan")).requires_grad_()
    logits = d([padded], t, z, mask=mask)
    for i, n in enumerate(lengths):
        torch.testing.assert_close(
            logits[i : i + 1], d([x[i : i + 1, :n]], t[i : i + 1], z[i : i + 1])
        )
    (gradient,) = torch.autograd.grad(logits.sum(), padded)
    assert torch.isfinite(gradient).all() and (gradient.abs().sum(2) > 0).equal(mask)
    torch.testing.assert_close(d([x], t, z, mask=torch.ones_like(mask)), d([x], t, z))
    with pytest.raises(ValueError, match=r"expected mask of shape \(4, 4\), got \(4, 3\)"):
        d([x], t, z, mask=mask[:, :3])


def test_a_discriminator_of_its_own_is_differentiable_in_the_sample():
    d = fourier()
    x = normal(2, 2).requires_grad_()
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: d([x], t), (x,))


def test_a_discriminator_of_its_own_refuses_what_does_not_fit():
    d = fourier(horizon=3)
    t = torch.rand(4)
    x = normal(4, 3, 2)
    with pytest.raises(
        ValueError, match=r"expected x_t of shape \(B, T <= 3, 2\), got \(4, 4, 2\)"
    ):
        d([normal(4, 4, 2)], t)
    with pytest.raises(
        ValueError, match="expected features \\[x_t\\], as sample_features gives them, got 2"
    ):
        d([x, x], t)
    with pytest.raises(
        ValueError, match="expected cond=None from a discriminator made without one, got Tensor"
    ):
        d([x], t, x)
    with pytest.raises(ValueError, match="expected a condition, got None"):
        fourier(cond_dim=2)([x[:, 0]], t)
    for name, value in [
        ("num_frequencies", 0),
        ("scale", 0.0),
        ("width", 0),
        ("num_heads", 3),
        ("horizon", 0),
    ]:
        with pytest.raises(ValueError, match=f"{name} to be|num_heads = {value}"):
            fourier(**{name: value})


def ring_of_gaussians(rows: int, std: float, generator: torch.Generator) -> Tensor:
    """Samples of eight Gaussians at radius 1.4."""
    angle = torch.randint(8, (rows,), generator=generator) * (math.pi / 4)
    centres = 1.4 * torch.stack([angle.cos(), angle.sin()], 1)
    return centres + std * torch.randn(rows, 2, generator=generator)


@pytest.mark.slow
def test_fourier_features_tell_tight_modes_from_wider_ones():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    d = FourierDiscriminator(2, width=32, num_heads=2, generator=generator)
    optimizer = torch.optim.AdamW(d.parameters(), lr=2e-3, betas=(0.0, 0.99), weight_decay=0.0)

    def logits(rows: int) -> tuple[Tensor, Tensor]:
        x = torch.cat(
            [ring_of_gaussians(rows, 0.1, generator), ring_of_gaussians(rows, 0.24, generator)]
        )
        t = 0.05 * torch.rand(rows, generator=generator).repeat(2)
        x_t = add_noise(x, torch.randn(rows, 2, generator=generator).repeat(2, 1), t)
        return tuple(d(sample_features(x_t, t, None), t).chunk(2))

    for _ in range(150):
        optimizer.zero_grad()
        gan_disc_loss(*logits(128)).backward()
        optimizer.step()
    with torch.no_grad():
        accuracy = discriminator_accuracy(*logits(2048)).item()
    assert accuracy > 0.6, accuracy
    # a student sample is pulled towards the modes
    x = ring_of_gaussians(2048, 0.24, generator).requires_grad_()
    t = torch.zeros(2048)
    (gradient,) = torch.autograd.grad(gan_gen_loss(d(sample_features(x, t, None), t)), x)
    before = distance_to_modes(x.detach())
    step = 0.05 * gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1e-12)
    assert (distance_to_modes(x.detach() - step) - before).mean() < -0.01


def distance_to_modes(x: Tensor) -> Tensor:
    angle = torch.arange(8) * (math.pi / 4)
    return torch.cdist(x, 1.4 * torch.stack([angle.cos(), angle.sin()], 1)).amin(1)


def test_a_pipeline_trains_with_a_discriminator_of_its_own():
    torch.manual_seed(0)
    student, teacher, fake = (
        CondTransformerRegressor(2, 2, 3, 4, 1, 1, 2, 8, 0.0, 0.0) for _ in range(3)
    )
    d = FourierDiscriminator(2, 3, 4, num_frequencies=8, width=8, num_layers=1, num_heads=2)
    config = DMDConfig(gan_loss_weight_gen=0.1)
    pipeline = DMDPipeline(
        student, teacher, fake, config, discriminator=d, features=sample_features
    )
    x0 = torch.randn(5, 4, 2)
    noise = torch.randn(5, 4, 2)
    cond = torch.randn(5, 1, 3)
    pipeline.compute_student_loss(x0, noise, cond)["gan_gen"].backward()
    assert student.head.weight.grad.abs().max() > 0 and all(p.grad is None for p in d.parameters())
    pipeline.compute_discriminator_loss(x0, noise, cond)["total"].backward()
    assert d.head.out.weight.grad.abs().max() > 0
