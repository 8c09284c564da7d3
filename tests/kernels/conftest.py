"""The native kernels are registered with XLA before a test compiles a call of one; attention_batches.py and latent_batches.py are importable by their names."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fxhlo.runtime.core import native

sys.path.insert(0, str(Path(__file__).parent))

INTERPRETED = (
    "test_attention_pallas", "test_logprobs_pallas", "test_moe_cuda", "test_moe_pallas", "test_paged_attention_cuda",
    "test_paged_latent_attention_cuda", "test_paged_latent_attention_tpu", "test_process_logits_pallas", "test_recurrent_tpu", "test_sample_pallas",
)  # fmt: skip
"""Files that run short kernels in Pallas's interpreter, which XLA takes longer to compile than to run."""


@pytest.fixture(scope="session", autouse=True)
def registered() -> None:
    if native.unavailable() is None:
        native.register()


@pytest.fixture(autouse=True)
def _compiled_quickly(request: pytest.FixtureRequest) -> Iterator[None]:
    """Without most of LLVM's optimizations in files of INTERPRETED: their programs are the interpreter's, none that anybody is given."""
    if request.path.stem not in INTERPRETED:
        yield
        return
    import jax

    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
