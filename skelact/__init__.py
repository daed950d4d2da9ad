"""skelact: skeleton-based and multi-modal human action recognition experiments."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("skelact")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
