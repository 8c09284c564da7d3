"""The bench's kernels and meshes on TPUs: what is recorded is what legalization takes, and that is the fastest form."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from fxhlo.kernels.catalog import kernels
from fxhlo.passes.hlo.plan import rows_for
from fxhlo.runtime.core.targets import Target
from fxhlo.tools.bench import meshes_tpu
from fxhlo.tools.bench.meshes_tpu import Links, links
from fxhlo.tools.bench.record import records
from fxhlo.tools.bench.tpu_kernels import forms
from fxhlo.tools.bench.tpu_kernels.layers import Step, layers
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


def test_a_refused_shape_is_refused_before_a_compiler_runs() -> None:
    for row in recorded():
        assert not row.refused or not row.seconds, row


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
