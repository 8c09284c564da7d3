"""Names that a module imports for some of its functions: not imported with it, and the real ones for whoever uses them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from fxhlo.runtime.vllm.deferred import Deferring, Later

SOURCE = """
class Real:
    number = 3
def add(one, other):
    return one + other
TABLE = {"a": 1}
"""
Load = Callable[..., ModuleType]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports a module of this code whose names of `put_off_source` are put off."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "put_off_source.py").write_text(SOURCE)

    def made(code: str, *, by_use: bool = False, name: str = "put_off_user") -> ModuleType:
        (tmp_path / f"{name}.py").write_text(code)
        importlib.invalidate_caches()
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        spec.loader = Deferring(spec.loader, ("put_off_source",), by_use=by_use)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    yield made
    for name in set(sys.modules) - before:
        if name.startswith("put_off_"):
            del sys.modules[name]


USER = """
from put_off_source import Real, add
class Holder:
    def method(self): return self.inner(1)
    def inner(self, one): return add(one, 1)
    @classmethod
    def of_class(cls): return Real
    @staticmethod
    def static(): return (lambda: Real)()
    @property
    def number(self): return Real.number
def function(one): return isinstance(one, Real)
def other(): return 5
"""


def waits() -> bool:
    return "put_off_source" not in sys.modules


@pytest.mark.parametrize(
    ("use", "answer"),
    [
        (lambda user: user.Holder().method(), 2),
        (lambda user: user.Holder.of_class().__name__, "Real"),
        (lambda user: user.Holder.static().number, 3),
        (lambda user: user.Holder().number, 3),
        (lambda user: user.function(1), False),
        (lambda user: user.Real.number, 3),
        (lambda user: user.add(1, 2), 3),
    ],
    ids=[
        "a method",
        "a class method",
        "a static method",
        "a property",
        "a function",
        "a class of the module",
        "a function of the module",
    ],
)
def test_the_first_use_binds(use: Callable[[ModuleType], object], answer: object, load: Load) -> None:
    user = load(USER)
    before = user.Holder.inner, user.function
    assert user.other() == 5
    assert waits()
    assert use(user) == answer
    source = sys.modules["put_off_source"]
    assert vars(user)["Real"] is source.Real and vars(user)["add"] is source.add
    assert type(user) is ModuleType
    assert (user.Holder.inner, user.function) != before  # they are the module's own again
    assert user.function(source.Real()) and not hasattr(user.function, "__wrapped__")


def test_another_module_gets_the_real_source(load: Load, tmp_path: Path) -> None:
    (tmp_path / "put_off_other.py").write_text("from put_off_source import Real\nclass Mine(Real): ...\n")
    user = load("from put_off_source import add\nimport put_off_other\ndef function(): return add(1, 1)\n")
    assert user.put_off_other.Mine.__mro__[1] is sys.modules["put_off_source"].Real
    assert user.function() == 2


@pytest.mark.parametrize(
    "code",
    [
        "from put_off_source import Real\nclass Mine(Real): ...\n",
        "from put_off_source import Real\nMINE = Real()\n",
        "from put_off_source import Real\ndef function(one: Real | None) -> None: ...\n",
        "from put_off_source import Real\nimport contextlib\n@contextlib.contextmanager\ndef function(): yield Real\n",
    ],
    ids=["a base", "a call", "an annotation", "a function that a decorator hides"],
)
def test_what_is_used_at_once_is_there_at_once(code: str, load: Load) -> None:
    user = load(code)
    assert not waits()
    assert user.Real is sys.modules["put_off_source"].Real


def test_a_source_that_is_there_is_taken(load: Load) -> None:
    source = importlib.import_module("put_off_source")
    assert vars(load(USER))["Real"] is source.Real


def test_a_source_that_is_not_there_is_missed_at_once(load: Load, tmp_path: Path) -> None:
    (tmp_path / "put_off_source.py").unlink()
    importlib.invalidate_caches()
    with pytest.raises(ModuleNotFoundError, match="put_off_source"):
        load(USER)


def test_a_name_may_be_replaced(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    user = load(USER)
    with monkeypatch.context() as patched:
        patched.setattr(user, "add", lambda one, other: 7)
        assert user.Holder().method() == 7
    assert user.Holder().method() == 2


def test_by_use_a_name_is_the_real_thing(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    user = load("from put_off_source import Real, TABLE, add\n", by_use=True)
    assert waits()
    source = importlib.import_module("put_off_source")
    assert type(user.Real) is Later
    assert isinstance(source.Real(), user.Real) and issubclass(source.Real, user.Real)
    assert (
        user.add(1, 2) == 3
        and "a" in user.TABLE
        and user.TABLE["a"] == 1
        and list(user.TABLE) == ["a"]
        and len(user.TABLE) == 1
    )
    with monkeypatch.context() as patched:
        patched.setattr(user.Real, "number", 4)
        assert source.Real.number == 4
    assert source.Real.number == 3
