"""Every pass of the step, by running the program in eager torch before and after it."""

from __future__ import annotations

import pytest
import torch
from step_decoder import HEAD_SIZE, KV_HEADS, VOCABULARY, captured, run_eager

from fxhlo.lowering.capture.callable import Input, capture_callable
from fxhlo.passes.cache_groups import PER_GROUP, CacheGroup
from fxhlo.passes.fx.canonicalize import Canonicalize
from fxhlo.passes.fx.donate import Donate
from fxhlo.passes.fx.linear import Linear
from fxhlo.passes.fx.paged_attention import PagedAttention
from fxhlo.passes.fx.sample import Sample
from fxhlo.passes.fx.select_rows import SelectRows
from fxhlo.passes.pipeline import run, verify
from fxhlo.passes.program import Program
from fxhlo.passes.step_inputs import RAW
from fxhlo.runtime.core.errors import FxhloError

TOKENS, BLOCK, PAGES, BLOCKS = 11, 4, 4, 9
fxhlo = torch.ops.fxhlo


def prompt(rows: list[int]) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "input_ids": torch.randint(0, VOCABULARY, (TOKENS,), dtype=torch.int32),
        "positions": torch.arange(TOKENS, dtype=torch.int32),
        "logit_rows": torch.tensor(rows, dtype=torch.int32),
    }


def metadata(table: list[int], tokens: int = TOKENS, done: int = 0, size: int = BLOCK) -> dict[str, torch.Tensor]:
    """One request whose pages are `table`, of `size` tokens; `tokens` rows follow `done` tokens that are in the cache."""
    positions = torch.arange(done, done + tokens)
    pages = torch.tensor(table)
    return {
        "slot_mapping": (pages[positions // size] * size + positions % size).int(),
        "block_tables": torch.tensor([table], dtype=torch.int32),
        "seq_lens": torch.tensor([done + tokens], dtype=torch.int32),
        "query_start_loc": torch.tensor([0, tokens], dtype=torch.int32),
    }


def caches() -> dict[str, torch.Tensor]:
    shape = (BLOCKS, BLOCK, 2 * KV_HEADS, HEAD_SIZE)
    return {f"kv_cache.layers.{layer}.attn": torch.full(shape, float("nan")) for layer in range(2)}


def targets(program: object) -> list[object]:
    return [node.target for node in program.graph.nodes if node.op == "call_function"]


def test_the_capture_is_the_model() -> None:
    model, program = captured()
    inputs = prompt([10])
    torch.testing.assert_close(run_eager(program, inputs)["logits"], model(**inputs), rtol=1e-5, atol=1e-5)
    assert [dim.name for dim in program.dims] == ["tokens", "requests"]


def test_canonicalize_changes_nothing_that_is_computed_and_shrinks_the_graph() -> None:
    _, program = captured()
    after = run([Canonicalize()], program, [verify])
    assert len(after.graph.nodes) < len(program.graph.nodes)
    inputs = prompt([3])
    assert torch.equal(run_eager(program, inputs)["logits"], run_eager(after, inputs)["logits"])


def test_paged_attention_over_one_fresh_request_is_attention() -> None:
    _, program = captured()
    after = run([PagedAttention(BLOCK, PAGES)], program, [verify])
    assert fxhlo.attention.default not in targets(after)
    inputs = prompt([10])
    expected = run_eager(program, inputs)["logits"]
    got = run_eager(after, {**inputs, **metadata([7, 2, 5, 0]), **caches()})
    torch.testing.assert_close(got["logits"], expected, rtol=1e-5, atol=1e-5)


def test_paged_attention_in_two_chunks_is_attention() -> None:
    _, program = captured()
    after = run([PagedAttention(BLOCK, PAGES)], program, [verify])
    inputs = prompt([10])
    expected = run_eager(program, inputs)["logits"]
    table, state, split = [8, 1, 3, 0], caches(), 6
    for start, end in ((0, split), (split, TOKENS)):
        chunk = {name: inputs[name][start:end] for name in ("input_ids", "positions")}
        rows = {"logit_rows": torch.tensor([end - start - 1], dtype=torch.int32)}
        got = run_eager(after, {**chunk, **rows, **metadata(table, end - start, start), **state})
        state = {name: got[f"{name}.updated"] for name in state}
    torch.testing.assert_close(got["logits"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_layers_of_two_groups_share_memory_in_other_blocks(kv_heads: int) -> None:
    """A layer of half the heads has blocks of twice the tokens: as many bytes."""

    def attend(queries: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        named = {"scale": 0.3, "sliding_window": 0, "soft_cap": 0.0}
        first = fxhlo.attention(queries, queries, queries, None, None, layer="first", **named)
        return first + fxhlo.attention(queries, other, other, None, None, layer="second", **named)

    inputs = [Input("x", ("tokens", 2, 8), torch.float32), Input("y", ("tokens", kv_heads, 8), torch.float32)]
    inputs.append(Input("logit_rows", ("requests",), torch.int32))
    module = torch.nn.Module()
    ranges = {"tokens": (1, 64), "requests": (1, 8)}
    program = capture_callable(lambda x, y, rows: fxhlo.select_rows(attend(x, y), rows), module, inputs, ranges)
    size = 2 * BLOCK // kv_heads
    groups = (CacheGroup(("first",), BLOCK, PAGES), CacheGroup(("second",), size, PAGES * BLOCK // size))
    after = run([PagedAttention(BLOCK, PAGES, groups=groups)], program, [verify])
    assert [one.name for one in after.arguments if one.kind == "state"] == ["kv_cache.first"]
    given = {"x": torch.randn(TOKENS, 2, 8), "y": torch.randn(TOKENS, kv_heads, 8)}
    given["logit_rows"] = torch.tensor([3, TOKENS - 1], dtype=torch.int32)
    second = metadata([4, 3, 6, 1][: groups[1].pages], size=size)
    paged = {**metadata([7, 2, 5, 0]), **{f"{name}.1": second[name] for name in PER_GROUP}}
    cache = {"kv_cache.first": torch.full((BLOCKS, BLOCK, 4, 8), float("nan"))}
    got = run_eager(after, {**given, **paged, **cache})["output"]
    torch.testing.assert_close(got, run_eager(program, given)["output"], rtol=1e-5, atol=1e-5)


def test_layers_that_share_a_cache_have_one_state() -> None:
    _, program = captured()
    shared = [node for node in program.graph.nodes if node.target is fxhlo.attention.default]
    shared[1].kwargs = {**shared[1].kwargs, "layer": shared[0].kwargs["layer"]}
    shared[1].args = (shared[1].args[0], *shared[0].args[1:])
    program.module.recompile()
    after = run([PagedAttention(BLOCK, PAGES)], program, [verify])
    assert [one.name for one in after.arguments if one.kind == "state"] == ["kv_cache.layers.0.attn"]
    inputs, state = prompt([10]), caches()["kv_cache.layers.0.attn"]
    got = run_eager(after, {**inputs, **metadata([7, 2, 5, 0]), "kv_cache.layers.0.attn": state})
    torch.testing.assert_close(got["logits"], run_eager(program, inputs)["logits"], rtol=1e-5, atol=1e-5)


def test_select_rows_moves_up_to_the_last_attention() -> None:
    _, program = captured()
    program = run([Canonicalize()], program)
    after = run([SelectRows()], program, [verify])
    rows = [0, 10, 4]
    assert torch.allclose(
        run_eager(program, prompt(rows))["logits"], run_eager(after, prompt(rows))["logits"], atol=1e-5
    )
    order = targets(after)
    last_attention = max(index for index, target in enumerate(order) if target is fxhlo.attention.default)
    products = [
        index
        for index, target in enumerate(order)
        if target in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    ]
    first_selection = order.index(fxhlo.select_rows.default)
    assert first_selection < min(index for index in products if index > last_attention)


def test_select_rows_stays_where_others_read_all_rows() -> None:
    _, program = captured()

    def expose(graph: torch.fx.Graph) -> None:
        selection = next(node for node in graph.nodes if node.target is fxhlo.select_rows.default)
        output = next(node for node in graph.nodes if node.op == "output")
        output.args = ((output.args[0][0], selection.args[0]),)

    from fxhlo.passes.program import Result

    program = program.edited(expose, results=(*program.results, Result("hidden")))
    after = run([SelectRows()], program, [verify])
    assert targets(after) == targets(program)


def test_linear_takes_weights_as_they_lie() -> None:
    _, program = captured()
    program = run([Canonicalize()], program)
    after = run([Linear()], program, [verify])
    assert torch.ops.aten.mm.default not in targets(after)
    assert targets(after).count(fxhlo.linear.default) == 9
    inputs = prompt([2, 3])
    torch.testing.assert_close(
        run_eager(after, inputs)["logits"], run_eager(program, inputs)["logits"], rtol=1e-5, atol=1e-5
    )


def neutral(program: Program, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Sampling inputs of two requests that ask for nothing."""
    zeros = {
        name: torch.zeros(
            [2 if isinstance(size, torch.SymInt) else size for size in node.meta["val"].shape],
            dtype=node.meta["val"].dtype,
        )
        for node, name in zip(program.placeholders, [argument.name for argument in program.arguments], strict=True)
        if name not in inputs and name not in program.tensors
    }
    return zeros | {
        "repetition_penalty": torch.ones(2),
        "top_p": torch.ones(2),
        "bias_ids": zeros["bias_ids"] - 1,
        "seen_ids": zeros["seen_ids"] - 1,
        "grammar_mask": zeros["grammar_mask"] - 1,
    }


def test_sampling_is_part_of_the_step() -> None:
    _, program = captured()
    after = run([Sample(logprobs=3, bias=2, seen=4)], program, [verify])
    assert after.results[0].name == "tokens"
    inputs = prompt([10, 1])
    got = run_eager(after, {**inputs, **neutral(after, inputs), "logprobs_enabled": torch.tensor(1, dtype=torch.int32)})
    logits = run_eager(program, inputs)["logits"]
    assert got["tokens"].tolist() == logits.argmax(-1).tolist()
    expected = torch.log_softmax(logits.float(), -1).topk(3).values
    torch.testing.assert_close(got["logprob_values"][:, 1:], expected)


@pytest.mark.parametrize("mode", ["raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits"])
@pytest.mark.parametrize("of_prompt", [False, True])
def test_the_mode_says_which_values_are_shown(mode: str, of_prompt: bool) -> None:
    """A greedy and a random row with a bias and top-k; of prompts vLLM shows raw logits in every mode."""
    _, program = captured()
    after = run([Sample(logprobs=3, bias=2, seen=4, mode=mode)], program, [verify])
    inputs = prompt([10, 1])
    logits = run_eager(program, inputs)["logits"].float()
    best = logits.argmax(-1)
    given = neutral(after, inputs) | {
        "flags": torch.tensor([0, 1, 0], dtype=torch.int32),
        "bias_ids": torch.tensor([[best[0], -1], [best[1], -1]], dtype=torch.int32),
        "bias_values": torch.tensor([[-100.0, 0], [1.0, 0]]),
        "temperature": torch.tensor([0.0, 2.0]),
        "top_k": torch.tensor([0, 2], dtype=torch.int32),
        "logprobs_enabled": torch.tensor(RAW if of_prompt else 1, dtype=torch.int32),
    }
    got = run_eager(after, {**inputs, **given})
    if mode.startswith("processed") and not of_prompt:
        logits[0, best[0]] -= 100
        logits[1, best[1]] += 1
        logits[1] /= 2
        logits[1, logits[1] < logits[1].topk(2).values[1]] = -torch.inf
    shown = logits if mode.endswith("logits") else torch.log_softmax(logits, -1)
    torch.testing.assert_close(got["logprob_values"][:, 1:], shown.topk(3).values)
    torch.testing.assert_close(got["logprob_values"][:, 0], shown.gather(1, got["tokens"].long().unsqueeze(1))[:, 0])


def test_donation_pairs_states_with_their_results() -> None:
    _, program = captured()
    after = run([PagedAttention(BLOCK, PAGES), Donate()], program, [verify])
    assert [result.updates for result in after.results] == [None, "kv_cache.layers.0.attn", "kv_cache.layers.1.attn"]


def test_a_state_whose_update_was_lost_is_an_error() -> None:
    from dataclasses import replace

    _, program = captured()
    program = run([PagedAttention(BLOCK, PAGES)], program)
    lost = replace(program, results=(*program.results[:-1], replace(program.results[-1], name="something")))
    with pytest.raises(FxhloError, match=r"kv_cache\.layers\.1\.attn"):
        Donate()(lost)
