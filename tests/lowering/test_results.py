"""What a call returns is what the module returned: its nesting and names, without the updates of what is bound."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import OrderedDict, namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

import fxhlo
from fxhlo.runtime.core.errors import SignatureError
from fxhlo.runtime.core.signature import Signature
from fxhlo.runtime.core.structure import Structure

Pair = namedtuple("Pair", "first second")


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


torch.export.register_dataclass(Output, serialized_type_name="test_results.Output")


class Counting(torch.nn.Module):
    """Its buffer counts the calls; forward(x) is function(x + count)."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return self.function(x + self.count)


def named(result):
    """What is expected where the module returns a registered class: a dict by its fields."""
    if isinstance(result, Output):
        return {key: value for key, value in vars(result).items() if value is not None}
    if isinstance(result, tuple) and not hasattr(result, "_fields"):
        return tuple(map(named, result))
    return result


def same(actual, expected) -> None:
    assert (
        type(actual) is type(expected)
        or hasattr(expected, "_fields")
        or isinstance(expected, torch.Tensor | int | dict)
    )
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key, value in expected.items():
            same(actual[key], value)
    elif isinstance(expected, tuple | list):
        assert len(actual) == len(expected)
        assert getattr(actual, "_fields", None) == getattr(expected, "_fields", None)
        for one, other in zip(actual, expected, strict=True):
            same(one, other)
    elif expected is None:
        assert actual is None
    else:
        np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=1e-6)


STRUCTURES = {
    "a tensor": lambda x: x,
    "a tuple": lambda x: (x, x * 2),
    "one in a tuple": lambda x: (x,),
    "a list": lambda x: [x, x],
    "a dict": lambda x: {"b": x, "a": x * 2},
    "an ordered dict of numbers": lambda x: OrderedDict([(2, x), (1, x * 2)]),
    "nested": lambda x: {"b": (x, None, [3]), "a": {"c": x * 2}},
    "a named tuple": lambda x: Pair(x, {"q": x * 2}),
    "a dataclass": lambda x: Output(x),
    "dataclasses in a tuple": lambda x: (Output(x, x * 2), x),
    "nothing inside": lambda x: (x, None),
}


@pytest.mark.parametrize("case", STRUCTURES)
def test_results_nest_as_the_module_nests_them(case: str) -> None:
    module, x = Counting(STRUCTURES[case]), torch.randn(2)
    hlo = fxhlo.lower(module, (x,))
    run = hlo.compile()
    for _ in range(2):
        expected, actual = named(module(x)), run(x)
        same(actual, (expected,) if isinstance(expected, torch.Tensor) else expected)
    assert Signature.from_json(hlo.signature.to_json()) == hlo.signature


def test_results_have_the_names_of_their_places() -> None:
    hlo = fxhlo.lower(Counting(STRUCTURES["nested"]), (torch.randn(2),))
    assert [result.name for result in hlo.signature.results] == ["count.updated", "b.0", "b.2.0", "a.c"]


def test_inputs_that_change_come_before_the_results() -> None:
    class Adds(torch.nn.Module):
        def forward(self, x, y):
            x.add_(y)
            return {"sum": x.sum()}

    x, y = torch.randn(3), torch.randn(3)
    updated, results = fxhlo.lower(Adds(), (x.clone(), y)).compile()(x, y)
    same((updated, results), (x + y, {"sum": (x + y).sum()}))


def test_a_bundle_keeps_them_without_torch(tmp_path: Path) -> None:
    fxhlo.lower(Counting(STRUCTURES["nested"]), (torch.zeros(2),)).save(tmp_path / "bundle")
    code = (
        "import sys, fxhlo, numpy as np\n"
        f"run = fxhlo.load({str(tmp_path / 'bundle')!r})['main']\n"
        "run(np.zeros(2, np.float32)); result = run(np.zeros(2, np.float32))\n"
        "assert 'torch' not in sys.modules\n"
        "print({key: str(value) for key, value in result['a'].items()}, list(result), result['b'][1], result['b'][2])"
    )
    made = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout == "{'c': '[4. 4.]'} ['b', 'a'] None [Array(3, dtype=int64)]\n"


def test_a_structure_that_is_damaged_is_refused() -> None:
    with pytest.raises(SignatureError, match="structure of the results"):
        Structure.from_json({"kind": "set", "name": "", "keys": [], "children": []})
    with pytest.raises(SignatureError, match="names for"):
        Structure.from_json({"kind": "dict", "name": "", "keys": ["a", "b"], "children": [1]})
