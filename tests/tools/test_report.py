"""The report of a TPU's step: what is counted in optimized HLO and in the model, whether it fits, and how it is shown."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from fxhlo.lowering.lower import lower
from fxhlo.runtime.core.targets import Target
from fxhlo.tools import lower_model
from fxhlo.tools.report.hlo import Cost, Optimized
from fxhlo.tools.report.ideal import folded, ideal
from fxhlo.tools.report.report import bound, with_rounds
from fxhlo.tools.report.units import Unit

CONFIGS = Path(__file__).parent / "configs"
HLO = """
HloModule main, is_scheduled=true

%fused_product (param_0.1: bf16[64,4096], param_1.1: bf16[512,4096]) -> bf16[64,512] {
  %param_0.1 = bf16[64,4096]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_1.1 = bf16[512,4096]{1,0:T(8,128)(2,1)} parameter(1)
  %convolution.1 = f32[64,512]{1,0:T(8,128)} convolution(%param_0.1, %param_1.1), dim_labels=bf_oi->bf
  ROOT %convert.1 = bf16[64,512]{1,0:T(8,128)(2,1)S(1)} convert(%convolution.1)
}

%outer (param_0.4: bf16[64,4096], param_1.4: bf16[512,4096]) -> bf16[64,512] {
  %param_0.4 = bf16[64,4096]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_1.4 = bf16[512,4096]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %inner = bf16[64,512]{1,0:S(1)} fusion(%param_0.4, %param_1.4), kind=kOutput, calls=%fused_product
}

%fused_gather (param_0.2: bf16[32000,4096], param_1.2: s32[64]) -> bf16[64,4096] {
  %param_1.2 = s32[64]{0} parameter(1)
  %param_0.2 = bf16[32000,4096]{1,0} parameter(0)
  ROOT %gather.1 = bf16[64,4096]{1,0:S(1)} gather(%param_0.2, %param_1.2), offset_dims={1}, slice_sizes={1,4096}
}

%fused_update (param_0.3: f32[1024,128], param_1.3: f32[8,128], param_2.3: s32[]) -> f32[1024,128] {
  %param_0.3 = f32[1024,128]{1,0} parameter(0)
  %param_1.3 = f32[8,128]{1,0:S(1)} parameter(1)
  %param_2.3 = s32[] parameter(2)
  ROOT %update = f32[1024,128]{1,0} dynamic-update-slice(%param_0.3, %param_1.3, %param_2.3, %param_2.3)
}

%body (state.1: (s32[], f32[256,128])) -> (s32[], f32[256,128]) {
  %state.1 = (s32[], f32[256,128]{1,0}) parameter(0)
  %count = s32[] get-tuple-element(%state.1), index=0
  %values = f32[256,128]{1,0} get-tuple-element(%state.1), index=1
  %negated = f32[256,128]{1,0} negate(%values), metadata={op_name="loop"}
  ROOT %next = (s32[], f32[256,128]{1,0}) tuple(%count, %negated)
}

ENTRY %main (a: bf16[64,4096], w: bf16[512,4096], t: bf16[32000,4096], i: s32[64], c: f32[1024,128]) -> bf16[64,512] {
  %a = bf16[64,4096]{1,0} parameter(0)
  %w = bf16[512,4096]{1,0} parameter(1)
  %t = bf16[32000,4096]{1,0} parameter(2)
  %i = s32[64]{0:S(1)} parameter(3)
  %c = f32[1024,128]{1,0} parameter(4)
  %copy-start = (bf16[64,4096]{1,0:S(1)}, bf16[64,4096]{1,0}, u32[]{:S(2)}) copy-start(%a)
  %copy-done = bf16[64,4096]{1,0:S(1)} copy-done(%copy-start)
  %again = (bf16[512,4096]{1,0:S(1)}, bf16[512,4096]{1,0}, u32[]{:S(2)}) copy-start(%w), cross_program_prefetch_index=0
  %unused = bf16[512,4096]{1,0:S(1)} copy-done(%again)
  %embedded = bf16[64,4096]{1,0:S(1)} fusion(%t, %i), kind=kCustom, calls=%fused_gather, metadata={op_name="embed"}
  %product = bf16[64,512]{1,0:S(1)} fusion(%copy-done, %w), kind=kOutput, calls=%fused_product, UP
  %row = f32[8,128]{1,0:S(1)} broadcast(%i), dimensions={}
  %zero = s32[] constant(0)
  %written = f32[1024,128]{1,0} fusion(%c, %row, %zero), kind=kLoop, calls=%fused_update, metadata={op_name="cache"}
  %kernel = bf16[64,512]{1,0} custom-call(%product), custom_call_target="tpu_custom_call", metadata={op_name="attn"}
  %start = (s32[], f32[256,128]{1,0}) tuple(%zero, %c)
  %while.1 = (s32[], f32[256,128]{1,0}) while(%start), condition=%body, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %result = bf16[64,512]{1,0} bitcast(%kernel)
}
"""
HLO = HLO.replace(
    "UP", 'metadata={op_name="layers.3.up"}, backend_config={"window_config":{"estimated_cycles":"1234"}}'
)


def test_what_optimized_hlo_costs() -> None:
    program = Optimized.parse(HLO)
    costs: dict[tuple[str, str], Cost] = {(cost.path, cost.kind): cost for cost in program.costs}
    product = costs["layers.3.up", "product"]
    assert (product.flops, product.cycles) == (2 * 64 * 512 * 4096, 1234)
    assert product.bytes == 512 * 4096 * 2, "the weight alone: operand and result are on the chip"
    assert costs["layers.3.up", "prefetch"].bytes == 64 * 4096 * 2, "counted once, for the module that uses it"
    assert costs["embed", "gather fusion"].bytes == 64 * 4096 * 2, "not the whole table"
    assert costs["cache", "dynamic-update-slice fusion"].bytes == 2 * 8 * 128 * 4 + 4, "rows in place, and where"
    assert costs["attn", "kernel"] == Cost("attn", "kernel")
    assert costs["loop", "negate"].bytes == 5 * 2 * 256 * 128 * 4
    assert not any(cost.loop for cost in program.costs)
    assert sum(cost.kind == "prefetch" for cost in program.costs) == 1, "a copy for the next call is not of this one"
    assert Optimized.parse(HLO.replace('{"known_trip_count":{"n":"5"}}', "{}")).costs[-1].bytes == 2 * 256 * 128 * 4


def test_a_product_in_a_fusion_of_a_fusion_is_seen() -> None:
    nested = HLO.replace("kind=kOutput, calls=%fused_product, meta", "kind=kLoop, calls=%outer, meta")
    assert nested != HLO
    (product,) = (cost for cost in Optimized.parse(nested).costs if cost.kind == "product")
    assert (product.flops, product.bytes) == (2 * 64 * 512 * 4096, 512 * 4096 * 2)


def test_a_loop_whose_rounds_depend_on_data_is_marked_and_never_faster_than_its_roofline() -> None:
    costs = Optimized.parse(HLO.replace('{"known_trip_count":{"n":"5"}}', "{}")).costs
    (once,) = (cost for cost in costs if cost.loop)
    assert (once.loop, once.path, once.bytes) == ("while.1", "loop", 2 * 256 * 128 * 4)
    v6e = Target.parse("tpu-v6e")
    composite = Cost("loop", "fxhlo.kernel", bytes=7.5 * once.bytes)
    (counted,) = (cost for cost in with_rounds(costs, [composite], v6e) if cost.loop)
    assert counted.bytes == 8 * once.bytes
    assert bound(counted, v6e) >= bound(composite, v6e)
    assert with_rounds(costs, [], v6e) == costs, "at least one round"


COUNTING = """
HloModule main

%body (s: (s32[], f32[256,128], s32[])) -> (s32[], f32[256,128], s32[]) {
  %s = (s32[], f32[256,128]{1,0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[256,128]{1,0} get-tuple-element(%s), index=1
  %n = s32[] get-tuple-element(%s), index=2
  %step = s32[] constant(STEP)
  %next = s32[] add(%i, %step)
  %y = f32[256,128]{1,0} negate(%x), metadata={op_name="loop"}
  ROOT %t = (s32[], f32[256,128]{1,0}, s32[]) tuple(%next, %y, %n)
}

%condition (s: (s32[], f32[256,128], s32[])) -> pred[] {
  %s = (s32[], f32[256,128]{1,0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %bound = s32[] BOUND
  ROOT %less = pred[] compare(%i, %bound), direction=DIRECTION
}

ENTRY %main (x: f32[256,128], given: s32[]) -> f32[256,128] {
  %x = f32[256,128]{1,0} parameter(0)
  %given = s32[] parameter(1)
  %first = s32[] constant(FIRST)
  %last = s32[] constant(11)
  %copied = s32[] copy(%last)
  %start = (s32[], f32[256,128]{1,0}, s32[]) tuple(%first, %x, %LAST)
  %while.1 = (s32[], f32[256,128]{1,0}, s32[]) while(%start), condition=%condition, body=%body
  ROOT %out = f32[256,128]{1,0} get-tuple-element(%while.1), index=1
}
"""


@pytest.mark.parametrize(
    ("first", "step", "direction", "bound", "last", "rounds"),
    [
        (0, 1, "LT", "constant(7)", "copied", 7),
        (2, 3, "LE", "constant(11)", "copied", 4),  # 2, 5, 8, 11
        (20, -3, "GE", "constant(-5)", "copied", 9),
        (1, 2, "LT", "get-tuple-element(%s), index=2", "copied", 5),  # 1, 3, 5, 7, 9
        (9, 1, "LT", "constant(7)", "copied", 0),
        (0, 1, "LT", "get-tuple-element(%s), index=2", "given", None),
        (0, 1, "NE", "constant(7)", "copied", None),
        (0, 1, "GT", "constant(7)", "copied", None),  # counts away from its bound
    ],
)
def test_the_rounds_of_a_loop_that_counts(
    first: int, step: int, direction: str, bound: str, last: str, rounds: int | None
) -> None:
    text = COUNTING.replace("FIRST", str(first)).replace("STEP", str(step)).replace("DIRECTION", direction)
    text = text.replace("BOUND", bound).replace("LAST", last)
    (cost,) = (cost for cost in Optimized.parse(text).costs if cost.path == "loop")
    assert bool(cost.loop) == (rounds is None)
    assert cost.bytes == (1 if rounds is None else rounds) * 2 * 256 * 128 * 4


@pytest.mark.parametrize(
    ("figures", "shown"), [((0.0012, 0.9e-6), ["1.20", "0.001"]), ((3e-5, 2e-6), ["30.00", "2.00"])]
)
def test_one_unit_for_all_figures_of_a_column(figures: tuple[float, ...], shown: list[str]) -> None:
    unit = Unit.of_seconds(figures)
    assert [unit(figure) for figure in figures] == shown
    assert unit.name == ("ms" if figures[0] > 1e-3 else "us")
    assert Unit.of_bytes((3 * 2**30, 2**20)).of(2**29) == "0.500 GiB"


def test_products_whose_batch_is_a_window_are_counted_once_a_pair() -> None:
    text = """
HloModule main

ENTRY %main (a: f32[8,4,16], b: f32[8,16,5]) -> f32[8,4,5] {
  %a = f32[8,4,16]{2,1,0} parameter(0)
  %b = f32[8,16,5]{2,1,0} parameter(1)
  ROOT %product = f32[8,4,5]{2,1,0} convolution(%a, %b), window={size=8 stride=7 pad=0_0 lhs_dilate=8}, dim_labels=0bf_0io->0bf
}
"""
    (cost,) = Optimized.parse(text).costs
    assert cost.flops == 2 * 8 * 4 * 16 * 5


def test_what_a_model_must_do_at_least() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(1000, 64)
            self.layers = torch.nn.ModuleList([torch.nn.Linear(64, 64, bias=False) for _ in range(2)])

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            hidden = self.embed(ids)
            for layer in self.layers:
                hidden = torch.relu(layer(hidden))
            return hidden

    module = lower(Model(), (torch.zeros(8, dtype=torch.int64),))
    costs = ideal(module.module, module.signature)
    rows: dict[str, list[Cost]] = {}
    for cost in costs:
        rows.setdefault(folded(cost).path, []).append(cost)
    assert [(cost.flops, cost.bytes) for cost in rows["layers.*"]] == [(2 * 8 * 64 * 64, 64 * 64 * 4)] * 2
    assert sum(cost.bytes for cost in rows["embed"]) <= 8 * 64 * 4 + 8 * 8, "rows, not the table"
    v6e = Target.parse("tpu-v6e")
    assert bound(Cost("", "", bytes=1.64e9), v6e) == pytest.approx(1e-3)
    assert bound(Cost("", "", flops=918e9, bytes=1.0), v6e) == pytest.approx(1e-3)


# --- the command ------------------------------------------------------------------------------------------------------


def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> str:
    """What it prints."""
    monkeypatch.setattr(sys, "argv", ["lower-model", *map(str, words)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        lower_model.main()
    out, err = capfd.readouterr()
    assert not end.value.code, err
    return out


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = json.loads((CONFIGS / "llama-3.1-8b" / "config.json").read_text())
    config |= {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2, "vocab_size": 2048}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128}
    path = tmp_path_factory.mktemp("folder") / "small.json"
    path.write_text(json.dumps(config))
    return path


def test_a_step_that_fits(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, small: Path, tmp_path: Path
) -> None:
    words = ("--target", "tpu-v6e:2x2", "--max-model-len", 512, "--bucket", "tokens=8,requests=8,num_blocks=64")
    page, bundle = tmp_path / "report.html", tmp_path / "bundle"
    facts = json.loads(command(capfd, monkeypatch, small, *words, "--html", page, "-o", bundle, "--json"))
    report = facts["modules"][0]["report"]
    fit, total = report["fit"], report["total"]
    weights = 2 * (2 * 2048 * 512 + 2 * (512 * 1024 + 512 * 512 + 512 * 2048 + 1024 * 512 + 2 * 512) + 512)
    table = 131072 * 128 * 2  # the rotary embedding's
    scales = 2 * 4 * 4  # four numbers that vLLM's attention registers
    assert fit["weights"] == weights + table + scales
    assert fit["caches"] == 2 * 64 * 16 * 2 * 2 * 128 * 2
    assert fit["fits"] and fit["needed"] < fit["available"] == int(31.25 * 2**30)
    assert fit["needed"] > fit["weights"] + fit["caches"]
    assert total["outside_bound"] >= 0.9 * total["outside_roofline"] > 0
    names = {row["name"]: row for row in report["paths"]}
    up = names["model.layers.*.mlp.gate_up_proj"]
    assert up["flops"] == 2 * 2 * 8 * 512 * 2048
    assert up["bytes"] >= 2 * 512 * 2048 * 2
    assert {one["kernel"] for one in report["composites"]} >= {"fxhlo.sample", "fxhlo.ragged_paged_attention"}
    _is_one_page(page.read_text(), "It fits")
    assert "<title>small (LlamaForCausalLM) for tpu-v6e:2x2</title>" in page.read_text()
    (executable,) = (bundle / "executables").iterdir()
    assert executable.stat().st_size > 10_000, "a TPU's executable is in the bundle"


def test_a_fallback_of_attention_is_not_faster_than_the_kernel(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, small: Path
) -> None:
    """float16 has no Pallas attention: its loop over keys runs as often as the contexts are long."""
    words = (
        "--target",
        "tpu-v6e",
        "--max-model-len",
        4096,
        "--bucket",
        "tokens=8,requests=8,num_blocks=2048",
        "--json",
    )
    facts = json.loads(command(capfd, monkeypatch, small, *words, "--stop-after", "compile", "--dtype", "float16"))
    report = facts["modules"][0]["report"]
    became = {one["kernel"]: one["became"] for one in report["composites"]}
    assert became["fxhlo.ragged_paged_attention"] == "xla"
    total = report["total"]
    assert total["unknown_loops"] == 2, "a layer each"
    assert total["bound"] >= total["roofline"]
    assert total["outside_bound"] >= total["outside_roofline"]
    (attention,) = (row for row in report["paths"] if row["name"].endswith("self_attn.attn"))
    assert attention["bound"] >= attention["roofline"]
    assert attention["unknown_loops"] == 2


def test_a_step_that_does_not_fit_says_by_how_much(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, small: Path
) -> None:
    words = ("--target", "tpu-v5e", "--max-model-len", 512, "--bucket", "tokens=8,requests=8,num_blocks=2000000")
    out = command(capfd, monkeypatch, small, *words, "--stop-after", "compile")
    caches = 2 * 2_000_000 * 16 * 2 * 2 * 128 * 2 / 2**30
    assert f"{caches:,.2f}" in out
    assert (
        "It does not fit: 61.0" in out
        and "of 15.75 GiB" in out
        and "45.3" in out
        and "4 devices would have room" in out
    )
    assert "It was not compiled" in out


@pytest.mark.conformance
@pytest.mark.parametrize(
    ("model", "weights", "fits"),
    [("llama-3.1-8b", 16.06e9, True), ("llama-3.3-70b", 141.1e9, False), ("qwen3-32b", 65.5e9, False)],
)
def test_models_from_a_config_alone(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: str, weights: float, fits: bool
) -> None:
    words = ("--target", "tpu-v6e:2x2", "--max-model-len", 2048, "--bucket", "tokens=64,requests=64,num_blocks=2048")
    facts = json.loads(command(capfd, monkeypatch, CONFIGS / model, *words, "--stop-after", "compile", "--json"))
    fit = facts["modules"][0]["report"]["fit"]
    assert fit["weights"] == pytest.approx(weights, rel=0.005)
    assert fit["fits"] is fits


def _is_one_page(text: str, verdict: str) -> None:
    """Well-formed, with pictures, and nothing that it would have to fetch."""
    found: dict[str, Any] = {"tags": [], "links": []}

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found["tags"].append(tag)
            found["links"] += [value for name, value in attrs if name in ("src", "href")]

    Reader().feed(text)
    assert verdict in text
    assert found["links"] == []
    assert "url(" not in text
    assert found["tags"].count("svg") >= 3
    for picture in text.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + picture.split("</svg>")[0] + "</svg>")
