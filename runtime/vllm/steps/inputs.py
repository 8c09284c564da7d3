"""StepInputs: the tables of passes/step_inputs.py with an engine's sizes, and the parts of the batch that fill them.

Comes in: for a step, arrays with a row per token or request. Goes out: arrays of a program's shapes, padded with neutral
values. Guaranteed: `check` compares names, shapes and dtypes with a program's signature before anything is served, and
`check_filled` that each input is filled by one part of the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ....passes.base import Pass
from ....passes.step_inputs import MODEL, TOKEN_TYPES, TOKENS, StepInput, mask_words
from ...core.errors import FxhloError
from ...core.signature import Signature
from .kinds import Bucket
from .options import StepOptions

NEXT_STEP = "report this as a bug of fxhlo, with the model's config.json"


class StepInputs:
    """The inputs of one engine's programs, besides weights and states.

    sizes: of the symbols that all programs share, such as the length of a block table.
    """

    def __init__(self, inputs: Iterable[StepInput], sizes: Mapping[str, int]) -> None:
        self.table = {one.name: one for one in inputs}
        self.sizes = sizes
        self._frames: dict[Bucket, Frame] = {}

    @classmethod
    def of(cls, options: StepOptions, passes: Iterable[Pass]) -> StepInputs:
        """Collects the model's inputs and those that each pass of the step adds."""
        sizes = {
            **options.page_sizes,
            "biases": options.bias,
            "seen": options.max_model_len,
            "mask_words": mask_words(options.vocab_size),
        }
        model = (*TOKENS, *TOKEN_TYPES) if options.pooling else MODEL
        return cls((*model, *(one for each in passes for one in each.inputs)), sizes)

    def taken_by(self, signatures: Iterable[Signature]) -> StepInputs:
        """The inputs that these programs take: a model may have no use for some."""
        taken = {argument.name for signature in signatures for argument in signature.inputs}
        return StepInputs((one for name, one in self.table.items() if name in taken), self.sizes)

    def frame(self, bucket: Bucket) -> Frame:
        """Returns the Frame of one program."""
        if bucket not in self._frames:
            self._frames[bucket] = Frame(self.table, {**self.sizes, **dict(bucket.sizes)})
        return self._frames[bucket]

    def check(self, bucket: Bucket, signature: Signature) -> None:
        """Raises FxhloError where an input of the program differs from the table; it may lack what the model has no use for."""
        wanted = {argument.name: (argument.shape, argument.dtype) for argument in signature.inputs}
        have = {name: (shape, self.table[name].dtype) for name, shape in self.frame(bucket).shapes.items()}
        wrong = sorted(name for name in wanted if wanted[name] != have.get(name))
        if wrong:
            told = "; ".join(f"{name}: {wanted.get(name)}, and {have.get(name)} are filled" for name in wrong)
            raise FxhloError(f"the program {bucket} takes other inputs than a step fills: {told}", next_step=NEXT_STEP)

    def check_filled(self, fillers: Mapping[str, Iterable[str]]) -> None:
        """Raises FxhloError unless each input has one filler. fillers: a part of the batch -> the inputs that it can fill."""
        filled = [name for names in fillers.values() for name in names]
        wrong = sorted(name for name in self.table if filled.count(name) != 1)
        if wrong:
            raise FxhloError(
                f"these inputs of a step are not filled once by {', '.join(fillers)}: {', '.join(wrong)}",
                next_step=NEXT_STEP,
            )


class Frame:
    """The inputs of one program as neutral arrays: a step copies them and writes its rows."""

    def __init__(self, table: Mapping[str, StepInput], sizes: Mapping[str, int]) -> None:
        self._table = table
        self.sizes = sizes
        self.shapes = {name: one.shape_in(sizes) for name, one in table.items()}
        self._templates = {name: self._neutral(name) for name, one in table.items() if not one.wide}

    def blank(self, name: str) -> np.ndarray:
        """Returns a new array with the input's neutral value."""
        template = self._templates.get(name)
        return self._neutral(name) if template is None else template.copy()

    def padded(self, name: str, values: np.ndarray) -> np.ndarray:
        """Casts values [n, ...] to the input's dtype and pads them with neutral rows."""
        made = self.blank(name)
        made[: len(values)] = values
        return made

    def filled(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The padded values of those inputs that the program takes."""
        return {name: self.padded(name, rows) for name, rows in values.items() if name in self.shapes}

    def wide(self) -> dict[str, np.ndarray]:
        """Neutral values of the wide inputs, which few requests need; they stay on the device."""
        return {name: self._neutral(name) for name, one in self._table.items() if one.wide}

    def _neutral(self, name: str) -> np.ndarray:
        one = self._table[name]
        return np.full(self.shapes[name], 0 if one.neutral is None else one.neutral, one.dtype)
