"""The tests of the native kernels, run on other builds of them: for lesser processors, under sanitizers, by clang."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jaxlib
import pytest

from fxhlo.runtime.core import native
from fxhlo.runtime.core.native import build

TESTS = Path(__file__).with_name("test_native.py")
EXPERTS = TESTS.with_name("test_moe_native.py")
HARNESS = Path(__file__).with_name("native_harness.cc")
PRODUCTS = TESTS.parents[1] / "runtime" / "test_native.py"
GCC, CLANG = shutil.which("g++"), next(filter(None, map(shutil.which, ("clang++", "clang++-16", "clang++-19"))), None)

pytestmark = [
    pytest.mark.skipif(GCC is None, reason="the builds are g++'s"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86-64"),
    pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable())),
]


def lesser_processors() -> Iterator[str]:
    """Flags that leave out, one after the other, the instruction sets for which there is code and that this machine has."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    if "amx_bf16" in flags:
        yield "-mno-amx-tile"
    if "avx512_bf16" in flags:
        yield "-mno-amx-tile -mno-avx512bf16"
    if "avx512f" in flags:
        yield "-march=x86-64-v3"
    if "avx2" in flags:
        yield "-march=x86-64-v2"


def run(tests: list[Path], select: str, folder: Path, **environment: str) -> None:
    """pytest on `tests` in a process of its own, with kernels that are built in `folder`."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-q",
        "-x",
        "-n0",
        "-p",
        "no:cacheprovider",
        "-m",
        "not conformance",
    ]
    variables = {**os.environ, "FXHLO_CACHE_DIR": str(folder), **environment}
    done = subprocess.run([*command, "-k", select, *map(str, tests)], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
    assert list(folder.rglob("*.so"))


def build_into(folder: Path, command: str) -> None:
    """The library by `command`, with which no test has to wait, and before a sanitizer is in the process.

    A sanitizer makes the compiler so slow that a busy machine exceeds the limit that users have.
    """
    script = "from fxhlo.runtime.core.native import build; build.COMPILE_SECONDS = 3600; print(build.library())"
    variables = {**os.environ, "FXHLO_CACHE_DIR": str(folder), "CXX": command}
    done = subprocess.run([sys.executable, "-P", "-c", script], env=variables, capture_output=True, text=True)
    assert done.returncode == 0 or "-fsanitize" in command, (
        done.stderr
    )  # a sanitized library is loaded beside its runtime alone
    assert list(folder.rglob("*.so")), done.stderr


EVERY_KERNEL = "not float16 and not malformed and not not_touched"


@pytest.mark.conformance
@pytest.mark.parametrize("flags", lesser_processors())
def test_the_kernels_of_a_lesser_processor(flags: str, tmp_path: Path) -> None:
    run([TESTS, EXPERTS], EVERY_KERNEL, tmp_path, CXX=f"{GCC} -O1 {flags}")


@pytest.mark.conformance
@pytest.mark.parametrize("flags", lesser_processors())
def test_products_and_attention_of_a_lesser_processor(flags: str, tmp_path: Path) -> None:
    run(
        [TESTS, PRODUCTS, EXPERTS],
        "linear or shapes or batch or attention or slots or token or malformed",
        tmp_path,
        CXX=f"{GCC} {flags}",
    )


# ---- sanitizers --------------------------------------------------------------------------------------------------

ADDRESSES = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
THREADS = "-O1 -g -fsanitize=thread"


def runtime_of(compiler: str, *libraries: str) -> str:
    """The sanitizer's runtime, for LD_PRELOAD: Python is not linked with it."""
    found = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in libraries
    ]
    return " ".join(path for path in found if os.path.isabs(path))


@pytest.mark.conformance
def test_no_address_is_wrong_and_nothing_undefined(tmp_path: Path) -> None:
    command = f"{GCC} {ADDRESSES}"
    build_into(tmp_path, command)
    run(
        [TESTS, PRODUCTS, EXPERTS],
        "not not_touched and not two_processes and not prepare and not damaged and not reason and not without_a_library and not importing",
        tmp_path, CXX=command, LD_PRELOAD=runtime_of(str(GCC), "libasan.so", "libstdc++.so.6"),
        ASAN_OPTIONS="detect_leaks=0", UBSAN_OPTIONS="print_stacktrace=1",
    )  # fmt: skip


def harness(compiler: str, flags: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Builds the kernels and native_harness.cc into one program and runs it."""
    program, include = folder / "harness", Path(jaxlib.__file__).parent / "include"
    sources = [str(build.FOLDER / name) for name in build.SOURCES] + [str(HARNESS)]
    given = [flag for flag in build.FLAGS if flag != "-O3"]
    command = [
        compiler,
        *given,
        *flags.split(),
        f"-I{build.FOLDER}",
        "-isystem",
        str(include),
        *sources,
        "-o",
        str(program),
        "-lpthread",
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-4000:]
    return subprocess.run([str(program)], capture_output=True, text=True, timeout=1200)


@pytest.mark.conformance
def test_several_callers_of_every_kernel(tmp_path: Path) -> None:
    done = harness(str(GCC), "-O1", tmp_path)  # the sanitizers' builds, which take minutes, run the same program
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-6000:]}"


@pytest.mark.conformance
def test_several_callers_and_no_memory(tmp_path: Path) -> None:
    done = harness(str(GCC), THREADS, tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-6000:]}"
    assert "16 calls, 0 failures" in done.stdout


@pytest.mark.conformance
@pytest.mark.skipif(CLANG is None, reason="clang is not installed")
def test_the_same_by_clang(tmp_path: Path) -> None:
    done = harness(str(CLANG), "-O1", tmp_path)  # its sanitizers bring an operator new of their own
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-6000:]}"


@pytest.mark.conformance
@pytest.mark.skipif(CLANG is None, reason="clang is not installed")
def test_the_kernels_by_clang(tmp_path: Path) -> None:
    run([TESTS, EXPERTS], "test_", tmp_path, CXX=str(CLANG))
