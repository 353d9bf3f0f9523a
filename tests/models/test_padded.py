"""Networks whose condition carries masks: padding is seen by nobody, and what is in it changes
nothing, bit for bit. A padded batch has the answers of its samples one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.masks import mask_of_lengths, with_masks
from fastgen.models import eFourierDiscriminator, fold, parse_group, parse_representation
from fastgen.models.discriminators import FourierDiscriminator
from support.networks import dense, equivariant

LENGTHS = torch.tensor([3, 1, 2, 3])
COND_LENGTHS = torch.tensor([2, 2, 1, 1])
MASK = mask_of_lengths(LENGTHS, 3)
COND_MASK = mask_of_lengths(COND_LENGTHS, 2)
T = torch.tensor([0.1, 0.4, 0.7, 1.0])
PLANE = parse_representation(parse_group("D4"), "standard")

REGRESSORS = {
    "dense": dense,
    "encoder": lambda: dense(num_cond_layers=2),
    "causal": lambda: dense(causal_attn=True, num_cond_layers=1),
    "equivariant": equivariant,
    "irreps": lambda: equivariant(basis="irrep", num_cond_layers=1),
    "folded": lambda: fold(equivariant(num_cond_layers=1)).requires_grad_(),
}
DISCRIMINATORS = {
    "fourier": lambda: FourierDiscriminator(2, 2, 3, 2, num_layers=1),
    "efourier": lambda: eFourierDiscriminator(PLANE, PLANE, 3, 2, num_layers=1),
}


def normal(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def batch(fill: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, dict]:
    """X, Z and the condition that holds both masks, with `fill` in all padding."""
    x = normal(4, 3, 4).masked_fill(~MASK[..., None], fill).to(dtype)
    z = normal(4, 2, 2, seed=2).masked_fill(~COND_MASK[..., None], fill).to(dtype)
    return x, z, with_masks(z, MASK, COND_MASK)


def outcome(network: nn.Module, fill: float, dtype: torch.dtype) -> list[Tensor]:
    """The answer and all gradients of its square, those of X and Z among them."""
    x, z, cond = batch(fill, dtype)
    x.requires_grad_()
    z.requires_grad_()
    y = network(x, T, cond)
    given = [x, z, *network.parameters()]
    return [y.detach(), *torch.autograd.grad(y.square().sum(), given, allow_unused=True)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", REGRESSORS)
@pytest.mark.parametrize("fill", [7.0, float("nan")])
def test_what_stands_in_the_padding_changes_no_bit(name, dtype, fill):
    network = REGRESSORS[name]().to(dtype)
    y, of_x, of_z, *others = outcome(network, 0.0, dtype)
    found = outcome(network, fill, dtype)
    for expected, got in zip([y, of_x, of_z, *others], found, strict=True):
        assert expected is got is None or torch.equal(expected, got)
    assert (y[~MASK] == 0).all() and (of_x[~MASK] == 0).all() and (of_z[~COND_MASK] == 0).all()


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", REGRESSORS)
def test_a_padded_batch_has_the_answers_of_its_samples(name, dtype, rtol):
    network = REGRESSORS[name]().to(dtype)
    x, z, cond = batch(5.0, dtype)
    y = network(x, T, cond)
    for i, (length, of_z) in enumerate(zip(LENGTHS, COND_LENGTHS, strict=True)):
        alone = network(x[i : i + 1, :length], T[i : i + 1], z[i : i + 1, :of_z])
        torch.testing.assert_close(y[i : i + 1, :length], alone, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", ["dense", "equivariant"])
def test_masks_that_hide_nothing_change_nothing(name):
    network = REGRESSORS[name]().double()
    x, z = normal(4, 3, 4), normal(4, 2, 2, seed=2)
    all_real = with_masks(z, torch.ones_like(MASK), torch.ones_like(COND_MASK))
    torch.testing.assert_close(network(x, T, all_real), network(x, T, z), rtol=1e-12, atol=1e-12)


def test_a_padded_equivariant_network_is_equivariant():
    network = equivariant(num_cond_layers=1).double()
    x, z, cond = batch(0.0, torch.float64)
    y = network(x, T, cond)
    for element in network.in_rep.group.elements:
        in_rep, cond_rep = (
            torch.as_tensor(rep(element)) for rep in (network.in_rep, network.cond_rep)
        )
        moved = network(x @ in_rep.T, T, with_masks(z @ cond_rep.T, MASK, COND_MASK))
        torch.testing.assert_close(moved, y @ in_rep.T, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_a_discriminator_sees_no_padding_either(name):
    torch.manual_seed(0)
    network = DISCRIMINATORS[name]().double().eval()

    def logits(fill: float) -> Tensor:
        x, _, cond = batch(fill, torch.float64)
        return network([x[..., :2]], T, cond)

    expected = logits(0.0)
    assert torch.equal(logits(7.0), expected)
    x, z, _ = batch(0.0, torch.float64)
    for i, (length, of_z) in enumerate(zip(LENGTHS, COND_LENGTHS, strict=True)):
        alone = network([x[i : i + 1, :length, :2]], T[i : i + 1], z[i : i + 1, :of_z])
        torch.testing.assert_close(expected[i : i + 1], alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["mask", "cond_mask"])
@pytest.mark.parametrize("wrong", ["shape", "empty row", "dtype"])
def test_a_mask_that_does_not_fit_is_refused(name, wrong):
    x, z, cond = batch(0.0, torch.float32)
    mask = cond[name].clone()
    if wrong == "shape":
        mask = mask[:, :1]
    elif wrong == "dtype":
        mask = mask.int()
    else:
        mask[1] = False
    with pytest.raises(ValueError, match="expected .*mask"):
        dense()(x, T, {**cond, name: mask})
