"""Made-up pose files in the form of pyskl."""

from __future__ import annotations

import pickle

import numpy as np


def annotation(name, label=0, /, people=1, frames=12, seed=0, **changes):
    draw = np.random.default_rng([seed, label, people, frames])
    centre = draw.uniform([400, 300], [1500, 800], (people, 1, 1, 2))
    keypoint = (centre + draw.normal(0, 60, (people, frames, 17, 2))).astype(np.float16)
    note = {
        "frame_dir": name,
        "label": label,
        "img_shape": (1080, 1920),
        "original_shape": (1080, 1920),
        "total_frames": frames,
        "keypoint": keypoint,
        "keypoint_score": draw.uniform(0.3, 1, keypoint.shape[:3]).astype(np.float16),
        **changes,
    }
    return {key: value for key, value in note.items() if value is not ...}


def ntu_file(count=24):
    """NTU names over three cameras and six subjects; every third clip has two people."""
    notes = []
    for k in range(count):
        label = k % 4
        name = f"S{k // 12 + 1:03d}C{k % 3 + 1:03d}P{k % 6 + 1:03d}R{k // 6 % 2 + 1:03d}A{label + 1:03d}"
        name = name[:8] + f"P{k % 6 + 1:03d}R{k // 12 + 1:03d}A{label + 1:03d}"
        notes.append(annotation(name, label, 1 + (k % 3 == 0), 8 + k % 5, seed=k))
    notes = list({note["frame_dir"]: note for note in notes}.values())
    names = [note["frame_dir"] for note in notes]
    split = {
        "xsub_train": [n for n in names if int(n[9:12]) <= 4],
        "xsub_val": [n for n in names if int(n[9:12]) > 4],
        "xview_train": [n for n in names if n[5:8] != "001"],
        "xview_val": [n for n in names if n[5:8] == "001"],
    }
    return {"split": split, "annotations": notes}


def write(path, content, protocol=2):
    """mmcv, by which pyskl writes, uses protocol 2."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def kinetics(folder, people=3):
    """A list file and two key point files; the third video has no skeleton in its middle."""
    draw = np.random.default_rng(5)
    notes, files = [], {"kp_0.pkl": {}, "kp_1.pkl": {}}
    for k in range(4):
        name, total = f"video{k}", 10 + k
        frames = [f for f in range(total) for _ in range(1 + f % people) if k != 2 or not 3 <= f < 6]
        keypoint = draw.uniform(1, 300, (len(frames), 17, 3)).astype(np.float16)
        keypoint[..., 2] = draw.uniform(0.1, 1, (len(frames), 17))
        raw = f"kp_{(k + 1) % 2}.pkl"
        files[raw][name] = {"keypoint": keypoint}
        notes.append(
            {
                "frame_dir": name,
                "label": k % 2,
                "img_shape": (240, 320),
                "original_shape": (240, 320),
                "total_frames": total,
                "frame_inds": np.array(frames, np.int16),
                "box_score": draw.uniform(0.5, 1, len(frames)).astype(np.float16),
                "valid": {0.5: total, 0.9: 3},
                "raw_file": f"data/k400/kpfiles/{raw}",
            }
        )
    content = {"split": {"train": ["video0", "video1", "video2"], "val": ["video3"]}, "annotations": notes}
    write(folder / "k400_hrnet.pkl", content)
    for raw, value in files.items():
        write(folder / "kpfiles" / raw, value)
    return notes, {name: entry["keypoint"] for value in files.values() for name, entry in value.items()}
