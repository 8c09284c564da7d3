"""What a start says: lines in a log, a bar on a terminal."""

from __future__ import annotations

import io
import logging
import re
import sys
import threading

import pytest

from fxhlo.runtime.vllm.progress import Progress
from fxhlo.runtime.vllm.pulse import Pulse


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(logging.getLogger("start"), "_log", lambda level, text, args: found.append(text % args))
    logging.getLogger("start").setLevel(logging.INFO)
    return found


def compile_two() -> None:
    with Progress(logging.getLogger("start")) as progress:
        progress("capturing the model")
        progress("compiled tokens=4", done=1, of=2)
        progress("compiled tokens=8", done=2, of=2)


def test_a_log_gets_a_line_for_each_stage_and_program(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    compile_two()
    assert lines[0].startswith("capturing the model (0 s")
    assert lines[1:] == ["compiled tokens=4 (1 of 2)", "compiled tokens=8 (2 of 2)"]


def test_a_terminal_gets_a_bar(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    compile_two()
    assert len(lines) == 1, "the stages stay lines"
    assert "Compiling programs: 100%" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()


def test_silence_is_broken_by_what_the_start_is_at() -> None:
    """And not before: who says something in time gets no other line."""
    said: list[str] = []
    two = threading.Event()

    def say(message: str, *, done: int | None = None, of: int | None = None) -> None:
        said.append(message)
        if len(said) >= 2:
            two.set()

    pulse = Pulse(say, quiet=0.01)
    pulse.begins("compiling tokens=4")
    with pulse.at("emitting program 2"), pulse:
        assert two.wait(30)
    assert re.fullmatch(r"still compiling tokens=4 \(\d+ s\), emitting program 2 \(\d+ s\)", said[0])
    said.clear()
    with Pulse(say, quiet=1000) as pulse:
        pulse("compiled tokens=4", done=1, of=1)
    assert said == ["compiled tokens=4"]
