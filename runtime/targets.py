"""Targets: where a module runs, with the memory and the peak rates that are known of it.

Comes in: a name such as "cpu" or "tpu-v6e:2x2". Goes out: a frozen, hashable `Target`.
Guaranteed: a Target that exists is a known one; anything else raises UnsupportedError with the near misses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Literal

from .errors import UnsupportedError

Family = Literal["cpu", "tpu", "cuda"]
GIB = 2**30


@dataclass(frozen=True)
class Specification:
    """What is known of one kind of device; None and an empty mapping where nothing is.

    memory: bytes a program may use per device, as the compiler counts them. bandwidth: bytes a second.
    flops: operations a second by dtype name. generation: libtpu's name of it, with which topologies are asked for.
    dimensions: of a topology; `topology`: the one compiled for where none is named.
    """

    family: Family
    memory: int | None = None
    bandwidth: float | None = None
    flops: Mapping[str, float] = field(default_factory=dict)
    generation: str | None = None
    dimensions: int = 0
    topology: str | None = None


# Numbers: memory as libtpu's compiler reports it, rates per device (shared/FACTS.md, "TPU without a TPU").
KNOWN: Mapping[str, Specification] = MappingProxyType(
    {
        "cpu": Specification("cpu"),
        "tpu-v5e": Specification("tpu", int(15.75 * GIB), 738e9, {"bfloat16": 197e12}, "v5e", 2, "2x2"),
        "tpu-v5p": Specification("tpu", int(95.74 * GIB), 2.35e12, {"bfloat16": 394e12}, "v5p", 3, "2x2x1"),
        "tpu-v6e": Specification("tpu", int(31.25 * GIB), 1.64e12, {"bfloat16": 918e12}, "v6e", 2, "2x2"),
        "tpu-7x": Specification("tpu", int(94.75 * GIB), 3.69e12, {"bfloat16": 996e12}, "tpu7x", 3, "2x2x1"),
        "cuda": Specification("cuda"),
    }
)
ALSO_CALLED = {"gpu": "cuda", "nvidia": "cuda", "tpu": "tpu-v6e", "trillium": "tpu-v6e", "ironwood": "tpu-7x"}


@dataclass(frozen=True)
class Target:
    """A place to run: its name, and the topology of its devices where one was named ("2x2"; TPU only)."""

    name: str
    topology: str | None = None

    def __post_init__(self) -> None:
        if self.name not in KNOWN:
            raise _unknown(self.name)
        if self.topology is None:
            return
        dimensions = KNOWN[self.name].dimensions
        if not dimensions:
            what = f"the target {self.name} has no topology, and {self.topology!r} was named"
            raise UnsupportedError(what, next_step=f"say {self.name}")
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)" + f"{{{dimensions - 1}}}", self.topology):
            raise UnsupportedError(
                f"{self.topology!r} is no topology of {self.name}: it takes {dimensions} sizes",
                next_step=f"for instance {self.name}:{KNOWN[self.name].topology}",
            )

    @staticmethod
    def parse(text: str | Target) -> Target:
        """The target of a name such as "cpu" or "tpu-v6e:2x2". Raises UnsupportedError for any other text."""
        if isinstance(text, Target):
            return text
        name, colon, topology = text.partition(":")
        return Target(name, topology if colon else None)

    @property
    def family(self) -> Family:
        """Which PJRT platform and which kernels it takes: "cpu", "tpu" or "cuda"."""
        return KNOWN[self.name].family

    @property
    def memory(self) -> int | None:
        """Bytes a program may use on one device; None where it depends on the machine."""
        return KNOWN[self.name].memory

    @property
    def bandwidth(self) -> float | None:
        """Bytes a second between one device and its memory; None where it depends on the machine."""
        return KNOWN[self.name].bandwidth

    def flops(self, dtype: str) -> float | None:
        """Peak operations a second of one device in `dtype`; None where it is not known."""
        return KNOWN[self.name].flops.get(dtype)

    @property
    def topology_name(self) -> str | None:
        """What libtpu calls the topology to compile for ("v6e:2x2"); None for other families."""
        known = KNOWN[self.name]
        return known.generation and f"{known.generation}:{self.topology or known.topology}"

    def __str__(self) -> str:
        return f"{self.name}:{self.topology}" if self.topology else self.name


def _unknown(name: str) -> UnsupportedError:
    lowered = name.lower()
    near = [ALSO_CALLED[lowered]] if lowered in ALSO_CALLED else get_close_matches(lowered, KNOWN, 2, 0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    next_step = f"{hint}targets are {', '.join(KNOWN)}; TPUs take a topology, as tpu-v6e:2x2"
    return UnsupportedError(f"there is no target {name!r}", next_step=next_step)
