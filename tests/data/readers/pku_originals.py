"""PKU-MMD's files: written from numbers, and the golden videos."""

from __future__ import annotations

import io
import lzma
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[2] / "golden" / "pku"
VIDEOS = {
    1: [f"{number:04d}-{view}" for number in (2, 3, 4, 5) for view in "LMR"],
    2: [f"A{a:02d}N{n:02d}-{view}" for a, n in ((1, 1), (1, 2), (2, 3), (3, 1)) for view in "LMR"],
}
LISTS = {1: ("cross-subject.txt", "cross-view.txt"), 2: ("cross_subject_v2.txt", "cross_view_v2.txt")}


def write_video(path, frames, end="\n"):
    """`(T, 150)` numbers in the set's own form."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(" ".join(f"{v:.6f}" for v in row) + end for row in frames).encode())


def write_list(path, train, test):
    path.write_text(f"Training videos:\n{', '.join(train)}, \nValidataion videos:\n{', '.join(test)}\n")


def write_pku(folder, phase=1, frames=24, seed=0):
    """A small set: twelve videos (four recordings, three views), two instances each; returns the videos' numbers."""
    draw = np.random.default_rng(seed)
    videos = VIDEOS[phase]
    made = {}
    for k, video in enumerate(videos):
        made[video] = values = draw.standard_normal((frames, 2, 75)).round(6)
        values[:, 1] = values[:, 1] * 3 if k % 2 else 0
        write_video(folder / "skeleton" / f"{video}.txt", values.reshape(frames, 150))
        (folder / "label").mkdir(exist_ok=True)
        (folder / "label" / f"{video}.txt").write_text(f"{1 + k % 3},3,9,1\n{2 + k % 3},12,{frames},2\n")
    subject, view = LISTS[phase]
    write_list(folder / subject, videos[:9], videos[9:])
    write_list(folder / view, [v for v in videos if v[-1] != "L"], [v for v in videos if v[-1] == "L"])
    return made


def golden_videos(prefix):
    """Golden videos of one group, `(T, 150)` float64."""
    with np.load(io.BytesIO(lzma.decompress((GOLDEN / "videos.npz.xz").read_bytes()))) as planes:
        chosen = {key.split("/")[1]: planes[key] for key in planes.files if key.startswith(prefix + "/")}
    return {
        name: np.ascontiguousarray(planes.transpose(1, 2, 0)).view("<i4")[..., 0].T / 1e6
        for name, planes in chosen.items()
    }
