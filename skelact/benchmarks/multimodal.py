"""How fast a method of several modalities trains here, and where the time goes.

What stands beside it: the same without decoding pictures, from features of frozen encoders; and judging all subsets of
modalities in one pass beside a pass for each. The clips are made up and lie in stores of a temporary folder, pictures
as image files of the sizes that the dataset's configuration stores. Encoders and image transforms are the
configuration's.
"""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skelact.benchmarks.media import picture
from skelact.benchmarks.steps import PARTS, Numbers, Step, build_method, precision_of, times_of
from skelact.clips import ModalClips
from skelact.data.media import MediaWriter
from skelact.data.modalities import SKELETON
from skelact.data.writer import StoreWriter
from skelact.skeleton.layouts import get_layout
from skelact.transforms.dropping import subsets_of

PICTURES = 16  # different ones of a modality; every clip has them again
SIGNAL = (120, 6)  # rows and channels
MOTION = 80  # frames of a skeleton
KINECT = (424, 512)  # pixels, where the configuration keeps the size of the originals


def pictures_of(data: Mapping[str, Any], media: Mapping[str, Any]) -> list[str]:
    """The modalities that are stored as image files: what the configuration gives an encoding."""
    return [name for name in data["modalities"] if "encoding" in (media.get(name) or {})]


def write_stores(root: Path, data: Mapping[str, Any], media: Mapping[str, Any], clips: int, tested: int) -> None:
    """Stores of all modalities in `root/made_up` and `root/made_up.<modality>`.

    Args:
        root: an empty folder.
        data: node of the datamodule: modalities, split, layout, persons, channels, num_classes.
        media: the dataset's `media` node: how pictures are stored.
        clips: number of training clips.
        tested: number of test clips.
    """
    draw, count = np.random.default_rng(0), int(data["num_classes"])
    rule = {"factor": "subject", "train": [1], "test": [2], "val": {"factor": "subject", "values": []}}
    common = {
        "name": "made_up", "class_names": [f"class {k}" for k in range(count)], "splits": {data["split"]: rule},
        "source": "made up", "licence": "", "citation": "", "fps": 30.0,
    }  # fmt: skip
    layout = get_layout(data["layout"])
    for modality in data["modalities"]:
        options = media.get(modality) or {}
        writer: StoreWriter
        if modality == SKELETON:
            shape = (MOTION, int(data["persons"]), layout.num_joints, int(data["channels"]))
            names = ["x", "y", "z"][: layout.dims] + ["score"] * (shape[-1] - layout.dims)
            own = {"layout": layout.to_dict(), "channels": names, "persons": shape[1], "unit": "m"}
            writer = StoreWriter(root / "made_up", {**common, **own}, "float32", False)
            frames: Any = draw.standard_normal(shape, np.float32).cumsum(0) * 0.01
        elif modality not in pictures_of(data, media):
            signal = {"modality": modality, "kind": "signal", "encoding": "raw", "shape": [SIGNAL[1]]}
            names = [f"channel {k}" for k in range(SIGNAL[1])]
            card = {**common, "media": signal, "channels": names, "unit": ""}
            writer, frames = MediaWriter(root / f"made_up.{modality}", card), draw.standard_normal(SIGNAL, np.float32)
        else:
            frames, colour, encoding = _pictures(modality, options)
            image = {"modality": modality, "kind": "image", "encoding": encoding, "shape": None, "colour": colour}
            writer = MediaWriter(root / f"made_up.{modality}", {**common, "media": image, "unit": ""})
        with writer:
            for k in range(clips + tested):
                writer.add(f"c{k:05d}", frames, k % count, subject=1 if k < clips else 2)


def _pictures(modality: str, options: Mapping[str, Any]) -> tuple[list[bytes], str, str]:
    """The image files of a clip, their colour and encoding."""
    from PIL import Image

    size = options.get("size") or KINECT
    height, width = (size, size * 16 // 9) if isinstance(size, int) else size
    colour = options.get("colour") or {"rgb": "rgb", "depth": "jet"}.get(modality, "grey")
    encoding = "png" if options.get("encoding") in (None, "raw", "png") else "jpeg"
    files = []
    for number in range(PICTURES):
        pixels, stream = picture(number, height, width), io.BytesIO()
        Image.fromarray(pixels if colour == "rgb" else pixels[..., 0]).save(stream, encoding)
        files.append(stream.getvalue())
    kept = int(options.get("frames") or 32)
    return [files[k % PICTURES] for k in range(kept)], colour, encoding


class _ModalStep(Step):
    """On batches of a datamodule: pictures are read and decoded, made ready on the device, and encoded.

    Args:
        config: see :func:`modal_step`.
        made_up: node of the datamodule on made-up stores.
        pictures: the modalities that are stored as image files.
        device: where the method is trained.
    """

    def __init__(
        self, config: Mapping[str, Any], made_up: Mapping[str, Any], pictures: Sequence[str], device: torch.device
    ) -> None:
        from skelact.engine.build import build_data

        super().__init__(build_method(config, device), int(made_up["batch_size"]), precision_of(config), device)
        self.made_up, self.pictures = made_up, pictures
        self.data = build_data(made_up)
        self.data.setup("fit")
        self.batches = self._epochs()

    def _epochs(self) -> Iterator[Any]:
        loader, epoch = self.data.train_dataloader(), 0
        while True:
            loader.sampler.set_epoch(epoch)
            yield from loader
            epoch += 1

    def batch(self) -> Any:
        """The next clips, decoded."""
        return next(self.batches)

    def given(self, batch: Any) -> tuple[ModalClips, None]:
        """The clips with pictures as the networks take them; skeletons are augmented by their encoder."""
        return self.data.transfer_batch_to_device(batch, self.device, 0), None


def modal_step(config: Mapping[str, Any], media: Mapping[str, Any], place: Path, device: torch.device) -> _ModalStep:
    """A training step of a method of several modalities on made-up clips.

    Args:
        config: resolved: `method`, `data` (of a :class:`skelact.data.multimodal.MultiModalDataModule`), `trainer`.
        media: the dataset's `media` node.
        place: an empty folder for their stores, needed as long as the step.
        device: where.
    """
    batch_size = int(config["data"]["batch_size"])
    write_stores(place, config["data"], media, 2 * batch_size, batch_size)
    own = {"store": f"{place}/made_up", "media_store": None, "name": "made_up", "pipeline": None}
    made_up = {**config["data"], **own, "validation": False, "withhold": {}, "cache_features": False}
    return _ModalStep(config, made_up | {"eval_batch_size": batch_size}, pictures_of(config["data"], media), device)


def further(step: _ModalStep, config: Mapping[str, Any], seconds: float) -> Numbers:
    """What methods of several modalities have besides: all subsets in one pass, cached features of frozen encoders.

    Args:
        step: of :func:`modal_step`.
        config: likewise.
        seconds: measuring time of each part.
    """
    numbers: Numbers = {"modalities": ", ".join(config["data"]["modalities"])}
    step.method.eval()
    _subsets(numbers, step.method, next(iter(step.data.batches("test", device=step.device))), seconds, step.device)
    step.method.train()
    if not step.pictures:
        return numbers
    node = copy.deepcopy(dict(config["method"]))
    for encoder in node["encoders"].values():
        if encoder.get("source") in step.pictures:
            encoder["frozen"] = True
    title, frozen = "cached features of frozen encoders: ", {**config, "method": node}
    cached = _ModalStep(frozen, {**step.made_up, "cache_features": True}, step.pictures, step.device)
    begin = time.perf_counter()
    cached.data.attach(cached.method, step.device)
    numbers[f"{title}extracting them once, s"] = time.perf_counter() - begin
    whole, other = map(min, times_of([step, cached], step.device, seconds))
    cached.timed = True
    times_of([cached], step.device, seconds / 2)
    numbers |= {f"{title}clips/s": cached.batch_size / other, f"{title}step, ms": 1e3 * other}
    numbers |= {f"{title}  {name}, ms": 1e3 * median(cached.spent[name]) for name in PARTS}
    numbers[f"{title}times as fast"] = whole / other
    return numbers


@torch.no_grad()
def _subsets(numbers: Numbers, method: Any, batch: ModalClips, seconds: float, device: torch.device) -> None:
    """All subsets in one pass, beside a pass of its own for each; in turns, the fastest of each counts."""
    subsets: Sequence[tuple[str, ...]] = subsets_of(method.streams)
    forms: dict[str, Callable[[], Tensor]] = {
        "one pass": lambda: method.classify_subsets(batch, subsets),
        "a pass each": lambda: torch.stack([method.classify(batch, subset) for subset in subsets]),
    }
    one, each = (form() for form in forms.values())
    best = [min(times) for times in times_of(list(forms.values()), device, seconds, at_least=1)]
    numbers["subsets of modalities"] = len(subsets)
    numbers |= {f"all subsets, {name}, ms": 1e3 * value for name, value in zip(forms, best, strict=True)}
    numbers["all subsets, times as fast in one pass"] = best[1] / best[0]
    numbers["all subsets, largest difference of logits"] = float((one - each).abs().max())
    numbers["all subsets, largest logit"] = float(each.abs().max())
