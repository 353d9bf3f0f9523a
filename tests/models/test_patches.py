"""The patch transformer: it starts as zero, cuts images without loss, reads time and label, is
saved and rebuilt, and is trained by the recipe's job."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from fastgen.config import TrainTeacherConfig
from fastgen.data.samples import SampleData
from fastgen.export import export_student, load_network, load_student, save_network
from fastgen.jobs.pretraining import build_network
from fastgen.models import PatchTransformer, build_model
from support.exact import normal

X = normal(3, 2, 8, 8)
LABELS = torch.tensor([1, 3, 0])


def model(**changes) -> PatchTransformer:
    torch.manual_seed(0)
    arguments = {"channels": 2, "image_size": 8, "patch_size": 4, "num_labels": 3}
    arguments |= {"num_layers": 2, "num_attention_heads": 2, "embedding_dim": 8}
    return PatchTransformer(**{**arguments, **changes})


@pytest.mark.parametrize("norm_module", ["layernorm", "rmsnorm"])
def test_a_fresh_network_answers_zero_and_learns(norm_module):
    network = model(norm_module=norm_module).double()
    out = network(X, 0.5, LABELS)
    assert out.shape == X.shape and not out.any()
    out.sub(X).square().sum().backward()
    assert network.head.weight.grad.norm() > 0


def test_patches_are_cut_without_loss_and_each_is_one_token():
    network = model()
    tokens = network._patches(X)
    assert tokens.shape == (3, 4, 32)
    assert torch.equal(network._image(tokens), X)
    # The second token is the patch on the right of the first.
    assert torch.equal(tokens[:, 1], X[:, :, :4, 4:].flatten(1))


def test_it_reads_every_pixel_the_time_and_the_label(shaken):
    network = shaken(model().double())
    x = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad((network(x, 0.4, LABELS) * normal(*X.shape, seed=1)).sum(), x)
    assert grad.abs().min() > 0
    out = network(X, 0.4, LABELS)
    assert (network(X, 0.5, LABELS) - out).flatten(1).norm(dim=1).min() > 1e-6
    moved = (network(X, 0.4, torch.tensor([1, 2, 1])) - out).flatten(1).norm(dim=1)
    assert moved[0] == 0 and moved[1:].min() > 1e-6


def test_rows_do_not_see_each_other(shaken):
    network = shaken(model().double())
    times = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    whole = network(X, times, LABELS)
    rows = [network(X[i : i + 1], times[i : i + 1], LABELS[i : i + 1]) for i in range(3)]
    assert torch.allclose(whole, torch.cat(rows), rtol=0, atol=1e-13)


def test_build_model_rebuilds_from_the_config_as_json(shaken):
    network = shaken(model(time_scale=500.0, norm_module="rmsnorm").double())
    again = build_model(json.loads(json.dumps(network.config))).double()
    assert again.config == network.config
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(X, 0.3, LABELS), network(X, 0.3, LABELS))


def test_it_is_saved_and_exported_by_name(tmp_path, shaken):
    network = shaken(model())
    save_network(tmp_path / "teacher", network)
    again, _ = load_network(tmp_path / "teacher")
    x = X.float()
    assert torch.equal(again(x, 0.3, LABELS), network.eval()(x, 0.3, LABELS))
    export_student(tmp_path / "student", network, t_list=[0.999, 0.0], horizon=(2, 8, 8))
    student = load_student(tmp_path / "student")
    assert student.sample(LABELS, noise=x).shape == x.shape
    with pytest.raises(ValueError, match=r"expected horizon \[2, 8, 8\], the network's"):
        export_student(tmp_path / "other", network, t_list=[0.999, 0.0], horizon=(2, 8, 4))


def test_every_parameter_is_in_one_group():
    network = model()
    groups = network.get_optim_groups(0.1)
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    undecayed = {id(p) for p in groups[1]["params"]}
    assert id(network.label_emb.weight) in undecayed and id(network.pos_emb.weight) in undecayed


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[:, :1], 0.5, LABELS), ValueError, r"expected X of shape \(B, 2, 8, 8\), got"),
        ((X.long(), 0.5, LABELS), TypeError, r"expected X of shape .*, floating, got torch.int64"),
        ((X, 0.5, None), TypeError, r"integer labels \(B,\) = \(3,\), 0 for none, got NoneType"),
        ((X, 0.5, LABELS.float()), TypeError, "integer labels .* got torch.float32"),
        ((X, 0.5, LABELS[:2]), ValueError, r"integer labels .* got shape \(2,\)"),
    ],
)
def test_what_it_cannot_take_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        model()(*arguments)


def test_without_labels_it_takes_no_condition():
    network = model(num_labels=0)
    assert network(X.float(), 0.5, None).shape == X.shape
    with pytest.raises(ValueError, match="this network has no labels"):
        network(X, 0.5, LABELS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, "expected patch_size to divide image_size = 8, got 3"),
        ({"num_labels": -1}, "num_labels"),
        ({"num_attention_heads": 3}, "num_attention_heads"),
        ({"num_layers": 0}, "num_layers"),
    ],
)
def test_arguments_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        model(**changes)


# ---- As a teacher of the recipe ------------------------------------------------------------------


def built(X: torch.Tensor, Z: torch.Tensor | None, **changes):
    options = {"equivariant": False, "embedding_dim": 8, "num_layers": 1, **changes}
    cfg = TrainTeacherConfig.model_validate({"model": options, "train": {"batch_size": 2}})
    return build_network(cfg, SimpleNamespace(train=SampleData(X, Z)))  # pyright: ignore


def test_the_recipe_builds_one_for_images():
    labelled = built(X.float(), torch.tensor([1, 2, 1]), patch_size=2)
    assert (
        labelled.config
        == model(
            num_labels=2, patch_size=2, num_layers=1, num_attention_heads=4, norm_module="rmsnorm"
        ).config
    )
    assert built(X.float(), None).config["num_labels"] == 0


@pytest.mark.parametrize(
    ("shape", "labels", "changes", "message"),
    [
        ((3, 2, 8, 8), [1, 2, 1], {"equivariant": True}, "model.equivariant=false for images"),
        ((3, 2, 8, 8), [1, 2, 1], {"causal_attn": True}, "model.causal_attn=false for images"),
        ((3, 2, 8, 8), [0, 2, 1], {}, "labels Z from 1 on .* got 0"),
        ((3, 2, 8, 4), [1, 2, 1], {}, r"square images .* got X \(3, 2, 8, 4\)"),
        ((3, 2, 8, 8), [1.0, 2.0, 1.0], {}, "square images"),
    ],
)
def test_the_recipe_refuses_what_it_has_no_network_for(shape, labels, changes, message):
    with pytest.raises(ValueError, match=message):
        built(torch.zeros(shape), torch.tensor(labels), **changes)
