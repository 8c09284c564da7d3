"""What a step's capture must leave symbolic, whatever a model's Python does with [1, tokens, features]."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from written import configured

from fxhlo.lowering.capture.callable import Input, capture_callable
from fxhlo.lowering.emit.emit import emit
from fxhlo.passes.pipeline import run
from fxhlo.passes.step_inputs import DRAW, LOGPROBS, MODEL, PAGED, PROCESSING
from fxhlo.runtime.vllm.compat import engine_config
from fxhlo.runtime.vllm.model import build_model
from fxhlo.runtime.vllm.steps.capture import capture_step
from fxhlo.runtime.vllm.steps.options import StepOptions
from fxhlo.runtime.vllm.steps.passes import step_passes
from fxhlo.runtime.vllm.steps.planning.costs import Costs
from fxhlo.runtime.vllm.steps.planning.plan import make_plan
from fxhlo.tools.architectures.catalog import ARCHITECTURES


def test_a_product_with_a_bias_keeps_the_number_of_tokens() -> None:
    """vLLM's Transformers backend adds a batch dimension; torch's own linear makes numbers of its sizes."""
    layer = torch.nn.Linear(8, 4)

    def step(x: torch.Tensor) -> torch.Tensor:
        hidden = torch.nn.functional.linear(x.unsqueeze(0), layer.weight, layer.bias)
        return torch.nn.functional.linear(input=hidden, weight=layer.weight[:, :4], bias=layer.bias)[0]

    inputs = (Input("x", ("tokens", 8), torch.float32),)
    program = capture_callable(step, layer, inputs, {"tokens": (1, 128)})
    assert not program.guards
    output = next(node for node in program.graph.nodes if node.op == "output")
    assert isinstance(output.args[0][0].meta["val"].shape[0], torch.SymInt)
    x = torch.randn(5, 8)
    placeholders = {"weight": layer.weight, "bias": layer.bias, "x": x}
    (found,) = program.module(*(placeholders[argument.name] for argument in program.arguments))
    torch.testing.assert_close(found, step(x))


FEW = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["LlamaConfig", "MixtralConfig"])
@pytest.mark.parametrize("requests", [1, 2, 3])
def test_few_requests_stay_symbolic(tmp_path: Path, kind: str, requests: int) -> None:
    """Every input of a step has the rows that it is bound to, also where an engine serves one request or two at a time."""
    folder = tmp_path
    configured(kind, FEW, folder)
    config = engine_config(str(folder), dtype="float32", max_model_len=64, max_num_seqs=requests)
    options = StepOptions.of(config)
    program = run(step_passes(options), capture_step(config, build_model(config, weights=False)))
    inputs = (*MODEL, *PAGED, *PROCESSING, *DRAW, *LOGPROBS)
    for bucket in make_plan(options.limits, Costs()).buckets:
        signature = emit(program, {"num_blocks": 8, **dict(bucket.sizes)}).signature
        shapes = {argument.name: argument.shape for argument in signature.arguments}
        for entry in inputs:
            if entry.shape[:1] == ("requests",):
                assert shapes[entry.name][0] == bucket["requests"], (entry.name, bucket)


def test_a_parameter_that_the_files_bring_is_part_of_the_program(folder: Path) -> None:
    """vLLM's Transformers backend registers a head's bias where it meets one in the files; config.json says nothing of it."""
    config = engine_config(str(folder), dtype="float32", max_model_len=64, max_num_seqs=2)
    loaded = build_model(config, weights=True)
    loaded.lm_head.register_parameter("bias", torch.nn.Parameter(torch.ones(100), requires_grad=False))
    model = build_model(config, weights=False, like=loaded)
    assert [name for name, _ in model.named_parameters() if name.endswith("lm_head.bias")] == ["lm_head.bias"]
    assert model.lm_head.bias.is_meta
    assert "lm_head.bias" in {argument.name for argument in capture_step(config, model).arguments}


def test_a_parameter_that_python_holds_elsewhere_is_an_argument() -> None:
    """A router is given its bias, a backend its sinks; a module's attribute is not all that may hold a parameter."""

    class Routed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(torch.randn(8, device="meta"))
            self.register_buffer("scale", torch.randn(8))
            held = [self.bias, self.scale]
            self.route = lambda x: torch.cat([x + held[0], held[1].expand(x.shape)], -1)

    module = Routed()
    inputs = (Input("x", ("tokens", 8), torch.float32),)
    program = capture_callable(module.route, module, inputs, {"tokens": (1, 128)})
    x, bias = torch.randn(5, 8), torch.randn(8)
    given = {"bias": bias, "scale": module.scale, "x": x}
    (found,) = program.module(*(given[argument.name] for argument in program.arguments))
    torch.testing.assert_close(found, torch.cat([x + bias, module.scale.expand(5, 8)], -1))
    assert not [node for node in program.graph.nodes if node.op == "get_attr"]


def test_a_dense_model_leaves_a_group_of_experts_behind(folder: Path) -> None:
    """vLLM makes it for a process's first model alone, if that one has experts."""
    from vllm.distributed.parallel_state import get_ep_group

    build_model(engine_config(str(folder), dtype="float32", max_model_len=64, max_num_seqs=2), weights=False)
    assert get_ep_group().world_size == 1


def test_a_backend_that_a_model_chooses_is_ours(tmp_path: Path) -> None:
    """vLLM's class of MiMo takes a backend of its own where values are narrower than keys, which answers zeros here."""
    one = ARCHITECTURES["MiMoV2FlashForCausalLM"]
    configured(one.config, {**one.sizes, "architectures": [one.name]}, tmp_path)
    config = engine_config(str(tmp_path), dtype="float32", max_model_len=64)
    program = capture_step(config, build_model(config, weights=False))
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert calls.count(torch.ops.fxhlo.attention.default) == 2
