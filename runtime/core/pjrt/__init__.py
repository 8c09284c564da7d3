"""The one room that touches jaxlib's PJRT client: compile, load, execute, and move arrays.

Comes in: StableHLO (text, bytecode or a portable artifact), serialized executables, numpy arrays. Goes out: `Loaded`
executables and device arrays (`jax.Array`). Guaranteed: what PJRT raises leaves as an FxhloError; no plugin is
started for a device that this machine does not have; nothing waits for a result except `get`.

Donation: an argument that the module marks with `tf.aliasing_output` is consumed by the call: its memory becomes
the result's. If a numpy or DLPack view of it is alive, PJRT copies it first, so views never change under their
owner; a serving loop keeps no views of its state.
"""

from .client import Buffer
from .compiled import Compiled, Memory
from .compiling import build, check_mesh, compile, compile_ahead, deserialize, require
from .devices import Device, DeviceMemory, HostCopy, Loaded, get
from .found import device, device_count, is_here, put, put_shared, zeros
from .identity import fingerprint, versions

__all__ = [
    "Buffer", "Compiled", "Device", "DeviceMemory", "HostCopy", "Loaded", "Memory", "build", "check_mesh", "compile", "compile_ahead", "deserialize", "device",
    "device_count", "fingerprint", "get", "is_here", "put", "put_shared", "require", "versions", "zeros",
]  # fmt: skip
