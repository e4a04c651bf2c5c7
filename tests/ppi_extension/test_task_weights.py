"""Task weights: what each transform gives, and their life on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ecgmeta.runtime.errors import InputError
from ppi_extension.task_weights import TRANSFORMS, TaskWeights


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_all_weights_are_one_at_the_start_and_positive_later(transform: Any) -> None:
    weights = TaskWeights(5, transform)
    assert weights().tolist() == pytest.approx([1.0] * 5)
    torch.nn.init.normal_(weights.z, std=3.0)
    assert bool((weights() > 0).all())


def test_what_each_transform_is() -> None:
    z = torch.tensor([-1.0, 0.5, 2.0])
    expected = {
        "sigmoid": 2 / (1 + torch.exp(-z)),
        "exp": torch.exp(z),
        "softmax": 3 * torch.exp(z) / torch.exp(z).sum(),
    }
    for transform, values in expected.items():
        weights = TaskWeights(3, transform)  # type: ignore[arg-type]
        weights.z.data.copy_(z)
        torch.testing.assert_close(weights(), values)


def test_weights_and_names_survive_the_disk(tmp_path: Path) -> None:
    weights = TaskWeights(3, "softmax", names=["GO:1", "GO:2", "GO:3"])
    weights.z.data.copy_(torch.tensor([0.1, -0.2, 0.3]))
    weights.save_pretrained(tmp_path)
    again = TaskWeights.from_pretrained(tmp_path)
    assert (again.names, again.transform) == (("GO:1", "GO:2", "GO:3"), "softmax")
    assert torch.equal(again(), weights())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "tasks: found 0"),
        ((2, "relu"), "transform: found relu, expected one of sigmoid, softmax, exp"),
        ((2, "exp", ["a"]), "names: found 1 names, expected none, or one for each of 2 tasks"),
    ],
)
def test_settings_out_of_range_are_named(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TaskWeights(*arguments)
