"""Published preprocessing routes against arrays of the reference scripts; see tests/golden/routes/README.md."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from skelact.clips import RaggedClips
from skelact.skeleton import get_layout
from skelact.skeleton.streams import derive
from skelact.transforms.frame50 import Frame50, clip_motion, released_span
from skelact.transforms.indexing import LinspaceIndex
from skelact.transforms.normalize import Normalize
from skelact.transforms.sampling import CenterCrop, resample

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "routes"
SHARED = Path(os.environ.get("SKELACT_SHARED_DATA", ROOT / ".." / "shared" / "data"))
NTU = get_layout("ntu25")


def load(name):
    return dict(np.load(GOLDEN / f"{name}.npz", allow_pickle=False))


NTU_ARRAYS, FRAME50 = load("ntu"), load("frame50")
CLIPS = [str(name) for name in NTU_ARRAYS["names"]]


def having(*items):
    return [name for name in CLIPS if all(f"{name}/{item}" in NTU_ARRAYS for item in items)]


def array(name, item):
    return NTU_ARRAYS[f"{name}/{item}"]


def clips_of(arrays, masked=False):
    """(C, T, V, M) arrays -> one batch."""
    clips = [torch.from_numpy(raw).permute(1, 3, 2, 0).contiguous() for raw in arrays]
    mask = [(clip != 0).any(-1) for clip in clips] if masked else None
    return RaggedClips.pack(clips, mask=mask)


def rows(array, persons=None):
    """(T, M * 75) rows of the denoising route -> (T, M, 25, 3), with empty persons added."""
    clip = torch.from_numpy(array).reshape(len(array), -1, 25, 3)
    missing = (persons or clip.shape[1]) - clip.shape[1]
    return torch.cat((clip, clip.new_zeros(len(clip), missing, 25, 3)), 1)


def as_golden(clip):
    """(T, M, V, C) -> (C, T, V, M) array."""
    return clip.permute(3, 0, 2, 1).numpy()


def close(got, expected, atol=1e-5):
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=0, atol=atol)


@pytest.mark.parametrize("masked", [False, True])  # as released, a mask is not looked at
def test_frame50(masked):
    names = sorted({key.partition("/")[0] for key in FRAME50})
    clips = clips_of([FRAME50[f"{name}/raw"] for name in names], masked)
    views, mask = Frame50(preset="as_released")(clips)
    _, length = released_span(clips)
    assert mask is None and length.tolist() == [int(FRAME50[f"{name}/length"]) for name in names]
    for view, name in zip(views, names, strict=True):
        close(view.permute(3, 1, 2, 0), FRAME50[f"{name}/position"], 2e-5)
    motion, _ = resample(clip_motion(clips, "as_released"), torch.zeros_like(length), length, 50)
    for view, name in zip(motion, names, strict=True):
        if f"{name}/motion" in FRAME50:
            close(view.permute(3, 1, 2, 0), FRAME50[f"{name}/motion"], 2e-5)


def test_frame50_of_two_people_and_late_arrivals():
    clips = clips_of([array(name, "aimclr_joint") for name in CLIPS])
    views, _ = Frame50(preset="as_released")(clips)
    for view, name in zip(views, CLIPS, strict=True):
        close(view.permute(3, 1, 2, 0), array(name, "aimclr_frame50_position"), 2e-5)
    late = having("aimclr_frame50_motion")
    clips = clips_of([array(name, "aimclr_joint") for name in late])
    _, length = released_span(clips)
    assert (length < clips.length).all()  # empty frames at the start, as many lost at the end
    motion, _ = resample(clip_motion(clips, "as_released"), torch.zeros_like(length), length, 50)
    for view, name in zip(motion, late, strict=True):
        close(view.permute(3, 1, 2, 0), array(name, "aimclr_frame50_motion"))


@pytest.mark.parametrize(("mode", "item"), [("umurl", "umurl_joint"), ("cmd", "cmd_joint")])
@pytest.mark.parametrize("chunk", [40, 65_536])
def test_most_energetic_bodies_normalised(mode, item, chunk):
    names = having("umurl_top2", item)
    clips = clips_of([array(name, "umurl_top2") for name in names])
    out = Normalize(mode, NTU, chunk=chunk)(clips)
    for row, name in enumerate(names):
        # the reference measures angles in single precision, which tells where shoulders are nearly parallel to x
        close(as_golden(out.clip(row)), array(name, item), 2e-5 if name.startswith("S005") else 1e-5)


def test_spine_rotation_makes_another_dataset():
    upright, turned = array(CLIPS[0], "cmd_joint"), array(CLIPS[0], "umurl_joint")
    assert np.abs(upright - turned).max() > 0.5


def test_motion_with_its_spike():
    names = having("umurl_motion")
    clips = clips_of([array(name, "umurl_top2") for name in names])
    out = clip_motion(clips, "as_released")
    for row, name in enumerate(names):
        close(as_golden(out.clip(row)), array(name, "umurl_motion"), 1e-6)
    corrected = clip_motion(clips)
    for row in range(len(names)):
        assert torch.equal(corrected.clip(row)[:-1], out.clip(row)[:-1]) and (corrected.clip(row)[-1] == 0).all()


@pytest.mark.parametrize(("suffix", "fill"), [("60", "none"), ("120", "copy")])
def test_denoised_bodies_centred_on_the_first_frame(suffix, fill):
    names = having(f"ctr{suffix}_aligned")
    inputs = {name: array(name, "ctr60_denoised" if f"{name}/ctr60_denoised" in NTU_ARRAYS else "ctr120_denoised")
              for name in names}  # fmt: skip
    clips = RaggedClips.pack([rows(inputs[name], 2) for name in names])
    out = Normalize("first_frame", NTU, fill=fill)(clips)
    for row, name in enumerate(names):
        expected = rows(array(name, f"ctr{suffix}_aligned"))
        if fill == "copy" and name.startswith("S006"):  # one person tracked twice: the reference leaves body 2 empty
            assert torch.equal(out.clip(row)[:, 1], out.clip(row)[:, 0]) and (expected[:, 1] == 0).all()
            expected[:, 1] = expected[:, 0]
        close(out.clip(row), expected)


def test_ctrgcn_feeder():
    for name in having("ctr60_aligned", "feeder64_joint"):
        clips = RaggedClips.pack([rows(array(name, "ctr60_aligned"))])
        views, _ = CenterCrop(64, ratio=0.95)(clips)
        for stream, view in derive(views, ("joint", "bone", "motion"), NTU).items():
            item = {"joint": "feeder64_joint", "bone": "feeder64_bone", "motion": "feeder64_vel"}[stream]
            if f"{name}/{item}" in NTU_ARRAYS:
                close(view[0].permute(3, 1, 2, 0), array(name, item))


@pytest.mark.data
def test_nw_ucla_feeder():
    source, golden = SHARED / "nw_ucla" / "all_sqe", SHARED.parent / "golden" / "nw_ucla_feeder" / "golden.npz"
    if not source.is_dir() or not golden.is_file():
        pytest.skip("needs NW-UCLA, which may not be redistributed: set SKELACT_SHARED_DATA")
    data = np.load(golden, allow_pickle=False)
    clips = []
    for name in data["names"]:
        with open(source / f"{name}.json", encoding="utf-8") as stream:
            clips.append(torch.tensor(json.load(stream)["skeletons"])[:, None])
    layout = get_layout("kinect20")
    views, _ = LinspaceIndex(52)(Normalize("minmax", layout)(RaggedClips.pack(clips)))
    made = derive(views, ("joint", "bone", "motion", "bone_motion"), layout)
    for stream, expected in made.items():
        close(expected.permute(0, 4, 2, 3, 1), data[stream], 2e-6)
