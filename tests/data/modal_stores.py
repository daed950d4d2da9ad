"""Small stores of one made-up dataset: skeletons, a signal, raw grey pictures and encoded coloured ones.

Sixteen clips, names c00 to c15; subject 1 + k % 4. Who lacks what: :data:`LACKS`. A picture's brightness is
10 x clip + frame, so that a test can tell which frame of which clip came out.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import nn

from skelact.clips import RaggedClips
from skelact.data.media import MediaWriter
from skelact.data.multimodal import MultiModalDataModule
from skelact.data.writer import StoreWriter
from skelact.transforms.draws import Draws

from .conftest import make_card

CLIPS = 16
LACKS = {"skeleton": {15}, "inertial": {4, 15}, "depth": {1, 4, 9}, "rgb": {2}}
SPLITS = make_card()["splits"]


def length_of(modality: str, clip: int) -> int:
    """Frames of a clip; those of one sensor may differ from another's."""
    return {"skeleton": 12, "inertial": 30, "depth": 6, "rgb": 5}[modality] + clip % 3


def brightness(clip: int, frame: int) -> int:
    return 10 * clip + frame


def write_modal(root, skip=(), rgb_sizes=((6, 8),), **changes):
    """Stores `root/toy`, `root/toy.inertial`, `root/toy.depth` (raw, grey), `root/toy.rgb` (png)."""
    draw = np.random.default_rng(0)
    rows = {}
    if "skeleton" not in skip:
        with StoreWriter(root / "toy", make_card(**changes), "float32", False) as writer:
            for k in _having("skeleton"):
                frames = draw.standard_normal((length_of("skeleton", k), 1, 20, 3)).astype(np.float32)
                writer.add(f"c{k:02d}", frames, k % 3, subject=1 + k % 4)
    media = {
        "inertial": {"kind": "signal", "encoding": "raw", "shape": [2]},
        "depth": {"kind": "image", "encoding": "raw", "shape": [6, 8, 1], "colour": "grey"},
        "rgb": {"kind": "image", "encoding": "png", "shape": None, "colour": "rgb"},
    }
    for modality in [name for name in media if name not in skip]:
        card = {"name": "toy", "class_names": ["a", "b", "c"], "fps": 30.0, "splits": SPLITS}
        with MediaWriter(root / f"toy.{modality}", {**card, "media": {"modality": modality, **media[modality]}}) as w:
            for k in reversed(_having(modality)):  # stores need not be in one order
                length = length_of(modality, k)
                if modality == "inertial":
                    # test subjects move a hundred times as much: their rows must not enter the statistics
                    frames = draw.standard_normal((length, 2)).astype(np.float32) * (100 if k % 4 == 3 else 1) + 5
                    rows[k] = frames
                elif modality == "depth":
                    frames = np.stack([np.full((6, 8, 1), brightness(k, n), np.uint8) for n in range(length)])
                else:
                    size = rgb_sizes[k % len(rgb_sizes)]
                    frames = [_png(np.full((*size, 3), brightness(k, n), np.uint8)) for n in range(length)]
                w.add(f"c{k:02d}", frames, k % 3, subject=1 + k % 4)
    return rows


def _having(modality):
    return [k for k in range(CLIPS) if k not in LACKS[modality]]


def _png(image):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    return stream.getvalue()


CPU = torch.device("cpu")
ALL = ("skeleton", "inertial", "depth", "rgb")


class Shift(nn.Module):
    """In place of a real transform: brightness as a number, in training one random shift a clip."""

    def forward(self, images, mask, draws):
        assert images.dtype == torch.uint8 and images.ndim == 5
        out = images.float().mean((2, 3, 4))[:, :, None, None, None].expand(-1, -1, 3, 2, 2)
        if draws is not None:
            out = out + draws.uniform("shift")[:, None, None, None, None]
        return out * mask[:, :, None, None, None]


IMAGES = {"depth": Shift(), "rgb": Shift()}


def modal(root, modalities=ALL, **options):
    options = {"images": IMAGES, "frames": 4, "signal_frames": 8, "batch_size": 4, "eval_batch_size": 5, **options}
    return MultiModalDataModule(str(root / "toy"), "xsub", list(modalities), **options)


def by_number(module, batch):
    """Clip number -> modality -> what came out of it."""
    names = module.store.names[batch.index.numpy()]
    found = {int(name[1:]): {} for name in names}
    for name, part in batch.parts.items():
        rows = batch.rows(name)
        assert len(rows) == len(part)
        for at, row in enumerate(rows.tolist()):
            number = int(names[row][1:])
            if isinstance(part, RaggedClips):
                assert int(part.index[at]) == int(batch.index[row]) and int(part.label[at]) == number % 3
                found[number][name] = part.clip(at)
            else:
                found[number][name] = (part.values[at], part.mask[at])
    return found


def epoch_of(module, epoch=0):
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)
    batches = [module.transfer_batch_to_device(batch, CPU) for batch in loader]
    return {k: v for batch in batches for k, v in by_number(module, batch).items()}, batches


def draws_of(module, clip, epoch):
    """Of one clip."""
    index = module.store.names.tolist().index(f"c{clip:02d}")
    return Draws(module.seed, epoch, torch.tensor([index]))


def assert_same(a, b):
    assert a.keys() == b.keys()
    for number, parts in a.items():
        assert parts.keys() == b[number].keys()
        for name, value in parts.items():
            torch.testing.assert_close(value, b[number][name], rtol=0, atol=0)
