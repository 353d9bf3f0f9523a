"""Students whose samples have a declared range: clamped at the end, in original units."""

import json
from typing import Any

import pytest
import torch

from fastgen.box import Box
from fastgen.channel_kinds import ChannelKinds, KindNormalizer
from fastgen.export import load_student
from fastgen.export.folders import check_box
from fastgen.export.schema import config_checksum
from fastgen.models import build_model
from fastgen.models.transformer import CondTransformerRegressor
from fastgen.normalizer import Normalizer
from support.folders import conditions, export_, seeded
from support.networks import dense, equivariant

PLAIN = {"x_normalizer": None, "z_normalizer": None}
BOX = Box([2.5, -2.25], [3.5, -1.75])


def test_samples_are_those_without_a_range_but_clamped(tmp_path):
    free = load_student(export_(tmp_path / "free"))
    bound = load_student(export_(tmp_path / "bound", box=BOX))
    assert bound.box == BOX and bound.config["range"] == BOX.state()
    for steps in (1, 2, 4):
        asked: dict[str, Any] = {"num_samples": 8, "steps": steps}
        x = free.sample(conditions(), generator=seeded(), **asked)
        y = bound.sample(conditions(), generator=seeded(), **asked)
        assert not bool(BOX.contains(x.flatten(0, 1)).all())
        # Bit for bit: nothing between the rungs knows of the range.
        assert torch.equal(y, BOX.clamp(x))


def test_a_folder_without_a_range_says_nothing_of_one(tmp_path):
    student = load_student(export_(tmp_path / "s"))
    assert student.box is None and "range" not in student.config
    assert "clamped" not in (tmp_path / "s" / "README.md").read_text()


def test_the_card_states_the_range(tmp_path):
    card = (export_(tmp_path / "s", box=Box(-1, 1)) / "README.md").read_text()
    assert "| samples clamped to | -1.0 to 1.0, the range of the data |" in card


@pytest.mark.parametrize("found", [[1, -1], [0], "x", [[0, 0, 0], [1, 1, 1]], [0, "x"], {"lo": 0}])
def test_a_range_that_is_none_is_refused(tmp_path, found):
    folder = export_(tmp_path / "s", box=BOX)
    config = json.loads((folder / "config.json").read_text())
    config["range"] = found
    config["checksum"] = config_checksum(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config.json: expected .*got range="):
        load_student(folder)


def test_an_equivariant_student_has_a_range_that_its_group_keeps(tmp_path):
    folder = export_(tmp_path / "kept", equivariant("D4"), box=Box(-0.1, 0.1), **PLAIN)
    assert load_student(folder).box == Box(-0.1, 0.1)
    # C2 turns the sign of the second channel alone.
    export_(tmp_path / "sign", equivariant("C2"), box=Box([0.0, -1.0], [2.0, 1.0]), **PLAIN)
    for number, (group, box) in enumerate(
        [("D4", Box(0, 1)), ("D4", Box([-1, -2], [1, 2])), ("C2", Box(0, 1))]
    ):
        with pytest.raises(ValueError, match=r"expected a range that \w+ keeps, got \[.*element"):
            export_(tmp_path / str(number), equivariant(group), box=box, **PLAIN)


def test_a_group_that_turns_by_less_than_a_right_angle_keeps_no_range(tmp_path):
    token = ["standard"] * 2
    symmetry = {"group": "C8", "in_rep": token, "out_rep": token, "cond_rep": ["standard"]}
    sizes = {"in_horizon": 3, "cond_horizon": 2, "num_layers": 1, "num_attention_heads": 2}
    network = build_model(
        {"class": "eCondTransformerRegressor", **symmetry, **sizes, "embedding_dim": 16}
    )
    with pytest.raises(ValueError, match=r"expected a range that C8 keeps"):
        export_(tmp_path / "s", network, box=Box(-1, 1), **PLAIN)


@pytest.mark.parametrize("kind", ["quaternion", "rotation_6d"])
def test_a_range_that_cuts_rotations_is_refused_without_a_group_too(kind):
    count = {"quaternion": 4, "rotation_6d": 6}[kind]
    kinds = ChannelKinds(1 + count, {kind: [list(range(1, 1 + count))]})
    normalizer = KindNormalizer.around(kinds, Normalizer.identity(1))
    lo, hi = [[0.0] + [end] * count for end in (-1.0, 1.0)]
    for cut in (Box(-0.5, 1), Box(-1, 0.5), Box(lo, [1.0, *hi[1:-1], 0.5])):
        with pytest.raises(ValueError, match=r"range that holds \[-1, 1\] in the channels of rot"):
            check_box(cut, dense(), normalizer)
    with pytest.raises(ValueError, match=rf"for channel {count}: a rotation of which one number"):
        check_box(Box(lo, [1.0, *hi[1:-1], 0.5]), dense(), normalizer)
    # What holds every rotation leaves them as they are.
    whole = Box(lo, [0.5, *hi[1:]])
    seen = torch.randn(200, 1 + 6, generator=seeded(), dtype=torch.float64)
    x = kinds.collapse(seen)
    for box in (whole, Box(-1, 1)):
        check_box(box, dense(), normalizer)
        kinds.check("X", box.clamp(x))
        torch.testing.assert_close(box.clamp(x)[:, 1:], x[:, 1:], rtol=0, atol=1e-14)


def test_angles_may_be_clamped():
    kinds = ChannelKinds(2, {"angle": [[1]]})
    normalizer = KindNormalizer.around(kinds, Normalizer.identity(1))
    check_box(Box(-0.5, 0.5), dense(), normalizer)


def test_a_student_of_rotations_is_not_exported_with_a_range_that_cuts_them(tmp_path):
    kinds = ChannelKinds(4, {"quaternion": [[0, 1, 2, 3]]})
    network = CondTransformerRegressor(6, 6, 2, 2, 1, 1, 2, 8)
    made: dict[str, Any] = {"pack": 1, **PLAIN, "x_normalizer": KindNormalizer.around(kinds, None)}
    with pytest.raises(ValueError, match="range that holds"):
        export_(tmp_path / "cut", network, box=Box(-0.5, 0.5), **made)
    assert not (tmp_path / "cut").exists()
    assert load_student(export_(tmp_path / "whole", network, box=Box(-1, 1), **made)).box
