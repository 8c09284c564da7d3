"""Kernels without data-dependent loops, so that libtpu's profile, which guesses such a loop's turns, counts what a step takes.

Every branch is taken, and a loop turns a fixed number of times. libtpu's model of copies does not know all of their directions, so that
rows of queries and outputs are not copied; pages are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class Straight:
    """Replaces `pl` or `lax` in a kernel's module: takes every branch, and gives data-dependent loops `counts` in order."""

    def __init__(self, module: Any, *counts: int) -> None:
        self.module, self.counts = module, list(counts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def when(self, condition: object) -> Callable[[Callable[[], None]], None]:
        return lambda act: act()

    def loop(self, first: Any, end: Any) -> Any:
        return self.module.loop(0, end if isinstance(end, int) else self.counts[0])

    def while_loop(self, condition: Any, body: Callable[[Any], Any], start: Any) -> Any:
        count = self.counts.pop(0)
        return self.module.fori_loop(0, count, lambda _, state: body(state), start)


def straighten(
    modules: Sequence[Any], blocks: int, keys: int, page: int, rows: int, chunk: Callable[..., None]
) -> None:
    """Makes a kernel on kernels/paged_attention's loop process one tile of `rows` rows and so many blocks of keys, in this process.

    modules: those of the kernel that use `pl`; the last has `Loop`. chunk(softmax, place, at, number of the block, span): a chunk of keys.
    """
    import jax
    from jax.experimental import pallas as pl

    from ....kernels.paged_attention import tpu_attend, tpu_copies

    class Once(tpu_attend.Loop):
        def run(self) -> None:
            place = tpu_attend.Place(*[self.refs.lengths[0] * 0] * 5)
            span = self.batch.span(place.request, place.tile)
            self.copies.fetch_tile(place)
            self.copies.fetch_pages(place)
            softmax: Any = self.softmax
            softmax.begin(place, rows)

            def block(number: Any, place: Any) -> Any:
                following = place._replace(block=place.block + 1, pages_at=1 - place.pages_at)
                self.copies.fetch_pages(following)
                self.copies.whole_block(place).wait()
                for at in range(0, keys, self.batch.blocks.chunk):
                    chunk(softmax, place, at, number, span)
                return following

            softmax.finish(jax.lax.fori_loop(0, blocks, block, place), span, rows)

    for module in (tpu_attend, tpu_copies, *modules):
        module.pl = Straight(pl, keys // page)
    tpu_copies.Copies.each_part = lambda *_: None  # type: ignore[method-assign]
    modules[-1].Loop = Once


class _Nested(Straight):
    """With two kinds of data-dependent loops: over blocks of keys, from 0 on, and over parts of rows, from where the data say."""

    def loop(self, first: Any, end: Any) -> Any:
        if isinstance(end, int):
            return self.module.loop(first, end)
        return self.module.loop(0, self.counts[0] if isinstance(first, int) else self.counts[1])


@contextmanager
def straight_prompts(blocks: int, parts: int, *, masked: bool) -> Iterator[None]:
    """Makes the decompressed form of latent attention process so many blocks of keys a pair, and so many parts of rows a block, which see
    all of it; masked: which see some of it."""
    from jax.experimental import pallas as pl

    from ....kernels.paged_latent_attention import tpu_prompt

    part = tpu_prompt._Pair.part

    def one(self: Any, head: Any, rows: Any, seen: Any) -> None:
        if (seen is not None) == masked:
            part(self, head, rows, seen)

    tpu_prompt.pl, tpu_prompt._Pair.part = _Nested(pl, blocks, parts), one  # type: ignore[assignment, method-assign]
    yield
    tpu_prompt.pl, tpu_prompt._Pair.part = pl, part  # type: ignore[method-assign]
