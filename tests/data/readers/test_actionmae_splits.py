"""Who trains and who tests in ActionMAE's experiments, against lists that its reference code made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from skelact.data.readers.media_multiview import NWUCLAMedia, UWA3DMedia
from skelact.data.readers.media_ntu import NTUMedia
from skelact.data.readers.ntu_protocols import missing_skeletons, parse_name
from skelact.data.splits import SplitRule

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "actionmae" / "splits.npz", allow_pickle=False)


def _sides(rule, names, columns):
    """Sorted names of the training side, validation included, and of the test side."""
    parts = SplitRule.from_dict(rule).parts({key: np.array([own[key] for own in columns]) for key in columns[0]})
    return [sorted(np.array(names)[parts[part]].tolist()) for part in ("train+val", "test")]


def _scanned(reader, root, split):
    items = reader.scan(root)
    assert all(item.damage is None for item in items)
    return *_sides(reader.splits[split], [item.name for item in items], [item.columns for item in items]), items


@pytest.mark.parametrize(
    ("classes", "split", "protocol"),
    [
        (60, "xsub", "cross_subject"),
        (60, "xview", "cross_view"),
        (120, "xsub", "cross_subject"),
        (120, "xset", "cross_setup"),
    ],
)
def test_ntu(classes, split, protocol):
    """Names that the set does not have are among them, so no file is scanned."""
    names = [name for name in GOLDEN[f"ntu{classes}/all"].tolist() if classes == 120 or name[1:4] <= "017"]
    rule = NTUMedia("rgb", classes=classes).splits[split]
    for ending, left_out in (("", frozenset()), ("/rgb_when_skeleton_used", missing_skeletons())):
        kept = [name for name in names if name not in left_out]
        train, test = _sides(rule, kept, [parse_name(name) for name in kept])
        assert train == sorted(GOLDEN[f"ntu{classes}/{protocol}/train{ending}"].tolist())
        assert test == sorted(GOLDEN[f"ntu{classes}/{protocol}/val{ending}"].tolist())


def test_nw_ucla(tmp_path):
    names = {part: GOLDEN[f"nw_ucla/{part}"].tolist() for part in ("train", "val")}
    for name in (*names["train"], *names["val"]):
        (tmp_path / name).mkdir(parents=True)
    train, test, items = _scanned(NWUCLAMedia("rgb"), tmp_path, "xview")
    for part, found in (("train", train), ("val", test)):
        assert found == sorted(f"{clip}_v{view[-1:].zfill(2)}" for view, clip in (n.split("/") for n in names[part]))
    labels = dict(zip(GOLDEN["nw_ucla/action_id"].tolist(), GOLDEN["nw_ucla/label"].tolist(), strict=True))
    assert {item.columns["action"]: item.label for item in items} == labels


@pytest.mark.parametrize("modality", ["rgb", "depth"])
def test_uwa3d(tmp_path, modality):
    for name in GOLDEN["uwa3d/all"].tolist():
        (tmp_path / f"UWA3D-{modality}" / name).mkdir(parents=True)
    train, test, items = _scanned(UWA3DMedia(modality), tmp_path, "actionmae")
    assert train == sorted(GOLDEN["uwa3d/train/rgb"].tolist()) and test == sorted(GOLDEN["uwa3d/val/rgb"].tolist())
    assert all(item.label == int(item.name[1:3]) - 1 for item in items)
    # the five clips that lie in one stream only are what data.complete=true leaves out
    both = set(GOLDEN["uwa3d/excluded_when_rgb_and_depth"].tolist())
    for part, found in (("train", train), ("val", test)):
        assert sorted(set(found) - both) == sorted(GOLDEN[f"uwa3d/{part}/rgb_depth"].tolist())
