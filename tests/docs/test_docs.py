"""The docs are true: their snippets run, their generated pages are those of this tree, their links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fxhlo.tools import docs
from fxhlo.tools.bench import page as measured

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = [
    pytest.param(snippet, id=f"{page.stem}-{number}")
    for page in PAGES
    if page.name in ("README.md", "add_an_op.md", "add_a_layer.md", "jax.md")
    for number, snippet in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets_run(snippet: str, tmp_path: Path) -> None:
    (tmp_path / "snippet.py").write_text(snippet)  # a file: custom ops look at their source
    done = subprocess.run([sys.executable, "-P", "snippet.py"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_pass_is_added_as_the_page_says(tmp_path: Path) -> None:
    """Its first snippet as the pass's file, its second as the test's."""
    step, test = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "add_a_pass.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "relu_of_relu.py").write_text(step)
    (tmp_path / "test_relu_of_relu.py").write_text(test)
    (tmp_path / "conftest.py").write_text(
        f"import fxhlo.passes.fx\nfxhlo.passes.fx.__path__.append({str(tmp_path)!r})\n"
    )
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


@pytest.mark.parametrize("name", sorted(docs.PAGES))
def test_generated_pages_are_those_of_this_tree(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == docs.PAGES[name](), "run `make docs`"


def test_the_tables_of_readme_are_those_of_the_records() -> None:
    text = (ROOT / "README.md").read_text()
    assert measured.readme(text) == text, "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    """Paths with a folder that the docs name, and links."""
    text = re.sub(r"^```python\n# \S+\n", "", page.read_text(), flags=re.MULTILINE)  # a file that the reader writes
    named = set(
        re.findall(r"(?<![\w/.])((?:docs|passes|lowering|kernels|runtime|tools|tests|fxhlo)/[\w/]+\.\w+)", text)
    )
    prose = re.sub(
        r"^```.*?^```|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL
    )  # in code, `entries["main"](x)` is a call
    linked = {target for target in re.findall(r"\]\(([^)#]+)\)", prose) if "://" not in target}
    missing = [one for one in named if not (ROOT / one).exists()]
    missing += [one for one in linked if not (page.parent / one).exists()]
    assert not missing, missing
