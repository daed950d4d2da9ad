"""What a media store saves: 16 frames of a clip from the store, beside decoding the full-HD original."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from skelact.data.media import MediaStore
from skelact.data.prepare import prepare_dataset
from skelact.data.readers.base import Item
from skelact.data.readers.frames import IMAGES, numbered_files, read_image, read_video, resize, segment_centres
from skelact.data.readers.media_ntu import NTUMedia

NAME = "S001C001P001R001A001"


def picture(number: int, height: int, width: int) -> np.ndarray:
    """A made-up video frame `(height, width, 3)`: a lit, slightly noisy room, and a body that moves through it."""
    generator = np.random.default_rng(number)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    room = 110 + 50 * np.sin(x / 170) * np.cos(y / 130) + 20 * ((x // 160 + y // 120) % 2)
    image = np.stack([room, 0.9 * room + 10, 0.8 * room + 15], axis=-1)
    centre = width * (0.2 + 0.006 * number)
    body = ((x - centre) / (0.05 * width)) ** 2 + ((y - 0.55 * height) / (0.35 * height)) ** 2 < 1
    image[body] = (60, 40, 120)
    noise = generator.normal(0, 3, (-(-height // 2), -(-width // 2), 1)).repeat(2, 0).repeat(2, 1)
    return np.clip(image + noise[:height, :width], 0, 255).astype(np.uint8)


def write_originals(folder: Path, frames: int, height: int, width: int) -> tuple[Path, Path]:
    """The same clip as an MPEG-4 AVI and as a folder of JPEG files."""
    import av
    from PIL import Image

    video, images = folder / f"{NAME}_rgb.avi", folder / "frames"
    images.mkdir()
    with av.open(str(video), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=30, options={"g": "12"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 20_000_000
        for number in range(frames):
            pixels = picture(number, height, width)
            Image.fromarray(pixels).save(images / f"{number + 1}.jpg", quality=90)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return video, images


def _median(function: Callable[[], Any], seconds: float) -> float:
    """Milliseconds a call; at least three calls."""
    function()
    spent: list[float] = []
    while len(spent) < 3 or sum(spent) < seconds:
        begin = time.perf_counter()
        function()
        spent.append(time.perf_counter() - begin)
    return 1000 * statistics.median(spent)


def measure(
    seconds: float = 5.0, frames: int = 90, height: int = 1080, width: int = 1920, kept: int = 16, size: int = 270
) -> dict[str, float]:
    """Milliseconds for `kept` frames of short side `size`, and how many times less the store takes.

    Args:
        seconds: measuring time of all parts together.
        frames: length of the clip.
        height: of the original.
        width: of the original.
        kept: frames wanted.
        size: their short side.
    """
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        video, images = write_originals(root, frames, height, width)
        numbers = {"original_avi_mb": video.stat().st_size / 1e6}
        stores = {}
        for encoding in ("jpeg", "raw"):
            reader = NTUMedia("rgb", frames=kept, size=size, encoding=encoding)
            report = prepare_dataset(reader, root, root / encoding, progress=False)
            stores[encoding] = MediaStore(report.target)
            numbers[f"store_{encoding}_mb"] = stores[encoding].card["files"]["frames.npy"]["bytes"] / 1e6

        def from_images() -> None:
            files = numbered_files(Item(NAME, images), images, IMAGES)
            for k in segment_centres(len(files), kept).tolist():
                resize(read_image(files[k], "rgb"), size)

        share = seconds / 4
        numbers["original_avi_ms"] = _median(lambda: list(read_video(video, kept, size)), share)
        numbers["original_jpeg_ms"] = _median(from_images, share)
        for encoding, store in stores.items():
            numbers[f"store_{encoding}_ms"] = _median(lambda store=store: store.read(0), share)  # type: ignore[misc]
    for encoding in stores:
        for original in ("avi", "jpeg"):
            ratio = numbers[f"original_{original}_ms"] / numbers[f"store_{encoding}_ms"]
            numbers[f"{original}_beside_{encoding}_store"] = ratio
    return numbers
