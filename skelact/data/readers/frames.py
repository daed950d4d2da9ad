"""Frames out of originals: which ones to keep, numbered image files, depth images, video files.

Anything wrong with a file is a :class:`skelact.data.readers.base.DamagedClip` that names it. Nothing here imports
torch: reader processes do without.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skelact.data.readers.base import DamagedClip, Item

#: The last number of an image file's name is the number of the frame.
IMAGES = re.compile(r"(?:.*\D)?(\d+)\.(?:png|jpe?g|bmp|webp)", re.IGNORECASE)
#: Larger pictures are taken for damage or malice, not for frames of a clip.
MAX_PIXELS = 64 << 20


def segment_centres(total: int, keep: int | None) -> np.ndarray:
    """Centres of `keep` equal segments of a clip, ascending int64; every frame of a clip that has no more than that.

    Args:
        total: frames of the clip.
        keep: frames wanted; None for all.
    """
    if keep is None or keep >= total:
        return np.arange(total)
    return (2 * np.arange(keep) + 1) * total // (2 * keep)


def find_clips(
    root: Path, clip: re.Pattern[str], files: bool = False, closed: re.Pattern[str] | None = None
) -> Iterator[tuple[re.Match[str], Path]]:
    """Folders (and, with `files`, files) below a root whose name fits, sorted; never looks into one that does.

    A dataset unpacked has millions of frames: only folders above the clips are listed, and none whose name is
    `closed` (clips of another modality). Links are followed, as data folders often are links, but none twice.
    """
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        deeper = []
        for name in sorted(name for name in folders if not name.startswith(".")):
            match = clip.fullmatch(name)
            if match:
                yield match, Path(folder, name)
            elif closed is None or not closed.match(name):
                deeper.append(name)
        folders[:] = deeper
        if files:
            for name in sorted(names):
                if match := clip.fullmatch(name):
                    yield match, Path(folder, name)


def numbered_files(item: Item, folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """Files of a folder whose name fits, by the number in the pattern's first group (10 comes after 9).

    Raises:
        DamagedClip: none fits, or two carry the same number.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if match := pattern.fullmatch(path.name):
            number = int(match.group(1))
            if number in found:
                raise DamagedClip(item.path, path.name, f"frame {number} is there twice, also as {found[number].name}")
            found[number] = path
    if not found:
        raise DamagedClip(item.path, "", f"holds no frame (file names like {pattern.pattern})")
    return [found[number] for number in sorted(found)]


def read_image(path: Path, colour: str) -> np.ndarray:
    """One image file: `(H, W, 3)` uint8 for `rgb`, `(H, W)` uint8 for `grey`, `(H, W)` uint8 or uint16 for `depth`.

    Raises:
        DamagedClip: it cannot be decoded, or has not the kind of pixels that is asked for.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DamagedClip(path, "", f"is {image.width} x {image.height} pixels")
            deep = image.mode.startswith("I") or image.mode == "F"
            if colour == "depth":
                if image.mode not in ("I;16", "I;16L", "I;16B", "I", "L"):
                    reason = f"is no depth image of one channel but {image.mode}"
                    raise DamagedClip(path, "", f"{reason}; coloured depth is read with colour=rgb")
                return _whole_numbers(np.asarray(image), path)
            if deep:
                raise DamagedClip(path, "", "has 16-bit pixels; read it with colour=jet")
            return np.asarray(image.convert("RGB" if colour == "rgb" else "L"))
    except (DamagedClip, FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # Pillow hands through whatever its parsers meet: SyntaxError, struct.error, ...
        raise DamagedClip(path, "", f"is not a whole image ({_short(error)})") from None


def _whole_numbers(values: np.ndarray, where: Any) -> np.ndarray:
    """`(H, W)` uint8 or uint16 of depth values, refusing what does not fit."""
    if values.dtype in (np.uint8, np.uint16):
        return values
    if values.size and (not np.isfinite(values).all() or values.min() < 0 or values.max() > 65535):
        raise DamagedClip(where, "", "has depths outside 0..65535")
    return values.astype(np.uint16)


def target_size(height: int, width: int, size: int | Sequence[int] | None) -> tuple[int, int]:
    """Height and width after resizing.

    Args:
        height: of the frame.
        width: of the frame.
        size: None keeps both; a number is the new short side (a frame that is smaller keeps its size); two numbers are
            height and width themselves.
    """
    if size is None:
        return height, width
    if not isinstance(size, int):
        return int(size[0]), int(size[1])
    short = min(height, width)
    if short <= size:
        return height, width
    return max(1, round(height * size / short)), max(1, round(width * size / short))


def resize(frame: np.ndarray, size: int | Sequence[int] | None, nearest: bool = False) -> np.ndarray:
    """A frame `(H, W)` or `(H, W, 3)` uint8 in its target size.

    Bilinear over the area that a new pixel covers; `nearest` keeps values that must not be mixed (depth: between a
    body and what is behind it there is nothing).
    """
    from PIL import Image

    height, width = target_size(frame.shape[0], frame.shape[1], size)
    if (height, width) == frame.shape[:2]:
        return frame
    method = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(frame).resize((width, height), method))


def read_video(
    path: Path, keep: int | None, size: int | Sequence[int] | None = None, grey: bool = False
) -> Iterator[np.ndarray]:
    """Kept frames (:func:`segment_centres`) of a video file, resized while they are converted.

    Packets are counted first without decoding; then only the groups of pictures that hold a wanted frame are decoded.
    Where the order of frames is not that of the packets, or packets carry no time, all of it is.

    Yields:
        `(H, W, 3)` uint8, or `(H, W)` with `grey`.

    Raises:
        DamagedClip: cut short, no video, or a wanted frame cannot be decoded.
    """
    import av

    if reason := _cut_short(path):
        raise DamagedClip(path, "", reason)

    def convert(frame: Any) -> np.ndarray:
        height, width = target_size(frame.height, frame.width, size)
        kind = "gray" if grey else "rgb24"
        return frame.reformat(width=width, height=height, format=kind, interpolation="AREA").to_ndarray()

    place = ""
    try:
        times, keys = _packets(path)
        total = len(times)
        if total == 0:
            raise DamagedClip(path, "", "holds no video frame")
        wanted = segment_centres(total, keep).tolist()
        if any(b is None or a is None or b <= a for a, b in itertools.pairwise(times)):
            yield from _in_order(path, wanted, keep, total, convert)
            return
        needed = _needed(keys, wanted)
        waiting = {times[k]: k for k in wanted}
        for frame in _decoded(path, needed):
            if frame.pts in waiting:
                place = f"frame {waiting.pop(frame.pts)} of {total}"
                yield convert(frame)
        if waiting:
            raise DamagedClip(path, f"frame {min(waiting.values())} of {total}", "cannot be decoded")
    except av.FFmpegError as error:
        raise DamagedClip(path, place and f"after {place}", f"cannot be decoded ({_short(error)})") from None


def _packets(path: Path) -> tuple[list[int | None], list[bool]]:
    """Time and key flag of every packet of the video stream, nothing decoded."""
    times: list[int | None] = []
    keys: list[bool] = []
    with _opened(path) as (container, stream):
        for packet in container.demux(stream):
            if packet.size:
                times.append(packet.pts)
                keys.append(bool(packet.is_keyframe))
    return times, keys


class _opened:
    """A video file and its first video stream, without threads: the readers are the threads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> tuple[Any, Any]:
        import av

        self.container = av.open(str(self.path), metadata_errors="replace")
        try:
            if not self.container.streams.video:
                raise DamagedClip(self.path, "", "holds no video stream")
            stream = self.container.streams.video[0]
            if stream.codec_context is None:
                raise DamagedClip(self.path, "", "has a codec that FFmpeg does not know")
            stream.thread_type = "NONE"
            if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
                raise DamagedClip(self.path, "", "has frames of more than 64 million pixels")
        except BaseException:
            self.container.close()
            raise
        return self.container, stream

    def __exit__(self, *unused: object) -> None:
        self.container.close()


def _needed(keys: Sequence[bool], wanted: Sequence[int]) -> list[bool]:
    """Packets to decode: from the key packet before each wanted one up to it."""
    needed = [False] * len(keys)
    for index in wanted:
        first = index
        while first > 0 and not keys[first] and not needed[first - 1]:
            first -= 1
        needed[first : index + 1] = [True] * (index + 1 - first)
    return needed


def _decoded(path: Path, needed: Sequence[bool] | None = None) -> Iterator[Any]:
    """Frames of the needed packets (None: of all)."""
    with _opened(path) as (container, stream):
        decoder, position, running = stream.codec_context, -1, False
        for packet in container.demux(stream):
            if not packet.size:
                continue
            position += 1
            if needed is None or (position < len(needed) and needed[position]):
                yield from decoder.decode(packet)
                running = True
            elif running:  # a gap: what the decoder still holds, then a fresh start
                yield from decoder.decode(None)
                decoder.flush_buffers()
                running = False
        if running:
            yield from decoder.decode(None)


def _in_order(
    path: Path, wanted: list[int], keep: int | None, total: int, convert: Callable[[Any], np.ndarray]
) -> Iterator[np.ndarray]:
    """Decode everything and count frames as they come out; where that are not `total`, choose again among those."""
    for _ in range(2):
        found, count, chosen = [], 0, set(wanted)
        for frame in _decoded(path):
            if count in chosen:
                found.append(convert(frame))
            count += 1
        if count == 0:
            raise DamagedClip(path, "", "no frame can be decoded")
        if count == total:
            break
        total, wanted = count, segment_centres(count, keep).tolist()
    yield from found


def _cut_short(path: Path) -> str:
    """Why an AVI, MP4 or Matroska file is shorter than its own headers say, or nothing."""
    size = path.stat().st_size
    position = 0
    with open(path, "rb") as stream:
        kind = stream.read(12)
        while position + 8 <= size:
            stream.seek(position)
            start = stream.read(16)
            if kind[:4] == b"RIFF":
                length = struct.unpack("<I", start[4:8])[0] + 8 if start[:4] == b"RIFF" else 0
                length += length % 2
            elif kind[4:8] == b"ftyp":
                length = struct.unpack(">I", start[:4])[0]
                if length == 1 and len(start) == 16:
                    length = struct.unpack(">Q", start[8:])[0]
            elif kind[:4] == b"\x1a\x45\xdf\xa3":
                length = _element(start)
            else:
                return ""
            if length < 8:  # something else follows, or it was written without knowing the end
                return ""
            if position + length > size + (kind[:4] == b"RIFF"):  # the last padding byte may be missing
                return f"has {size} bytes where its header promises {position + length} (cut short)"
            position += length
    return ""


def _element(start: bytes) -> int:
    """Bytes of the Matroska element that begins so (four-byte identifier, length of one to eight bytes), or 0."""
    width = 9 - start[4].bit_length() if len(start) > 4 else 9
    if width > 8 or len(start) < 4 + width:
        return 0
    value = int.from_bytes(start[4 : 4 + width], "big") & ((1 << 7 * width) - 1)
    return 0 if value == (1 << 7 * width) - 1 else 4 + width + value


def load_matlab(item: Item, variable: str) -> np.ndarray:
    """A numeric variable of a MATLAB file.

    Raises:
        DamagedClip: not a whole MATLAB file, or no such variable of numbers.
    """
    from scipy.io import loadmat

    data = io.BytesIO(item.path.read_bytes())  # the parser would set aside what a damaged file claims to hold
    try:
        content = loadmat(data, variable_names=[variable])
    except Exception as error:  # scipy hands through whatever its parsers meet
        raise DamagedClip(item.path, "", f"is not a whole MATLAB file ({_short(error)})") from None
    values = content.get(variable)
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise DamagedClip(item.path, "", f"has no variable {variable} of numbers")
    return values


def _short(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
