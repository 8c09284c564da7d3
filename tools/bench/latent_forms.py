"""The two forms of latent attention in the native CPU kernel, and which one it takes (`cheaper_decompressed` in
runtime/core/native/latent_attention.cc).

Comes in: nothing. Goes out: a row per model's layer, rows of a request and tokens before them: milliseconds of one call in the absorbed
form, in the decompressed one and by the kernel's own choice; the best of some calls each, in turn, in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

MODELS = ("DeepSeek-V2-Lite", "GLM-4.7-Flash", "MiniCPM3")
STEPS = (
    (1, 0), (1, 128), (1, 1024), (8, 0), (8, 1024), (32, 0), (32, 128), (32, 1024), (64, 1024), (128, 0), (128, 1024), (192, 1024),
    (256, 1024), (512, 0), (512, 1024), (512, 4096),
)  # fmt: skip
"""(rows of this step, tokens before them)."""
FORMS = ("absorbed", "decompressed", "cheaper")
SECONDS = 0.4
"""Of calls of each form, at least three."""


@dataclass(frozen=True)
class Row:
    model: str
    rows: int
    before: int
    absorbed: float
    decompressed: float
    chosen: float


def measure(say: Callable[[str], None]) -> list[Row]:
    found = []
    for model in MODELS:
        for rows, before in STEPS:
            say(f"latent: {model}, {rows} rows after {before} tokens")
            found.append(_row(model, rows, before))
    return found


def table(rows: Sequence[Row]) -> Table:
    from rich.table import Table

    made = Table(
        "layer of", "rows", "tokens before", "absorbed ms", "decompressed ms", "the kernel's choice ms", "of the better",
        title="Latent attention on the CPU, one request",
    )  # fmt: skip
    for row in rows:
        share = min(row.absorbed, row.decompressed) / row.chosen
        numbers = (row.absorbed, row.decompressed, row.chosen)
        made.add_row(
            row.model, f"{row.rows:,}", f"{row.before:,}", *(f"{one * 1e3:.2f}" for one in numbers), f"{share:.2f}"
        )
    return made


def _row(model: str, rows: int, before: int) -> Row:
    import jax
    import numpy as np

    from ...kernels.paged_latent_attention import cpu
    from ...kernels.paged_latent_attention.cases import MODELS as SIZES
    from ...kernels.paged_latent_attention.cases import specs, values
    from ...runtime.core import native

    native.register()
    pages = -(-(rows + before) // 16)
    operands = specs(rows, SIZES[model], 16, 1, pages)
    arrays: dict[str, Any] = dict(values(operands, [(before, rows)])(np.random.default_rng(0)))
    cache = arrays.pop("kv_cache")
    calls = {}
    for form in FORMS:
        step = jax.jit(partial(cpu.lower, scale=0.1, form=form), donate_argnames=("kv_cache",))
        calls[form] = _Call(step, jax.device_put(arrays), jax.device_put(cache))
        calls[form]()
    best = dict.fromkeys(FORMS, float("inf"))
    spent = turns = 0.0
    while turns < 3 or spent < SECONDS * len(FORMS):
        for form, call in calls.items():
            taken = call()
            best[form], spent = min(best[form], taken), spent + taken
        turns += 1
    return Row(model, rows, before, *best.values())


class _Call:
    """A step on a cache that is donated and handed on."""

    def __init__(self, step: Callable[..., Any], arrays: dict[str, Any], cache: Any) -> None:
        self.step, self.arrays, self.cache = step, arrays, cache

    def __call__(self) -> float:
        """Seconds of one call."""
        begun = perf_counter()
        output, self.cache = self.step(**self.arrays, kv_cache=self.cache)
        output.block_until_ready()
        return perf_counter() - begun
