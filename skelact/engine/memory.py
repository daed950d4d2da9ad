"""Memory that a training step on a CPU frees, and the next takes again."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LARGEST = 2**30
"""Bytes of the largest block that is kept; larger ones, such as whole datasets, go back when they are freed."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's numbers, malloc.h


def keep_freed_memory(device: torch.device) -> bool:
    """Let a process that computes on the CPU keep what it frees, for the activations of the next step.

    glibc gives large blocks back to the system, which clears every page again at its next touch: 5 to 12 % of an
    ST-GCN's step. What the user says by glibc's own variables stands.

    Args:
        device: where is computed.

    Returns:
        Whether it was arranged: on a CPU, by glibc, without such a variable.
    """
    told = any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"))
    if device.type != "cpu" or sys.platform != "linux" or told or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # another C library may have none
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, LARGEST) and mallopt(_TRIM_THRESHOLD, -1))
