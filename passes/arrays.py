"""A torch tensor's memory as a numpy array."""

from __future__ import annotations

import numpy as np
import torch


def memory_of(tensor: torch.Tensor, dtype: np.dtype) -> np.ndarray:
    """The tensor's memory as numpy, in the dtype that stands for its own (ml_dtypes for bfloat16 and fp8); copied only where it is
    not contiguous."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    flat = tensor.as_strided((tensor.numel(),), (1,))  # one element may have any stride and still count as contiguous
    if not flat.numel():
        return np.zeros(tuple(tensor.shape), dtype)
    return flat.view(torch.uint8).numpy().view(dtype).reshape(tuple(tensor.shape))
