"""The equivariant network is copied, pickled, rebuilt and cast as the same function."""

from __future__ import annotations

import copy
import io
import json
import pickle

import pytest
import torch

from fastgen.models import build_model, eCondTransformerRegressor
from support.etransformer import EXACT, inputs, rounding, trained


def test_a_copy_shares_representations_and_nothing_that_is_trained(network):
    model = network()
    clone = copy.deepcopy(model)
    for name in ("in_rep", "cond_rep", "out_rep", "embedding_rep"):
        assert getattr(clone, name) is getattr(model, name)
    assert not {p.data_ptr() for p in model.parameters()} & {
        p.data_ptr() for p in clone.parameters()
    }
    reference = model(*inputs(model))
    assert torch.equal(clone(*inputs(model)), reference)
    trained(clone)
    assert torch.equal(model(*inputs(model)), reference)
    assert copy.deepcopy([model, clone])[1].in_rep is model.in_rep


@pytest.mark.parametrize("group", ["C3", "D4", "Icosahedral"])
def test_a_pickled_network_is_the_same_function(group, network, model_error):
    model = network(group, num_cond_layers=1)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(*inputs(model)), model(*inputs(model)))
    assert model_error(again) < rounding(again)
    assert model_error(again.double()) < EXACT
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(*inputs(model)), model(*inputs(model)))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("group", ["C3", "D4", "Icosahedral"])
def test_build_model_rebuilds_from_the_config_as_json(group, turned, network):
    model = network(
        group,
        turned=turned,
        num_cond_layers=1,
        causal_attn=True,
        norm_module="layernorm",
        time_scale=500.0,
    )
    again = build_model(json.loads(json.dumps(model.config))).eval()
    assert type(again) is eCondTransformerRegressor and again.config == model.config
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(*inputs(model)), model(*inputs(model)))


def test_build_model_reads_names_as_a_yaml_file_has_them(model_error):
    config = {
        "class": "eCondTransformerRegressor",
        "group": "D4",
        "in_rep": ["standard"],
        "cond_rep": ["standard", "sign"],
    }
    config |= {
        "out_rep": None,
        "in_horizon": 4,
        "cond_horizon": 3,
        "num_layers": 1,
        "num_attention_heads": 2,
    }
    model = build_model({**config, "embedding_dim": 32})
    assert (model.in_dim, model.cond_dim, model.out_dim) == (2, 3, 2)
    assert model_error(model.eval()) < rounding(model)
    with pytest.raises(ValueError, match="unknown group None"):
        build_model({**config, "embedding_dim": 32, "group": None})
    with pytest.raises(ValueError, match="unknown representation 'spin'"):
        build_model({**config, "embedding_dim": 32, "in_rep": ["spin"]})
    with pytest.raises(ValueError, match="cannot build eCondTransformerRegressor.*'embedding_dim'"):
        build_model(config)


def test_another_dtype_of_the_input_is_cast_to_that_of_the_weights(network):
    model = network()
    X, t, Z = inputs(model)
    assert torch.equal(model(X.double(), t, Z.double()), model(X, t, Z))
    half = network().bfloat16()
    assert half(X, t, Z).dtype == torch.bfloat16
    assert not torch.equal(half(X, 0.999, Z), half(X, 1.0, Z))
