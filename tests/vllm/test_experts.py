"""Mixtures of experts: every kind of router captured and run in eager torch beside transformers, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.fused_moe import FusedMoEFactory
from vllm.model_executor.layers.fused_moe.router.router_factory import create_fused_moe_router

from fxhlo.kernels.catalog import register_torch_ops
from fxhlo.passes.fx.canonicalize import Canonicalize
from fxhlo.passes.fx.expand import Expand
from fxhlo.passes.fx.select_rows import SelectRows
from fxhlo.passes.pipeline import run, verify
from fxhlo.passes.program import Program
from fxhlo.runtime.core.errors import FxhloError, UnsupportedError
from fxhlo.runtime.vllm.checkpoint_names import CheckpointNames
from fxhlo.runtime.vllm.compat import engine_config, start_one_process
from fxhlo.runtime.vllm.folder import ModelError, check_experts
from fxhlo.runtime.vllm.layers.catalog import replaced
from fxhlo.runtime.vllm.model import build_model
from fxhlo.runtime.vllm.steps.capture import capture_step
from fxhlo.runtime.vllm.steps.passes import ir_ops

sys.path.insert(0, str(Path(__file__).parent))
from expert_models import MODELS

QUICK = (
    "softmax, a gated shared expert",
    "sigmoid, a correction bias, groups, scaling",
    "sigmoid, a correction bias",
    "sigmoid, a bias among the experts' tensors",
    "biases, swigluoai",
    "the weight on the input",
    "transformers' own",
)
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.conformance) for name in MODELS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each kind, with transformers' logits."""
    to = tmp_path_factory.mktemp("experts")
    script = Path(__file__).parent / "expert_models.py"
    done = subprocess.run([sys.executable, "-P", str(script), str(to)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return to


def captured(folder: Path) -> tuple[torch.nn.Module, Program]:
    """The loaded model, and the step as a start captures it."""
    config = engine_config(str(folder), dtype="float32", max_model_len=32, max_num_seqs=4)
    config.load_config.load_format = "safetensors"
    model = build_model(config, weights=True)
    return model, capture_step(config, build_model(config, weights=False, like=model))


def results(program: Program, model: torch.nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    """Runs the program with the model's own tensors."""
    given = {**dict(model.named_parameters()), **dict(model.named_buffers()), **inputs}
    with torch.no_grad():
        return program.module(*(given[argument.name] for argument in program.arguments))[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_captured_mixture_computes_what_transformers_does(name: str, folders: Path) -> None:
    ids, expected = torch.load(folders / name / "logits.pt")
    model, program = captured(folders / name)
    experts = [node for node in program.graph.nodes if node.target is torch.ops.fxhlo.moe.default]
    assert len(experts) == model.config.num_hidden_layers
    inputs = {"input_ids": ids.int(), "positions": torch.arange(len(ids), dtype=torch.int32)}
    every = torch.arange(len(ids), dtype=torch.int32)
    torch.testing.assert_close(
        results(program, model, **inputs, logit_rows=every), expected, atol=1e-4, rtol=1e-4, check_dtype=False
    )
    moved = run([Canonicalize(), Expand(ir_ops()), SelectRows()], program, [verify])
    rows = torch.tensor([11, 3], dtype=torch.int32)
    found = results(moved, model, **inputs, logit_rows=rows)
    torch.testing.assert_close(found, expected[rows.long()], atol=1e-4, rtol=1e-4)
    if not name.startswith("transformers'"):  # there rows are the second dimension
        (requests,) = next(node for node in moved.placeholders if node.name == moved_name(moved)).meta["val"].shape
        last = [node for node in moved.graph.nodes if node.target is torch.ops.fxhlo.moe.default][-1]
        assert last.meta["val"].shape[0] == requests


def moved_name(program: Program) -> str:
    """The name of the node of `logit_rows`."""
    names = [argument.name for argument in program.arguments]
    return str(program.placeholders[names.index("logit_rows")].name)


# -- routers that no model above has -----------------------------------------------------------------------------------


@pytest.fixture
def vllm_config() -> Any:
    register_torch_ops()
    config = VllmConfig()
    start_one_process(config)
    with set_current_vllm_config(config), torch.no_grad():
        yield config


@pytest.mark.parametrize("hashed", [False, True])
def test_sqrtsoftplus_routes_as_transformers_does(hashed: bool, vllm_config: VllmConfig) -> None:
    """DeepSeek V4's routing, by the best scores or by a table of token ids."""
    from transformers import DeepseekV4Config
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as modeling

    sizes = {
        "hidden_size": 16,
        "num_local_experts": 32,
        "n_routed_experts": 32,
        "num_experts_per_tok": 6,
        "vocab_size": 50,
    }
    config = DeepseekV4Config(**sizes, scoring_func="sqrtsoftplus", routed_scaling_factor=2.5)
    theirs = (modeling.DeepseekV4HashRouter if hashed else modeling.DeepseekV4TopKRouter)(config)
    torch.manual_seed(0)
    hidden, ids = torch.randn(7, 16), torch.randint(0, 50, (7,), dtype=torch.int32)
    theirs.weight.normal_(0, 2)
    kinds: dict[str, Any] = {"hash_indices_table": None, "e_score_correction_bias": None}
    if hashed:
        theirs.tid2eid.copy_(torch.stack([torch.randperm(32)[:6] for _ in range(50)]))
        kinds["hash_indices_table"] = theirs.tid2eid.int()
        logits, *expected = theirs(hidden, ids)
    else:
        kinds["e_score_correction_bias"] = theirs.e_score_correction_bias.normal_()
        logits, *expected = theirs(hidden)
    with replaced():
        router = create_fused_moe_router(
            top_k=6,
            global_num_experts=32,
            renormalize=True,
            scoring_func="sqrtsoftplus",
            routed_scaling_factor=2.5,
            **kinds,
        )
        found = router.select_experts(hidden_states=hidden, router_logits=logits, input_ids=ids)
    assert same_choice(found, tuple(expected))


def same_choice(one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]) -> bool:
    """Whether two routers chose the same experts with the same weights, in any order."""
    dense = [torch.zeros(len(ids), 32).scatter(1, ids.long(), weights) for weights, ids in (one, other)]
    return torch.allclose(*dense, atol=1e-5)


def test_zero_experts_give_rows_back(vllm_config: VllmConfig) -> None:
    """LongCat's, beside transformers' module."""
    from transformers import LongcatFlashConfig
    from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashMoE

    sizes = {"hidden_size": 16, "expert_ffn_hidden_size": 24, "n_routed_experts": 4, "zero_expert_num": 3}
    config = LongcatFlashConfig(**sizes, moe_topk=3, routed_scaling_factor=2.0)
    theirs = LongcatFlashMoE(config).eval()
    torch.manual_seed(0)
    for tensor in [*theirs.parameters(), *theirs.buffers()]:
        tensor.normal_(0, 0.3)
    with replaced():
        ours = FusedMoEFactory(
            num_experts=4,
            top_k=3,
            hidden_size=16,
            intermediate_size=24,
            params_dtype=torch.float32,
            renormalize=False,
            zero_expert_type="identity",
            e_score_correction_bias=theirs.router.e_score_correction_bias,
            routed_scaling_factor=2.0,
            router_logits_dtype=torch.float32,
            prefix="layer.experts",
        )
        stacked = dict(theirs.experts.named_parameters())
        ours.routed_experts.w13_weight.copy_(stacked["gate_up_proj"][:4])
        ours.routed_experts.w2_weight.copy_(stacked["down_proj"][:4])
        hidden = torch.randn(9, 16)
        logits = theirs.router.classifier(hidden)
        result = forward(ours, hidden, logits, vllm_config)
    torch.testing.assert_close(result, theirs(hidden[None])[0], atol=1e-5, rtol=1e-5)


def forward(layer: torch.nn.Module, hidden: torch.Tensor, logits: torch.Tensor, config: VllmConfig) -> torch.Tensor:
    from fxhlo.runtime.vllm import compat

    context = compat.ForwardContext(no_compile_layers=compat.layers_of(config), attn_metadata=None, slot_mapping={})
    with compat.override_forward_context(context):
        return layer(hidden, logits)


# -- what is refused ---------------------------------------------------------------------------------------------------


def mixture(**options: Any) -> Any:
    sizes = {"num_experts": 4, "top_k": 2, "hidden_size": 16, "intermediate_size": 24, "params_dtype": torch.float32}
    return FusedMoEFactory(**{**sizes, "prefix": "layer.experts", **options})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"enable_eplb": True}, "expert parallel load balancing"),
        ({"activation": "gelu", "swiglu_limit": 7.0}, "experts with the activation gelu and a limit of 7.0"),
    ],
)
def test_a_layer_that_is_refused(options: dict[str, Any], named: str, vllm_config: VllmConfig) -> None:
    with replaced(), pytest.raises(UnsupportedError, match=f"layer.experts: fxhlo does not support {named}"):
        mixture(**options)


@pytest.mark.parametrize("top", [0, 5])
def test_more_experts_than_there_are(top: int, vllm_config: VllmConfig) -> None:
    with replaced(), pytest.raises(ModelError, match=f"a row cannot choose {top} of 4 experts") as caught:
        mixture(top_k=top)
    assert caught.value.where == "layer.experts"


@pytest.mark.parametrize(
    ("groups", "chosen", "what"),
    [(3, 1, "4 experts do not make 3 groups"), (2, 3, "cannot choose 3 of 2 groups"), (2, 0, "cannot choose 0 of 2")],
)
def test_groups_that_the_experts_do_not_make(groups: int, chosen: int, what: str, vllm_config: VllmConfig) -> None:
    """vLLM routes without groups where they do not divide the experts."""
    grouped = {"use_grouped_topk": True, "num_expert_group": groups, "topk_group": chosen}
    with replaced(), pytest.raises(ModelError, match=what):
        mixture(**grouped)


def test_simulated_routing_is_refused(vllm_config: VllmConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MOE_ROUTING_SIMULATION_STRATEGY", "uniform_random")
    with replaced(), pytest.raises(UnsupportedError, match="VLLM_MOE_ROUTING_SIMULATION_STRATEGY"):
        mixture()


def changed(folder: Path, to: Path, weights: dict[str, torch.Tensor], **config: Any) -> Path:
    to.mkdir()
    settings = json.loads((folder / "config.json").read_text()) | config
    (to / "config.json").write_text(json.dumps(settings))
    save_file(weights, to / "model.safetensors")
    return to


def served(folder: Path) -> VllmConfig:
    """The config that an engine makes before it starts."""
    return EngineArgs(
        model=str(folder), skip_tokenizer_init=True, dtype="float32", max_model_len=32
    ).create_engine_config()


@pytest.mark.parametrize("count", [3, 8])
def test_a_number_of_experts_that_the_weights_do_not_have(count: int, folders: Path, tmp_path: Path) -> None:
    folder = folders / "softmax, renormalized"
    wrong = changed(folder, tmp_path / "wrong", load_file(folder / "model.safetensors"), num_local_experts=count)
    with pytest.raises(
        FxhloError, match=rf"config.json has {count} experts, the weight files 4 \(model.layers.0"
    ) as caught:
        served(wrong)
    assert "number of experts in config.json" in str(caught.value)
    assert served(folder).model_config.is_moe


@pytest.mark.parametrize("size", [20, 64])
def test_experts_of_another_size_than_the_config_says(size: int, folders: Path, tmp_path: Path) -> None:
    """vLLM loads smaller ones into a part of their place."""
    folder = folders / "softmax, a gated shared expert"
    wrong = changed(folder, tmp_path / "wrong", load_file(folder / "model.safetensors"), moe_intermediate_size=size)
    with pytest.raises(
        ModelError, match=rf"experts\.0\.\w+_proj\.weight of shape \[.*24.*\] has another shape .*{size}"
    ):
        build_model(served(wrong), weights=True)


def test_each_tensor_of_an_expert_that_is_missing_is_named(folders: Path, tmp_path: Path) -> None:
    folder = folders / "softmax, renormalized"
    weights = load_file(folder / "model.safetensors")
    ours = [name for name in weights if ".experts.2." in name]
    assert len(ours) == 3
    for index, missing in enumerate(ours):
        left = {name: tensor for name, tensor in weights.items() if name != missing}
        with pytest.raises(ModelError, match=f"the weight files lack 1 tensor of this model: {missing}"):
            build_model(served(changed(folder, tmp_path / str(index), left)), weights=True)


def test_weights_of_zero_experts_are_not_read(tmp_path: Path) -> None:
    """transformers stores some for LongCat's, which give their input back."""
    names = [f"model.layers.0.mlp.experts.{number}.gate_proj.weight" for number in range(6)]
    save_file({name: torch.zeros(2, 2) for name in names}, tmp_path / "model.safetensors")
    check_experts(tmp_path, 4, zero=2)
    with pytest.raises(ModelError, match=r"config\.json has 4 experts, the weight files 6"):
        check_experts(tmp_path, 4)
    known = CheckpointNames(torch.nn.Module(), "longcat_flash", experts=4)
    assert [known.is_unused(name) for name in names] == [False] * 4 + [True] * 2
    assert not CheckpointNames(torch.nn.Module(), "mixtral").is_unused(names[-1])


def test_experts_of_one_projection(vllm_config: VllmConfig) -> None:
    """Nemotron-H's; vLLM's config of a mixture refuses them on platforms that it does not know."""
    torch.manual_seed(0)
    with replaced():
        layer = mixture(activation="relu2_no_mul", ckpt_names=("up_proj", "down_proj", None), top_k=1, renormalize=True)
        w13, w2 = layer.routed_experts.w13_weight.normal_(), layer.routed_experts.w2_weight.normal_()
        hidden, logits = torch.randn(5, 16), torch.randn(5, 4)
        found = forward(layer, hidden, logits, vllm_config)
    chosen = logits.argmax(-1)
    inner = torch.einsum("th,tih->ti", hidden, w13[chosen]).relu().square()
    torch.testing.assert_close(found, torch.einsum("ti,thi->th", inner, w2[chosen]), rtol=1e-4, atol=1e-4)


def test_vllms_own_backends_are_refused(folders: Path) -> None:
    with pytest.raises(UnsupportedError, match="a backend of vLLM's for mixtures of experts") as caught:
        EngineArgs(
            model=str(folders / "softmax, renormalized"), skip_tokenizer_init=True, moe_backend="triton"
        ).create_engine_config()
    assert "--moe-backend" in str(caught.value)
