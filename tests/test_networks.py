"""The wardrobe: every coat over every other, and what a network keeps under two of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from fastgen._core.copies import copied
from fastgen._core.modules import as_built, state_of
from fastgen.guidance import Guidance
from fastgen.methods.fake_scores import LowRankFakeScore, RungConditioned
from fastgen.networks import (
    DECLARED,
    WAYS_TO_X0,
    NetworkWrapper,
    call_network,
    coats,
    network_dtype,
    predicts_noise,
    teacher_x0,
    time_range,
    unwrap,
)
from fastgen.teachers import KeywordNetwork, as_rectified_flow
from fastgen.teachers.guided import GuidedNetwork
from fastgen.teachers.half import Bfloat16Network

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(6, 2, generator=GENERATOR)
COND = torch.randn(6, 2, generator=GENERATOR)
T = torch.linspace(0.1, 0.9, 6)


class Net(nn.Module):
    """A small network that may say something of itself."""

    def __init__(self, **declared: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(5, 8), nn.Linear(8, 2)])
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        for name, value in declared.items():
            setattr(self, name, value)

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        x = torch.cat([x_t, t[:, None].to(x_t.dtype), cond], 1)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x

    def get_optim_groups(self, weight_decay: float = 1e-3) -> list[dict[str, Any]]:
        weights = [parameter for parameter in self.parameters() if parameter.ndim > 1]
        biases = [parameter for parameter in self.parameters() if parameter.ndim == 1]
        return [
            {"params": weights, "weight_decay": weight_decay},
            {"params": biases, "weight_decay": 0.0},
        ]


class DirectNet(Net):
    """One that answers x0 straight away, and not what its prediction says: to be told apart."""

    def predict_x0(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return 3.0 * self(x_t, t, cond)


DECLARING: dict[str, Any] = {
    "t_min": 0.1,
    "t_max": 0.9,
    "predicts_noise": True,
    "call_dtype": torch.float32,
}
WITHOUT_T_MAX = {name: value for name, value in DECLARING.items() if name != "t_max"}
BARE: dict[str, Callable[[], nn.Module]] = {
    "silent": Net,
    "all but t_max": lambda: DirectNet(**WITHOUT_T_MAX),
    "all": lambda: DirectNet(**DECLARING),
}


class Coat(NamedTuple):
    """A coat, worn so that it changes nothing.

    Attributes:
        put_on: the network in it.
        kind: its class.
        prefix: before the inner network's names in the state dict.
        says: what it declares for itself; None for a method.
        hides: what it doesn't pass on.
    """

    put_on: Callable[[nn.Module], Any]
    kind: type[nn.Module]
    prefix: str = "network."
    says: dict[str, Any] = {}
    hides: tuple[str, ...] = ()


def by_keywords(network: nn.Module) -> nn.Module:
    return KeywordNetwork(network, x="x_t", t="t", cond="cond")


def guided(network: nn.Module) -> nn.Module:
    return GuidedNetwork(network, Guidance(1.0), torch.zeros(1, 2))


def low_rank(network: nn.Module) -> nn.Module:
    return LowRankFakeScore(network, 2)


def with_rungs(network: nn.Module) -> nn.Module:
    return RungConditioned(network, 3)


def compiled(network: nn.Module) -> Any:
    return torch.compile(network, backend="eager")


CLOCK = {
    **{"t_min": 0.0, "t_max": 1.0, "predicts_noise": False},
    **dict.fromkeys(WAYS_TO_X0),
    **{"clip_sample": None, "spacing": None},
}
DTYPE = {"call_dtype": torch.float32}
OWN = {
    "keywords": Coat(by_keywords, KeywordNetwork, hides=WAYS_TO_X0),
    "flow": Coat(as_rectified_flow, type(as_rectified_flow(Net())), says=CLOCK),
    "half": Coat(Bfloat16Network, Bfloat16Network, says=DTYPE),
    "guided": Coat(guided, GuidedNetwork, says=dict.fromkeys(WAYS_TO_X0)),
    "low rank": Coat(low_rank, LowRankFakeScore, says=DTYPE),
    "rungs": Coat(with_rungs, RungConditioned),
}
PARALLEL = nn.parallel.DistributedDataParallel
LAUNCHERS = {
    "ddp": Coat(PARALLEL, PARALLEL, prefix="module."),
    "data parallel": Coat(nn.DataParallel, nn.DataParallel, prefix="module."),
    "compile": Coat(compiled, type(compiled(Net())), prefix="_orig_mod."),
}
COATS = OWN | LAUNCHERS
NO_PAIRS = {
    ("flow", "flow"),  # refused: converted already
    ("rungs", "flow"),  # refused: it clamps times
    ("low rank", "low rank"),  # refused: it has no maps of its own
    ("low rank", "ddp"),  # nothing is trained by both
    ("compile", "compile"),  # torch gives a function then
}
PAIRS = [(outer, inner) for outer in COATS for inner in COATS if (outer, inner) not in NO_PAIRS]

every_pair = pytest.mark.parametrize(("outer", "inner"), PAIRS, ids=lambda name: name)
own_over_all = pytest.mark.parametrize(
    ("outer", "inner"), [pair for pair in PAIRS if pair[0] in OWN], ids=lambda name: name
)


@pytest.fixture(autouse=True, scope="module")
def process_group():
    """DistributedDataParallel asks for one, of this process alone."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def dressed(outer: str, inner: str, network: nn.Module | None = None) -> tuple[Any, nn.Module]:
    """(the network in both coats, in the inner one)."""
    inside = COATS[inner].put_on(Net() if network is None else network)
    return COATS[outer].put_on(inside), inside


def says(network: nn.Module) -> dict[str, Any]:
    """What a network says of itself."""
    declared = {name: getattr(network, name) for name in DECLARED if hasattr(network, name)}
    return {name: None if name in WAYS_TO_X0 else value for name, value in declared.items()}


def close(found: Tensor, expected: Tensor, *worn: str) -> None:
    """Equal, up to the rounding of bfloat16 under a coat that computes in it."""
    tolerance = 8 * 2**-8 if "half" in worn else 1e-6
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


# ---- The way through -----------------------------------------------------------------------------


@every_pair
def test_coats_come_outermost_first_and_the_bare_network_last(outer, inner):
    bare = Net()
    network, inside = dressed(outer, inner, bare)
    found = list(coats(network))
    worn = [COATS[outer].kind, COATS[inner].kind]
    if outer == "low rank" and inner in LAUNCHERS:
        worn = worn[:1]  # it has a copy of the network, and copies are bare
    assert [type(coat) for coat in found] == [*worn, Net]
    assert found[0] is network
    assert unwrap(network) is found[-1]
    # A fake score of low rank has copies of the modules that it corrects.
    if "low rank" not in (outer, inner):
        assert found == [network, inside, bare]


def test_a_network_without_coats_is_its_own_last():
    bare = Net()
    assert list(coats(bare)) == [bare]
    assert unwrap(bare) is bare


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_only_what_launchers_have_put_around_is_taken_off_for_a_network_as_it_was_built(launcher):
    built = as_rectified_flow(Net())
    assert as_built(built) is built
    assert as_built(LAUNCHERS[launcher].put_on(built)) is built


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("place", ["whole", "part", "under a coat"])
def test_what_launchers_have_put_around_is_neither_in_copies_nor_in_names(launcher, place):
    put_on = LAUNCHERS[launcher].put_on
    bare = Net()
    expected = as_rectified_flow(Net()) if place == "under a coat" else Net()
    network = as_rectified_flow(put_on(bare)) if place == "under a coat" else put_on(bare)
    if place == "part":
        network = bare
        network.blocks[0] = put_on(network.blocks[0])
    assert copied(network).state_dict().keys() == expected.state_dict().keys()
    assert state_of(network).keys() == expected.state_dict().keys()
    close(copied(network)(X, T, COND), expected(X, T, COND))


def test_coats_that_cannot_go_over_each_other_are_refused():
    for outer, inner in (("flow", "flow"), ("rungs", "flow"), ("low rank", "low rank")):
        with pytest.raises(ValueError, match=r"expected a (network|teacher) .*got"):
            dressed(outer, inner)
        # Nor with a third between them.
        with pytest.raises(ValueError, match=r"expected a (network|teacher) .*got"):
            COATS[outer].put_on(dressed("guided", inner)[0])


def test_a_network_that_clamps_its_times_knows_no_rungs_whatever_it_wears():
    network = Net(t_max=0.9)
    others = [coat.put_on for name, coat in COATS.items() if name != "rungs"]
    for clamping in (network, *(put_on(network) for put_on in others)):
        with pytest.raises(
            ValueError, match=r"expected a network that takes times beyond 1.*t_max="
        ):
            with_rungs(clamping)


# ---- What is passed on ---------------------------------------------------------------------------


@pytest.mark.parametrize("bare", BARE)
@own_over_all
def test_a_coat_declares_what_its_network_does_unless_it_says_otherwise(outer, inner, bare):
    if bare == "all" and "rungs" in (outer, inner):
        bare = "all but t_max"  # another is refused, see above
    network, inside = dressed(outer, inner, BARE[bare]())
    coat = COATS[outer]
    inherited = says(as_built(inside))
    expected = {name: value for name, value in inherited.items() if name not in coat.hides}
    assert says(network) == expected | coat.says


@pytest.mark.parametrize("bare", BARE)
@pytest.mark.parametrize("inner", COATS)
@pytest.mark.parametrize("outer", LAUNCHERS)
def test_what_is_declared_is_read_through_launchers(outer, inner, bare):
    if (outer, inner) in NO_PAIRS:
        inner = "data parallel"
    if bare == "all" and inner == "rungs":
        bare = "all but t_max"
    network, inside = dressed(outer, inner, BARE[bare]())
    expected = says(as_built(inside))
    assert time_range(network) == (expected.get("t_min", 0.0), expected.get("t_max", 1.0))
    assert predicts_noise(network) == expected.get("predicts_noise", False)
    assert network_dtype(network, torch.float64) == torch.float32


def test_what_says_nothing_is_defined_everywhere():
    for network in (Net(), lambda x_t, t, cond: x_t):
        assert time_range(network) == (0.0, 1.0)
        assert not predicts_noise(network)


def test_a_declaration_that_changes_later_is_passed_on():
    bare = Net()
    network = guided(with_rungs(bare))
    assert not hasattr(network, "t_max")
    bare.t_max = 0.7
    assert time_range(network) == (0.0, 0.7)
    del bare.t_max
    with pytest.raises(AttributeError, match="t_max"):
        _ = network.t_max


def test_what_no_network_declares_is_no_attribute_of_a_coat():
    bare = Net(horizon=4)
    with pytest.raises(AttributeError, match="'NetworkWrapper' object has no attribute 'horizon'"):
        _ = NetworkWrapper(bare).horizon


# ---- What is answered ----------------------------------------------------------------------------


@every_pair
def test_a_coat_that_changes_nothing_answers_what_the_bare_network_does(outer, inner):
    expected = Net()(X, T, COND)
    network, _ = dressed(outer, inner)
    found = call_network(network, X, T, COND, dtype=torch.float32)
    assert found.dtype == torch.float32
    close(found, expected, outer, inner)


@every_pair
def test_x0_is_the_networks_own_unless_a_coat_answers_it_otherwise(outer, inner):
    bare = DirectNet()
    direct = bare.predict_x0(X, T, COND)
    indirect = X - T[:, None] * bare(X, T, COND)
    network, _ = dressed(outer, inner, bare)
    converts = bool({"flow", "keywords"} & {outer, inner})
    found = teacher_x0(network, X, T, COND, pred_type="flow")
    close(found, indirect if converts else direct, outer, inner)


# ---- Weights -------------------------------------------------------------------------------------


def names_in(coat: Coat, network: nn.Module) -> set[str]:
    """The state dict's names when `network` is in this coat."""
    if coat.kind is not LowRankFakeScore:
        return {coat.prefix + name for name in network.state_dict()}
    maps = [name for name, module in network.named_modules() if type(module) is nn.Linear]
    return {
        f"corrections.{name.replace('.', '/')}/{part}" for name in maps for part in ("up", "down")
    }


@every_pair
def test_names_of_weights_are_those_of_the_network_inside_after_a_prefix(outer, inner):
    network, inside = dressed(outer, inner)
    state = network.state_dict()
    taken_off = outer == "low rank" and inner in LAUNCHERS
    assert state.keys() == names_in(COATS[outer], Net() if taken_off else inside)
    assert inside.state_dict().keys() == names_in(COATS[inner], Net())
    other, _ = dressed(outer, inner)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(state)
    assert torch.equal(other(X, T, COND), network(X, T, COND))


@every_pair
def test_a_copy_answers_alike_and_shares_no_weights(outer, inner):
    network, _ = dressed(outer, inner, DirectNet(**WITHOUT_T_MAX))
    twin = copy.deepcopy(network)
    assert [type(coat) for coat in coats(twin)] == [type(coat) for coat in coats(network)]
    assert says(twin) == says(network)
    assert twin.state_dict().keys() == network.state_dict().keys()
    answer = network(X, T, COND)
    assert torch.equal(twin(X, T, COND), answer)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert not torch.equal(twin(X, T, COND), answer)
    assert torch.equal(network(X, T, COND), answer)


@own_over_all
def test_optimiser_groups_are_those_of_the_network_inside(outer, inner):
    network, inside = dressed(outer, inner)
    groups = network.get_optim_groups(0.2)
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(network.parameters())
    if "low rank" in (outer, inner):
        assert [group["weight_decay"] for group in groups] == [0.2]
        return
    weights, biases = groups
    assert (weights["weight_decay"], biases["weight_decay"]) == (0.2, 0.0)
    assert {parameter.ndim for parameter in weights["params"]} == {2}
    assert set(grouped) == set(inside.parameters())


def test_a_network_without_groups_has_one_of_all_its_parameters():
    linear = nn.Linear(2, 2)
    (group,) = guided(linear).get_optim_groups(0.2)
    assert group["params"] == list(linear.parameters())
    assert group["weight_decay"] == 0.2
