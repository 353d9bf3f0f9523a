"""Students as policies of LeRobot: what the plugin remembers, what is written for it, and, where
lerobot is installed, that LeRobot loads and steps it."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch

from fastgen.export import export_lerobot, export_student, load_student
from fastgen.normalizer import Normalizer
from support.networks import dense

PLUGIN = Path(__file__).parents[2] / "recipes" / "plugins" / "lerobot_policy_fastgen"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A student of six waypoints, in one call or two."""
    folder = tmp_path_factory.mktemp("lerobot") / "student"
    normalizer = Normalizer([3.0, -2.0], torch.tensor([[2.0, 0.5], [0.0, 0.25]]))
    export_student(
        folder,
        dense(),
        t_list=[0.999, 0.5, 0.0],
        steps=[1, 2],
        pack=2,
        x_normalizer=normalizer,
        z_normalizer=normalizer,
    )
    return folder


def chunks_module():
    file = PLUGIN / "lerobot_policy_fastgen" / "chunks.py"
    spec = importlib.util.spec_from_file_location("chunks", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stepped(sample, observations, *, seen, executed, lead):
    """Slow twin: actions of steps 0, 1, ... for observations (T, B, d_z) of an episode."""
    actions = []
    for now in range(len(observations)):
        planned = now - now % executed
        ages = range(planned - seen + 1, planned + 1)
        Z = torch.stack([observations[max(0, age)] for age in ages], 1)
        actions.append(sample(Z)[:, lead + now % executed])
    return torch.stack(actions)


# ---- The plugin's own logic ----------------------------------------------------------------------


@pytest.mark.parametrize(("executed", "lead"), [(1, 0), (3, 0), (4, 1), (6, 0)])
def test_actions_are_those_of_a_horizon_that_recedes(executed, lead):
    def sample(Z):  # (B, 6, 2): tells apart what was seen and which action it is
        return Z.sum(1, keepdim=True) + Z[:, :1] + 100 * torch.arange(6.0)[:, None]

    chunks = chunks_module().Chunks(2, executed, lead)
    for episode in range(2):
        observations = torch.randn(9, 3, 2, generator=torch.Generator().manual_seed(episode))
        found = []
        for observation in observations:
            chunks.observe(observation)
            if chunks.is_empty:
                chunks.fill(sample(chunks.history))
            found.append(chunks.next())
        expected = stepped(sample, observations, seen=2, executed=executed, lead=lead)
        assert torch.equal(torch.stack(found), expected)
        chunks.reset()


def test_features_are_joined_in_their_order_and_missing_ones_named():
    joined = chunks_module().joined
    batch = {"b": torch.ones(3, 1), "a": torch.zeros(3, 2), "c": torch.ones(3, 9)}
    assert joined(batch, ["a", "b"]).tolist() == [[0.0, 0.0, 1.0]] * 3
    with pytest.raises(ValueError, match="observations with a, d, got b, a, c"):
        joined(batch, ["a", "d"])


# ---- What is written -----------------------------------------------------------------------------


def test_a_policy_holds_the_student_and_what_lerobot_asks_for(folder, tmp_path):
    for execute in (None, 2):  # an earlier one is replaced
        config = export_lerobot(folder, tmp_path / "policy", execute=execute, lead=1, steps=1)
    assert json.loads((tmp_path / "policy" / "config.json").read_text()) == config
    assert (config["type"], config["n_obs_steps"], config["chunk_size"]) == ("fastgen", 2, 6)
    assert config["n_action_steps"] == 2 and config["input_features"]["observation.state"] == {
        "type": "STATE",
        "shape": [2],
    }
    held = {"config.json", "policy_preprocessor.json", "policy_postprocessor.json", "student"}
    assert set(os.listdir(tmp_path / "policy")) == held
    copied = load_student(tmp_path / "policy" / "student")
    assert copied.config["checksum"] == load_student(folder).config["checksum"]


def test_what_makes_no_policy_is_refused(folder, tmp_path):
    for options, words in (
        ({"execute": 7}, "execute from 1 to 6, the actions that come, got 7"),
        ({"execute": 6, "lead": 1}, "execute from 1 to 5"),
        ({"lead": 6}, "lead from 0 to 5, within a chunk, got 6"),
        ({"steps": 3}, "steps among those trained"),
    ):
        with pytest.raises(ValueError, match=words):
            export_lerobot(folder, tmp_path / "policy", **options)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="choose another folder"):
        export_lerobot(folder, tmp_path / "mine")
    assert os.listdir(tmp_path) == ["mine"]


# ---- LeRobot -------------------------------------------------------------------------------------


def test_lerobot_loads_and_steps_the_policy(folder, tmp_path, monkeypatch):
    if importlib.util.find_spec("lerobot") is None:
        pytest.skip(
            "lerobot isn't installed: the set-up doesn't bring it, since it pins an older torch"
        )
    monkeypatch.syspath_prepend(str(PLUGIN))
    configs = importlib.import_module("lerobot.configs.policies")
    factory = importlib.import_module("lerobot.policies.factory")
    plugin = importlib.import_module("lerobot_policy_fastgen")

    export_lerobot(folder, tmp_path / "policy", execute=3, lead=1, steps=2)
    config = configs.PreTrainedConfig.from_pretrained(tmp_path / "policy")
    assert config.type == "fastgen"
    policy = plugin.FastgenPolicy.from_pretrained(tmp_path / "policy", config=config)
    loaded = factory.make_pre_post_processors(config, pretrained_path=str(tmp_path / "policy"))
    made = plugin.make_fastgen_pre_post_processors(config)
    student = load_student(folder)
    noise = torch.randn(1, 6, 2, generator=torch.Generator().manual_seed(0))

    def sample(Z):
        return student.sample(Z, steps=2, noise=noise)

    for before, behind in (loaded, made):
        policy.reset()
        observations = torch.randn(7, 1, 2, generator=torch.Generator().manual_seed(1))
        found = []
        for observation in observations:
            batch = before({"observation.state": observation[0]})
            found.append(behind(policy.select_action(batch, noise=noise)))
        expected = stepped(sample, observations, seen=2, executed=3, lead=1)
        torch.testing.assert_close(torch.stack(found), expected, rtol=1e-6, atol=1e-6)
    policy.reset()
    chunk = policy.predict_action_chunk({"observation.state": observations[0]}, noise=noise)
    Z = observations[:1].transpose(0, 1).expand(1, 2, 2)
    torch.testing.assert_close(chunk, sample(Z)[:, 1:], rtol=1e-6, atol=1e-6)
    assert chunk.shape == (1, 5, 2)
    drawn = policy.predict_action_chunk({"observation.state": torch.zeros(4, 2, 2)})
    assert drawn.shape == (4, 5, 2) and not torch.equal(drawn[0], drawn[1])
    try:
        found_class = factory.get_policy_class("fastgen")
    except NotImplementedError:  # 0.4.0: policies of plugins aren't looked for
        return
    assert found_class is plugin.FastgenPolicy
