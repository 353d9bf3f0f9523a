"""Conditions of every kind, handled as one value."""

import pytest
import torch

from fastgen._core.conditions import cond_text, cond_to, map_tensors, take_rows, tensors_in

A, B = torch.arange(6.0).view(3, 2), torch.tensor([4, 5, 6])
CONDITIONS = {
    "tensor": (A, "(3, 2)"),
    "labels": (B, "integers (3,)"),
    "tuple": ((A, B), "((3, 2), integers (3,))"),
    "mapping": ({"a": A, "b": (B, None)}, "{a: (3, 2), b: (integers (3,), None)}"),
    "none": (None, "None"),
}
conditions = pytest.mark.parametrize(("cond", "text"), CONDITIONS.values(), ids=CONDITIONS.keys())


@conditions
def test_rows_of_a_condition_are_rows_of_each_tensor_in_it(cond, text):
    for rows in (torch.tensor([2, 0]), slice(1, 3)):
        taken = take_rows(cond, rows)
        assert all(
            torch.equal(x, y[rows])
            for x, y in zip(tensors_in(taken), tensors_in(cond), strict=True)
        )
        assert cond_text(taken, "B") == text.replace("(3", "(B") and cond_text(cond) == text


@conditions
@pytest.mark.parametrize("dtype", [None, torch.float64, torch.bfloat16])
def test_labels_keep_their_dtype(cond, text, dtype):
    for x, y in zip(
        tensors_in(cond_to(cond, torch.device("cpu"), dtype)), tensors_in(cond), strict=True
    ):
        assert x.dtype == (dtype if dtype is not None and y.is_floating_point() else y.dtype)
        assert torch.equal(x, y.to(x))


def test_what_is_no_condition_is_refused():
    assert map_tensors(lambda x: x + 1, [B])[0].tolist() == [5, 6, 7]
    for wrong in ("north", 3, [3], {"a": 1.0}):
        with pytest.raises(
            TypeError,
            match="expected cond as a Tensor, a tuple or mapping of Tensors, or None, got",
        ):
            map_tensors(lambda x: x, wrong)
    with pytest.raises(ValueError, match="a scalar Tensor"):
        tensors_in((A, torch.tensor(1)))


@pytest.mark.parametrize(
    ("source", "target", "pinned"), [("cpu", "cuda", 1), ("cuda", "cuda", 0), ("cpu", "cpu", 0)]
)
def test_only_what_goes_from_the_host_to_a_gpu_is_page_locked_and_not_waited_for(
    monkeypatch, source, target, pinned
):
    seen: list[tuple[str, bool]] = []

    class Elsewhere(torch.Tensor):
        device = torch.device(source)

        def pin_memory(self):
            seen.append(("pinned", True))
            return self

        def to(self, *, non_blocking=False, **_):
            seen.append(("moved", non_blocking))
            return self

    cond_to(torch.ones(2).as_subclass(Elsewhere), torch.device(target))
    assert seen == [("pinned", True)] * pinned + [("moved", bool(pinned))]
