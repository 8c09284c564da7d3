"""A jaxlib whose private interfaces are others ends in one sentence that says what is there, what is missing and what fits."""

import subprocess
import sys
from pathlib import Path

import jaxlib
import pytest

from fxhlo.runtime.core.versions import TRIED

FITS = TRIED[-1] if sys.version_info >= (3, 12) else TRIED[0]


@pytest.mark.parametrize(
    ("break_it", "module", "text"),
    [
        (
            "import jaxlib._jax as module; del module.array_result_handler",
            "fxhlo.runtime.core.pjrt",
            "whose PJRT client fxhlo does not know (module 'jaxlib._jax' has no attribute 'array_result_handler')",
        ),
        (
            "sys.modules['jaxlib.mlir._mlir_libs._jax_mlir_ext'] = None",
            "fxhlo.passes.mlir",
            "whose MLIR bindings fxhlo does not know (import of jaxlib.mlir._mlir_libs._jax_mlir_ext halted",
        ),
    ],
)
def test_another_jaxlib_is_one_sentence(break_it, module, text):
    code = f"import sys\n{break_it}\nfrom fxhlo import FxhloError\ntry:\n    import {module}\nexcept FxhloError as problem:\n    print(problem)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.stdout.startswith(f"jaxlib {jaxlib.__version__} is installed, {text}"), ran.stdout + ran.stderr
    assert (
        f"it was tried with jaxlib {', '.join(TRIED)}\n  next: pip install jax=={FITS} jaxlib=={FITS}\n" in ran.stdout
    )


def test_the_lock_is_a_version_that_was_tried():
    lock = (Path(__file__).parents[2] / "requirements.lock").read_text()
    for name in ("jax", "jaxlib"):
        assert f"\n{name}=={TRIED[0]}\n" in lock
