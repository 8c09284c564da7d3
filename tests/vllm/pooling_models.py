"""Small pooling models with random weights, as folders, and what transformers makes of some prompts.

`python pooling_models.py FOLDER [NAME...]` writes each model, or those named, and reference.json beside it: for each prompt what the model
returns, hidden states [T, H], logits [labels] or logits [T, labels]; documents.json and pairs.json the same of DOCUMENTS, alone and behind QUERY.
In a process of its own, without vLLM, which replaces methods of transformers' classes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LENGTHS = (1, 2, 17, 60, 200)
SIZES = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
DECODER = {**SIZES, "num_key_value_heads": 2}
QWEN3 = {**DECODER, "head_dim": 16}
MODERNBERT = {**SIZES, "num_hidden_layers": 4, "local_attention": 16, "cls_token_id": 1, "sep_token_id": 2}
GEMMA3 = {**QWEN3, "num_hidden_layers": 6, "sliding_window": 16, "query_pre_attn_scalar": 16}


@dataclass(frozen=True)
class Model:
    """config and sizes: of transformers. kind: of its class. written: in config.json besides, for vLLM. head: layers [in, out] behind the
    hidden states, by name in the files, which transformers' class lacks. bidirectional: called with a mask that hides nothing."""

    config: str
    sizes: dict[str, Any]
    kind: str
    written: dict[str, Any] = field(default_factory=dict)
    prefix: str = ""
    head: dict[str, tuple[int, int]] = field(default_factory=dict)
    bidirectional: bool = False


def labels(sizes: dict[str, Any], count: int) -> dict[str, Any]:
    return {**sizes, "num_labels": count}


MODELS = {
    "bert": Model("BertConfig", SIZES, "BertModel"),
    "bert_classifier": Model("BertConfig", labels(SIZES, 3), "BertForSequenceClassification"),
    "bert_tokens": Model("BertConfig", labels(SIZES, 3), "BertForTokenClassification"),
    "roberta": Model("RobertaConfig", SIZES, "RobertaModel"),
    "roberta_classifier": Model("RobertaConfig", labels(SIZES, 3), "RobertaForSequenceClassification"),
    "xlm_roberta": Model("XLMRobertaConfig", SIZES, "XLMRobertaModel"),
    "xlm_roberta_reranker": Model("XLMRobertaConfig", labels(SIZES, 1), "XLMRobertaForSequenceClassification"),
    "xlm_roberta_tokens": Model("XLMRobertaConfig", labels(SIZES, 3), "XLMRobertaForTokenClassification"),
    "modernbert": Model("ModernBertConfig", MODERNBERT, "ModernBertModel"),
    "modernbert_classifier": Model("ModernBertConfig", labels(MODERNBERT, 2), "ModernBertForSequenceClassification"),
    "modernbert_tokens": Model("ModernBertConfig", labels(MODERNBERT, 3), "ModernBertForTokenClassification"),
    "nomic_bert": Model("NomicBertConfig", SIZES, "NomicBertModel"),
    "gte": Model("GteConfig", SIZES, "GteModel"),
    "eurobert": Model("EuroBertConfig", {**DECODER, "mask_token_id": 3}, "EuroBertModel"),
    "colbert": Model(
        "BertConfig", SIZES, "BertModel", {"architectures": ["HF_ColBERT"]}, prefix="bert.", head={"linear": (64, 32)}
    ),
    "qwen2": Model("Qwen2Config", DECODER, "Qwen2Model"),
    "qwen3": Model("Qwen3Config", QWEN3, "Qwen3Model"),
    "llama": Model("LlamaConfig", DECODER, "LlamaModel"),
    "mistral": Model("MistralConfig", {**DECODER, "sliding_window": 16}, "MistralModel"),
    "gemma3": Model("Gemma3TextConfig", {**GEMMA3, "use_bidirectional_attention": True}, "Gemma3TextModel"),
    "llama_bidirectional": Model(
        "LlamaConfig", DECODER, "LlamaModel", {"architectures": ["LlamaBidirectionalModel"], "pooling": "avg"}, bidirectional=True
    ),
    "qwen3_classifier": Model("Qwen3Config", labels(QWEN3, 3), "Qwen3ForSequenceClassification"),
    "llama_reward": Model("LlamaConfig", labels(DECODER, 1), "LlamaForSequenceClassification"),
    "qwen2_reward": Model(
        "Qwen2Config", labels(DECODER, 1), "Qwen2Model", {"architectures": ["Qwen2ForRewardModel"]}, prefix="model.",
        head={"score.0": (64, 64), "score.2": (64, 1)},
    ),
    "qwen3_generator": Model("Qwen3Config", QWEN3, "Qwen3ForCausalLM"),
    "gpt2_classifier": Model(
        "GPT2Config", {"vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0, "num_labels": 2}, "GPT2ForSequenceClassification",
    ),
}  # fmt: skip


QUERY = (5, 17, 40)
DOCUMENTS = ((9, 8, 7, 6, 5), (300,), tuple(range(10, 60)))


def prompt(length: int) -> list[int]:
    """Tokens 3 to 319: none has a meaning."""
    return [3 + (7 * length + 31 * at + at * at) % 317 for at in range(length)]


def tokenizer() -> Any:
    """Words w3 to w319 are the tokens of these numbers; a pair of texts has its types, as BERT's."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    special = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2}
    made = Tokenizer(
        WordLevel({**special, **{f"w{token}": token for token in range(3, SIZES["vocab_size"])}}, unk_token="[PAD]")
    )
    made.pre_tokenizer = WhitespaceSplit()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def text(tokens: Sequence[int]) -> str:
    """What the tokenizer makes these tokens of."""
    return " ".join(f"w{token}" for token in tokens)


def write(model: Model, folder: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, model.config)(**model.sizes, architectures=[model.kind])
    made = getattr(transformers, model.kind)(config).eval().float()
    for name, parameter in made.named_parameters():
        if parameter.ndim > 1 or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.15)
    made.save_pretrained(folder)
    head = {name: torch.nn.Linear(*sizes) for name, sizes in model.head.items()}
    if model.prefix:
        _rewrite(model, head, folder / "model.safetensors")
    written = json.loads((folder / "config.json").read_text()) | model.written
    (folder / "config.json").write_text(json.dumps(written))

    def returned(tokens: Sequence[int], **given: torch.Tensor) -> dict[str, Any]:
        if model.bidirectional:
            given["attention_mask"] = torch.zeros(1, 1, len(tokens), len(tokens))
        with torch.no_grad():
            return _returned(made(torch.tensor([tokens]), **given), head)

    def pair(one: Sequence[int], other: Sequence[int]) -> dict[str, Any]:
        """Told of the two texts, as a tokenizer that gives types has vLLM tell its encoders."""
        tokens, first = [1, *one, 2, *other, 2], len(one) + 2
        types = torch.tensor([[0] * first + [1] * (len(tokens) - first)])
        return returned(tokens, **({"token_type_ids": types} if getattr(config, "type_vocab_size", 0) > 1 else {}))

    documents = [returned([1, *tokens, 2]) for tokens in DOCUMENTS]
    pairs = [pair(QUERY, tokens) for tokens in DOCUMENTS]
    (folder / "documents.json").write_text(json.dumps(documents))
    (folder / "pairs.json").write_text(json.dumps(pairs))
    reference = []
    for length in LENGTHS:
        reference.append(returned(prompt(length)))
        if model.kind == "BertForSequenceClassification":
            types = (torch.arange(length) >= length // 3).long()[None]
            reference[-1]["logits of two texts"] = returned(prompt(length), token_type_ids=types)["logits"]
    (folder / "reference.json").write_text(json.dumps(reference))
    tokenizer().save_pretrained(folder)


def _rewrite(model: Model, head: dict[str, torch.nn.Linear], file: Path) -> None:
    """The weights under the names that vLLM's class reads, with the head's."""
    from safetensors.torch import load_file, save_file

    tensors = {f"{model.prefix}{name}": tensor for name, tensor in load_file(file).items()}
    for name, layer in head.items():
        tensors[f"{name}.weight"] = layer.weight.detach()
        if len(head) > 1:
            tensors[f"{name}.bias"] = layer.bias.detach()
    save_file(tensors, file, metadata={"format": "pt"})


def _returned(outputs: Any, head: dict[str, torch.nn.Linear]) -> dict[str, Any]:
    if "logits" in outputs and outputs.logits.shape[-1] == SIZES["vocab_size"]:
        return {"vocabulary": outputs.logits[0, -1].tolist()}
    if "logits" in outputs:
        return {"logits": outputs.logits[0].tolist()}
    hidden = outputs.last_hidden_state[0]
    if len(head) == 1:  # a projection without a bias
        return {"hidden": (hidden @ next(iter(head.values())).weight.T).tolist()}
    for number, layer in enumerate(head.values()):
        hidden = layer(hidden.relu() if number else hidden)
    return {"logits" if head else "hidden": hidden.tolist()}


if __name__ == "__main__":
    for name in sys.argv[2:] or MODELS:
        write(MODELS[name], Path(sys.argv[1]) / name)
