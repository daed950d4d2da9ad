"""What the tests of ActionMAE against its released code share: encoders of frame features, and names of weights."""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from skelact.backbones.modality import ModalityEncoder
from skelact.backbones.temporal import TemporalEncoder
from skelact.clips import Frames, ModalClips

GOLDEN = Path(__file__).parents[1] / "golden" / "actionmae"
NAMES = ("rgb", "depth", "ir")
SIZES = {"width": 24, "num_heads": 4, "mlp_ratio": 2.0}


class Features(ModalityEncoder):
    """A temporal encoder alone: the golden clips are features of frames."""

    def __init__(self, width, source, drop_path=0.0):
        super().__init__(width, source)
        self.temporal = TemporalEncoder(width, 2, 4, 2.0, drop_path)
        self.use_mask = True

    def forward(self, part, draws=None):
        return self.temporal(part.values, part.mask if self.use_mask else None)


def load(name):
    stored = np.load(GOLDEN / f"{name}.npz")
    return {key: torch.from_numpy(stored[key]) for key in stored if stored[key].dtype.kind != "U"}


def make(cls, names=NAMES, **options):
    encoders = {name: partial(Features, source=name) for name in names}
    return cls(encoders, names, 7, **{**SIZES, **options}).eval()


def renamed(name, names=NAMES):
    """Name of a released weight here."""
    head, _, rest = name.partition(".")
    if head.startswith("t_"):
        modality, _, rest = rest.partition(".")
        part = {"t_cls_token": "cls_token", "t_encoder": "transformer.", "t_encoder_norm": "norm."}[head]
        return f"encoders.{modality}.temporal.{part}{rest}"
    if head != "fusion_module":
        return f"core.{name}"
    if rest.startswith("fc.") and rest.split(".")[1] in names:
        return f"fusion.heads.{names.index(rest.split('.')[1])}.{rest.split('.')[2]}"
    return f"fusion.{rest}"


def load_released(method, golden, *prefixes):
    state = {
        renamed(key.removeprefix(prefix)): value
        for prefix in prefixes
        for key, value in golden.items()
        if key.startswith(prefix)
    }
    method.load_state_dict(state)
    return method


def batch_of(golden, names=NAMES):
    """The clips of a golden file."""
    count = len(golden["targets"])
    mask = golden["frame_mask"].bool() if "frame_mask" in golden else torch.ones(count, 5, dtype=torch.bool)
    parts = {name: Frames(golden[f"feat/{name}"], mask) for name in names}
    return ModalClips(
        parts, torch.ones(count, len(names), dtype=torch.bool), tuple(names), golden["targets"], torch.arange(count)
    )
