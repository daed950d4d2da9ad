"""How fast views are made: skelact's batched form beside a straightforward one clip at a time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from skelact.clips import RaggedClips
from skelact.transforms.draws import Draws
from skelact.transforms.sampling import CropResize
from skelact.transforms.spatial import JointCorruption, OneOf, Shear
from skelact.transforms.views import ViewMaker


def made_up_clips(count: int, length: int = 100, persons: int = 2, joints: int = 25, seed: int = 0) -> RaggedClips:
    """Random walks of about `length` frames (0.7 to 1.3 times as many), `(F, persons, joints, 3)`."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(int(0.7 * length), int(1.3 * length) + 1, (count,), generator=generator).tolist()
    return RaggedClips.pack([torch.randn(n, persons, joints, 3, generator=generator).cumsum(0) for n in sizes])


def clip_by_clip_view(clip: Tensor, frames: int, rng: np.random.Generator) -> Tensor:
    """One view of one clip as a `__getitem__` would make it: UmURL's published augmentation, plainly written.

    Args:
        clip: `(T, M, V, 3)`.
        frames: frames of the view.
        rng: source of the draws.

    Returns:
        `(M, frames, V, 3)`.
    """
    length = len(clip)
    crop = min(max(int(length * rng.uniform(0.1, 1.0)), frames), length)
    start = int(rng.integers(length - crop + 1))
    flat = clip[start : start + crop].flatten(1).T[None]
    view = functional.interpolate(flat, size=frames, mode="linear")[0].T.reshape(frames, *clip.shape[1:])
    view = view.transpose(0, 1).contiguous()
    if rng.random() < 0.5:
        joints = torch.from_numpy(rng.choice(clip.shape[2], round(0.6 * clip.shape[2]), replace=False))
        if rng.random() < 0.5:
            view[:, :, joints] = 0
        else:
            view[:, :, joints] = view[:, :, joints] @ torch.from_numpy(rng.uniform(-1, 1, (3, 3))).float()
        return view
    shear = torch.from_numpy(rng.uniform(-1, 1, (3, 3))).float()
    shear.fill_diagonal_(1.0)
    return view @ shear.T


def benchmark_views(
    batch_size: int = 128,
    views: int = 4,
    frames: int = 64,
    length: int = 100,
    repeats: int = 15,
    device: str = "cpu",
    threads: int | None = 1,
) -> dict[str, float | int | str]:
    """Views per second of crop-resize and UmURL's published augmentation, on made-up clips of two 25-joint persons.

    Both forms are run once before they are timed; the median over the repeats is told. On a CPU the time is taken on
    one thread, so that the number is one per core, by the wall clock and by the processor time of this process (which a
    busy machine disturbs less).

    Args:
        batch_size: clips in a batch.
        views: views of each clip.
        frames: frames of a view.
        length: mean frames of a clip.
        repeats: timed batches.
        device: where the batched form runs; the clip-by-clip form always runs on the CPU.
        threads: threads torch may use meanwhile; None leaves the setting alone.

    Returns:
        `views_per_s` and `cpu_views_per_s` of the batched form, `reference_views_per_s` and `reference_cpu_views_per_s`
        of the clip-by-clip form, `ratio` and `cpu_ratio` between the two, and the settings.
    """
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        clips = made_up_clips(batch_size, length)
        there = clips.to(device)
        maker = ViewMaker(CropResize(frames), OneOf([JointCorruption(), Shear()]), views=views)
        rng = np.random.default_rng(0)

        def batched(repeat: int) -> None:
            maker(there, Draws(0, repeat, there.index))
            if there.device.type == "cuda":
                torch.cuda.synchronize()

        def one_by_one(repeat: int) -> None:
            made = [clip_by_clip_view(clips.clip(row), frames, rng) for row in range(batch_size) for _ in range(views)]
            torch.stack(made).to(device)

        made = batch_size * views
        ((wall, processor),) = median_seconds(batched, repeats=repeats)
        ((reference_wall, reference_processor),) = median_seconds(one_by_one, repeats=max(3, repeats // 4))
    finally:
        torch.set_num_threads(before)
    return {
        "views_per_s": made / wall,
        "cpu_views_per_s": made / processor,
        "reference_views_per_s": made / reference_wall,
        "reference_cpu_views_per_s": made / reference_processor,
        "ratio": reference_wall / wall,
        "cpu_ratio": reference_processor / processor,
        "batch_size": batch_size,
        "views": views,
        "frames": frames,
        "length": length,
        "repeats": repeats,
        "device": device,
        "threads": before if threads is None else threads,
    }


def median_seconds(*works: Callable[[int], None], repeats: int) -> list[tuple[float, float]]:
    """Median wall-clock and processor seconds of each of `works`, run in turns after one untimed run."""
    for work in works:
        work(repeats)
    walls: list[list[float]] = [[] for _ in works]
    processors: list[list[float]] = [[] for _ in works]
    for repeat in range(repeats):
        for place, work in enumerate(works):
            wall, processor = time.perf_counter(), time.process_time()
            work(repeat)
            walls[place].append(time.perf_counter() - wall)
            processors[place].append(time.process_time() - processor)
    return [(statistics.median(a), statistics.median(b)) for a, b in zip(walls, processors, strict=True)]
