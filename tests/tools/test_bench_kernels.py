"""The bench's kernels and meshes on TPUs: what is recorded is what legalization takes, and that is the fastest form."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from fxhlo.kernels.catalog import kernels
from fxhlo.passes.hlo.plan import rows_for
from fxhlo.runtime.core import pjrt
from fxhlo.runtime.core.targets import Target
from fxhlo.tools.bench import meshes_tpu
from fxhlo.tools.bench.meshes_tpu import Links, links
from fxhlo.tools.bench.record import Table, records
from fxhlo.tools.bench.tpu_kernels import forms, measure, refused
from fxhlo.tools.bench.tpu_kernels.compiler import PROFILES
from fxhlo.tools.bench.tpu_kernels.layers import TARGETS, Step, layers
from fxhlo.tools.bench.tpu_kernels.measure import PART
from fxhlo.tools.bench.tpu_kernels.ours import pairs_of
from fxhlo.tools.bench.tpu_kernels.rows import Row, all_rows, fastest

EVEN = 1.05
"""Forms whose cycles differ by less are as good as each other."""


def recorded() -> list[Row]:
    return [Row(**fields) for fields in records()["kernels-tpu"].rows]


def test_every_row_is_another_one() -> None:
    assert not [key for key, count in Counter(row.key for row in all_rows()).items() if count > 1]


def test_each_recorded_layer_takes_the_fastest_form() -> None:
    by_name = {(layer.kernel, layer.model, layer.name): layer for layer in layers()}
    best = fastest(recorded())
    for row in recorded():
        layer, target = by_name[row.key[:3]], Target.parse(row.target)
        assert row.taken == forms.taken(kernels()[f"fxhlo.{row.kernel}"], layer, row.form, target), row.key
        assert not row.taken or row.cycles <= best[row.group].cycles * EVEN, (row, best[row.group])


DECODE = "64 requests, a row each, contexts of 2,048"


@pytest.mark.parametrize(
    ("kernel", "model", "step"),
    [
        ("moe", "Qwen3 30B-A3B", "8 rows"),
        ("moe", "Qwen3 30B-A3B", "2,048 rows"),
        ("moe", "gpt-oss 120b", "8 rows"),
        ("moe", "DeepSeek V3, 64 of 256 experts", "8 rows"),
        ("moe", "Qwen3-Next 80B", "8 rows"),
        ("ragged_paged_latent_attention", "DeepSeek-V2, V3", DECODE),
        ("ragged_gated_delta_rule", "Qwen3-Next 80B", DECODE),
    ],
)
def test_a_served_model_has_figures_beside_xlas_form_on_each_target(kernel: str, model: str, step: str) -> None:
    """Cycles of the form that is taken, and cycles of XLA's or why there are none."""
    rows = [row for row in recorded() if row.key[:3] == (kernel, model, step)]
    for target in TARGETS:
        here = [row for row in rows if row.target == target]
        assert [row.cycles > 0 for row in here if row.taken] == [True], here
        beside = [row for row in here if row.form.startswith("xla")]
        assert beside, (kernel, model, step, target)
        assert all(row.cycles or row.failed for row in beside), beside


def test_a_refused_shape_is_refused_before_a_compiler_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The record's table of them is what is said again here, where nothing can be compiled."""

    def compile_(*_: object, **__: object) -> None:
        raise AssertionError("a compiler ran")

    monkeypatch.setattr(pjrt, "compile_ahead", compile_)
    monkeypatch.setattr(pjrt, "build", compile_)
    assert records()["kernels-tpu"].tables[1] == Table.of(refused.table())
    assert {one.model for one in refused.refusals()} >= {f"{layer.model}, {layer.name}" for layer in refused.shapes()}
    for row in recorded():
        assert not row.refused or not row.seconds, row


CHILD = """
import json, os, sys, time
for line in sys.stdin:
    row = json.loads(line)
    if row["model"] == "slow":
        time.sleep(60)
    if row["model"] == "deadly" and ("profile" in os.environ["LIBTPU_INIT_ARGS"] or row["step"] == "always"):
        sys.exit(1)
    print(json.dumps(row | {"cycles": 7.0}), flush=True)
"""


def test_a_row_that_the_compiler_does_not_finish_is_given_up_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "child_that_fails.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(measure, "child", SimpleNamespace(__name__="child_that_fails"))
    rows = [Row("k", model, "s", "t", "pallas") for model in ("one", "slow", "deadly", "two")]
    done = measure.answers([*rows, Row("k", "deadly", "always", "t", "pallas")], "kernel", PROFILES, limit=3.0)
    assert [(row.model, row.cycles, row.failed) for row in done] == [
        ("one", 7.0, ""),
        ("slow", 0.0, "not compiled within 3 s"),
        ("deadly", 7.0, ""),  # without the profiler
        ("two", 7.0, ""),
        ("deadly", 0.0, measure.ENDED),
    ]


def test_the_profiler_is_asked_where_loops_follow_the_data_and_it_knows_the_kernel() -> None:
    asked = [row for row in all_rows() if measure.flags_of(row) == PROFILES]
    assert {(row.kernel, row.target) for row in asked} == {
        ("ragged_paged_attention", "tpu-v5e"),
        ("ragged_paged_attention", "tpu-v6e"),
        ("ragged_paged_latent_attention", "tpu-v6e"),
    }
    assert "decompressed" not in {row.form for row in asked}


def test_a_program_without_its_kernels_figures_has_none() -> None:
    row = Row("k", "m", "s", "t", "pallas", cycles=5.0)
    assert measure.with_kernels(row, None) == row
    assert measure.with_kernels(row, replace(row, cycles=2.0)).cycles == 7.0
    assert measure.with_kernels(row, replace(row, failed="why")) == replace(
        row, cycles=0.0, failed="its kernels alone: why"
    )


def test_new_rows_take_the_place_of_old_ones_in_the_order_of_the_table() -> None:
    first, second, third = all_rows()[:3]
    gone = replace(first, model="a model that is no longer in the table")
    assert PART.merged([third, first, gone], [replace(first, cycles=5.0), second]) == [
        replace(first, cycles=5.0),
        second,
        third,
    ]


def test_parts_of_a_tile_that_see_a_block_of_keys() -> None:
    """Two requests of 6 rows after 2 tokens, tiles of 8 rows in parts of 2, blocks of 4 keys: rows 0 to 5, then 6 and 7 beside 0 to 3."""
    assert pairs_of(Step(12, 2, 8), 8, 2, 4) == [[(2, 1), (0, 2)], [(0, 1)], [(2, 0), (0, 2)]]


PRODUCT = """HloModule m

%body (p: (bf16[64,8192], bf16[64,8192])) -> (bf16[64,8192], bf16[64,8192]) {
  %p = (bf16[64,8192]{1,0}, bf16[64,8192]{1,0}) parameter(0)
  %a = bf16[64,8192]{1,0} get-tuple-element(%p), index=0
  %b = bf16[64,8192]{1,0} get-tuple-element(%p), index=1
  %c = (bf16[64,8192]{1,0}, bf16[64,8192]{1,0}, u32[], u32[]) collective-permute-start(%a), source_target_pairs={{0,1},{1,0}}
  %d = (bf16[64,8192]{1,0}, bf16[64,8192]{1,0}, u32[], u32[]) collective-permute-start(%b), source_target_pairs={{0,7},{1,0}}
}

%all-reduce-scatter (x: f32[512,8192]) -> f32[64,8192] {
  %x = f32[512,8192]{1,0} parameter(0)
  %y = f32[512,8192]{1,0} all-reduce(%x), to_apply=%add
}

ENTRY %main (x: bf16[512,8192]) -> bf16[512,8192] {
  %x = bf16[512,8192]{1,0} parameter(0)
  %y = bf16[512,8192]{1,0} all-reduce(%x), to_apply=%add
  ROOT %z = bf16[8,8192]{1,0} all-gather(%x), dimensions={0}
}
"""


def test_collectives_that_are_waited_for_and_those_in_products() -> None:
    part, gathered, whole = 64 * 8192 * 2, 8 * 8192 * 2, 512 * 8192
    waiting = 7 / 8 * (whole * 4 + 2 * whole * 2 + gathered)
    assert links(PRODUCT, 8, 2) == Links(waiting, 2 * 2 * part, 1, 1, Counter({"reduce-scatter": 1, "all-reduce": 1}))


def test_tokens_are_split_from_where_it_takes_fewer_cycles() -> None:
    rows = {(row["tokens"], row["plan"]): row["cycles"] + row["waiting"] for row in records()["meshes-tpu"].rows}
    for tokens in {tokens for tokens, plan in rows if (tokens, "whole") in rows and (tokens, "split") in rows}:
        split = tokens // meshes_tpu.DEVICES >= rows_for(Target.parse(meshes_tpu.TARGET))
        ways = (rows[tokens, "split"], rows[tokens, "whole"])
        assert split == (ways[0] < ways[1]), tokens
