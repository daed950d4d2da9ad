"""The cuts of three published conversions, on the same files."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from skelact.clips import RaggedClips
from skelact.data.readers.base import DamagedClip
from skelact.data.readers.pku import PKUReader
from skelact.transforms.normalize import Normalize

from .pku_originals import GOLDEN, LISTS, golden_videos, write_list, write_video

LABELS = "4,31,90,2\n18,205,296,2\n51,330,719,1\n"


@pytest.fixture(scope="module")
def expected():
    with np.load(GOLDEN / "expected.npz") as archive:
        return {key: archive[key] for key in archive.files}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Both phases of the made-up set as files."""
    root = tmp_path_factory.mktemp("synth")
    for phase in (1, 2):
        folder = root / f"v{phase}"
        videos = golden_videos(f"synth{phase}")
        left, middle, right = sorted(videos)
        for video, frames in videos.items():
            write_video(folder / "skeleton" / f"{video}.txt", frames)
            (folder / "label").mkdir(exist_ok=True)
            extra = "7,722,750,1\n" if video == right else ""
            (folder / "label" / f"{video}.txt").write_text(LABELS + extra)
        write_list(folder / LISTS[phase][0], [left, middle], [right])
        write_list(folder / LISTS[phase][1], [middle, right], [left])
    return root


def _digest(values):
    """Of the float32 bytes, without negative zeros."""
    whole = np.ascontiguousarray(values, np.float32) + np.float32(0)
    return np.frombuffer(hashlib.sha256(whole.tobytes()).digest(), np.uint8)


def _aimclr_name(item):
    columns = item.columns
    text = str(columns["recording"])
    head = f"F{int(text):03d}" if text.isdigit() else f"A{int(text[1:3]):03d}N{int(text[4:]):03d}"
    return f"{head}V{columns['camera']:03d}C{columns['action']:03d}L{columns['line']:03d}.skeleton"


def _centre(frames):
    """AimCLR's array: the centre 300 frames, zero-padded, (3, 300, 25, 2)."""
    start = max(0, (len(frames) - 300) // 2)
    kept = frames[start : start + 300]
    values = np.zeros((3, 300, 25, 2), np.float32)
    values[:, : len(kept)] = kept.transpose(3, 0, 2, 1)
    return values


@pytest.mark.parametrize("phase", [1, 2])
@pytest.mark.parametrize(("part", "side"), [("train", "train"), ("val", "test")])
def test_aimclr(sources, expected, phase, part, side):
    reader = PKUReader(phase, keep_empty=True)
    items = reader.scan(sources / f"v{phase}")
    for split in ("xsub", "xview"):
        chosen = sorted((item for item in items if item.columns[split] == side), key=_aimclr_name)
        key = f"synth/v{phase}/aimclr_{split}_{part}_"
        assert [_aimclr_name(item) for item in chosen] == expected[key + "names"].tolist()
        assert [item.label for item in chosen] == expected[key + "label"].tolist()
        for item, want in zip(chosen, expected[key + "data_sha256"], strict=True):
            np.testing.assert_array_equal(_digest(_centre(reader.read(item).frames)), want, err_msg=item.name)


@pytest.mark.parametrize("phase", [1, 2])
@pytest.mark.parametrize("split", ["XSub", "XView"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_mamp(sources, expected, phase, split, part):
    reader = PKUReader(phase, bounds="half_open")
    found = []
    for item in reader.scan(sources / f"v{phase}"):
        if item.columns[split.lower()] != part:
            continue
        try:
            frames = reader.read(item).frames[:300]
        except DamagedClip as damage:
            assert item.columns["action"] == 7 and "no person" in str(damage)
            continue
        values = np.zeros((300, 150), np.float32)
        values[: len(frames)] = frames.reshape(-1, 150)
        found.append((item.label, float(values[0, 0]), values))
    found.sort(key=lambda sample: sample[:2])
    key = f"synth/v{phase}/mamp_{split}_"
    assert [label for label, *_ in found] == expected[key + f"y_{part}"].tolist()
    for (_, _, values), want in zip(found, expected[key + f"x_{part}_sha256"], strict=True):
        np.testing.assert_array_equal(_digest(values), want)


def _cmd_samples(sources, phase, side):
    reader = PKUReader(phase, bounds="half_open", keep_empty=True)
    items = [item for item in reader.scan(sources / f"v{phase}") if item.columns["xsub"] == side]
    return [(item, reader.read(item)) for item in items]


@pytest.mark.parametrize("phase", [1, 2])
@pytest.mark.parametrize(("part", "side"), [("train", "train"), ("val", "test")])
def test_cmd_cuts(sources, expected, phase, part, side):
    samples = _cmd_samples(sources, phase, side)
    key = f"synth/v{phase}/cmd_xsub_{part}_"
    names = [f"{item.path.name}_{item.columns['line'] - 1}" for item, _ in samples]
    assert names == expected[key + "names"].tolist()
    assert [item.label for item, _ in samples] == expected[key + "label"].tolist()
    assert [len(clip.frames) for _, clip in samples] == expected[key + "num_frame"].tolist()


@pytest.mark.parametrize(("part", "side"), [("train", "train"), ("val", "test")])
@pytest.mark.parametrize("masked", [False, True])
def test_cmd(sources, expected, part, side, masked):
    """Cut, then normalised; one sample has two persons of whom the second moves more: they stay as listed."""
    samples = _cmd_samples(sources, 1, side)
    rows = expected[f"synth/v1/cmd_xsub_{part}_joint_rows"]
    chosen = [samples[row][1] for row in rows]
    length = torch.tensor([len(clip.frames) for clip in chosen])
    frames = torch.from_numpy(np.concatenate([clip.frames for clip in chosen]))
    mask = torch.from_numpy(np.concatenate([clip.mask for clip in chosen])) if masked else None
    numbers = torch.arange(len(rows))
    clips = Normalize("cmd", "ntu25")(RaggedClips(frames, length.cumsum(0) - length, length, numbers, numbers, mask))
    for row, joint in enumerate(expected[f"synth/v1/cmd_xsub_{part}_joint"]):
        ours = clips.clip(row)[:300].numpy()
        theirs = joint.transpose(1, 3, 2, 0)[: len(ours)]
        np.testing.assert_allclose(ours, theirs, atol=2e-6)
    assert np.abs(theirs).max() > 0.3


@pytest.mark.parametrize("phase", [1, 2])
def test_aimclr_parser(tmp_path, expected, phase):
    """Other made-up videos: rows, coordinates and both splits, one video being in neither list of xview."""
    first, second, third = videos = sorted(golden_videos(f"raw{phase}").items())
    for video, frames in videos:
        write_video(tmp_path / "Data" / "skeleton" / f"{video}.txt", frames)
        (tmp_path / "Label").mkdir(exist_ok=True)
        np.savetxt(tmp_path / "Label" / f"{video}.txt", expected[f"raw/pku{phase}/rows/{video}"], "%d", ",")
    write_list(tmp_path / LISTS[phase][0], [first[0], second[0]], [third[0]])
    write_list(tmp_path / LISTS[phase][1], [first[0]], [second[0]])
    reader = PKUReader(phase, unlisted="test")
    items = reader.scan(tmp_path)
    compared = 0
    for item in items:
        want = expected.get(f"raw/pku{phase}/xyz/{_aimclr_name(item)}")
        if want is not None:
            np.testing.assert_array_equal(reader.read(item).frames.transpose(3, 0, 2, 1), want)
            compared += 1
    assert compared == (5 if phase == 1 else 6)
    skip = set(expected[f"raw/pku{phase}/ignored"].tolist())
    rules = reader.card(items)["splits"]
    for split, rule in rules.items():
        for part, sides in (("train", rule["train"]), ("val", rule["test"])):
            found = {_aimclr_name(item): item.label for item in items if item.columns[split] in sides}
            key = f"raw/pku{phase}/{split}/{part}/"
            assert sorted(set(found) - skip) == expected[key + "names_sorted"].tolist()
            assert [found[name] for name in sorted(set(found) - skip)] == expected[key + "labels_sorted"].tolist()
    assert any("neither list" in note and third[0] in note for note in reader.notes)
