"""The report of a step on a mesh: collectives of optimized HLO, their bytes and the least time on the links."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fxhlo.runtime.core.targets import KNOWN, Target
from fxhlo.tools.report.meshes import Collective, MeshReport, collectives

TEXT = """HloModule main

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (x: f32[8,64]) -> f32[8,256] {
  %x = f32[8,64]{1,0} parameter(0)
  %one = f32[8,64]{1,0} all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3}}, use_global_device_ids=true, to_apply=%add
  %two = f32[8,64]{1,0} all-reduce(%one), channel_id=2, replica_groups=[1,4]<=[4], use_global_device_ids=true, to_apply=%add
  %begun = (f32[8,64]{1,0}, f32[8,256]{1,0}) all-gather-start(%two), channel_id=3, replica_groups={{0,1,2,3}}, dimensions={1}
  ROOT %done = f32[8,256]{1,0} all-gather-done(%begun)
}
"""


def test_collectives_of_one_kind_and_size_are_counted_together() -> None:
    link = 1e9
    gathered, summed = collectives(TEXT, 4, link)
    assert gathered == Collective("all-gather", 4, 1, 8192, pytest.approx(0.75 * 8192 / link))  # type: ignore[arg-type]
    assert summed == Collective("all-reduce", 4, 2, 2048, pytest.approx(2 * 1.5 * 2048 / link))  # type: ignore[arg-type]
    assert [one.seconds for one in collectives(TEXT, 4, None)] == [None, None]


def test_every_tpu_has_a_rate_of_its_links() -> None:
    assert all(Target(name).link for name in KNOWN if name.startswith("tpu"))
    assert Target("cpu").link is None
    slower = {name: Target(name).network for name in KNOWN if name.startswith("tpu")}
    assert [name for name, rate in slower.items() if rate is None] == ["tpu-v4"]
    assert all(rate < Target(name).link / 30 for name, rate in slower.items() if rate is not None)


def test_the_report_says_what_binds_a_step() -> None:
    found = tuple(collectives(TEXT, 4, 1e6))
    report = MeshReport("tokens=8", "tpu-v6e:2x2", "model=4", 4, 10, 20, 5, 2, 1, 100, found, 1e-6)
    said = report.text()
    assert report.needed == 38 and "is bound by the links" in said and "all-reduce" in said
    assert "Between slices" not in said
    facts = report.to_json()
    assert facts["sent"] == 2 * 1.5 * 2048 + 0.75 * 8192 and facts["network_seconds"] is None
    assert "Between slices, over the data center's network" in replace(report, network_rate=1e3).text()
    assert facts["fits"] is True and facts["needed"] == 38
