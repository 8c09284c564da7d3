"""fxhlo lowers PyTorch models to StableHLO and runs them on any PJRT device.

    hlo = fxhlo.lower(module, (x,))        # HloModule: .text .bytecode .signature .compile() .save(dir)
    bundle = fxhlo.load(dir)               # Bundle: its entries are Executables; needs neither torch nor a trace
    target = fxhlo.Target.parse("tpu-v6e:2x2")
    except fxhlo.FxhloError as problem:    # of all that is refused: .message .where .next_step

Everything is imported when it is first used, so that `import fxhlo` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["FxhloError", "Target", "__version__", "load", "lower"]

if TYPE_CHECKING:
    from .lowering.lower import lower
    from .runtime.core.bundle import load
    from .runtime.core.errors import FxhloError
    from .runtime.core.targets import Target


_HOMES = {
    "FxhloError": ".runtime.core.errors", "Target": ".runtime.core.targets", "load": ".runtime.core.bundle", "lower": ".lowering.lower",
}  # fmt: skip


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fxhlo' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
