"""Masks of the models: bool, (B, T), True = real token. Anything else would be added to the scores
of attention, so it is refused."""

import pytest
import torch
from torch import Tensor, nn

from fastgen.discriminators import FourierDiscriminator, TokenHeads
from fastgen.models import (
    InvariantHeads,
    MultiheadAttention,
    TransformerDecoderLayer,
    build_model,
    eFourierDiscriminator,
    eMultiheadAttention,
    eTransformerDecoderLayer,
    parse_group,
    parse_representation,
)
from support.networks import dense, equivariant, shaken

D4 = parse_group("D4")
PLANE = parse_representation(D4, "standard")
HIDDEN = parse_representation(D4, ["regular"] * 2)
ROWS, LENGTH = 4, 3


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def regressor(network: nn.Module, mask) -> Tensor:
    return network(normal(ROWS, LENGTH, 4), 0.3, normal(ROWS, 2, 2), mask=mask)


def heads(network: nn.Module, mask) -> Tensor:
    return network([normal(ROWS, LENGTH, 16)], 0.3, mask=mask)


def fourier(network: nn.Module, mask) -> Tensor:
    return network([normal(ROWS, LENGTH, 2)], 0.3, mask=mask)


def attention(network: nn.Module, mask) -> Tensor:
    return network(normal(ROWS, LENGTH, 16), mask=mask)


def cross_attention(network: nn.Module, mask) -> Tensor:
    return network(normal(ROWS, 2, 16), normal(ROWS, LENGTH, 16), mask=mask)


def decoder(network: nn.Module, mask) -> Tensor:
    return network(normal(ROWS, LENGTH, 16), normal(ROWS, 2, 16), mask=mask)


# Every public model with a mask: (how to make it, how to call it with one).
MODELS = {
    "regressor": (dense, regressor),
    "eregressor": (equivariant, regressor),
    "attention": (lambda: MultiheadAttention(16, 2), attention),
    "cross-attention": (lambda: MultiheadAttention(16, 2), cross_attention),
    "eattention": (lambda: eMultiheadAttention(HIDDEN, 2), attention),
    "decoder layer": (lambda: TransformerDecoderLayer(16, 2), decoder),
    "edecoder layer": (lambda: eTransformerDecoderLayer(HIDDEN, 2), decoder),
    "heads": (lambda: TokenHeads([16]), heads),
    "eheads": (lambda: InvariantHeads([HIDDEN]), heads),
    "fourier": (lambda: FourierDiscriminator(2, horizon=LENGTH), fourier),
    "efourier": (lambda: eFourierDiscriminator(PLANE, horizon=LENGTH), fourier),
}
REAL = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 1, 1]])


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {name: shaken(make().double()) for name, (make, _) in MODELS.items()}


def answer(models: dict[str, nn.Module], name: str, mask) -> Tensor:
    with torch.no_grad():
        return MODELS[name][1](models[name], mask)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "mask",
    [
        REAL.float(),
        REAL.double(),
        REAL.half(),
        REAL,
        REAL.to(torch.uint8),
        REAL.to(torch.int8),
        torch.zeros(ROWS, LENGTH).masked_fill(REAL == 0, -torch.inf),
        REAL.bool().numpy(),
        REAL.tolist(),
        [3, 1, 2, 2],
    ],
    ids=lambda mask: str(getattr(mask, "dtype", type(mask).__name__)),
)
def test_a_mask_that_is_not_bool_is_refused(models, name, mask):
    with pytest.raises((TypeError, ValueError), match="expected mask to be a bool Tensor"):
        answer(models, name, mask)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "shape", [(LENGTH,), (ROWS,), (LENGTH, ROWS), (ROWS, 2), (2, LENGTH), (), (ROWS, 1, LENGTH)]
)
def test_a_mask_of_another_shape_is_refused(models, name, shape):
    with pytest.raises(ValueError, match="expected mask of shape"):
        answer(models, name, torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("name", MODELS)
def test_a_row_without_a_real_token_is_named(models, name):
    mask = REAL.bool()
    mask[2] = False
    with pytest.raises(ValueError, match="real token.* in each row, got none in row 2"):
        answer(models, name, mask)


@pytest.mark.parametrize("name", MODELS)
def test_a_bool_mask_hides_exactly_what_it_says(models, name):
    everything = answer(models, name, torch.ones(ROWS, LENGTH, dtype=torch.bool))
    torch.testing.assert_close(everything, answer(models, name, None))
    masked = answer(models, name, REAL.bool())
    changed = (masked - everything).flatten(1).norm(dim=1) > 1e-9
    assert masked.isfinite().all() and changed.tolist() == [True, True, False, True]


@pytest.mark.parametrize("network", [dense, equivariant])
def test_a_causal_network_takes_padding_before_its_first_real_token(network):
    causal = network(causal_attn=True).double()
    mask = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    assert regressor(causal, mask).isfinite().all()
    with pytest.raises(TypeError, match="expected mask to be a bool Tensor"):
        regressor(causal, mask.float())


def test_one_row_stands_for_every_sample():
    network = dense().double()
    mask = torch.tensor([[True, True, False]])
    assert torch.equal(regressor(network, mask), regressor(network, mask.expand(ROWS, -1)))


def test_a_mask_in_a_network_that_is_compiled_for_export_is_not_read():
    """What a traced network decides must not depend on the numbers of the example."""
    network = build_model(dense().config).double().eval()
    mask = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    inputs = (normal(ROWS, LENGTH, 4), torch.full((ROWS,), 0.3), normal(ROWS, 2, 2))
    program = torch.export.export(network, inputs, {"mask": mask})
    torch.testing.assert_close(
        program.module()(*inputs, mask=REAL.bool()), network(*inputs, mask=REAL.bool())
    )
