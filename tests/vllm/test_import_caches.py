"""What is kept of transformers' look at itself and at what is installed: found again where it is not what was written, or not of these files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fxhlo.runtime.vllm import import_caches

Found = dict[frozenset[str], dict[str, set[str]]]


class Package:
    """A package like transformers, whose function looks at its models and counts how often."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.models, self.looked = root / "models", 0
        (self.models / "llama").mkdir(parents=True)
        (self.models / "llama" / "config.py").write_text("Llama")
        source = root / "utils" / "import_utils.py"
        source.parent.mkdir()
        source.write_text("")
        monkeypatch.setattr(import_caches.inspect, "getfile", lambda one: str(source))

    def define_import_structure(self, module_path: Any, prefix: str | None = None) -> Found:
        self.looked += 1
        begins = "" if prefix is None else f"{prefix}."
        return {
            frozenset(): {
                f"{begins}{one.parent.name}.{one.stem}": {one.read_text()} for one in self.models.rglob("*.py")
            },
            frozenset({"torch"}): {},
        }

    def ask(self, *arguments: Any) -> Found:
        """As in a new process."""
        return import_caches.kept_structure(self.define_import_structure)(*arguments)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    monkeypatch.setenv("FXHLO_CACHE_DIR", str(tmp_path / "cache"))
    return Package(tmp_path / "transformers", monkeypatch)


def kept(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "cache" / "imports").iterdir()
    return file


def test_a_second_process_does_not_look(package: Package) -> None:
    plain = package.define_import_structure(package.models)
    assert (
        package.ask(package.models)
        == package.ask(package.models, None)
        == package.ask(package.models / "__init__.py")
        == plain
    )
    assert package.ask(package.models, "models") == package.define_import_structure(package.models, "models")
    assert package.looked == 3  # two of them here


def test_a_folder_of_one_model_is_not_kept(package: Package) -> None:
    assert [package.ask(package.models / "llama"), package.ask(package.models / "llama")] and package.looked == 2


def test_a_file_that_changes_is_looked_at(package: Package) -> None:
    package.ask(package.models)
    changed = package.models / "llama" / "config.py"
    before = changed.stat()
    changed.write_text("Other")
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert package.ask(package.models)[frozenset()] == {"llama.config": {"Other"}}


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace("Llama", "Lalma"),
        lambda text: json.dumps({**json.loads(text), "found": None}),
        lambda text: "[" * 100_000,
    ],
    ids=["truncated", "empty", "something else", "changed", "no answer", "deep"],
)
def test_damage_is_dropped_and_made_again(package: Package, damage: Any, tmp_path: Path) -> None:
    found = package.ask(package.models)
    whole = kept(tmp_path).read_text()
    kept(tmp_path).write_text(damage(whole))
    assert package.ask(package.models) == found
    assert kept(tmp_path).read_text() == whole
    assert package.looked == 2


def test_a_cache_that_cannot_be_written_is_none(package: Package, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert package.ask(package.models) == package.ask(package.models)
    assert package.looked == 2


def test_packages_are_found_again_where_one_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXHLO_CACHE_DIR", str(tmp_path / "cache"))
    site = tmp_path / "site"
    (site / "one-1.0.dist-info").mkdir(parents=True)
    (site / "one-1.0.dist-info" / "METADATA").write_text("Name: one\nVersion: 1.0\n")
    top = site / "one-1.0.dist-info" / "top_level.txt"
    top.write_text("first\n")
    monkeypatch.setattr(import_caches.sys, "path", [str(site)])
    monkeypatch.setattr(import_caches.sys, "meta_path", [import_caches.PathFinder])
    assert import_caches.packages_distributions() == {"first": ["one"]}
    with monkeypatch.context() as without:
        without.setattr(import_caches, "_find_packages", lambda: pytest.fail("it is kept"))
        assert import_caches.packages_distributions() == {"first": ["one"]}
    top.write_text("first\nsecond\n")
    assert import_caches.packages_distributions() == {"first": ["one"], "second": ["one"]}
