"""Executable: a compiled module on a device with its signature, called with arrays.

Comes in: a `pjrt.Loaded`, its `Signature`, and once, by `bind`, the weights. Goes out: device arrays, not waited for.
Guaranteed: a call with the wrong arguments raises ShapeError before the program runs; bound weights are placed once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .buffers import Value, place
from .errors import ShapeError, UnsupportedError
from .pjrt import Buffer, Loaded, Memory
from .signature import RANDOM_KEY, Argument, Signature


class Executable:
    """A compiled module that is called with buffers.

    executable(*args, **kwargs): the arguments that are not bound, in the order of the signature or by name. Each is a
    numpy array, a host tensor with DLPack, a device array, or for 0-d a Python number. Returns what the module
    returned, with a device array (`__array__` and `__dlpack__` read it and wait for it) for each tensor: a tuple for a tuple
    and for a single tensor, a dict for a dict, nested as it was.

    An argument with an alias (a state, an input that the module changes in place) is donated: a device array given for it is
    consumed, and its new value stands before the module's own results: `(x_updated, y)`. Host arrays are copied and never
    consumed. What is bound and updated, such as a buffer, is replaced where it is bound and not returned. Where the signature
    does not know how results nest, a call returns all of them as one tuple.
    """

    def __init__(self, loaded: Loaded, signature: Signature, *, name: str = "main", origin: str = "compiled") -> None:
        if signature.mesh.devices != loaded.device.mesh.devices:
            raise UnsupportedError(
                f"{name} runs on a mesh ({signature.mesh}), and was compiled for another ({loaded.device.mesh})",
                next_step="compile it for its signature's mesh",
            )
        if signature.mesh.devices > 1:
            loaded.expect(signature.results)
        self.loaded = loaded
        self.signature = signature
        self.name = name
        self.origin = origin
        """Where it is from: "stored executable", or which module was compiled and why."""
        self._bound: dict[int, Buffer] = {}
        self._prepare()

    def _prepare(self) -> None:
        """Computes once where bound buffers and a call's buffers go."""
        count = len(self.signature.arguments)
        self._free = tuple(index for index in range(count) if index not in self._bound)
        self._frame: list[Buffer | None] = [self._bound.get(index) for index in range(count)]
        first = len(self._bound)
        self._leading = all(index < first for index in self._bound)
        self._prefix = self._frame[:first] if self._leading else []
        self._updates = tuple(
            (index, alias)
            for index in sorted(self._bound)
            if (alias := self.signature.arguments[index].alias) is not None
        )
        hidden = {alias for _, alias in self._updates}
        self._returned = tuple(index for index in range(len(self.signature.results)) if index not in hidden)

    @property
    def arguments(self) -> tuple[Argument, ...]:
        """The arguments of a call: all that are not bound."""
        return tuple(self.signature.arguments[index] for index in self._free)

    @property
    def bound(self) -> dict[str, Buffer]:
        """The device arrays that are bound, by name. One that calls update, such as a running mean, is consumed by the next call."""
        return {self.signature.arguments[index].name: buffer for index, buffer in self._bound.items()}

    @property
    def memory(self) -> Memory:
        """Bytes of arguments, outputs, aliased outputs, temporaries and code."""
        return self.loaded.memory

    def bind(self, weights: Mapping[str, Value]) -> Executable:
        """An executable with the weights, buffers and constants placed once; this one stays as it is.

        weights: one array for each of `signature.weights`, by name. Host memory aligned to 64 bytes is shared on
        the CPU, not copied: leave it unchanged. Device arrays are taken as they are, so several executables share
        them. One that the module updates is copied, and each call replaces it by its new value.
        Raises ShapeError for names that are missing or unknown, and for wrong shapes or dtypes.
        """
        wanted = {argument.name for argument in self.signature.weights}
        if missing := sorted(wanted - weights.keys()):
            raise ShapeError(
                f"{self.name}: {len(missing)} weights are missing: {_some(missing)}",
                next_step="pass all of signature.weights",
            )
        if unknown := sorted(weights.keys() - wanted):
            raise ShapeError(
                f"{self.name} takes no weights named {_some(unknown)}",
                next_step="pass only the names of signature.weights",
            )
        made = Executable(self.loaded, self.signature, name=self.name, origin=self.origin)
        for argument in self.signature.weights:
            value = weights[argument.name]
            buffer = place(value, argument, self.loaded.device, shared=argument.alias is None)
            made._bound[self.signature.positions[argument.name]] = buffer
        made._prepare()
        return made

    def __call__(self, *args: Value, **kwargs: Value) -> Any:
        device = self.loaded.device
        arguments = self.arguments
        values = args if len(args) == len(arguments) and not kwargs else self._ordered(arguments, args, kwargs)
        buffers = [place(value, argument, device) for value, argument in zip(values, arguments, strict=True)]
        self._refuse_twice(arguments, buffers)
        return self.returned(self.execute(buffers))

    def returned(self, results: Sequence[Any]) -> Any:
        """What a call returns, of all results of `main` in order."""
        structure = self.signature.structure
        if structure is None:
            return tuple(results)
        own = set(structure.indices)
        updates = tuple(results[index] for index in self._returned if index not in own)
        built = structure.build(results)
        if structure.kind == "result":
            return (*updates, built)
        if not updates:
            return built
        return (*updates, *built) if structure.kind in ("tuple", "list") else (*updates, built)

    def continue_from(self, other: Executable) -> None:
        """Takes the present values of what both update where it is bound, such as a running mean, from `other`."""
        for index, _ in other._updates:
            place = self.signature.positions[other.signature.arguments[index].name]
            if place in self._bound:
                self._bound[place] = self._frame[place] = other._bound[index]
                if self._leading:
                    self._prefix[place] = other._bound[index]

    def execute(self, buffers: Sequence[Buffer]) -> list[Buffer]:
        """The serving path: device arrays for `arguments`, in order, to device arrays. Nothing is checked or awaited.

        One thread at a time where the module updates something that is bound.
        """
        if self._leading:
            everything = self._prefix + list(buffers)
        else:
            everything = self._frame.copy()
            for index, buffer in zip(self._free, buffers, strict=True):
                everything[index] = buffer
        results = self.loaded.execute(everything)  # type: ignore[arg-type]  # every place of the frame is filled now
        if self._updates:
            self._update(results)
        return results

    def serialize(self) -> bytes:
        """The compiled code, for `pjrt.deserialize`; without weights."""
        return self.loaded.serialize()

    def zeros(self) -> list[Buffer]:
        """Zeros for each state, in order, allocated on the device: the initial KV cache."""
        return [self.loaded.device.zeros(state.shape, state.dtype, state.sharding) for state in self.signature.states]

    def _update(self, results: list[Buffer]) -> None:
        for index, alias in self._updates:
            self._bound[index] = self._frame[index] = results[alias]
            if self._leading:
                self._prefix[index] = results[alias]

    def _ordered(
        self, arguments: tuple[Argument, ...], args: tuple[Value, ...], kwargs: Mapping[str, Value]
    ) -> list[Value]:
        """Positional and named arguments of a call in the order of `arguments`."""
        names = [argument.name for argument in arguments]
        if len(args) > len(names):
            unbound = " (weights count until they are bound)" if not self._bound and self.signature.weights else ""
            raise ShapeError(
                f"{self.name} takes {len(names)} arguments and got {len(args)}{unbound}",
                next_step=f"it takes {_some(names)}",
            )
        given = dict(zip(names, args, strict=False))
        if unknown := sorted(kwargs.keys() - set(names)):
            raise ShapeError(
                f"{self.name} takes no argument named {_some(unknown)}", next_step=f"it takes {_some(names)}"
            )
        if twice := sorted(kwargs.keys() & given.keys()):
            raise ShapeError(f"{self.name} got {_some(twice)} by position and by name", next_step="pass it once")
        given.update(kwargs)
        if missing := [name for name in names if name not in given]:
            hint = "; bind places weights once" if set(missing) & {one.name for one in self.signature.weights} else ""
            if RANDOM_KEY in missing:
                hint += f"; the module draws random numbers from {RANDOM_KEY}, int32[2]: another one for each call"
            raise ShapeError(
                f"{self.name} takes {len(names)} arguments and got {len(given)}; missing: {_some(missing)}",
                next_step=f"it takes {_some(names)}{hint}",
            )
        return [given[name] for name in names]

    def _refuse_twice(self, arguments: tuple[Argument, ...], buffers: list[Buffer]) -> None:
        """Raises ShapeError where a donated buffer is passed for two arguments."""
        donated = {
            id(buffer): argument
            for argument, buffer in zip(arguments, buffers, strict=True)
            if argument.alias is not None
        }
        for argument, buffer in zip(arguments, buffers, strict=True):
            other = donated.get(id(buffer))
            if other is not None and other is not argument:
                raise ShapeError(
                    f"{argument.name} and {other.name} got the same buffer, and {other.name} is donated",
                    next_step="pass two buffers",
                )

    def __repr__(self) -> str:
        left = ", ".join(map(str, self.arguments[:8])) + (", ..." if len(self._free) > 8 else "")
        return f"<Executable {self.name} on {self.loaded.target} ({self.origin}); takes {left}>"


def _some(names: Sequence[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
