"""fxhlo lowers PyTorch models to StableHLO and runs them on any PJRT device.

    hlo = fxhlo.lower(module, (x,))        # HloModule: .text .bytecode .signature .compile() .save(dir)
    bundle = fxhlo.load(dir)               # Bundle: its entries are Executables; needs neither torch nor a trace
    target = fxhlo.Target.parse("tpu-v6e:2x2")

Everything is imported when it is first used, so that `import fxhlo` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Target", "__version__", "load", "lower"]

if TYPE_CHECKING:
    from .lowering.lower import lower
    from .runtime.bundle import load
    from .runtime.targets import Target


def __getattr__(name: str) -> Any:
    if name == "lower":
        from .lowering.lower import lower

        return lower
    if name == "load":
        from .runtime.bundle import load

        return load
    if name == "Target":
        from .runtime.targets import Target

        return Target
    raise AttributeError(f"module 'fxhlo' has no attribute {name!r}")
