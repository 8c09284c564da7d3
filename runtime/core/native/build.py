"""Compiles the C++ kernels once per machine, keeps the library in a cache, and registers its functions with XLA.

The file's name holds a hash of everything that its contents depend on (sources, compiler, flags, processor, jaxlib),
so a stale library is never loaded and a cache may be shared between machines. A library is written under another name
and renamed, so that a reader sees a complete file or none; one of several processes builds it, and the others wait. If the
compiler rejects the sources, its error is stored next to the library's path, so that later starts do not compile again.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock

from ..cache import default_root
from ..errors import CacheError, UnsupportedError

TARGETS: tuple[str, ...] = (
    "fxhlo_linear", "fxhlo_linear_bias", "fxhlo_linear_used", "fxhlo_rms_norm", "fxhlo_silu_and_mul", "fxhlo_moe",
    "fxhlo_ragged_paged_attention", "fxhlo_ragged_paged_latent_attention", "fxhlo_varlen_attention", "fxhlo_process_logits", "fxhlo_sample",
    "fxhlo_logprobs",
    "fxhlo_ragged_causal_conv1d", "fxhlo_ragged_selective_scan", "fxhlo_ragged_decayed_attention", "fxhlo_ragged_gated_delta_rule",
    "fxhlo_copy_row",
)  # fmt: skip
SOURCES = (
    "attention.cc", "latent_attention.cc", "varlen_attention.cc", "sample.cc", "moe.cc", "panels.cc", "linear.cc", "logprobs.cc",
    "process_logits.cc",
    "recurrent_attention.cc", "recurrent_scan.cc", "recurrent_conv.cc", "activation.cc", "norm.cc", "copy_row.cc",
)  # fmt: skip
"""In order of compile time, longest first."""
HEADERS = (
    "activations.h", "attention_pages.h", "attention_tile.h", "attention_walk.h", "convert.h", "door.h", "latent_forms.h",
    "latent_products.h", "linear_tiles.h", "panels.h", "parallel.h", "recurrent.h", "sampling.h", "tiles.h", "transpose.h", "vector.h",
)  # fmt: skip
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off")
"""No contraction except explicit `fma`: sampling rounds as its reference does. Arguments in $CXX come after these
and override them: CXX="g++ -march=x86-64-v3" builds for an older processor, CXX="g++ -fsanitize=address" with a sanitizer."""
COMPILERS = ("c++", "g++", "clang++")
FOLDER = Path(__file__).parent
ENDED = re.compile(
    r"\b(killed|terminated|interrupted|signal|no space left|cannot allocate|out of memory|unable to execute)\b",
    re.IGNORECASE,
)
"""In what compilers say where somebody ended a part of them, or memory or disk did: nothing about the sources, and the next build may go well."""
COMPILE_SECONDS = 900  # on a machine that is busy, too
ERROR_LINES = 3
DIGEST_BYTES = 32
_lock = threading.RLock()
_loaded: tuple[Path | None, str | None, ctypes.CDLL | None] | None = None
"""(path, reason why it is missing, loaded library); None before the first request in this process."""
_taken: str | None = None
"""The fingerprint of a library that was taken from elsewhere."""
_builder: subprocess.Popen | None = None
"""The process started by `prepare`; referenced because nobody waits for it."""


def unavailable() -> str | None:
    """None if the kernels can be used, else the reason in one sentence. Builds them if they are not built."""
    return _load()[1]


def planned() -> str | None:
    """None if the kernels are built or can be built when needed, else the reason. Compiles nothing."""
    reason = switched_off()
    if reason is not None:
        return reason
    if _loaded is not None:
        return _loaded[1]
    compiler = find_compiler()
    if compiler is None:
        return _no_compiler()
    try:
        return _failure(_path(compiler))
    except (OSError, subprocess.SubprocessError, CacheError) as error:
        return _failed_with(error)


def forget_failure() -> None:
    """Makes the next `unavailable` build again, even if the compiler rejected the sources before."""
    compiler = find_compiler()
    if compiler is not None:
        _failure_file(_path(compiler)).unlink(missing_ok=True)


def prepare() -> None:
    """Starts building the kernels in the background, if they are not built; `unavailable` waits for it.

    In a process, not a thread: vLLM forks its engine, and a fork keeps the locks of threads but not the threads.
    """
    global _builder
    if _builder is not None or not sys.executable or ready():
        return
    nowhere = subprocess.DEVNULL
    with contextlib.suppress(OSError):  # whoever needs the library says what is wrong
        command = [sys.executable, "-P", "-m", "fxhlo.runtime.core.native"]
        _builder = subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere)


def ready() -> bool:
    """Whether `unavailable` answers without building or waiting."""
    compiler = find_compiler()
    try:
        if switched_off() is not None or compiler is None:
            return True
        path = _path(compiler)
        return path.exists() or _failure_file(path).exists()
    except (OSError, subprocess.SubprocessError, CacheError):
        return True  # with what is wrong


def take(path: Path, made_as: str) -> None:
    """Loads a library that was built elsewhere, for a processor like this one. made_as: its fingerprint there. Idempotent.

    Raises UnsupportedError where it does not load, and where this process has loaded another one.
    """
    global _loaded, _taken
    with _lock:
        if _loaded is not None and _loaded[2] is not None:
            if identity() == made_as:
                return
            raise UnsupportedError(
                "this process has loaded other native kernels already", next_step="start in a process of its own"
            )
        loaded = _open(path)
        if loaded is None:
            raise UnsupportedError(
                "this library of native kernels does not load here",
                next_step="make it again on this machine: the kernels of another one need not fit its system",
            )
        _loaded, _taken = (path, None, loaded), made_as


def identity() -> str:
    """The library's fingerprint, without building it, or the reason why it cannot be built."""
    if _taken is not None:
        return _taken
    reason, compiler = planned(), find_compiler()
    return fingerprint(compiler) if reason is None and compiler is not None else str(reason)


def library() -> Path:
    """Path of the compiled library. Raises UnsupportedError, with the reason, if it cannot be built."""
    path, reason = _load()[0], unavailable()
    if reason is not None or path is None:
        raise UnsupportedError(
            f"the native CPU kernels are unavailable: {reason}",
            next_step="fix that, or use the implementations in plain StableHLO",
        )
    return path


def register() -> None:
    """Registers the functions in TARGETS with XLA on platform "cpu". Idempotent."""
    with _lock:
        library()
        _register_once()


@functools.cache
def _register_once() -> None:
    import jax

    loaded = _load()[2]
    for target in TARGETS:
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(loaded, target)), platform="cpu")


def _load() -> tuple[Path | None, str | None, ctypes.CDLL | None]:
    """(path, reason why it is missing, loaded library); decided once per process."""
    global _loaded
    with _lock:
        if _loaded is None:
            _loaded = _find_or_build()
        return _loaded


def _find_or_build() -> tuple[Path | None, str | None, ctypes.CDLL | None]:
    reason = switched_off()
    if reason is not None:
        return None, reason, None
    compiler = find_compiler()
    if compiler is None:
        return None, _no_compiler(), None
    try:
        path = _path(compiler)
        loaded = _open(path)
        if loaded is None:  # missing, or cut short by a full disk or a crash: one process builds it
            with FileLock(path.with_suffix(".lock")):
                loaded = _open(path)
                reason = None if loaded is not None else _failure(path)
                if loaded is None and reason is None:
                    reason = compile_library(compiler, path)
                    if reason is not None:
                        _failure_file(path).write_text(reason)
                    loaded = _open(path) if reason is None else None
        if loaded is not None:
            return path, None, loaded
    except (OSError, subprocess.SubprocessError, CacheError) as error:
        reason = _failed_with(error)
    return None, reason or f"{path} was just built and cannot be loaded", None


def _path(compiler: tuple[str, ...]) -> Path:
    return cache_folder() / f"fxhlo_native_{fingerprint(compiler)}.so"


def _failure_file(path: Path) -> Path:
    return path.with_suffix(".failed")


def _failure(path: Path) -> str | None:
    """The stored error of an earlier build of `path`; None if there was none."""
    try:
        reason = _failure_file(path).read_text()
    except FileNotFoundError:
        return None
    return f"{reason} ({sys.executable or 'python'} -m fxhlo.runtime.core.native tries again)"


def _failed_with(error: Exception) -> str:
    return f"building the native kernels failed ({error})"


def switched_off() -> str | None:
    """The reason why this process uses no native kernels, where its environment says so."""
    return "FXHLO_NATIVE=0 switches the native kernels off" if os.environ.get("FXHLO_NATIVE") == "0" else None


def _open(path: Path) -> ctypes.CDLL | None:
    """The loaded library, or None if the file is missing or damaged.

    A truncated file can pass dlopen and crash the process when a missing page is accessed: its digest is compared first.
    """
    try:
        content = path.read_bytes()
        if content[-DIGEST_BYTES:] != hashlib.sha256(content[:-DIGEST_BYTES]).digest():
            return None
        loaded = ctypes.CDLL(str(path))
        for target in TARGETS:
            getattr(loaded, target)
    except (OSError, AttributeError):
        return None
    return loaded


def find_compiler() -> tuple[str, ...] | None:
    """The compiler's command: $CXX (with arguments) if it is set, else the first of COMPILERS on PATH; None if there is none."""
    if chosen := os.environ.get("CXX"):
        command = tuple(shlex.split(chosen))
        return command if shutil.which(command[0]) else None
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    return None if found is None else (found,)


def _no_compiler() -> str:
    if chosen := os.environ.get("CXX"):
        return f"no C++ compiler: CXX is {chosen!r}, which cannot be run; set it to one that can"
    return "no C++ compiler found on PATH; install g++ or set CXX"


def cache_folder() -> Path:
    """`native` in the cache's root, created if missing. Raises CacheError, OSError."""
    folder = default_root() / "native"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def fingerprint(compiler: tuple[str, ...]) -> str:
    """Hash of everything that the library's contents depend on."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=60).stdout
    parts = [*FLAGS, shlex.join(compiler), version, _processor(), importlib.metadata.version("jaxlib")]
    parts += [(FOLDER / name).read_text() for name in (*SOURCES, *HEADERS)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _processor() -> str:
    """The machine's architecture and instruction sets, on which -march=native depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    names = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join([platform.machine(), *sorted({line for line in lines if line.startswith(names)})])


def compile_library(compiler: tuple[str, ...], path: Path) -> str | None:
    """Builds `path`, with the digest of its content appended; None, or the reason why it failed."""
    spec = importlib.util.find_spec("jaxlib")  # jax.ffi.include_dir() without importing jax, which takes a second
    if spec is None or spec.origin is None:
        return "jaxlib, whose headers the native kernels need, is not installed"
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        objects = {name: str(Path(folder) / f"{name}.o") for name in SOURCES}
        include = ["-isystem", str(Path(spec.origin).parent / "include")]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            errors = [
                *pool.map(
                    lambda name: _run(
                        [compiler[0], *FLAGS, *compiler[1:], *include, "-c", str(FOLDER / name), "-o", objects[name]]
                    ),
                    SOURCES,
                )
            ]
        errors = [error for error in errors if error] or [
            _run([*compiler, "-shared", *objects.values(), "-o", str(built)])
        ]
        if errors[0] is not None:
            return f"{compiler[0]} could not compile the native kernels: {errors[0]}"
        content = built.read_bytes()
        built.write_bytes(content + hashlib.sha256(content).digest())  # the loader reads nothing past the ELF's end
        os.replace(built, path)
    return None


def _run(command: list[str]) -> str | None:
    """None, or the first lines of the compiler's error. Raises SubprocessError where it was ended before it knew."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    if done.returncode == 0:
        return None
    if done.returncode < 0 or ENDED.search(done.stderr):
        raise subprocess.SubprocessError(f"{command[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
    return "; ".join(errors[:ERROR_LINES]) or f"it ended with {done.returncode}"
