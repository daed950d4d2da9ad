"""How fast AimCLR's three views of a clip are made: the batched form beside one clip at a time."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from skelact.benchmarks.data import median_seconds
from skelact.skeleton.layouts import get_layout
from skelact.transforms.draws import Draws
from skelact.transforms.spatial import AxisMask, AxisRotation, Compose, Flip, JointNoise, Shear
from skelact.transforms.temporal import TemporalBlur, TemporalCrop

_MIRROR = list(get_layout("ntu25").mirror)


def normal_view(clip: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float64]:
    """Temporal crop and shear of one clip `(C, T, V, M)`, as a `__getitem__` would make them; same shape."""
    frames = clip.shape[1]
    pad = frames // 6
    longer = np.pad(clip, ((0, 0), (pad, pad), (0, 0), (0, 0)), mode="symmetric")
    start = int(rng.integers(2 * pad + 1))
    shear = rng.uniform(-0.5, 0.5, (3, 3))
    np.fill_diagonal(shear, 1.0)
    return np.tensordot(shear, longer[:, start : start + frames], 1)


def extreme_view(clip: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float64]:
    """The normal set, then flip, rotation, noise, blur and axis mask of one clip `(C, T, V, M)`; same shape."""
    view = normal_view(clip, rng)
    if rng.random() < 0.5:
        view = view[:, :, _MIRROR]
    limits = np.full(3, np.pi / 180)
    limits[rng.integers(3)] = np.pi / 6
    turn = np.eye(3)
    for axis, angle in enumerate(rng.uniform(0, limits)):
        one = np.eye(3)
        first, second = [other for other in range(3) if other != axis]
        sign = -1 if axis == 1 else 1
        one[first, first] = one[second, second] = np.cos(angle)
        one[first, second], one[second, first] = sign * np.sin(angle), -sign * np.sin(angle)
        turn = one @ turn
    view = np.tensordot(turn, view, 1)
    if rng.random() < 0.5:
        view = view + rng.normal(0, 0.01, view.shape)
    if rng.random() < 0.5:
        kernel = np.exp(-(np.arange(-7, 8) ** 2) / (2 * rng.uniform(0.1, 2) ** 2))
        padded = np.pad(view, ((0, 0), (7, 7), (0, 0), (0, 0)))
        view = sum(weight * padded[:, tap : tap + view.shape[1]] for tap, weight in enumerate(kernel))
    if rng.random() < 0.5:
        view[rng.integers(3)] = 0
    return view


def extreme_set() -> Compose:
    """The batched transforms that :func:`extreme_view` stands for."""
    spatial = [Shear(0.5), Flip("ntu25", axis=None), AxisRotation(), JointNoise(p=0.5, preset="as_released")]
    return Compose([TemporalCrop(), *spatial, TemporalBlur(preset="as_released"), AxisMask()])


def benchmark_augment(
    batch_size: int = 128, frames: int = 50, repeats: int = 9, threads: int | None = 1
) -> dict[str, float | int]:
    """Views per second of one extreme and two normal views of made-up clips of two 25-joint persons.

    Both forms start from clips of `frames` frames and are timed in turns, so that a busy machine slows both.

    Args:
        batch_size: clips in a batch.
        frames: frames of a clip.
        repeats: timed batches of each form.
        threads: threads torch may use meanwhile; None leaves the setting alone.

    Returns:
        `views_per_s` of the batched form, also of its extreme and normal views alone, `reference_views_per_s` of one
        clip at a time, each also by processor time (`cpu_`), the ratios, and the settings.
    """
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        views = torch.randn(batch_size, frames, 2, 25, 3, generator=torch.Generator().manual_seed(0)).transpose(1, 2)
        clips = views.permute(0, 4, 2, 3, 1).contiguous().numpy()
        index, rng = torch.arange(batch_size), np.random.default_rng(0)
        extreme, normal = extreme_set(), Compose([TemporalCrop(), Shear(0.5)])

        def batched(repeat: int, parts: tuple[Compose, ...] = (extreme, normal, normal)) -> None:
            for number, part in enumerate(parts):
                part(views, None, Draws(0, repeat, index, number))

        def one_by_one(repeat: int) -> None:
            made = [[make(clip, rng) for make in (extreme_view, normal_view, normal_view)] for clip in clips]
            for view in zip(*made, strict=True):
                torch.from_numpy(np.stack(view)).float()

        times = median_seconds(
            batched,
            one_by_one,
            lambda repeat: batched(repeat, (extreme,)),
            lambda repeat: batched(repeat, (normal,)),
            repeats=repeats,
        )
    finally:
        torch.set_num_threads(before)
    (wall, cpu), (reference_wall, reference_cpu), (extreme_wall, _), (normal_wall, _) = times
    return {
        "views_per_s": 3 * batch_size / wall,
        "cpu_views_per_s": 3 * batch_size / cpu,
        "extreme_views_per_s": batch_size / extreme_wall,
        "normal_views_per_s": batch_size / normal_wall,
        "reference_views_per_s": 3 * batch_size / reference_wall,
        "reference_cpu_views_per_s": 3 * batch_size / reference_cpu,
        "ratio": reference_wall / wall,
        "cpu_ratio": reference_cpu / cpu,
        "batch_size": batch_size,
        "frames": frames,
        "repeats": repeats,
        "threads": before if threads is None else threads,
    }
