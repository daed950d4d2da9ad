"""Made-up frames, videos and frame folders in the true formats.

The brightness of a picture is its frame's number: 8 x number, so that a test can tell which frame came out.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from PIL import Image
from scipy.io import savemat

STEP = 8


def picture(number, height=24, width=32):
    """`(H, W, 3)` uint8 of one brightness."""
    return np.full((height, width, 3), STEP * number, np.uint8)


def numbers(frames):
    """Which frames these are."""
    return np.round(frames.reshape(len(frames), -1).mean(axis=1) / STEP).astype(int).tolist()


def write_video(path, frames=20, codec="mjpeg", height=24, width=32, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options={key: str(value) for key, value in options.items()})
        stream.bit_rate = 8_000_000
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(frames):
            image = av.VideoFrame.from_ndarray(picture(number, height, width), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
    return path


def write_folder(folder, names, deep=False):
    """One image a name; `deep` writes 16-bit depth: a body on a background of zeros, nearer in later frames."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        image = depth(number) if deep else picture(number)
        Image.fromarray(image).save(folder / name, **({"quality": 95} if name.endswith("jpg") else {}))
    return folder


def depth(number, height=24, width=32):
    """`(H, W)` uint16: zeros, and a slanted body of depths around 2 to 3 m."""
    image = np.zeros((height, width), np.uint16)
    image[4:20, 8:24] = 2000 + 10 * number + 30 * np.arange(16, dtype=np.uint16)[:, None]
    return image


def ntu_name(setup=1, camera=1, subject=1, repetition=1, action=1):
    return f"S{setup:03d}C{camera:03d}P{subject:03d}R{repetition:03d}A{action:03d}"


def write_ntu(root, count=3, frames=12):
    """RGB videos, infrared frame folders and masked depth folders of `count` clips; the last has no infrared."""
    clips = [ntu_name(action=1 + k) for k in range(count)]
    for k, name in enumerate(clips):
        write_video(root / "nturgb+d_rgb_s001" / f"{name}_rgb.avi", frames + k)
        if k < count - 1:
            folder = root / "nturgb+d_ir_s001" / "frames" / f"{name}_ir"
            write_folder(folder, [f"output{n + 1}.png" for n in range(frames + 1)])
        folder = root / "nturgb+d_depth_masked_s001" / "nturgb+d_depth_masked" / name
        write_folder(folder, [f"MDepth-{n + 1:08d}.png" for n in range(frames + k)], deep=True)
    return clips


def write_ucla_folders(root, clips=(("a01_s01_e00", 1), ("a12_s10_e03", 3)), numbers_=(8, 9, 10, 11, 99, 100, 101)):
    """The original layout; times differ between modalities, depth has a frame less."""
    for clip, view in clips:
        folder = root / f"view_{view}" / clip
        write_folder(folder, [f"frame_{n}_tc_{100 * n + 1}_rgb.jpg" for n in numbers_])
        for k, n in enumerate(numbers_[:-1]):
            Image.fromarray(picture(k)[..., 0]).save(folder / f"frame_{n}_tc_{100 * n + 7}_depth_vis.jpg", quality=95)
        for k, n in enumerate(numbers_):
            rows = [f"{0.01 * j},{0.1 * k},{2.5},1" for j in range(20)]
            text = "\n".join(["20 1" if k else "0 0", *(rows if k else [])])
            (folder / f"frame_{n}_tc_{100 * n + 9}_skeletons.txt").write_text(text + "\n")
    return root


def write_uwa(root, rgb=("a01_s01_v01_e00", "a30_s10_v04_e01"), deep=("a01_s01_v01_e00",)):
    for name in rgb:
        write_folder(root / "UWA3DII_RGB" / "UWA3D-RGB" / name, [f"{n + 1:03d}.jpg" for n in range(5)])
    for name in deep:
        folder = root / "UWA3DII_Depth_ROI" / "UWA3D-Depth" / name
        folder.mkdir(parents=True)
        for n in range(4):
            Image.fromarray(picture(n)[..., 0]).save(folder / f"{n + 1:03d}.png")
    return root


def write_utd_media(root, clips=((1, 1, 1), (2, 1, 1), (27, 8, 4)), frames=20):
    draw = np.random.default_rng(0)
    for name in ("Inertial", "Depth", "RGB"):
        (root / name).mkdir(parents=True)
    for action, subject, trial in clips:
        name = f"a{action}_s{subject}_t{trial}"
        savemat(root / "Inertial" / f"{name}_inertial.mat", {"d_iner": draw.standard_normal((30 + action, 6))})
        volume = np.stack([depth(n) for n in range(frames)], axis=2)
        savemat(root / "Depth" / f"{name}_depth.mat", {"d_depth": volume})
        write_video(root / "RGB" / f"{name}_color.avi", frames)
    return root


def cut(path: Path, share: float):
    """Cut a file short."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path
