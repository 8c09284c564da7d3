"""The matrix of kernels and the conformance command: the record is of this tree, a worker that dies is a result."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from fxhlo.kernels.catalog import kernels
from fxhlo.runtime.core.plugins import has_cuda_plugin
from fxhlo.runtime.core.targets import Target
from fxhlo.tools import kernel_matrix, lower_model
from fxhlo.tools.conformance import Line, run_op
from fxhlo.tools.kernel_matrix import Outcome, chosen, difference, matrix, read, restarted


def test_the_record_names_what_this_tree_takes() -> None:
    """The choices alone, before any compiler: `python -P -m fxhlo.tools.kernel_matrix` writes it anew."""
    wanted = [
        chosen(kernel, case, Target.parse(target))
        for kernel in kernels().values()
        for target in kernel_matrix.targets_of(kernel)
        for case in kernel.cases()
    ]
    names = ("kernel", "version", "case", "dtype", "target", "implementation", "reasons")
    recorded = {tuple(getattr(one, name) for name in names) for one in read()}
    assert recorded == {tuple(getattr(one, name) for name in names) for one in wanted}


def test_nothing_in_the_record_failed() -> None:
    for one in read():
        assert one.compiled == "yes", one
        assert not one.checked.startswith("no:"), one
    assert any(one.checked == "yes" for one in read())


def test_one_case_the_whole_way_for_a_tpu() -> None:
    kernel = kernels()["fxhlo.sample"]
    case = kernel.cases()[0]
    outcome = kernel_matrix.run_case(kernel, case, Target.parse("tpu-v5e"))
    assert (outcome.implementation, outcome.compiled, outcome.checked) == ("pallas", "yes", "not run")


def test_differences() -> None:
    kernel = kernels()["fxhlo.linear"]
    case = kernel_matrix.Case("", {}, {})
    arrays = {"values": np.eye(2, 3, dtype=np.float32), "weight": np.array([[1, 2, 3], [4, 5, -8]], np.float32)}
    right = arrays["values"] @ arrays["weight"].T
    assert difference(kernel, case, [right], arrays) == 0.0
    assert difference(kernel, case, [right + np.float32(0.5)], arrays) == pytest.approx(0.1)
    assert difference(kernel, case, [right.astype(np.float64)], arrays) == float("inf")
    assert not Line("g", "c", compiled="not run", checked="yes").failed
    assert Line("g", "c", compiled="yes", checked="no: 1 apart").failed
    assert difference(kernel, case, [right * np.nan], arrays) != difference(kernel, case, [right], arrays)


def test_a_worker_that_dies_is_a_result_and_not_the_end(tmp_path: Path) -> None:
    """It ends at every second case."""
    code = (
        "import os, sys, json\n"
        "for case in range(int(sys.argv[1]), 5):\n"
        "    if case % 2: print('Fatal: no such tile', file=sys.stderr, flush=True); os.abort()\n"
        "    print(json.dumps({'case': case}), flush=True)\n"
    )
    (tmp_path / "worker.py").write_text(code)
    found = list(restarted([sys.executable, str(tmp_path / "worker.py")], 5))
    assert [one for one in found if isinstance(one, dict)] == [{"case": 0}, {"case": 2}, {"case": 4}]
    died = [one for one in found if isinstance(one, str)]
    assert died == ["the process ended with -6: Fatal: no such tile"] * 2


def test_records_are_written_as_they_are_read(tmp_path: Path) -> None:
    made = [Outcome("sample", 1, "one", "float32", "tpu-v6e", "pallas", ("a: b",), "yes", "yes", 0.0123)]
    kernel_matrix.write(made, tmp_path / "kernels.json")
    (one,) = read(tmp_path / "kernels.json")
    assert (one.reasons, one.difference) == (("a: b",), 0.01)


def test_what_is_recorded_anew_leaves_the_rest() -> None:
    """Of other kernels and other targets, and no case that a kernel no longer has."""
    of = lambda kernel, case, target, said: Outcome(kernel, 1, case, "float32", target, said)  # noqa: E731
    mine, other = (kernels()[f"fxhlo.{name}"].cases()[0].name for name in ("sample", "moe"))
    before = [
        of("moe", other, "tpu-v6e", "old"),
        of("sample", mine, "tpu-v5e", "old"),
        of("sample", mine, "tpu-v6e", "old"),
        of("sample", "gone", "tpu-v6e", "old"),
    ]
    found = kernel_matrix.merged(before, [of("sample", mine, "tpu-v5e", "new")])
    assert [(one.kernel, one.target, one.implementation) for one in found] == [
        ("moe", "tpu-v6e", "old"), ("sample", "tpu-v5e", "new"), ("sample", "tpu-v6e", "old")
    ]  # fmt: skip


@pytest.mark.parametrize("target", ["cpu", "tpu-v6e"])
@pytest.mark.parametrize("name", ["product, bfloat16", "attention"])
def test_an_op_of_the_slice(name: str, target: str) -> None:
    line = run_op(name, Target.parse(target))
    assert line.compiled == "yes"
    assert line.checked == ("yes" if target == "cpu" else "not run")


def test_conformance_refuses_kernels_that_are_not_there(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["lower-model", "conformance", "--target", "cpu", "--kernel", "magic"])
    with pytest.raises(SystemExit) as end:
        lower_model.main()
    assert end.value.code == 2
    assert "there is no kernel 'magic'" in capfd.readouterr().err


@pytest.mark.conformance
@pytest.mark.parametrize("target", ["cpu", "tpu-v6e"])
def test_conformance(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.setattr(sys, "argv", ["lower-model", "conformance", "--target", target, "--json"])
    with pytest.raises(SystemExit) as end:
        lower_model.main()
    out, err = capfd.readouterr()
    assert not end.value.code, err
    lines = json.loads(out)
    assert all(line["compiled"] == "yes" for line in lines)
    assert sum(line["checked"] == "yes" for line in lines if line["group"] == "ops") == (25 if target == "cpu" else 0)


@pytest.mark.conformance
def test_the_matrix_is_what_the_compilers_say_today() -> None:
    def figures(outcomes: list[Outcome]) -> list[tuple]:
        return [(one.kernel, one.case, one.target, one.implementation, one.compiled, one.checked) for one in outcomes]

    targets = [name for name in kernel_matrix.TARGETS if has_cuda_plugin() or not name.startswith("cuda")]
    assert figures(matrix(targets)) == figures([one for one in read() if one.target in targets])
