"""Importing the platform changes nothing in a process: vLLM does so in every one that it starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMPORT = """
import logging, os, signal, sys, threading
import torch
import vllm.platforms.interface
def state():
    return {
        "environment": dict(os.environ), "threads": threading.active_count(), "torch threads": torch.get_num_threads(),
        "finders": [type(finder).__name__ for finder in sys.meta_path], "hook": sys.excepthook, "default dtype": torch.get_default_dtype(),
        "accelerator": {name: getattr(torch.accelerator, name) for name in ("empty_cache", "empty_host_cache", "synchronize")},
        "parameter": torch.nn.Parameter.__new__, "group": torch.distributed.new_group, "children": os.listdir("/proc/self/task"),
        "handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "logging": [logging.getLogger().handlers[:], logging.getLogger("vllm").handlers[:]],
    }
before, modules = state(), set(sys.modules)
import fxhlo.runtime.vllm.platform
after = state()
assert before == after, {name: (before[name], after[name]) for name in before if before[name] != after[name]}
heavy = {"jax", "jaxlib", "transformers", "vllm.config", "vllm.model_executor", "psutil"} & (set(sys.modules) - modules)
assert not heavy, heavy
from fxhlo.runtime.core.native import build
assert build._builder is None, "a compiler was started"
"""


def test_importing_the_platform_changes_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", IMPORT], capture_output=True, text=True, cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "FXHLO_CACHE_DIR": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (tmp_path / "cache").exists()
