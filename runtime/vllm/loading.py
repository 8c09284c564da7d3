"""Loads a checkpoint into vLLM's model and checks that every element was loaded.

Comes in: vLLM's config of a model with weights. Goes out: the model that vLLM's own loader makes. Guaranteed: each element of
each parameter was written from the checkpoint, each tensor of the checkpoint that was read was read completely, and a head that
the checkpoint stores beside tied embeddings computes the logits. Else ModelError names the tensors. vLLM does not check this: it
counts parameters by name, without those of linear layers.

A TorchDispatchMode records reads and writes, so the `load_weights` of every model is covered. The cost does not grow with
the weights' size, except for views that are not dense.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from . import compat
from .checkpoint_names import CheckpointNames
from .folder import EXPERT, ModelError
from .layers import experts
from .output_head import HEAD, only_embedding, own_head, settle_tie, use_head
from .streaming import Stream
from .touched import Touched, Watching, outline, storage_of

LISTED = 8
"""Maximum number of names that an error lists; it counts the rest."""


def load_model(
    vllm_config: compat.VllmConfig, unread: Callable[[], Collection[str]] = tuple, stream: Stream | None = None
) -> nn.Module:
    """Returns the model with its weights, in eval mode. Raises ModelError, or what vLLM raises.

    unread: names of parameters that no step reads, which files may lack; called where some are missing. With load_format=dummy, vLLM's
    random weights are not checked. stream: entered; takes the parameters as they are loaded.
    """
    loader = compat.get_model_loader(vllm_config.load_config)
    if vllm_config.load_config.load_format != "dummy":
        _count(loader, vllm_config, unread)
    if stream is not None:
        _stream(loader, stream)
    _settle_tie(loader)
    with compat.no_quantization():
        return loader.load_model(vllm_config=vllm_config, model_config=vllm_config.model_config)


def _settle_tie(loader: Any) -> None:
    """Wraps `load_weights` of this one loader, so that a head is tied or not by then."""
    load_weights = loader.load_weights

    def settled(model: nn.Module, model_config: Any) -> None:
        settle_tie(model, model_config.hf_text_config)
        load_weights(model, model_config)

    loader.load_weights = settled


def _stream(loader: Any, stream: Stream) -> None:
    """Wraps `load_weights` of this one loader, so that `stream` knows the parameters before they are loaded."""
    load_weights = loader.load_weights

    def watched(model: nn.Module, model_config: object) -> None:
        stream.watch(model)
        load_weights(model, model_config)

    loader.load_weights = watched


# -- counting ----------------------------------------------------------------------------------------------------------


def _count(loader: Any, vllm_config: compat.VllmConfig, unread: Callable[[], Collection[str]]) -> None:
    """Wraps `load_weights` and the stream of tensors of this one loader, so that they record and check what they load."""
    load_weights, folder = loader.load_weights, vllm_config.model_config.model
    loader.enable_weights_track = False  # vLLM's own check goes by name alone and raises another error

    def counted(model: nn.Module, model_config: object) -> None:
        config = vllm_config.model_config.hf_text_config
        real = config.n_routed_experts if getattr(config, "zero_expert_num", 0) else None
        seen = Checkpoint(model, folder, CheckpointNames(model, config.model_type, real))
        if hasattr(loader, "get_all_weights"):
            loader.get_all_weights = seen.stream(loader.get_all_weights)
        with experts.under_former_names(model), seen:
            load_weights(model, model_config)
        seen.check(unread)

    loader.load_weights = counted


class Checkpoint(Watching):
    """Records how a checkpoint's tensors are loaded into a model: with Checkpoint(model, folder) as seen: load; seen.check()."""

    def __init__(self, model: nn.Module, folder: str, names: CheckpointNames | None = None) -> None:
        super().__init__()
        self.model, self.folder = model, folder
        self._own_name = names.of if names else str
        self._is_unused = names.is_unused if names else lambda name: False
        self.names: dict[str, torch.Tensor] = {}
        """Every tensor of the checkpoint by name, as a meta tensor."""
        self._written = {storage_of(parameter): Touched() for parameter in model.parameters()}
        self._read: dict[int, Touched] = {}
        self._sources: list[tuple[str, int, torch.Tensor]] = []
        self._kept: dict[str, torch.Tensor] = {}
        self._alive: list[StorageWeakRef] = []  # keep storages' ids from being reused
        self._head: tuple[str, torch.Tensor] | None = None
        every = dict(model.named_parameters(remove_duplicate=False))
        self._tied = {name: every[name] for name in every.keys() - dict(model.named_parameters()).keys()}
        self._last: str | None = None

    # -- while it is loaded --------------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Collection[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        for argument, value in zip(func._schema.arguments, args, strict=False):
            self._touch(argument.alias_info, value)
        for argument in func._schema.arguments:
            if argument.name in kwargs:
                self._touch(argument.alias_info, kwargs[argument.name])
        return result

    def _touch(self, alias: Any, value: object) -> None:
        if isinstance(value, (list, tuple)):
            for one in value:
                self._touch(alias, one)
            return
        if not isinstance(value, torch.Tensor) or (alias is not None and not alias.is_write):
            return  # the op only makes a view
        table = self._read if alias is None else self._written
        touched = table.get(storage_of(value)) if table else None
        if touched is not None:
            touched.add(value)

    def stream(
        self, original: Callable[..., Iterable[tuple[str, torch.Tensor]]]
    ) -> Callable[..., Iterator[tuple[str, torch.Tensor]]]:
        """Wraps the loader's stream of (name, tensor): records each, and holds back a head for which the model's class has no parameter."""

        def tensors(*args: object, **kwargs: object) -> Iterator[tuple[str, torch.Tensor]]:
            for stored, tensor in original(*args, **kwargs):
                if self._is_unused(stored) or not tensor.numel():  # transformers stores the layers of 0 shared experts
                    continue
                self._last = name = self._own_name(stored)
                self.names[name] = outline(tensor)
                if name == f"{HEAD}.weight" and self._has_no_head():
                    self._head = (name, tensor)
                    continue
                if name in self._tied or name.endswith(".bias"):
                    self._kept[name] = tensor  # checked later if nobody reads it
                key = storage_of(tensor)
                if key not in self._read:
                    self._read[key] = Touched()
                    self._alive.append(StorageWeakRef(tensor.untyped_storage()))
                self._sources.append((name, key, self.names[name]))
                yield name, tensor
            self._last = None

        return tensors

    def _has_no_head(self) -> bool:
        return only_embedding(self.model) is not None and getattr(self.model, HEAD, None) is None

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, problem, traceback)
        if isinstance(problem, (AssertionError, ValueError, RuntimeError)) and self._last is not None:
            mismatch = self._mismatch(self._last)
            if mismatch is None and isinstance(problem, AssertionError):
                mismatch = self._unfit(self._last, "does not fit into this model")
            if mismatch is not None:
                raise mismatch from problem

    # -- afterwards ----------------------------------------------------------------------------------------------------

    def check(self, unread: Callable[[], Collection[str]] = tuple) -> None:
        """Decides which head is used. Raises ModelError with every tensor that is missing, was read in part, or contradicts another.

        unread: names of parameters that may be missing; called where some are.
        """
        if self._head is not None:
            self._settle_head(*self._head)
        lacking = {name: found for name, one in self.model.named_parameters() if (found := self._lacking(name, one))}
        optional = unread() if lacking else ()
        missing = [part for name, found in lacking.items() if name not in optional for part in found]
        left = [name for name in missing if self._has(name)]
        if left:
            raise ModelError(
                f"vLLM's {type(self.model).__name__} does not load {_count_of(left, 'tensor')} that the weight files have: {_listed(left)}",
                where=self.folder,
                next_step="choose another implementation of the model with --model-impl",
            )
        if missing:
            raise ModelError(
                f"the weight files lack {_count_of(missing, 'tensor')} of this model: {_listed(missing)}",
                where=self.folder,
                next_step="check that all weight files of the model are there, and that config.json belongs to them",
            )
        self._check_sources()

    def _lacking(self, name: str, parameter: nn.Parameter) -> list[str]:
        """Names of the checkpoint's tensors that would have filled the missing elements of this parameter."""
        touched = self._written.get(storage_of(parameter))
        if touched is None:
            return []  # the model's loader made it an alias of another tensor
        missing = touched.missing(parameter)
        if missing is None:
            return []
        every = self._parts(name, missing)
        parts = [part for part in every if not self._has(part)]
        if parts:
            return parts
        for part in every:
            if part in self.names and (mismatch := self._mismatch(part)) is not None:
                raise mismatch  # vLLM loads an expert that is too small into a part of its place
        rows = missing.flatten(1).any(1) if missing.ndim > 1 else missing
        if rows.all():
            return [name]
        places = rows.nonzero().flatten().tolist()
        return [f"{name} (rows {places[0]} to {places[-1]} of {len(rows)})"]

    def _parts(self, name: str, missing: torch.Tensor) -> list[str]:
        """Names of the checkpoint's tensors that make up a fused parameter; of experts' weights, those of the missing elements."""
        path, _, last = name.rpartition(".")
        singly = any((match := EXPERT.match(one)) and match.group(2) for one in self.names)
        found = experts.tensors_of(self.model.get_submodule(path), last, missing) if singly else []
        return found or _parts(self.model, name)

    def _has(self, name: str) -> bool:
        """Whether the checkpoint has this tensor, under the same prefix, another one, or none."""
        tails = _tails(name) | _tails(name.replace(".routed_experts.", "."))  # a level that only vLLM has
        return any(_tails(one) & tails for one in self.names)

    def _check_sources(self) -> None:
        read = set()
        for name, key, source in self._sources:
            touched = self._read[key]
            missing = touched.missing(source)
            if missing is None:
                read.add(name)
            elif not bool(missing.all()):
                used = source.numel() - int(missing.sum())
                raise self._mismatch(name) or self._unfit(
                    name, f"fits into this model in part: {used:,} elements of it"
                )
        # vLLM makes a parameter of a classifier's bias as it is
        taken = {storage_of(parameter) for parameter in self.model.parameters()}
        for name, tensor in self._kept.items():
            if name not in read and storage_of(tensor) not in taken:
                self._check_unread(name, tensor, read)

    def _check_unread(self, name: str, tensor: torch.Tensor, read: set[str]) -> None:
        """Raises ModelError for an unread tied weight that differs from its partner, and an unread nonzero bias of a used weight."""
        if name in self._tied:
            mine = self._tied[name][: len(tensor)]
            if mine.shape != tensor.shape or not torch.equal(mine, tensor.to(mine.dtype)):
                raise self._other_head(name)
        elif f"{name.removesuffix('.bias')}.weight" in read and bool(tensor.any()):
            raise ModelError(
                f"the weight files have {name}, which this model has no place for",
                where=self.folder,
                next_step="check `architectures` and the options for biases (such as attention_bias, mlp_bias) in config.json",
            )

    def _other_head(self, name: str) -> ModelError:
        """For a tied weight that the files have another one of: by config.json, or by vLLM's class, whatever that says (Zamba 2)."""
        config = Path(self.folder) / "config.json"
        stored = json.loads(config.read_bytes()) if config.is_file() else {}
        apart = isinstance(stored, dict) and stored.get("tie_word_embeddings") is False
        who = f"vLLM's {type(self.model).__name__}, whatever config.json says," if apart else "config.json"
        remedy = "" if apart else 'set "tie_word_embeddings": false in config.json to use it, or '
        return ModelError(
            f"{who} ties {name} to the embedding, and the weight files have another {name}",
            where=self.folder,
            next_step=f"{remedy}remove it from the files",
        )

    def _settle_head(self, name: str, tensor: torch.Tensor) -> None:
        """Adds a head of its own to a model that computes logits by the embedding, if the checkpoint's head differs from that."""
        embedding = only_embedding(self.model)
        assert embedding is not None
        expected = (embedding.org_vocab_size, embedding.embedding_dim)
        if tuple(tensor.shape) != expected:
            raise self._wrong_shape(name, expected)
        weight = embedding.weight
        if torch.equal(weight[: len(tensor)], tensor.to(weight.dtype)):
            return
        head = own_head(embedding)
        head.weight_loader(head.weight, tensor)
        self._written[storage_of(head.weight)] = whole = Touched()
        whole.add(head.weight)
        use_head(self.model, head, embedding)

    def _mismatch(self, name: str) -> ModelError | None:
        """The error for a tensor whose shape is not its parameter's; None where they agree or are unknown."""
        expected = _expected_shape(self.model, name) or experts.expected_shape(self.model, name)
        if expected is None or expected == tuple(self.names[name].shape):
            return None
        return self._wrong_shape(name, expected)

    def _wrong_shape(self, name: str, expected: tuple[int, ...]) -> ModelError:
        return self._unfit(name, f"has another shape than config.json asks for, which is {list(expected)}")

    def _unfit(self, name: str, how: str) -> ModelError:
        return ModelError(
            f"the tensor {name} of shape {list(self.names[name].shape)} {how}",
            where=self.folder,
            next_step="check that config.json belongs to these weights: vocab_size, hidden_size, the numbers of heads and the like",
        )


# -- vLLM's layers --------------------------------------------------------------------------------------


def _stacked(model: nn.Module) -> dict[str, list[str]]:
    """Maps each fused layer to the checkpoint's layers in it, as the model's classes declare."""
    table: dict[str, list[str]] = {}
    for module in model.modules():
        for fused, parts in (getattr(module, "packed_modules_mapping", None) or {}).items():
            table.setdefault(fused, parts)
    packed = set(table)
    for module in model.modules():
        mapper = getattr(module, "hf_to_vllm_mapper", None)
        for part, (fused, _) in getattr(mapper, "orig_to_new_stacked", {}).items():
            parts = table.setdefault(fused.strip("."), [])
            if fused.strip(".") not in packed and part.strip(".") not in parts:
                parts.append(part.strip("."))
    return table


def _parts(model: nn.Module, name: str) -> list[str]:
    """Names of the checkpoint's tensors that make up a fused parameter; [] for one that is not fused."""
    pieces = name.split(".")
    for fused, parts in _stacked(model).items():
        if fused in pieces and parts != [fused]:
            return [".".join(part if piece == fused else piece for piece in pieces) for part in parts]
    return []


def _expected_shape(model: nn.Module, name: str) -> tuple[int, ...] | None:
    """The shape that a checkpoint's tensor of this name must have; None where its parameter is not found by name."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    known = next((one for one in parameters if one == name or one.endswith(f".{name}")), None)
    if known is not None:
        module = model.get_submodule(known.rpartition(".")[0])
        shape = tuple(parameters[known].shape)
        if isinstance(module, compat.VocabParallelEmbedding):
            return (module.org_vocab_size, *shape[1:])
        return shape
    for fused, parts in _stacked(model).items():
        for index, part in enumerate(parts):
            path = name.replace(f".{part}.", f".{fused}.")
            if path != name and path in parameters:
                module = model.get_submodule(path.rpartition(".")[0])
                sizes = getattr(module, "output_partition_sizes", None)
                if sizes is not None and len(sizes) == len(parts):
                    return (sizes[index], *parameters[path].shape[1:])
    return None


def _tails(name: str) -> set[str]:
    """The name, with and without its first component."""
    tail = name.partition(".")[2]
    return {name, tail} if "." in tail else {name}


def _count_of(names: list[str], what: str) -> str:
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''}"


def _listed(names: list[str]) -> str:
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")
