"""RENDERED pictures of real motion: HDM05's motion capture as made-up colour, depth and infrared cameras would see it.

Why it exists: methods for several modalities can be tried end to end on data that travel with the package. No camera
took these pictures. Bodies of spheres swept along the bones, clothes, lights, walls and noise are made up by the rule
below; every card says so. The motion, the names of the clips, their columns and the places of the cameras are those of
`hdm05_views`, so that pictures pair with its skeletons.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from skelact.data.project import FOCAL, NEAR, WIDTH
from skelact.data.readers.base import Item
from skelact.data.readers.frames import segment_centres
from skelact.data.readers.hdm05 import BONES, CLASSES, FPS, SOURCE, SPLITS, HDM05Reader
from skelact.data.readers.media import MediaReader
from skelact.data.simulate import HDM05ViewsReader, camera_generator, place_camera
from skelact.errors import SkelactError

#: Enters every seed; a change of the rule must change it.
VERSION = "v1"
SIZE = (48, 64)  # pixels: height, width
SKIN, SHIRT, TROUSERS = range(3)
_SIDE = (
    ("hipjoint", "root", 0.10, TROUSERS), ("femur", "hipjoint", 0.08, TROUSERS), ("tibia", "femur", 0.06, TROUSERS),
    ("foot", "tibia", 0.05, TROUSERS), ("toes", "foot", 0.04, TROUSERS), ("clavicle", "thorax", 0.08, SHIRT),
    ("humerus", "clavicle", 0.05, SHIRT), ("radius", "humerus", 0.045, SKIN), ("wrist", "radius", 0.04, SKIN),
    ("hand", "wrist", 0.04, SKIN), ("fingers", "hand", 0.03, SKIN), ("thumb", "wrist", 0.025, SKIN),
)  # fmt: skip
_MIDDLE = ("root", "thorax")
#: Bones: far joint, near joint, radius in metres, what covers them.
LIMBS: tuple[tuple[str, str, float, int], ...] = (
    ("lowerback", "root", 0.12, SHIRT), ("upperback", "lowerback", 0.13, SHIRT), ("thorax", "upperback", 0.13, SHIRT),
    ("lowerneck", "thorax", 0.06, SKIN), ("upperneck", "lowerneck", 0.06, SKIN), ("head", "upperneck", 0.09, SKIN),
    *((s + far, near if near in _MIDDLE else s + near, r, cover) for s in "lr" for far, near, r, cover in _SIDE),
)  # fmt: skip
STEP = 0.6  # radii from one sphere of a limb to the next
SMALLEST = 0.75  # pixels; a thinner limb would fall between pixels
LIGHT = np.array([-0.5, 0.7, -0.5]) / np.linalg.norm([-0.5, 0.7, -0.5])  # from where: left, above, behind the camera
AMBIENT = 0.4  # share of the light that comes from everywhere
INFRARED = 1300.0  # grey levels of a white surface that faces the camera at one metre
WALL = 25.0  # grey levels of the background in infrared
NOISE = {"rgb": 4.0, "ir": 2.0, "depth": 10.0}  # standard deviation: levels (of all colours), levels, millimetres


@dataclass(frozen=True)
class Surface:
    """What is nearest in each pixel of T frames `(T, H, W)`.

    Args:
        depth: metres along the camera's axis, infinite where there is nobody.
        cover: SKIN, SHIRT or TROUSERS, -1 where there is nobody.
        normal: `(T, H, W, 3)` unit vectors, x right, y up, z away from the camera.
    """

    depth: np.ndarray
    cover: np.ndarray
    normal: np.ndarray


def trace(joints: np.ndarray, size: tuple[int, int] = SIZE) -> Surface:
    """Limbs in front of a pinhole camera, nearest first.

    A limb is a row of spheres, each a disc of pixels of the depth and the normal of its front (in weak perspective:
    within a sphere the distance counts as its centre's).

    Args:
        joints: `(T, 31, 3)` metres in the camera's frame: x right, y up, z away.
        size: height and width in pixels; the width sees what the 640 columns of :mod:`skelact.data.project` see.
    """
    (frames, height, width), focal = (len(joints), *size), FOCAL * size[1] / WIDTH
    far, near = (np.array([BONES.index(limb[end]) for limb in LIMBS]) for end in (0, 1))
    radii, covers = np.array([limb[2] for limb in LIMBS]), np.array([limb[3] for limb in LIMBS])
    length = np.linalg.norm(joints[:, far] - joints[:, near], axis=-1).max(0)
    count = np.ceil(length / (STEP * radii)).astype(int) + 1
    limb = np.repeat(np.arange(len(LIMBS)), count)
    share = np.concatenate([np.linspace(0, 1, n) for n in count])[:, None]
    centres = ((1 - share) * joints[:, near[limb]] + share * joints[:, far[limb]]).reshape(-1, 3)
    frame, limb = np.repeat(np.arange(frames), len(limb)), np.tile(limb, frames)

    z = np.maximum(centres[:, 2], NEAR)
    column, row = width / 2 + focal * centres[:, 0] / z, height / 2 - focal * centres[:, 1] / z
    disc = np.maximum(focal * radii[limb] / z, SMALLEST)
    seen = centres[:, 2] > NEAR
    seen &= (column > -disc) & (column < width + disc) & (row > -disc) & (row < height + disc)

    depth = np.full(frames * height * width, np.inf, np.float32)
    cover, normal = np.full(depth.shape, -1, np.int8), np.zeros((*depth.shape, 3), np.float32)
    for reach in 2 ** np.arange(int(np.ceil(np.log2(max(height, width)))) + 1):  # discs of about one size at a time
        k = np.flatnonzero(seen & (disc <= reach) & ((disc > reach / 2) | (reach == 1)))
        if not len(k):
            continue
        around = np.arange(-reach, reach + 1)
        rows, columns = (np.floor(at[k])[:, None].astype(int) + around for at in (row, column))
        down, right = (
            ((at + 0.5 - middle[k, None]) / disc[k, None]).astype(np.float32)
            for at, middle in ((rows, row), (columns, column))
        )
        outside = down[:, :, None] ** 2 + right[:, None, :] ** 2
        inside = outside <= 1
        inside &= ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        sphere, i, j = np.nonzero(inside)
        front = np.sqrt(1 - outside[sphere, i, j])
        own = k[sphere]
        pixel = (frame[own] * height + rows[sphere, i]) * width + columns[sphere, j]
        distance = (z[own] - radii[limb[own]] * front).astype(np.float32)
        np.minimum.at(depth, pixel, distance)
        first = distance == depth[pixel]
        pixel, sphere, own = pixel[first], sphere[first], own[first]
        cover[pixel] = covers[limb[own]]
        normal[pixel] = np.stack([right[sphere, j[first]], -down[sphere, i[first]], -front[first]], axis=-1)
    shape = (frames, height, width)
    return Surface(depth.reshape(shape), cover.reshape(shape), normal.reshape(*shape, 3))


def paint(surface: Surface, modality: str, name: str, subject: str) -> np.ndarray:
    """Pictures of a surface.

    Args:
        surface: of T frames.
        modality: `rgb`: clothes of the subject's colours under a light from the upper left, before a wall of the
            clip's; `depth`: millimetres, 0 where there is nobody; `ir`: reflectance by the square of the distance.
        name: of the clip; seeds the wall, the brightness and the noise.
        subject: seeds skin and clothes.

    Returns:
        `(T, H, W, 3)` uint8, `(T, H, W)` uint16 or `(T, H, W)` uint8.
    """
    draw, dress = _generator(f"{modality}:{name}"), _generator(f"subject:{subject}")
    body = surface.cover >= 0
    if modality == "depth":
        noisy = 1000 * surface.depth[body] + NOISE["depth"] * draw.standard_normal(int(body.sum()))
        depth = np.zeros(body.shape, np.uint16)
        depth[body] = np.clip(np.rint(noisy), 1, 65535)
        return depth
    tone = dress.uniform(0.35, 1.0)  # of the skin
    colours = np.stack([tone * np.array([240, 190, 160]), dress.uniform(40, 240, 3), dress.uniform(20, 160, 3)])
    reflectance = np.concatenate([[0.6], dress.uniform(0.3, 0.9, 2)])
    cover = surface.cover[body]
    if modality == "ir":
        levels = np.full(body.shape, WALL)
        levels[body] = INFRARED * reflectance[cover] * -surface.normal[body][:, 2] / surface.depth[body] ** 2
    else:
        lit = AMBIENT + (1 - AMBIENT) * np.maximum(surface.normal[body] @ LIGHT, 0)
        ends = draw.uniform(50, 210, (2, 3))
        share = np.linspace(0, 1, body.shape[1])[:, None, None]
        levels = np.broadcast_to((1 - share) * ends[0] + share * ends[1], (*body.shape, 3)).copy()
        levels[body] = colours[cover] * lit[:, None]
        levels *= draw.uniform(0.7, 1.1)
    levels += (NOISE[modality] * draw.standard_normal(body.shape)).reshape(*body.shape, *[1] * (levels.ndim - 3))
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def _generator(key: str) -> np.random.RandomState:
    """RandomState: its streams are frozen."""
    digest = hashlib.sha256(f"hdm05_rendered:{VERSION}:{key}".encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, "<u4"))


_NOTE = f"RENDERED (skelact, rule {VERSION}), seen by no camera: bodies, clothes, light and noise are made up; from: "


class RenderedMedia(MediaReader):
    """Pictures of the clips of `hdm05_views`, made when they are read; no source is needed.

    Args:
        modality: rgb, depth or ir.
        size: `[height, width]` of the pictures, four thirds as wide as high, or the height; None: 48 x 64.
        encoding: see :class:`skelact.data.readers.media.MediaReader`; None: jpeg, and png for depth.
        **options: of :class:`skelact.data.readers.media.MediaReader`.
    """

    dataset, classes, class_names, splits = "hdm05_rendered", len(CLASSES), CLASSES, SPLITS
    modalities: ClassVar[Mapping[str, str]] = {"rgb": "image", "depth": "image", "ir": "image"}
    colours: ClassVar[Mapping[str, str]] = {"rgb": "rgb", "depth": "jet", "ir": "grey"}
    about: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {**SOURCE, "source": _NOTE + SOURCE["source"], "fps": float(FPS), "unit": unit}
        for name, unit in (("rgb", "8 bit"), ("depth", "mm, coloured"), ("ir", "8 bit"))
    }

    def __init__(
        self, modality: str, size: int | Sequence[int] | None = None, encoding: str | None = None, **options: Any
    ) -> None:
        encoding = encoding or ("png" if modality == "depth" else "jpeg")
        super().__init__(modality, size=size, encoding=encoding, **options)
        self._motions = HDM05ViewsReader()
        height, width = (size, size * 4 // 3) if isinstance(size, int) else (size or SIZE)
        if height * 4 != width * 3:
            raise SkelactError(f"{self.name}: pictures are four thirds as wide as high, got size={size}")
        self._size, self.size = (height, width), [height, width]

    def locate(self, source: str | Path | None) -> Path:
        """The motions: the embedded ones without a source."""
        return self._motions.locate(source)

    def find(self, root: Path) -> list[Item]:
        """The items of `hdm05_views`."""
        return self._motions.scan(root)

    def load(self, item: Item) -> Iterator[np.ndarray]:
        """Kept frames of one clip, rendered."""
        frames = place_camera(HDM05Reader.read(self._motions, item).frames, camera_generator(item.name))
        surface = trace(frames[segment_centres(len(frames), self.frames), 0], self._size)
        for picture in paint(surface, self.modality, item.name, str(item.columns["subject"])):
            yield self.finish(picture)
