"""Features of a teacher's blocks: the answers of the blocks, and nothing is left after the call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastgen.config import DMDConfig
from fastgen.discriminators import block_features
from fastgen.dmd import DMDPipeline
from fastgen.methods.fake_scores import LowRankFakeScore, RungConditioned
from fastgen.models.transformer import CondTransformerRegressor
from fastgen.teachers import as_rectified_flow
from fastgen.teachers.half import Bfloat16Network
from support.exact import normal


class Blocks(nn.Module):
    """Two blocks in a list, then a head; float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(3, 5), nn.Linear(5, 4)]).double()
        self.head = nn.Linear(4, 3).double()

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        for block in self.blocks:
            x_t = torch.tanh(block(x_t))
        return self.head(x_t) * t[:, None]


class Pairs(nn.Module):
    """A direct child that answers something else than one Tensor, as recurrent layers do."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.child = nn.Identity()
        self.child.forward = answer

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        self.child(x_t)
        return x_t


def test_features_are_the_answers_of_the_blocks_in_the_order_of_their_calls():
    network = Blocks()
    x = normal(6, 3)
    t = torch.rand(6, dtype=torch.float64)
    first = network.blocks[0](x)
    expected = [first, network.blocks[1](torch.tanh(first))]
    for blocks in (None, ["blocks.0", "blocks.1"], ["blocks.1", "blocks.0"]):
        found = block_features(network, blocks)(x, t, None)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    (head,) = block_features(network, ["head"])(x, t, None)
    assert torch.equal(head * t[:, None], network(x, t, None))


def test_features_are_differentiable_in_the_sample():
    features = block_features(Blocks())
    t = torch.rand(2, dtype=torch.float64)
    x = normal(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(features(x, t, None)), (x,))


def test_nothing_is_left_on_the_network_also_after_an_error():
    network = Blocks()
    features = block_features(network)
    features(normal(6, 3), torch.rand(6), None)
    with pytest.raises(RuntimeError):
        features(normal(6, 2), torch.rand(6), None)
    assert not any(module._forward_hooks for module in network.modules())


def test_a_network_without_lists_shows_its_children_and_tuples_show_their_first_tensor():
    x = normal(4, 3)
    (found,) = block_features(Pairs(lambda output: (2 * output, None)))(x, torch.rand(4), None)
    assert torch.equal(found, 2 * x)


def test_a_converted_network_shows_the_features_of_the_network_inside():
    inner = Pairs(lambda output: (2 * output, None))
    network = as_rectified_flow(inner)
    inner.forward = lambda x, t, cond: inner.child(x)[0]
    x = normal(4, 3)
    (found,) = block_features(network)(x, torch.rand(4), None)
    assert torch.equal(found, 2 * x)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        Bfloat16Network,
        as_rectified_flow,
        lambda network: nn.DataParallel(RungConditioned(network, 2)),
    ],
)
def test_blocks_are_looked_for_inside_whatever_is_around_a_network(wrap):
    inner = Pairs(lambda output: (2 * output, None))
    x = normal(4, 3, dtype=torch.float32)
    (found,) = block_features(wrap(inner))(x, torch.rand(4), None)
    torch.testing.assert_close(found, 2 * x)


@pytest.mark.parametrize(
    "answer", [lambda y: None, lambda y: y[:1], lambda y: y.sum(), lambda y: ()]
)
def test_blocks_without_a_tensor_for_each_sample_are_refused(answer):
    with pytest.raises(
        ValueError, match=r"expected Tensors \(B, ...\) from the blocks \['child'\]"
    ):
        block_features(Pairs(answer))(normal(4, 3), torch.rand(4), None)


def test_unknown_and_missing_blocks_are_refused():
    with pytest.raises(ValueError, match="expected blocks among .* got \\['body'\\]"):
        block_features(Blocks(), ["head", "body"])
    with pytest.raises(ValueError, match="expected a network with submodules .* got Identity"):
        block_features(nn.Identity())
    with pytest.raises(ValueError, match="expected a network with submodules .* LowRankFakeScore"):
        block_features(LowRankFakeScore(nn.Sequential(nn.Linear(3, 3)), 1))


def test_a_pipeline_with_a_discriminator_alone_shows_it_the_decoder_layers():
    torch.manual_seed(0)
    student, teacher, fake = (
        CondTransformerRegressor(2, 2, 3, 4, 1, 2, 2, 8, 0.0, 0.0) for _ in range(3)
    )
    seen = []

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 1)

        def forward(self, features: list[Tensor], t: Tensor, cond: Tensor) -> Tensor:
            seen.append([tuple(f.shape) for f in features])
            return torch.cat([self.linear(f.mean(1)) for f in features], 1)

    heads = Heads()
    pipeline = DMDPipeline(
        student, teacher, fake, DMDConfig(gan_loss_weight_gen=0.1), discriminator=heads
    )
    x0 = torch.randn(5, 4, 2)
    noise = torch.randn(5, 4, 2)
    cond = torch.randn(5, 1, 3)
    losses = pipeline.compute_student_loss(x0, noise, cond)
    losses["total"].backward()
    assert seen[0] == [(5, 4, 8)] * 2 and "gan_gen" in losses
    assert heads.linear.weight.grad is None and student.head.weight.grad.abs().max() > 0
    pipeline.compute_discriminator_loss(x0, noise, cond)["total"].backward()
    assert heads.linear.weight.grad.abs().max() > 0 and teacher.head.weight.grad is None
