"""Tensor parallelism on a TPU slice, with and without tokens split over the devices (sequence parallelism): libtpu's figures for a layer.

Comes in: nothing but libtpu; no TPU is needed. Goes out: a row per number of tokens and plan: two layers of Llama 3.1 70B in bfloat16,
with embedding, head and sampling, on v6e:2x4. Of the second, which is the last, only sampled rows go on behind attention.

Where tokens are split, XLA makes a product of a loop that multiplies one part while it sends the next (a collective matmul, Wang et al.
2023): its sends are overlapped. Plain collectives are waited for. Cycles of the ops are the compiler's, those of the links bytes by
the rate of all links of a device, as in tools/report/meshes.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..report.hlo_text import HloText
from .kept import Kept
from .tpu import CONFIG

if TYPE_CHECKING:
    from rich.table import Table

    from ...runtime.core.pjrt import Compiled
    from ...runtime.core.targets import Target

LLAMA = CONFIG | {
    "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_hidden_layers": 2, "num_key_value_heads": 8,
}  # fmt: skip
TARGET, DEVICES = "tpu-v6e:2x4", 8
TOKENS = (512, 2048)
PLANS = {"whole": "tokens whole", "split": "tokens split"}
CONTEXT, PAGE = 2048, 16
WAY = re.compile(r"source_target_pairs=\{\{\d+,\d+\}")
"""Where the first device sends to: forwards or backwards in the ring."""


@dataclass(frozen=True)
class Row:
    """Of two layers with embedding and head, on one device. cycles: `estimated_cycles` of fusions and copies. waiting, overlapped: cycles in
    which all links of a device move what it sends, at least, in collectives that nothing runs beside and in those within products. kinds:
    the former, of a megabyte and more. products: collective matmuls; both_ways: of them, those that send both ways round. temporaries: bytes."""

    tokens: int
    plan: str
    cycles: float = 0.0
    waiting: float = 0.0
    overlapped: float = 0.0
    kinds: str = ""
    products: int = 0
    both_ways: int = 0
    temporaries: int = 0

    @property
    def key(self) -> tuple[str, ...]:
        return str(self.tokens), self.plan

    @property
    def words(self) -> str:
        """What `--of` looks for words in."""
        return f"{self.tokens} {PLANS[self.plan]}"


def every() -> list[Row]:
    """All rows of the part."""
    return [Row(tokens, plan) for tokens in TOKENS for plan in PLANS]


def measure(rows: Sequence[Row], say: Callable[[str], None]) -> Iterator[list[Row]]:
    """Each in a process of its own: a compiler that ends its process ends one row."""
    for row in rows:
        say(f"meshes-tpu: {row.tokens} tokens, {PLANS[row.plan]}")
        command = [sys.executable, "-P", "-m", __spec__.name, json.dumps(asdict(row))]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        yield [Row(**json.loads(done.stdout.strip().splitlines()[-1]))]


def tables(rows: Sequence[Row]) -> list[Table]:
    from rich.table import Table

    made = Table(
        "tokens", "plan", "cycles of ops", "waiting for links", "beside products", "both", "waited for", "collective matmuls", "both ways",
        "temporaries MB",
        title=f"Two layers of Llama 3.1 70B with embedding and head on {TARGET}: cycles of a device",
    )  # fmt: skip
    for row in rows:
        made.add_row(
            f"{row.tokens:,}", PLANS[row.plan], f"{row.cycles:,.0f}", f"{row.waiting:,.0f}", f"{row.overlapped:,.0f}",
            f"{row.cycles + row.waiting:,.0f}", row.kinds, f"{row.products}", f"{row.both_ways}", f"{row.temporaries / 1e6:,.0f}",
        )  # fmt: skip
    return [made]


def compiled(row: Row) -> Row:
    """The row with the figures of its program."""
    from ...runtime.core.targets import Target
    from .tpu_kernels.compiler import clock, xla_cycles

    target = Target.parse(TARGET)
    done = _program(row, target)
    turns = DEVICES // 4  # in both directions, two parts a turn
    found = links(done.text, DEVICES, turns)
    cycle = (target.link or 1) / clock(target)
    return replace(
        row, cycles=xla_cycles(done.text, asked=False, steps=turns), waiting=found.waiting / cycle, overlapped=found.overlapped / cycle,
        kinds=", ".join(f"{count} {kind}" for kind, count in sorted(found.kinds.items())),
        products=found.products, both_ways=found.both_ways, temporaries=done.memory.temporaries,
    )  # fmt: skip


def _program(row: Row, target: Target) -> Compiled:
    """The step's program for the slice."""
    from ...lowering.emit.emit import emit
    from ...passes.hlo.legalize import legalize
    from ...passes.hlo.partition import partition
    from ...passes.mlir import bytecode
    from ...passes.pipeline import run
    from ...runtime.core import pjrt
    from ..lower.capture import Split, capture, load_libraries
    from ..models import opened

    sizes = {"tokens": row.tokens, "requests": 8, "num_blocks": 8 * CONTEXT // PAGE}
    with tempfile.TemporaryDirectory(prefix="fxhlo-bench-") as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(LLAMA))
        with opened(str(config)) as model:
            load_libraries(model)
            split = Split(DEVICES, False, target)
            captured = capture(model, max_model_len=CONTEXT, block_size=PAGE, buckets=[sizes], split=split, quiet=True)
    plan = captured.plan
    assert plan is not None
    program = run(captured.passes, captured.program)
    module = emit(program, {**captured.sizes(program), **sizes})
    made = partition(
        bytecode(module.module), module.signature, replace(plan, rows=1 if row.plan == "split" else None), target
    )
    legalized = legalize(bytecode(made.module), target)
    return pjrt.compile_ahead(legalized.bytecode, target, mesh=plan.mesh)


@dataclass(frozen=True)
class Links:
    """What a program sends, in bytes of one device. waiting: by collectives that nothing runs beside; overlapped: inside of products.
    products: how many are collective matmuls; both_ways: of them, those that send in both directions of the ring at once. kinds: the
    collectives that are waited for, of a megabyte and more, by kind."""

    waiting: float
    overlapped: float
    products: int
    both_ways: int
    kinds: Counter[str]


def links(text: str, devices: int, turns: int) -> Links:
    """Reads an optimized module. turns: of the loop of a collective matmul."""
    module = HloText.parse(text)
    found = Links(0.0, 0.0, 0, 0, Counter())
    for name, computation in module.computations.items():
        instructions = computation.values()
        sends = [one for one in instructions if one.opcode == "collective-permute-start"]
        if sends and name != module.entry:  # the body of a product's loop; one part is sent before it
            ways = {match[0] for one in sends if (match := WAY.search(one.rest))}
            sent = sum(one.results[0].bytes for one in sends) * turns
            found = replace(
                found,
                overlapped=found.overlapped + sent,
                products=found.products + 1,
                both_ways=found.both_ways + (len(ways) > 1),
            )
        for one in instructions:
            if one.opcode not in ("all-reduce", "all-gather", "reduce-scatter"):
                continue
            kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else one.opcode
            size = sum(result.bytes for result in one.results)
            share = (
                (devices - 1) / devices * (2 if kind == "all-reduce" else 1)
            )  # an all-reduce that is scattered sends half
            found = replace(found, waiting=found.waiting + size * share)
            if size >= 10**6:
                found.kinds[kind] += 1
    return found


PART = Kept(Row, every, measure, tables)

if __name__ == "__main__":
    print(json.dumps(asdict(compiled(Row(**json.loads(sys.argv[1]))))))
