"""`make versions`: a second environment with the newest Python and jaxlib that there are, and the tests that belong to it.

Comes in: an interpreter of Python 3.12 or 3.13 on this machine, and pip's index. Goes out: .venv-newest, without torch; the core's tests
run in it, and tests/versions in this environment with bundles of each read by the other (docs/versions.md).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from . import console

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".venv-newest"
PYTHONS = ("3.13", "3.12")
PACKAGES = (
    "jax",
    "jaxlib",
    "safetensors",
    "filelock",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "hypothesis",
    "setuptools<81",
)


def interpreters() -> Iterator[Path]:
    """Interpreters of `PYTHONS` that start, the newest first: on the PATH, and those that pyenv has installed."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for version in PYTHONS:
        found = shutil.which(f"python{version}")
        for candidate in [
            *([Path(found)] if found else []),
            *sorted(pyenv.glob(f"{version}*/bin/python"), reverse=True),
        ]:
            started = subprocess.run([candidate, "--version"], capture_output=True, text=True)
            if started.stdout.startswith(f"Python {version}."):
                yield candidate


def set_up(python: Path) -> None:
    """Makes the environment, or brings it up to what the index has. Raises CalledProcessError where pip fails."""
    if not (FOLDER / "bin" / "python").exists():
        run(python, "-m", "venv", "--clear", FOLDER)
    pip = (FOLDER / "bin" / "python", "-m", "pip", "install", "-qq", "--disable-pip-version-check")
    run(*pip, "--upgrade", *PACKAGES)
    run(*pip, "--no-deps", "--no-build-isolation", "-e", ROOT)


def run(*command: str | Path, **environment: str) -> None:
    subprocess.run(
        list(map(str, command)), check=True, cwd=ROOT, env={**os.environ, "PYTHONSAFEPATH": "1", **environment}
    )


def main() -> int:
    python = next(interpreters(), None)
    if python is None:
        console.say(
            f"NOT RUN: there is no Python {' or '.join(reversed(PYTHONS))} here, on the PATH or of pyenv; newer jaxlibs need one"
        )
        return 0
    other = FOLDER / "bin" / "python"
    pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    try:
        set_up(python)
        run(
            other,
            "-c",
            "import sys, jax, jaxlib; print('Python', sys.version.split()[0], 'jax', jax.__version__, 'jaxlib', jaxlib.__version__)",
        )
        run(
            other, *pytest, "-n", "2", "tests/runtime", "--ignore=tests/runtime/test_native.py"
        )  # for tests/versions, which calls native kernels
        run(sys.executable, *pytest, "tests/versions", FXHLO_OTHER_PYTHON=str(other))
    except subprocess.CalledProcessError as problem:
        console.say(f"failed: {' '.join(map(str, problem.cmd))}")
        return problem.returncode or 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
