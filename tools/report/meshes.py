"""Reports on one step on a mesh: the memory of a device, and the collectives with the least time that they take on the links.

Comes in: a partitioned module's signature, and the compiled program. Goes out: a `MeshReport` of plain numbers.
Guaranteed: no weight is read; bytes come from the program, rates from the target. A loop's body counts once.

A ring moves 2 (n - 1) / n of an all-reduce's bytes through each of n devices, (n - 1) / n of a gathered or scattered tensor's; no
algorithm moves less. The bound divides that by all links of a device.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod

from rich.console import Console
from rich.table import Table

from ...runtime.core.dtypes import dtype_of
from ...runtime.core.pjrt import Compiled
from ...runtime.core.signature import Signature
from ...runtime.core.targets import Target
from .hlo_text import HloText, Instruction
from .units import Unit

SHARES = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: float(n - 1),  # of its result, a part of its operand
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
"""Kind of collective -> the part of its result's bytes that each of n devices sends."""
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]")


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind and size. bytes: of one result. seconds: the least that all of them take; None without a rate."""

    kind: str
    devices: int
    count: int
    bytes: int
    seconds: float | None


@dataclass(frozen=True)
class MeshReport:
    """The report of one program. Bytes are of one device; available: None where the target's memory is not known."""

    name: str
    target: str
    mesh: str
    devices: int
    weights: int
    caches: int
    inputs: int
    temporaries: int
    program: int
    available: int | None
    collectives: tuple[Collective, ...]
    memory_seconds: float | None
    network_rate: float | None = None

    @property
    def needed(self) -> int:
        return self.weights + self.caches + self.inputs + self.temporaries + self.program

    @property
    def link_seconds(self) -> float | None:
        """The least time of all collectives."""
        times = [one.seconds for one in self.collectives]
        return None if None in times else sum(one for one in times if one is not None)

    @property
    def sent(self) -> float:
        """Bytes that a device sends in all collectives."""
        return sum(one.count * one.bytes * SHARES[one.kind](one.devices) for one in self.collectives)

    @property
    def network_seconds(self) -> float | None:
        """The least time of all collectives, were they between slices."""
        return None if self.network_rate is None else self.sent / self.network_rate

    def to_json(self) -> dict[str, object]:
        """Converts to JSON values; sizes in bytes, times in seconds."""
        fits = None if self.available is None else self.needed <= self.available
        return (
            asdict(self)
            | {"needed": self.needed, "fits": fits, "link_seconds": self.link_seconds}
            | {
                "sent": self.sent,
                "network_seconds": self.network_seconds,
            }
        )

    def text(self) -> str:
        """Tables for a terminal, without colour."""
        console = Console(width=132, record=True, file=io.StringIO(), highlight=False)
        console.print(f"{self.name} for {self.target} on {self.devices} devices ({self.mesh})\n", markup=False)
        parts = {
            name: getattr(self, name) for name in ("weights", "caches", "inputs", "temporaries", "program", "needed")
        }
        unit = Unit.of_bytes((*parts.values(), self.available))
        memory = Table("a device's memory", unit.name)
        for name, size in parts.items():
            memory.add_row(name, unit(size))
        if self.available is not None:
            memory.add_row("available", unit(self.available))
        console.print(memory)
        times = Unit.of_seconds((self.link_seconds, self.memory_seconds))
        size = Unit.of_bytes(one.bytes for one in self.collectives)
        table = Table("collective", "devices", "count", f"{size.name} each", f"least {times.name}")
        for one in self.collectives:
            table.add_row(one.kind, str(one.devices), str(one.count), size(one.bytes), times(one.seconds))
        console.print(table)
        if self.link_seconds is not None and self.memory_seconds is not None:
            limit = "the links" if self.link_seconds > self.memory_seconds else "its memory"
            console.print(
                f"Reading weights and caches once takes {times.of(self.memory_seconds)}, the links at least "
                f"{times.of(self.link_seconds)}: a step is bound by {limit}."
            )
        if self.network_seconds is not None and self.link_seconds is not None:
            slower = Unit.of_seconds((self.network_seconds,)).of(self.network_seconds)
            console.print(f"Between slices, over the data center's network, the same bytes take at least {slower}.")
        return console.export_text()


def mesh_report(name: str, signature: Signature, target: Target, compiled: Compiled) -> MeshReport:
    """Makes the report of a compiled program."""
    sizes = dict.fromkeys(("weights", "caches", "inputs"), 0)
    kinds = {"state": "caches", "input": "inputs"}
    for argument in signature.arguments:
        shape = argument.sharding.shard(argument.shape, signature.mesh)
        sizes[kinds.get(argument.kind, "weights")] += prod(shape) * dtype_of(argument.dtype).itemsize
    memory, devices = compiled.memory, signature.mesh.devices
    read = sizes["weights"] + sizes["caches"]
    return MeshReport(
        name,
        str(target),
        str(signature.mesh),
        devices,
        **sizes,
        temporaries=memory.temporaries,
        program=memory.code,
        available=target.memory,
        collectives=tuple(collectives(compiled.text, devices, target.link)),
        memory_seconds=None if target.bandwidth is None else read / target.bandwidth,
        network_rate=target.network,
    )


def collectives(text: str, devices: int, link: float | None) -> Iterator[Collective]:
    """The collectives of a program's optimized HLO, those of one kind and size together, in order of their time."""
    found: dict[tuple[str, int, int], int] = {}
    for computation in HloText.parse(text).computations.values():
        for one in computation.values():
            kind = one.opcode.removesuffix("-start")
            if kind in SHARES:
                key = (kind, _group(one, devices), _bytes(one))
                found[key] = found.get(key, 0) + 1
    for (kind, group, size), count in sorted(found.items(), key=lambda item: -item[0][2] * item[1]):
        seconds = None if link is None else count * size * SHARES[kind](group) / link
        yield Collective(kind, group, count, size, seconds)


def _group(one: Instruction, devices: int) -> int:
    """How many devices take part."""
    if listed := _LISTED.search(one.rest):
        return len(listed.group(1).split(","))
    counted = _COUNTED.search(one.rest)
    return int(counted.group(1)) if counted else devices


def _bytes(one: Instruction) -> int:
    """Of what it gives; the asynchronous form of a gather returns its operand too, which is smaller."""
    sizes = [tensor.bytes for tensor in one.results]
    return sum(sizes) if one.opcode == "all-reduce" else max(sizes, default=0)
