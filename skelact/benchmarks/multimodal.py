"""How fast a method of several modalities trains here, and where the time goes.

What stands beside it: the same without decoding pictures, from features of frozen encoders; and judging all subsets of
modalities in one pass beside a pass for each. The clips are made up and lie in stores of a temporary folder, pictures
as image files of the sizes that the dataset's configuration stores. Encoders and image transforms are the
configuration's.
"""

from __future__ import annotations

import copy
import io
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skelact.benchmarks.media import picture
from skelact.benchmarks.training import Step, spent_by, synchronise
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
    """One training step on batches of a datamodule, in its parts."""

    parts = ("decoding and loading", "image transform", "forward", "backward", "optimiser")

    def __init__(self, method: Any, data: Any, precision: str, device: torch.device) -> None:
        super().__init__(method, precision, device)
        self.data, self.batches = data, self._epochs()

    def _epochs(self) -> Iterator[Any]:
        loader, epoch = self.data.train_dataloader(), 0
        while True:
            loader.sampler.set_epoch(epoch)
            yield from loader
            epoch += 1

    def __call__(self) -> Tensor:
        with self.part("decoding and loading"):
            read = next(self.batches)
        with self.part("image transform"):
            batch = self.data.transfer_batch_to_device(read, self.device, 0)
        with self.part("forward"), self.autocast():
            loss = self.method.training_step(batch, 0)
        self.descend(loss)
        return loss


def measure(config: Mapping[str, Any], media: Mapping[str, Any]) -> dict[str, Any]:
    """Time training steps with decoding and with cached features, and evaluation over subsets in one pass and in many.

    Args:
        config: resolved: `method`, `data` (of a :class:`skelact.data.multimodal.MultiModalDataModule`), `trainer`,
            `seconds`.
        media: the dataset's `media` node.

    Returns:
        Numbers by name; times in milliseconds a step.
    """
    from skelact.engine.build import build, build_data
    from skelact.engine.run import pick_device

    device, seconds = pick_device(config["trainer"]), float(config["seconds"])
    precision = str(config["trainer"].get("precision", "32-true"))
    node = copy.deepcopy(dict(config["method"]))
    node["scheduler"] = None  # it counts the steps of a trainer's epoch
    batch_size = int(config["data"]["batch_size"])
    numbers: dict[str, Any] = {
        "method": str(node["_target_"]).rpartition(".")[2],
        "modalities": ", ".join(config["data"]["modalities"]),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "precision": precision,
        "batch": batch_size,
    }
    with tempfile.TemporaryDirectory() as place:
        write_stores(Path(place), config["data"], media, 2 * batch_size, batch_size)
        own = {"store": f"{place}/made_up", "media_store": None, "name": "made_up", "pipeline": None}
        made_up = {**config["data"], **own, "validation": False, "withhold": {}, "cache_features": False}
        made_up["eval_batch_size"] = batch_size
        torch.manual_seed(int(config.get("seed", 0)))
        data, method = build_data(made_up), build(node, "method").to(device)
        data.setup("fit")
        numbers["parameters, millions"] = sum(p.numel() for p in method.parameters()) / 1e6
        whole = _times(numbers, "", _ModalStep(method.train(), data, precision, device), batch_size, seconds)
        _subsets(numbers, method.eval(), next(iter(data.batches("test", device=device))), seconds, device)

        if pictures := pictures_of(config["data"], media):
            for encoder in node["encoders"].values():
                if encoder.get("source") in pictures:
                    encoder["frozen"] = True
            data, method = build_data({**made_up, "cache_features": True}), build(node, "method").to(device)
            begin = time.perf_counter()
            data.attach(method, device)
            numbers["cached features of frozen encoders: extracting them once, s"] = time.perf_counter() - begin
            title = "cached features of frozen encoders: "
            cached = _times(numbers, title, _ModalStep(method.train(), data, precision, device), batch_size, seconds)
            numbers[f"{title}times as fast"] = whole / cached
    return numbers


def _times(numbers: dict[str, Any], title: str, step: _ModalStep, batch_size: int, seconds: float) -> float:
    """Seconds a step takes, and where they go."""
    whole = spent_by(step, step.device, seconds)
    step.timed, steps = True, max(3, int(seconds / 2 / whole))
    for _ in range(steps):
        step()
    parts = {name: spent / steps for name, spent in step.spent.items()}
    numbers[f"{title}clips/s"] = batch_size / whole
    numbers[f"{title}step, ms"] = 1e3 * whole
    numbers |= {f"{title}  {name}, ms": 1e3 * value for name, value in parts.items()}
    numbers[f"{title}decoding and loading, % of the time"] = 100 * parts[step.parts[0]] / sum(parts.values())
    return whole


@torch.no_grad()
def _subsets(numbers: dict[str, Any], method: Any, batch: Any, seconds: float, device: torch.device) -> None:
    """All subsets in one pass, beside a pass of its own for each; in turns, the fastest of each counts."""
    subsets: Sequence[tuple[str, ...]] = subsets_of(method.streams)
    forms: dict[str, Callable[[], Tensor]] = {
        "one pass": lambda: method.classify_subsets(batch, subsets),
        "a pass each": lambda: torch.stack([method.classify(batch, subset) for subset in subsets]),
    }
    answers = [form() for form in forms.values()]
    best, begin = dict.fromkeys(forms, float("inf")), time.perf_counter()
    while time.perf_counter() - begin < seconds or best["one pass"] == float("inf"):
        for name, form in forms.items():
            synchronise(device)
            start = time.perf_counter()
            form()
            synchronise(device)
            best[name] = min(best[name], time.perf_counter() - start)
    numbers["subsets of modalities"] = len(subsets)
    numbers |= {f"all subsets, {name}, ms": 1e3 * value for name, value in best.items()}
    numbers["all subsets, times as fast in one pass"] = best["a pass each"] / best["one pass"]
    numbers["all subsets, largest difference of logits"] = float((answers[0] - answers[1]).abs().max())
    numbers["all subsets, largest logit"] = float(answers[1].abs().max())
