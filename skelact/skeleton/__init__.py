"""What a skeleton is: joint layouts, conversions between them, derived streams, rotations."""

from skelact.skeleton.convert import convert, list_conversions
from skelact.skeleton.layouts import Layout, LayoutError, get_layout, list_layouts
from skelact.skeleton.streams import STREAMS, derive, derive_masks

__all__ = [
    "STREAMS",
    "Layout",
    "LayoutError",
    "convert",
    "derive",
    "derive_masks",
    "get_layout",
    "list_conversions",
    "list_layouts",
]
