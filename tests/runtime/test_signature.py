"""Signatures, dtypes and errors: what they accept, refuse and print."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxhlo.runtime.core.dtypes import dtype_of
from fxhlo.runtime.core.errors import BundleError, FxhloError, ShapeError, SignatureError
from fxhlo.runtime.core.signature import KINDS, Argument, Result, Signature

ROOT = Path(__file__).parents[2]
SIGNATURE = Signature(
    (
        Argument("w", "weight", (3, 4), "bfloat16"),
        Argument("x", "input", (2, 3), "float32"),
        Argument("cache", "state", (8,), "float8_e4m3fn", 0),
    ),
    (Result("cache", (8,), "float8_e4m3fn", 2), Result("y", (), "bool")),
)
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
DTYPES = st.sampled_from(["float32", "bfloat16", "int32", "bool", "float8_e4m3fn", "uint8"])


@st.composite
def signatures(draw):
    names = draw(st.lists(st.text(min_size=1, max_size=5), unique=True, max_size=6))
    arguments, results = [], []
    for index, name in enumerate(names):
        shape, dtype, updated = draw(SHAPES), draw(DTYPES), draw(st.booleans())
        arguments.append(Argument(name, draw(st.sampled_from(KINDS)), shape, dtype, len(results) if updated else None))
        if updated:
            results.append(Result(name, shape, dtype, index))
        if draw(st.booleans()):
            results.append(Result("other", draw(SHAPES), draw(DTYPES)))
    return Signature(tuple(arguments), tuple(results))


@given(signatures())
def test_json_and_back(signature):
    assert Signature.from_json(json.loads(json.dumps(signature.to_json()))) == signature


def test_groups_and_lookup():
    assert [argument.name for argument in SIGNATURE.weights] == ["w"]
    assert [argument.name for argument in SIGNATURE.inputs] == ["x"]
    assert [argument.name for argument in SIGNATURE.states] == ["cache"]
    assert SIGNATURE.argument("x").shape == (2, 3)
    assert SIGNATURE.result("y").dtype == "bool"
    with pytest.raises(SignatureError, match=r"no argument 'cahce'\n.*cache"):
        SIGNATURE.argument("cahce")
    with pytest.raises(SignatureError, match="no result 'z'"):
        SIGNATURE.result("z")


def test_table():
    lines = str(SIGNATURE).splitlines()
    assert len(lines) == 6
    assert lines[3].split() == ["arg", "2", "cache", "state", "float8_e4m3fn", "[8]", "->", "result", "0"]
    assert lines[4].split() == ["result", "0", "cache", "float8_e4m3fn", "[8]", "<-", "arg", "2"]


def change(path, value):
    def apply(data):
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (change(["arguments"], {}), r"signature.arguments is \{\}"),
        (change(["extra"], 1), r"unknown \['extra'\]"),
        (lambda data: data.pop("results"), r"lacks \['results'\]"),
        (change(["arguments", 0], 7), r"arguments\[0\] is int"),
        (change(["arguments", 0, "kind"], "heavy"), r"arguments\[0\].kind is 'heavy'"),
        (change(["arguments", 1, "shape"], [2, -3]), r"arguments\[1\].shape is \[2, -3\]"),
        (change(["arguments", 1, "shape"], [2, 3.0]), r"arguments\[1\].shape"),
        (change(["arguments", 1, "dtype"], "float33"), "no dtype 'float33'"),
        (change(["arguments", 1, "name"], "w"), "two arguments are named 'w'"),
        (change(["arguments", 2, "alias"], True), r"arguments\[2\].alias is True"),
        (change(["arguments", 2, "alias"], 5), "alias 5, and there are 2"),
        (change(["arguments", 2, "alias"], 1), r"whose alias is None, not 2"),
        (change(["results", 0, "alias"], None), r"whose alias is None, not 2"),
        (change(["results", 0, "shape"], [9]), "differ in shape or dtype"),
        (change(["results", 1, "alias"], -1), r"results\[1\].alias is -1"),
    ],
)
def test_json_that_is_refused(damage, text):
    data = copy.deepcopy(SIGNATURE.to_json())
    damage(data)
    with pytest.raises(SignatureError, match=text):
        Signature.from_json(data)


@pytest.mark.parametrize("name", ["float32", "int8", "bool", "uint64", "complex64"])
def test_numpy_dtypes(name):
    assert dtype_of(name) == np.dtype(name)


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4"])
def test_ml_dtypes(name):
    assert dtype_of(name) == np.dtype(getattr(ml_dtypes, name))


@pytest.mark.parametrize("name", ["object", "float", "finfo", "__name__", "datetime64", "", ">f4", "f4"])
def test_names_that_are_no_dtype(name):
    with pytest.raises(SignatureError, match="there is no dtype"):
        dtype_of(name)


def test_errors_print_what_where_and_next():
    error = BundleError("the file is damaged", where=Path("/a/b"), next_step="make it again")
    assert str(error) == "the file is damaged\n  at: /a/b\n  next: make it again"
    assert str(ShapeError("wrong")) == "wrong"
    assert isinstance(error, FxhloError)


def test_errors_cross_processes():
    class Listing(BundleError):
        def __init__(self, message, *, missing, where=None, next_step=None):
            super().__init__(message, where=where, next_step=next_step)
            self.missing = missing

    globals()["Listing"] = Listing
    Listing.__qualname__ = "Listing"
    error = pickle.loads(pickle.dumps(Listing("a", missing=("b",), where="c", next_step="d")))
    assert (str(error), error.missing, type(error)) == ("a\n  at: c\n  next: d", ("b",), Listing)


def python(code, cwd=ROOT):
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=60)


def test_the_bare_name_is_refused():
    ran = python("import sys; sys.path.insert(0, '.'); import runtime")
    assert ran.returncode == 1
    assert "import this package as fxhlo.runtime" in ran.stderr


def test_importing_the_light_modules_imports_neither_jax_nor_torch():
    ran = python(
        "import sys, fxhlo.runtime.core.errors, fxhlo.runtime.core.signature, fxhlo.runtime.core.targets, fxhlo.runtime.core.bundle\n"
        "print({'jax', 'jaxlib', 'torch', 'vllm'} & set(sys.modules))"
    )
    assert ran.stdout == "set()\n", ran.stderr
