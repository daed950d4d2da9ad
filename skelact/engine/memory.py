"""Memory that a training step on a CPU frees, and the next takes again."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LARGEST = 2**30
"""Bytes of the largest block that is kept; larger ones, such as whole datasets, go back when they are freed."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's numbers, malloc.h


def keep_freed_memory(device: torch.device) -> bool:
    """Let a process that computes on the CPU keep what it frees, for the activations of the next step.

    glibc gives large blocks back to the system, which clears every page again at its next touch: small networks on
    large tensors, such as ST-GCNs, feel it. What the user says by glibc's own variables stands.

    Args:
        device: where is computed.

    Returns:
        Whether it was arranged: on a CPU, by glibc, without such a variable.
    """
    told = any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"))
    if device.type != "cpu" or told or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = _of_glibc("mallopt")
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, LARGEST) and mallopt(_TRIM_THRESHOLD, -1))


def give_back_freed_memory() -> None:
    """Give back to the system what was freed, so that the resident set is what is in use; where glibc can do it."""
    if (trim := _of_glibc("malloc_trim")) is not None:
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function that other C libraries may lack."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
