"""Made-up originals in the true formats."""

from __future__ import annotations

import json

import numpy as np

from skelact.data.readers.nw_ucla import ACTIONS


def write_ucla(folder, count=12, seed=0):
    """NW-UCLA JSON files; the third has one frame."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    for k in range(count):
        label = k % 10
        name = f"a{ACTIONS[label]:02d}_s{1 + k % 10:02d}_e{k // 10:02d}_v{1 + k % 3:02d}"
        frames = draw.standard_normal((1 if k == 2 else 3 + k, 20, 3)).round(4)
        content = {"file_name": name, "label": label + 1, "skeletons": frames.tolist()}
        (folder / f"{name}.json").write_text(json.dumps(content))
    return sorted(folder.glob("*.json"))


def write_utd(folder):
    """UTD-MHAD MATLAB files of 2 actions x 8 subjects x 2 trials."""
    from scipy.io import savemat

    (folder / "Skeleton").mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(1)
    for action in (1, 27):
        for subject in range(1, 9):
            for trial in (1, 2):
                skeleton = draw.standard_normal((20, 3, 5 + trial))
                savemat(folder / "Skeleton" / f"a{action}_s{subject}_t{trial}_skeleton.mat", {"d_skel": skeleton})
    return folder
