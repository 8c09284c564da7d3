"""StepInputs: the tables of passes/step_inputs.py with an engine's sizes, and the parts of the batch that fill them.

Comes in: for a step, arrays with a row per token or request. Goes out: arrays of a program's shapes, padded with neutral
values. Guaranteed: `check` compares names, shapes and dtypes with a program's signature before anything is served, and
`check_filled` that each input is filled by one part of the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ....passes.base import Pass
from ....passes.packed import Packed, names_in, packed, per_request
from ....passes.stages import CARRIED
from ....passes.step_inputs import StepInput, mask_words
from ...core.errors import FxhloError
from ...core.signature import Signature
from .kinds import Bucket
from .options import StepOptions
from .passes import step_table

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
        return cls(step_table(options, passes), sizes)

    def taken_by(self, signatures: Iterable[Signature]) -> StepInputs:
        """The inputs that these programs take: a model may have no use for some."""
        taken = {name for signature in signatures for argument in signature.inputs for name in names_in(argument.name)}
        return StepInputs((one for name, one in self.table.items() if name in taken), self.sizes)

    def frame(self, bucket: Bucket) -> Frame:
        """Returns the Frame of one program."""
        if bucket not in self._frames:
            self._frames[bucket] = Frame(self.table, {**self.sizes, **dict(bucket.sizes)})
        return self._frames[bucket]

    def check(self, bucket: Bucket, signature: Signature) -> None:
        """Raises FxhloError where an input of the program differs from the table; it may lack what the model has no use for."""
        given = [argument for argument in signature.inputs if not argument.name.startswith(CARRIED)]
        wanted = {argument.name: (argument.shape, argument.dtype) for argument in given}
        have = {name: (shape, self.table[name].dtype) for name, shape in self.frame(bucket).shapes.items()}
        have |= {name: (array.shape, "int32") for name, array in self.packed(bucket, signature).items()}
        wrong = sorted(name for name in wanted if wanted[name] != have.get(name))
        if wrong:
            told = "; ".join(f"{name}: {wanted.get(name)}, and {have.get(name)} are filled" for name in wrong)
            raise FxhloError(f"the program {bucket} takes other inputs than a step fills: {told}", next_step=NEXT_STEP)

    def packed(self, bucket: Bucket, signature: Signature) -> dict[str, PackedArray]:
        """The arrays in which the program takes several inputs, by the argument's name."""
        frame, found = self.frame(bucket), {}
        for argument in signature.inputs:
            inputs = [self.table[name] for name in names_in(argument.name) if name in self.table]
            if len(inputs) > 1:
                found[argument.name] = PackedArray(packed(inputs)[0], frame)
        return found

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


class PackedArray:
    """Packs inputs of a step for a program that takes them in one array (passes/packed.py)."""

    def __init__(self, packed: Packed, frame: Frame) -> None:
        columns = packed.columns(frame.sizes)
        count = columns[-1][1]
        self.shape = (count, frame.sizes["tokens"]) if packed.per_token else (frame.sizes["requests"] + 1, count)
        self._places = [
            (one.name, one.dtype == "float32", begin if packed.per_token else _place(one, begin, end))
            for one, (begin, end) in zip(packed.inputs, columns, strict=True)
        ]

    def pack(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """int32 of `shape`. inputs: of the program's shapes and dtypes."""
        made = np.zeros(self.shape, np.int32)
        bits = made.view(np.float32)
        for name, is_float, place in self._places:
            (bits if is_float else made)[place] = inputs[name]
        return made


def _place(one: StepInput, begin: int, end: int) -> tuple[slice | int, slice | int]:
    """Rows and columns of an input that has no number for each token."""
    whole = one.shape == ("requests+1",)
    rows: slice | int = slice(None) if whole else slice(0, -1) if per_request(one) else 0
    return rows, begin if whole or len(one.shape) == per_request(one) else slice(begin, end)
