"""Cases of `fxhlo.copy_row`: the states of a layer of Granite 4 H."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from ..spec import Case, TensorSpec

DTYPES = ("bfloat16", "float16", "float32")
INT32, FLOAT32, BFLOAT16 = np.dtype(np.int32), np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)


def specs(shape: tuple[int, ...], dtype: np.dtype) -> dict[str, TensorSpec]:
    return {"state": TensorSpec(shape, dtype), "source": TensorSpec((), INT32), "destination": TensorSpec((), INT32)}


def cases() -> tuple[Case, ...]:
    served = {
        "a convolution's, 8448 channels of 4": ((129, 3, 8448), BFLOAT16),
        "a recurrence's, 128 heads of 64 by 128": ((129, 128, 64, 128), FLOAT32),
    }
    checked = {"3 rows of 5 by 7": ((3, 5, 7), BFLOAT16), "2 rows of one": ((2, 1), FLOAT32)}
    return (
        *(Case(name, specs(shape, dtype)) for name, (shape, dtype) in served.items()),
        *(Case(name, specs(shape, dtype), {}, _values(shape, dtype)) for name, (shape, dtype) in checked.items()),
    )


def _values(shape: tuple[int, ...], dtype: np.dtype) -> Callable[[np.random.Generator], Mapping[str, np.ndarray]]:
    def make(generator: np.random.Generator) -> Mapping[str, np.ndarray]:
        state = generator.standard_normal(shape, np.float32).astype(dtype)
        return {"state": state, "source": np.array(shape[0] - 1, np.int32), "destination": np.array(0, np.int32)}

    return make
