"""Methods and networks written down plainly, to measure the library's own forms against: equal numbers, other speed."""

from __future__ import annotations

import importlib
from typing import Any

from skelact.benchmarks.straightforward.base import StraightforwardMethod

FORMS = {
    "ActionMAE": "multimodal.StraightforwardActionMAE",
    "AimCLR": "contrastive.StraightforwardAimCLR",
    "CACA": "bootstrap.StraightforwardCACA",
    "CMAL": "bootstrap.StraightforwardCMAL",
    "CrosSCLR": "contrastive.StraightforwardCrosSCLR",
    "MaskCLR": "maskclr.StraightforwardMaskCLR",
    "MultiModal": "multimodal.StraightforwardMultiModal",
    "SkeletonBYOL": "bootstrap.StraightforwardBYOL",
    "SkeletonCLR": "contrastive.StraightforwardSkeletonCLR",
    "SupCon": "supcon.StraightforwardSupCon",
    "Supervised": "classifier.StraightforwardSupervised",
    "UmURL": "umurl.StraightforwardUmURL",
}
"""Method class and its straightforward form in this package."""


def straightforward(method: Any) -> StraightforwardMethod:
    """The straightforward form of a method, with a copy of its weights.

    Raises:
        KeyError: there is none for its class.
    """
    module, _, name = FORMS[type(method).__name__].partition(".")
    form: StraightforwardMethod = getattr(importlib.import_module(f"{__name__}.{module}"), name)(method)
    return form
