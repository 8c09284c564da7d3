"""What a step's capture must leave symbolic, whatever a model's Python does with [1, tokens, features]."""

from __future__ import annotations

import torch

from fxhlo.lowering.capture import Input, capture_callable


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
