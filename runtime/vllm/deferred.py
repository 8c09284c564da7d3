"""Names that a module imports for some of its functions alone, bound when one of these is called.

Comes in: a module's loader, and the modules from which the names come. Goes out: a loader with which the import of the module imports none of those.
Guaranteed: the functions get the real things, and so does whoever asks the module for such a name; a name that the module uses while it is
imported, or in code that is not found, is bound at once; a source that is imported already, or not there, is left as it is.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import inspect
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from types import CodeType, FunctionType, ModuleType
from typing import Any


class Loader(importlib.abc.Loader):
    """Another loader, with something of its own about it."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)


class Deferring(Loader):
    """Loads a module without `sources`, each of which it takes names from.

    by_use: no function binds the names, and each use of one goes to the real thing: for names that are used as objects alone (an attribute,
    a call, isinstance, an item), in functions that run at once for other reasons, or are not found.
    """

    def __init__(self, loader: importlib.abc.Loader, sources: tuple[str, ...], *, by_use: bool = False) -> None:
        super().__init__(loader)
        self._sources, self._by_use = sources, by_use

    def exec_module(self, module: ModuleType) -> None:
        stand_ins = [_Source(name, module) for name in self._sources if _can_wait(name)]
        for one in stand_ins:
            one.enter()
        try:
            self._loader.exec_module(module)
        except ImportError:  # a circle of imports that only its own order avoids
            if not stand_ins:
                raise
            for one in stand_ins:
                one.leave()
            self._loader.exec_module(module)
        finally:
            for one in stand_ins:
                one.leave()
        later = {name: value for name, value in vars(module).items() if type(value) is Later}
        if later and not self._by_use:
            _Binding(module, later).prepare(self._loader)


class Later:
    """A name of a module that may not be imported yet; used as an object, it is the one of that name."""

    __slots__ = ("_module", "_name")

    def __init__(self, module: str, name: str) -> None:
        object.__setattr__(self, "_module", module)
        object.__setattr__(self, "_name", name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return found(self)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(found(self), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(found(self), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(found(self), name)

    def __instancecheck__(self, one: object) -> bool:
        return isinstance(one, found(self))

    def __subclasscheck__(self, one: type) -> bool:
        return issubclass(one, found(self))

    def __mro_entries__(self, bases: tuple[type, ...]) -> tuple[type, ...]:
        return (found(self),)

    def __len__(self) -> int:
        return len(found(self))

    def __contains__(self, one: object) -> bool:
        return one in found(self)

    def __iter__(self) -> Iterator[Any]:
        return iter(found(self))

    def __getitem__(self, key: Any) -> Any:
        return found(self)[key]

    def __or__(self, other: Any) -> Any:
        return found(self) | other

    def __ror__(self, other: Any) -> Any:
        return other | found(self)


def found(later: Later) -> Any:
    """The real thing; imports its module."""
    module = object.__getattribute__(later, "_module")
    return getattr(importlib.import_module(module), object.__getattribute__(later, "_name"))


class _Source(ModuleType):
    """Stands in `sys.modules` for a module while `user` is imported. To everybody else it is that module."""

    def __init__(self, name: str, user: ModuleType) -> None:
        super().__init__(name)
        self._user, self._own = user, sys.modules.get(name)
        self.__file__ = None  # `inspect.getmodule` asks every module for it

    def enter(self) -> None:
        sys.modules[self.__name__] = self

    def leave(self) -> None:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
            if self._own is not None:
                sys.modules[self.__name__] = self._own

    def __getattr__(self, name: str) -> Any:
        if sys._getframe(1).f_globals is not vars(self._user):
            return getattr(self._real(), name)
        if name.startswith("__"):
            raise AttributeError(name)
        if self._own is not None and name in vars(self._own):
            return vars(self._own)[name]
        return Later(self.__name__, name)

    def _real(self) -> ModuleType:
        self.leave()
        return importlib.import_module(self.__name__)


class _Binding:
    """The names of a module that are not bound yet, and what binds them."""

    def __init__(self, module: ModuleType, names: dict[str, Later]) -> None:
        self._module, self._names = module, names
        self._undo: list[Callable[[], None]] = []

    def prepare(self, loader: importlib.abc.Loader) -> None:
        """Has the functions that use the names bind them, and whoever asks the module for one; binds them at once where other code may use them."""
        for name in self._names:
            self._undo.append(_asked(self._module, name, self.bind))
        code = getattr(loader, "get_code", lambda name: None)(self._module.__name__)
        users = set() if code is None else set(_users(code, self._names))
        reached: set[str] = set()
        for owner, name, value in _functions(self._module):
            wrapped, inside = _wrapped(value, lambda one: self._first(one) if _uses(one, self._names) else one)
            if wrapped is not value:
                setattr(owner, name, wrapped)
                self._undo.append(functools.partial(_put_back, owner, name, wrapped, value))
                reached |= inside
        if code is None or users - reached:
            self.bind()

    def _first(self, function: FunctionType) -> Callable[..., Any]:
        @functools.wraps(function)
        def first(*args: Any, **kwargs: Any) -> Any:
            self.bind()
            return function(*args, **kwargs)

        return first

    def bind(self) -> None:
        """Imports what the names come from. Raises ImportError where that fails; the next use tries again."""
        for name, later in self._names.items():
            value = found(later)
            if vars(self._module).get(name) is later:
                vars(self._module)[name] = value
        undo, self._undo = self._undo, []
        for one in reversed(undo):
            one()


def _can_wait(name: str) -> bool:
    """Whether a module is there and not imported; a package that imports its parts when they are asked for can wait too."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        return type(loaded) is not ModuleType and hasattr(loaded, "__path__")
    path: list[str] | None = None
    for part in name.split("."):
        spec = PathFinder.find_spec(part, path)
        if spec is None:
            return False
        places = spec.submodule_search_locations  # those of a namespace would ask for its parent, which is not imported
        path = None if places is None else list(getattr(places, "_path", places))
    return True


def _users(code: CodeType, names: dict[str, Later]) -> Iterator[str]:
    """The functions in the code of a module or a class that use one of the names, or contain one that does; a class whose body does. By qualified name."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            function = inner.co_flags & inspect.CO_NEWLOCALS
            if _mentions(inner, names) if function else not names.keys().isdisjoint(inner.co_names):
                yield inner.co_qualname
            if not function:
                yield from _users(inner, names)


def _uses(function: FunctionType, names: dict[str, Later]) -> bool:
    return _mentions(function.__code__, names)


def _mentions(code: CodeType, names: dict[str, Later]) -> bool:
    if not names.keys().isdisjoint(code.co_names):
        return True
    return any(_mentions(one, names) for one in code.co_consts if isinstance(one, CodeType))


def _functions(module: ModuleType) -> Iterator[tuple[Any, str, Any]]:
    """(module or class, name, what is there) of everything that is defined in a module."""
    for name, value in list(vars(module).items()):
        if isinstance(value, type) and value.__module__ == module.__name__:
            yield from ((value, inner, one) for inner, one in list(vars(value).items()))
        elif isinstance(value, FunctionType) and value.__module__ == module.__name__:
            yield module, name, value


def _wrapped(value: Any, wrap: Callable[[FunctionType], Any]) -> tuple[Any, set[str]]:
    """The same function, static or class method, or property, of wrapped functions; and the qualified names of these."""
    if isinstance(value, FunctionType):
        made = wrap(value)
        return made, set() if made is value else {value.__code__.co_qualname}
    if isinstance(value, staticmethod | classmethod):
        made, inside = _wrapped(value.__func__, wrap)
        return (type(value)(made) if inside else value), inside
    if isinstance(value, property):
        parts = [(one, set()) if one is None else _wrapped(one, wrap) for one in (value.fget, value.fset, value.fdel)]
        inside = set[str]().union(*(one for _, one in parts))
        get, put, drop = (one for one, _ in parts)
        return (property(get, put, drop, value.__doc__) if inside else value), inside
    return value, set()


def _put_back(owner: Any, name: str, wrapped: Any, value: Any) -> None:
    if vars(owner).get(name) is wrapped:
        setattr(owner, name, value)


def _asked(module: ModuleType, name: str, bind: Callable[[], None]) -> Callable[[], None]:
    """Has whoever asks the module for the name bind it first. Returns what ends that."""
    before = type(module)

    def get(self: ModuleType) -> Any:
        bind()
        return vars(self)[name]

    def put(self: ModuleType, value: Any) -> None:
        bind()
        vars(self)[name] = value

    def drop(self: ModuleType) -> None:
        bind()
        del vars(self)[name]

    module.__class__ = type(before.__name__, (before,), {name: property(get, put, drop)})
    return lambda: setattr(module, "__class__", before)
