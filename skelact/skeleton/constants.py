"""Numbers that are known beforehand, as tensors on a device."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def constant(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of (nested) tuples of numbers, made once: making it in every step would have each wait for a copy.

    It must not be written to.
    """
    with torch.inference_mode(False):  # what is made while evaluating may be used in training
        return torch.tensor(values, device=device, dtype=dtype)
