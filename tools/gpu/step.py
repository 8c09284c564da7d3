"""Times a bundle's decode step on a device, with random weights made there.

Comes in: the bundle of make.py. Goes out: milliseconds a step with fxhlo's kernels for the target, and with XLA's forms in their place, and on how many
rows both sample the same token. Needs jax; torch where kernels are to be lowered by this jaxlib rather than taken as they lie in the bundle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...passes.step_inputs import BOUNDS, DRAW, FEED, LOGPROBS, MODEL, PAGED, PROCESSING
from ...runtime.core import pjrt
from ...runtime.core.bundle import Bundle
from ...runtime.core.errors import FxhloError
from ...runtime.core.executable import Executable
from ...runtime.core.pjrt import Buffer
from ...runtime.core.signature import Argument
from ...runtime.core.targets import Target

ENTRY = "decode"
WARM, TIMED = 3, 20
NEUTRAL = {one.name: one.neutral for one in (*MODEL, *BOUNDS, *PAGED, *FEED, *PROCESSING, *DRAW, *LOGPROBS)}


@dataclass(frozen=True)
class Timed:
    """form: "kernels", lowered by this jaxlib; "stored", as in the bundle; "xla". kernels: composite -> what it became. Times in seconds."""

    form: str
    compile: float
    step: float
    kernels: Mapping[str, str]
    temporaries: int
    same_tokens: float | None = None


def measure(bundle: Bundle, target: Target) -> Iterator[Timed]:
    """Raises FxhloError where no form of the step runs."""
    weights: dict[str, Buffer] = {}
    first: np.ndarray | None = None
    for form, module, kernels, custom_calls in forms(bundle, target):
        began = perf_counter()
        loaded = pjrt.compile(module, target, custom_calls=custom_calls)
        taken = perf_counter() - began
        executable = Executable(loaded, bundle.entries[ENTRY].signature, name=ENTRY)
        if not weights:
            weights = {one.name: random(one, number) for number, one in enumerate(executable.signature.weights)}
        tokens, seconds = run(executable.bind(weights), bundle.manifest.notes)
        same = None if first is None else float(np.mean(tokens == first))
        first = tokens if first is None else first
        yield Timed(form, taken, seconds, kernels, loaded.memory.temporaries, same)


def forms(bundle: Bundle, target: Target) -> Iterator[tuple[str, bytes, Mapping[str, str], Sequence[str]]]:
    """(name, module, what each composite became, custom calls), the fastest first."""
    entry = bundle.entries[ENTRY]
    portable = (bundle.path / entry.module.file).read_bytes()
    try:
        import torch  # noqa: F401 - references of kernels are torch's, and their folders import them
    except ImportError:
        build = entry.builds.get(str(target)) or entry.builds.get(target.family)
        if build is None or build.module is None:
            raise FxhloError(f"the bundle has no module for {target}", next_step="make it for this target") from None
        yield "stored", (bundle.path / build.module.file).read_bytes(), {}, build.custom_calls
        return
    from ...passes.hlo.legalize import legalize

    made = legalize(portable, target)
    yield (
        "kernels",
        made.bytecode,
        {one.kernel: one.implementation or "reference" for one in made.decisions},
        made.custom_calls,
    )
    with without(target.family):
        plain = legalize(portable, target)
    names = {one.kernel: one.implementation or "reference" for one in plain.decisions}
    yield "xla", plain.bytecode, names, plain.custom_calls


@contextmanager
def without(family: str) -> Iterator[None]:
    """No kernel has an implementation for the family alone."""
    from ...kernels.catalog import kernels

    before = dict(kernels())
    for name, kernel in before.items():
        left = tuple(one for one in kernel.implementations if one.target != family)
        kernels()[name] = replace(kernel, implementations=left)
    try:
        yield
    finally:
        kernels().update(before)


def run(executable: Executable, notes: Mapping[str, Any]) -> tuple[np.ndarray, float]:
    """(the first step's tokens, seconds a step). States are donated from step to step, as in serving."""
    values = inputs(notes)
    device = executable.loaded.device
    states: dict[str, Buffer] = {}
    for state in executable.signature.states:
        states[state.name] = random(state, len(states))
    order = [one.name for one in executable.arguments]
    fixed = {one.name: device.put(np.ascontiguousarray(_value(one, values))) for one in executable.signature.inputs}
    tokens: np.ndarray | None = None
    began = 0.0
    for step in range(WARM + TIMED):
        if step == WARM:
            _wait(states.values())
            began = perf_counter()
        results = executable.execute([states[name] if name in states else fixed[name] for name in order])
        for state in executable.signature.states:
            if state.alias is not None:
                states[state.name] = results[state.alias]
        if tokens is None:
            names = [result.name for result in executable.signature.results]
            tokens = pjrt.get(results[names.index("tokens")]).copy()
    _wait(states.values())
    assert tokens is not None
    return tokens, (perf_counter() - began) / TIMED


def inputs(notes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A decode step: each request has all but one token of its context in the cache, on pages in shuffled order; greedy."""
    requests, context, page = (int(notes[name]) for name in ("requests", "context", "page"))
    rng = np.random.default_rng(0)
    pages = rng.permutation(requests * context // page).reshape(requests, context // page)
    rows = np.arange(requests)
    return {
        "input_ids": rng.integers(0, notes["config"]["vocab_size"], requests),
        "positions": np.full(requests, context - 1),
        "logit_rows": rows,
        "slot_mapping": pages[:, -1] * page + page - 1,
        "block_tables": pages,
        "seq_lens": np.full(requests, context),
        "query_start_loc": np.arange(requests + 1),
    }


def _value(argument: Argument, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """The input's value in its shape; what no request needs is neutral. A block table has room for more pages."""
    made = np.full(argument.shape, NEUTRAL.get(argument.name) or 0, argument.dtype)
    given = values.get(argument.name)
    if given is not None:
        made[tuple(slice(size) for size in given.shape)] = given
    return made


def random(argument: Argument, seed: int) -> Buffer:
    """Numbers of a trained model's size, made on the device; vectors, which scale, are ones and integers zeros."""
    shape, dtype = argument.shape, np.dtype(jnp.dtype(argument.dtype))
    if not jnp.issubdtype(dtype, jnp.floating) or (len(shape) < 2 and argument.kind == "weight"):
        return _ones(shape, dtype) if jnp.issubdtype(dtype, jnp.floating) else jnp.zeros(shape, dtype)
    return _normal(shape, dtype)(seed)


def _ones(shape: tuple[int, ...], dtype: np.dtype) -> Buffer:
    return jnp.ones(shape, dtype)


@cache
def _normal(shape: tuple[int, ...], dtype: np.dtype) -> Any:
    return jax.jit(lambda seed: (jax.random.normal(jax.random.key(seed), shape) * 0.02).astype(dtype))


def _wait(buffers: Any) -> None:
    for buffer in buffers:
        with suppress(AttributeError):
            buffer.block_until_ready()
