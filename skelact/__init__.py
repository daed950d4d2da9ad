"""skelact: skeleton-based and multi-modal human action recognition experiments."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("skelact")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__", "interop", "load"]


def __getattr__(name: str) -> Any:
    """`skelact.load` and `skelact.interop` on demand: importing skelact alone loads neither torch nor Lightning."""
    if name == "interop":
        return import_module("skelact.interop")
    if name == "load":
        from skelact.engine.checkpoint import load

        return load
    raise AttributeError(f"module 'skelact' has no attribute {name!r}")
