"""The peers that fxhlo is compared with: torchax and torch-mlir, other ways from torch to StableHLO.

Each is installed on demand into build/peers/<name>, at one pinned version and without its dependencies, so that
nothing of it reaches .venv; code that uses one runs in a process of its own with that folder on its path.

    folder = install(PEERS["torchax"], say)                     # fast if it is there
    subprocess.run([sys.executable, "-m", ...], env=environment(PEERS["torchax"]))
    lower_by_torchax(exported, platforms=("tpu",))              # in such a process: jax.export.Exported
    lower_by_torch_mlir(exported)                               # in such a process: StableHLO text

    python -P -m fxhlo.tools.bench.peers                        # installs both and prints their versions

Guaranteed: a folder appears whole or not at all; a failed installation raises PeerError with pip's reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.core.errors import FxhloError
from ..console import say as say_it

if TYPE_CHECKING:
    import torch
    from jax.export import Exported
    from torch.export import ExportedProgram

FOLDER = Path("build") / "peers"

Say = Callable[[str], None]


class PeerError(FxhloError):
    """A peer cannot be installed or imported."""


@dataclass(frozen=True)
class Peer:
    """A package to compare with. `imports`: the module whose presence shows that it is installed."""

    name: str
    version: str
    imports: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


PEERS = {
    peer.name: peer for peer in (Peer("torchax", "0.0.13", "torchax"), Peer("torch-mlir", "20261001", "torch_mlir"))
}


# -- in the parent process --------------------------------------------------------------------------------------


def install(peer: Peer, say: Say = say_it, root: Path = FOLDER) -> Path:
    """The folder that holds `peer`, filled by pip where it is not there yet."""
    from filelock import FileLock

    folder = root.absolute() / f"{peer.name}-{peer.version}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not (folder / peer.imports).is_dir():
            say(f"installing {peer.requirement} into {folder}")
            with tempfile.TemporaryDirectory(dir=folder.parent) as half:
                pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
                done = subprocess.run([*pip, "--target", half, peer.requirement], capture_output=True, text=True)
                if done.returncode:
                    reason = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr]
                    raise PeerError(
                        f"{peer.requirement} could not be installed: {reason[-1].strip()}",
                        next_step="check the package index that pip uses: python -m pip config list",
                    )
                shutil.move(half, folder)
                Path(half).mkdir()  # for the end of the `with`
    return folder


def environment(peer: Peer, say: Say = say_it) -> dict[str, str]:
    """The environment for a process that imports `peer`, which is installed first. JAX stays on the CPU there."""
    before = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(install(peer, say)), *([before] if before else [])])
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "JAX_PLATFORMS": "cpu"}


# -- in the process that has the peer on its path ------------------------------------------------------------------


def import_torchax() -> Any:
    """`torchax`, with the shim that it needs on torch 2.13.

    Its tables of decompositions and of dtypes name overloads for named tensors (`aten.prod.dim_Dimname`), which torch has
    removed. While it is imported, such an overload is a dummy object, which is never called. Its `set_rng_state`
    requires a device, which torch (and torch.testing, in the samples of random ops) omits.
    """
    import torch

    packet = torch._ops.OpOverloadPacket
    original = packet.__getattr__

    def lenient(self: torch._ops.OpOverloadPacket, key: str) -> object:
        try:
            return original(self, key)
        except AttributeError:
            if "dimname" in key.lower() or "names" in key:
                return object()
            raise

    with _replaced(packet, "__getattr__", lenient), _explained(PEERS["torchax"]):
        import torchax  # type: ignore[import-not-found]  # on the path of this process alone
        import torchax.export
    torchax.default_env()  # fills its registry of ops
    torch.get_device_module("jax").set_rng_state.__defaults__ = (None,)
    return torchax


def lower_by_torchax(
    exported: ExportedProgram, *, platforms: Sequence[str] = ("cpu",), precise: bool = False
) -> Exported:
    """Lowers `exported` by torchax to a jax.export.Exported, whose `mlir_module_serialized` is portable StableHLO.

    Its arguments are the parameters, buffers and lifted constants in the order of the graph's signature, then the user's
    inputs; mutated values are not among its results. Weights may be fake or on the meta device: only
    their shapes are used, where torchax's own `exported_program_to_stablehlo` copies them into JAX first.
    precise: torchax's accuracy mode, in which 64-bit dtypes stay 64 bits wide; without it they become 32.
    """
    import jax

    torchax = import_torchax()
    if precise:
        torchax.enable_accuracy_mode()
    _, weights, function = torchax.export.exported_program_to_jax(exported, export_raw=True)
    dtype = torchax.ops.mappings.t2j_dtype
    abstract = [jax.ShapeDtypeStruct(tuple(weight.shape), dtype(weight.dtype)) for weight in weights]
    inputs = torchax.export.extract_avals(exported)
    return jax.export.export(jax.jit(function), platforms=platforms)(abstract, (inputs,))


def lower_by_torch_mlir(exported: ExportedProgram) -> str:
    """Lowers `exported` by torch-mlir's importer and StableHLO pipeline; returns the module's text, with weights as constants."""
    with _explained(PEERS["torch-mlir"]):
        from torch_mlir import fx  # type: ignore[import-not-found]  # on the path of this process alone
    return str(fx.export_and_import(exported, output_type="stablehlo"))


@contextmanager
def _replaced(owner: object, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _explained(peer: Peer) -> Iterator[None]:
    try:
        yield
    except ImportError as problem:
        raise PeerError(
            f"{peer.requirement} cannot be imported: {problem}",
            next_step="start the process with the environment that fxhlo.tools.bench.peers.environment gives",
        ) from problem


def main(peers: Mapping[str, Peer] = PEERS) -> None:
    """Installs all peers and prints where they are."""
    for peer in peers.values():
        print(f"{peer.requirement}  {install(peer)}")


if __name__ == "__main__":
    main()
