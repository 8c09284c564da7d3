"""Decides how many bytes of the memory that programs may use go to the KV caches.

In order of precedence: --kv-cache-memory-bytes; on the host VLLM_CPU_KVCACHE_SPACE, in GiB; --gpu-memory-utilization of the memory, minus
the weights and a reserve; on the host, where nothing is asked for, 2 GiB, or one request of the maximum length. The memory is the
device's own; where the device is the host, the host's, or the control group's limit if lower.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import FxhloError

if TYPE_CHECKING:
    from ..core.pjrt import Device, Memory

GIB = 2**30
DEFAULT_KV_BYTES = 2 * GIB
"""Default size of the KV cache, on a host that is shared; more if one request of the maximum length needs more."""
RESERVE = GIB
"""Bytes of the memory set by --gpu-memory-utilization for Python, libraries, programs and a step's temporaries."""
HEADROOM = 0.95
"""Fraction of the free memory that the caches may take: steps have temporaries, and the host other processes."""
CGROUP = Path("/sys/fs/cgroup")


class CacheSizeError(FxhloError):
    """The KV cache does not fit, or would not hold one block."""


@dataclass(frozen=True)
class Room:
    """The memory for weights, caches and programs: `total` bytes, of which `free` are unused. place: whose it is."""

    total: int
    free: int
    place: str
    on_host: bool = False

    @classmethod
    def of_host(cls) -> Room:
        return cls(total_bytes(), free_bytes(), "this machine", on_host=True)

    @classmethod
    def of(cls, device: Device) -> Room:
        """Raises CacheSizeError for a device whose memory nobody knows."""
        if device.is_host:
            return cls.of_host()
        memory = device.memory
        if memory is None:
            raise CacheSizeError(
                f"{device.raw} does not say how much memory it has, and nothing is known of {device.target}",
                next_step="register the target with `memory` (docs/add_a_target.md)",
            )
        return cls(memory.limit, memory.limit - memory.used, f"the device ({device.raw.device_kind})")

    def of_all(self, devices: int, hosts: int = 1) -> Room:
        """The memory of so many devices like this one, on so many hosts; those of one host's own share its memory."""
        count = hosts if self.on_host else devices
        if count == 1:
            return self
        return replace(self.scaled(count), place=f"{count} of {self.place}")

    def scaled(self, factor: float) -> Room:
        """The same with so many times the memory."""
        return replace(self, total=int(self.total * factor), free=int(self.free * factor))


def wanted_bytes(cache_config: Any, space: int | None, fixed: int, longest: int, room: Room) -> int:
    """Returns the bytes for the KV caches, the same on every start with the same options. Raises CacheSizeError.

    cache_config: vLLM's. space: VLLM_CPU_KVCACHE_SPACE in GiB; 0 or None where it is not set. fixed: bytes of the model's weights
    and of states that do not grow with a request. longest: bytes of one request of the maximum length. vLLM does not tell its
    default utilization from the same number given by the user, so on the host, which others use too, the default counts as not given.
    """
    if cache_config.kv_cache_memory_bytes is not None:
        return cache_config.kv_cache_memory_bytes
    utilization = cache_config.gpu_memory_utilization
    if room.on_host:
        if space:
            return space * GIB
        if utilization == type(cache_config).gpu_memory_utilization:
            return max(DEFAULT_KV_BYTES, longest)
    total = room.total
    wanted = int(total * utilization) - fixed - RESERVE
    if wanted <= 0:
        raise CacheSizeError(
            f"nothing is left for the KV cache: {utilization} of {size(total)} is {size(int(total * utilization))}, "
            f"the weights and states take {size(fixed)}, and {size(RESERVE)} is kept for everything else",
            next_step="raise --gpu-memory-utilization, or set --kv-cache-memory-bytes",
        )
    return wanted


def kv_cache_bytes(
    wanted: int, block: int, longest: int, free: int, place: str = "this machine", *, beside: int = 0, parts: int = 1
) -> int:
    """Checks that `wanted` bytes of KV cache hold at least one block and are free. Sizes in bytes. Raises CacheSizeError.

    block: of one block in all layers; longest: of one request of the maximum length; free: in the memory of `place`. beside: of the fewest
    states of prefixes, which are kept in the same memory. parts: of the cache, each of which has requests of its own; longest is of all.
    """
    room = int(free * HEADROOM)
    states = f", and the states of prefixes take {size(beside)}" if beside else ""
    uncached = ", or start with --no-enable-prefix-caching" if beside else ""
    if block + beside > min(wanted, room):
        raise CacheSizeError(
            f"there is too little memory for one KV block: it takes {size(block)}{states}, "
            f"{size(wanted)} may be used and {size(room)} are free",
            next_step=f"raise --kv-cache-memory-bytes, lower --block-size, or free memory on {place}{uncached}",
        )
    if wanted > room:
        raise CacheSizeError(
            f"the KV cache does not fit: {size(wanted)} are wanted and {size(room)} are free",
            next_step="lower --max-model-len, --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE or --gpu-memory-utilization, "
            f"or free memory on {place}",
        )
    if wanted < longest + beside:
        raise CacheSizeError(
            f"the KV cache would not hold one request of the model's greatest length{f' in each of {parts} parts' if parts > 1 else ''}: "
            f"{size(longest)} are needed{states}, "
            f"{size(wanted)} may be used",
            next_step=f"lower --max-model-len or raise --kv-cache-memory-bytes{uncached}",
        )
    return wanted


def check_blocks(blocks: int, needed: int, length: int, parts: int = 1) -> None:
    """Checks that --num-gpu-blocks-override holds one request of the maximum length. Raises CacheSizeError.

    needed: blocks of such a request; vLLM keeps one block more, for no request. length: max_model_len, in tokens. parts: of the cache, each of
    which has requests of its own.
    """
    if parts > 1 and blocks - (parts - 1) * -(-blocks // parts) <= needed:
        raise CacheSizeError(
            f"{blocks} KV blocks in {parts} parts do not hold one request of {length} tokens each, which needs {needed}",
            next_step=f"raise --num-gpu-blocks-override to {parts * (needed + 1)} at least, leave it out, or lower --max-model-len",
        )
    if blocks <= needed:
        raise CacheSizeError(
            f"{blocks} KV blocks do not hold one request of {length} tokens, which needs {needed}, and one is kept for none",
            next_step=f"raise --num-gpu-blocks-override to {needed + 1} at least, leave it out, or lower --max-model-len",
        )


def check_slots(slots: int, requests: int, free: int, place: str = "this machine") -> None:
    """Checks that the states with a row per request are free. Sizes in bytes. Raises CacheSizeError.

    slots: of all rows in all layers; requests: as many as may run at once; free: in the memory of `place`.
    """
    room = int(free * HEADROOM)
    if slots > room:
        raise CacheSizeError(
            f"the states of {requests} requests do not fit: they take {size(slots)}, and {size(room)} are free",
            next_step=f"lower --max-num-seqs, or free memory on {place}",
        )


def check_weights(weights: int, room: Room) -> None:
    """Checks that the model's weights fit into a device's memory, before they are read. Raises CacheSizeError."""
    if not room.on_host and weights > room.free:
        raise CacheSizeError(
            f"the weights do not fit: they take {size(weights)}, and {size(room.free)} of {room.place} are free",
            next_step="take a device with more memory, or a smaller model",
        )


def check_programs(programs: Iterable[Memory], room: Room) -> None:
    """Checks that weights, caches and the programs fit into a device's memory together. Raises CacheSizeError.

    The arguments of every program are the same weights and caches; one program runs at a time; the code of all of them stays.
    """
    programs = list(programs)
    arguments = max(one.arguments for one in programs)
    temporaries = max(one.temporaries + one.outputs - one.aliased for one in programs)
    code = sum(one.code for one in programs)
    if not room.on_host and arguments + temporaries + code > room.total:
        raise CacheSizeError(
            f"the programs do not fit: weights and caches take {size(arguments)}, temporaries {size(temporaries)}, and code "
            f"{size(code)} of the {size(room.total)} of {room.place}",
            next_step="lower --gpu-memory-utilization, --kv-cache-memory-bytes, --max-num-batched-tokens or --max-num-seqs",
        )


def total_bytes() -> int:
    """Bytes of the host's memory, or the control group's limit if lower."""
    import psutil

    limit = _cgroup("memory.max", "memory/memory.limit_in_bytes")
    total = psutil.virtual_memory().total
    return total if limit is None else min(total, limit)


def free_bytes() -> int:
    """Bytes available on the host and within the control group, whose file caches count as available."""
    import psutil

    free = psutil.virtual_memory().available
    limit = _cgroup("memory.max", "memory/memory.limit_in_bytes")
    used = _cgroup("memory.current", "memory/memory.usage_in_bytes")
    if limit is None or used is None:
        return free
    return max(0, min(free, limit - used + _file_caches()))


def size(count: int) -> str:
    """Formats bytes for people: in GiB, small numbers in bytes."""
    return f"{count / GIB:.2f} GiB" if count >= GIB // 100 else f"{count} bytes"


def _cgroup(*names: str) -> int | None:
    """A number of this process's control group (version 2, then 1); None where there is none, or no limit."""
    for name in names:
        try:
            text = (CGROUP / name).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else None
    return None


def _file_caches() -> int:
    for name in ("memory.stat", "memory/memory.stat"):
        try:
            lines = (CGROUP / name).read_text().splitlines()
        except OSError:
            continue
        return sum(int(line.split()[1]) for line in lines if line.split()[0] in ("inactive_file", "active_file"))
    return 0
