"""A time for each token: networks that are told which tokens are given."""

import pytest
import torch

from fastgen.models.equivariance import fold
from fastgen.models.representations import rep_matrices
from support.networks import GROUPS, dense, equivariant, shaken


def inputs(network, batch: int = 3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, network.in_horizon, network.in_dim, generator=generator).double()
    z = torch.randn(batch, network.cond_horizon, network.cond_dim, generator=generator).double()
    t = torch.rand(batch, generator=generator).double()
    return x, t, z


def networks():
    found = {
        "dense": dense(),
        "encoder": dense(num_cond_layers=1),
        "causal": dense(causal_attn=True),
    }
    found |= {
        f"{group}, {basis}": equivariant(group, basis=basis)
        for group in sorted(GROUPS)
        for basis in ("regular", "irrep")
    }
    return {name: shaken(network).double().eval() for name, network in found.items()}


NETWORKS = networks()


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_one_time_for_all_tokens_is_the_time_of_the_row(name):
    network = NETWORKS[name]
    x, t, z = inputs(network)
    each = t[:, None].expand(-1, x.shape[1])
    torch.testing.assert_close(network(x, each, z), network(x, t, z), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_each_token_is_told_its_own_time(name):
    network = NETWORKS[name]
    x, t, z = inputs(network)
    each = t[:, None].repeat(1, x.shape[1])
    each[:, 0] = 0.0
    moved = (network(x, each, z) - network(x, t, z)).abs().amax((0, 2))
    assert bool((moved > 1e-6).all())  # the others read the first
    alone = torch.stack([network(x[i : i + 1], each[i : i + 1], z[i : i + 1])[0] for i in range(3)])
    torch.testing.assert_close(network(x, each, z), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("basis", ["regular", "irrep"])
@pytest.mark.parametrize("group", sorted(GROUPS))
@torch.no_grad()
def test_times_of_tokens_commute_with_the_group_and_fold(group, basis):
    network = NETWORKS[f"{group}, {basis}"]
    x, t, z = inputs(network)
    each = t[:, None] * torch.tensor([0.0, 1.0, 0.5])[: x.shape[1]]
    flow = network(x, each, z)
    moves = (rep_matrices(rep) for rep in (network.in_rep, network.cond_rep, network.out_rep))
    for rho_in, rho_cond, rho_out in zip(*moves, strict=True):
        moved = network(x @ rho_in.T, each, z @ rho_cond.T)
        torch.testing.assert_close(moved, flow @ rho_out.T, rtol=0, atol=1e-10)
    torch.testing.assert_close(fold(network)(x, each, z), flow, rtol=0, atol=1e-10)


def test_other_shapes_of_times_are_refused():
    x, t, z = inputs(NETWORKS["dense"])
    for times in (t[:, None].expand(-1, 2), t[:2], t.expand(1, 3, 3)):
        with pytest.raises(ValueError, match=r"shape \(3,\), got .*; each token's own .* \(3, 3\)"):
            NETWORKS["dense"](x, times, z)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_condition_is_told_the_latest_time(name):
    network = NETWORKS[name]
    x, t, z = inputs(network)
    seen = []
    hook = network.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        for times in (t, t[:, None] * torch.tensor([0.0, 0.5, 1.0])):
            network(x, times, z)
    finally:
        hook.remove()
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=1e-12)
