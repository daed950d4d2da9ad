from __future__ import annotations

import numpy as np
import pytest

from skelact.data.prepare import prepare_dataset
from skelact.data.readers.base import DamagedClip
from skelact.data.readers.pku import CLASSES, PKUReader
from skelact.data.splits import resolve
from skelact.data.store import Store
from skelact.errors import SkelactError

from .pku_originals import LISTS, VIDEOS, write_list, write_pku, write_video


def _items(reader, source):
    return {item.name: item for item in reader.scan(source)}


@pytest.mark.parametrize("phase", [1, 2])
def test_a_set_goes_into_a_store(tmp_path, phase):
    made = write_pku(tmp_path / "raw", phase)
    reader = PKUReader(phase)
    report = prepare_dataset(reader, tmp_path / "raw", tmp_path / "s", strict=True, progress=False, workers=1)
    assert report.clips == 24 and report.frames == 12 * (7 + 13)
    store = Store(tmp_path / "s")
    video = VIDEOS[phase][1]
    row = store.names.tolist().index(f"{video}_0003-0009_c02")
    clip, mask = store.clips().clip(row).numpy(), store.clips().clip_mask(row).numpy()
    np.testing.assert_array_equal(clip, made[video][2:9].reshape(7, 2, 25, 3).astype(np.float32))
    assert mask.all() and not store.clips().clip_mask(0)[:, 1].any()
    columns = {key: values[row] for key, values in store.columns.items()}
    assert columns["camera"] == 2 and columns["recording"] == video.split("-")[0] and columns["confidence"] == 1
    assert (columns["first"], columns["last"], columns["line"], columns["action"]) == (3, 9, 1, 2)
    assert columns["subject"] == (-1 if phase == 1 else 1)
    assert store.card["pipeline"] == "file_order" and store.class_names[1] == "brushing hair" and len(CLASSES) == 51
    for split, sizes in (("xsub", (18, 6)), ("xview", (16, 8))):
        parts = resolve(store, split)
        assert (len(parts["train+val"]), len(parts["test"])) == sizes
        factor = "subject" if phase == 2 and split == "xsub" else "recording"
        held = set(store.columns[factor][parts["val"]])
        assert len(held) == 1 and held.isdisjoint(store.columns[factor][parts["train"]])


def test_held_out_names_do_not_depend_on_what_is_there(tmp_path):
    write_pku(tmp_path / "raw", 2)
    before = PKUReader(2)
    whole = before.card(before.scan(tmp_path / "raw"))["splits"]
    for video in VIDEOS[2][:3]:
        (tmp_path / "raw" / "skeleton" / f"{video}.txt").unlink()
    after = PKUReader(2)
    assert after.card(after.scan(tmp_path / "raw"))["splits"] == whole


@pytest.mark.parametrize(
    ("skeleton", "label", "lists"),
    [
        ("PKUMMDv1/Data/PKU_Skeleton_Renew", "PKUMMDv1/Label/Train_Label_PKU_final", "PKUMMDv1/Split"),
        ("Skeleton", "Label", "."),
        ("data/skeletons/all", "LABELS", "data"),
    ],
)
def test_downloads_are_found_however_they_are_nested(tmp_path, skeleton, label, lists):
    write_pku(tmp_path / "flat")
    for old, new in (("skeleton", skeleton), ("label", label)):
        (tmp_path / "raw" / new).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "flat" / old).rename(tmp_path / "raw" / new)
    (tmp_path / "raw" / lists).mkdir(parents=True, exist_ok=True)
    for name in LISTS[1]:
        (tmp_path / "flat" / name).rename(tmp_path / "raw" / lists / name)
    old_edition = (tmp_path / "raw" / skeleton).parent / "PKU_Skeleton_old"
    write_video(old_edition / "0002-L.txt", np.zeros((2, 150))) if "Renew" in skeleton else None
    items = PKUReader().scan(tmp_path / "raw")
    assert len(items) == 24 and not any(item.damage for item in items)
    assert {item.path.parent for item in items} == {tmp_path / "raw" / skeleton}


@pytest.mark.parametrize(
    ("gone", "reason"),
    [
        ("skeleton", "no skeleton texts in .*files like 0002-L.txt"),
        ("label", "no label texts in .*'label' in its name"),
        ("lists", "neither split list in .*cross-subject.txt and cross-view.txt"),
    ],
)
def test_what_is_not_there_is_said(tmp_path, gone, reason):
    write_pku(tmp_path)
    if gone == "lists":
        [(tmp_path / name).unlink() for name in LISTS[1]]
    else:
        (tmp_path / gone).rename(tmp_path / "elsewhere")
    with pytest.raises(SkelactError, match=reason):
        PKUReader().scan(tmp_path)


def test_the_other_phase_is_recognised(tmp_path):
    write_pku(tmp_path, 2)
    with pytest.raises(SkelactError, match="it holds phase 2, which is data=pku2"):
        PKUReader(1).scan(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0002-L, 0003-L\nTest\n0004-L\n", "line 1: videos before the heading"),
        ("Train\n0002-L, 3-L\nTest\n0004-L\n", "line 2: '3-L' is not a video"),
        ("Train\n0002-L\nTest\n0002-L,\n", "0002-L stands on both sides"),
        ("Train\n0002-L\n", "expected two headings"),
    ],
)
def test_a_wrong_split_list_is_refused(tmp_path, text, reason):
    write_pku(tmp_path)
    (tmp_path / "cross-view.txt").write_text(text)
    with pytest.raises(SkelactError, match=rf"cross-view.txt.*{reason}"):
        PKUReader().scan(tmp_path)


def test_split_lists_as_they_come(tmp_path):
    write_pku(tmp_path)
    text = "\ufeffTraining videos:\r\n 0002-L,0002-M ,, 0003-R.txt, \r\n\r\nValidataion videos:\r\n0004-L\t0005-R,\r\n"
    (tmp_path / "cross-view.txt").write_bytes(text.encode())
    (tmp_path / "cross-subject.txt").unlink()
    reader = PKUReader()
    items = reader.scan(tmp_path)
    side = {item.path.stem: item.columns["xview"] for item in items}
    assert side["0003-R"] == "train" and side["0005-R"] == "test" and side["0005-L"] == "neither"
    assert "xsub" not in items[0].columns and list(reader.card(items)["splits"]) == ["xview"]
    notes = "\n".join(reader.notes)
    assert "no cross-subject list found" in notes
    assert (
        "3 training and 2 test videos; 7 labelled videos are in neither list and left out of xview: 0002-R, 0003-L"
        in notes
    )
    tested = PKUReader(unlisted="test")
    assert tested.card(tested.scan(tmp_path))["splits"]["xview"]["test"] == ["test", "neither"]


def test_bounds_are_clipped_to_the_video(tmp_path):
    made = write_pku(tmp_path)["0002-M"].reshape(24, 2, 25, 3).astype(np.float32)
    (tmp_path / "label" / "0002-M.txt").write_text("1,0,3,1\n1,20,30,1\r\n\n 1, 5, 5, 1,\n1,25,30,1\n1,24,24,1")
    want = {"0000-0003": (0, 3), "0020-0030": (19, 24), "0005-0005": (4, 5), "0024-0024": (23, 24)}
    later = {"0000-0003": (0, 3), "0020-0030": (20, 24)}
    for bounds, cuts in (("inclusive", want), ("half_open", later)):
        reader = PKUReader(bounds=bounds)
        items = _items(reader, tmp_path)
        for key in (*want, "0025-0030"):
            item = items[f"0002-M_{key}_c01"]
            if key in cuts:
                np.testing.assert_array_equal(reader.read(item).frames, made[slice(*cuts[key])])
            else:
                with pytest.raises(DamagedClip, match=r"frames \d+ to \d+: none of them is among the 24"):
                    reader.read(item)


def test_energy_puts_the_person_who_moves_more_first(tmp_path):
    write_pku(tmp_path)
    listed, ranked = PKUReader(), PKUReader(pipeline="energy")
    for name, item in _items(listed, tmp_path).items():
        a, b = listed.read(item), ranked.read(item)
        two = a.mask[:, 1].any()  # the second one was written three times as lively
        np.testing.assert_array_equal(b.frames, a.frames[:, ::-1] if two else a.frames, err_msg=name)
        np.testing.assert_array_equal(b.mask, a.mask[:, ::-1] if two else a.mask)


def test_instances_without_a_person(tmp_path):
    write_pku(tmp_path)
    values = np.zeros((24, 150))
    values[10:, :75] = 1.5
    write_video(tmp_path / "skeleton" / "0003-L.txt", values, end="\r\n")
    report = prepare_dataset(PKUReader(), tmp_path, tmp_path / "s", progress=False)
    assert report.clips == 23
    ((file, where, reason),) = report.skipped
    assert file.endswith("0003-L.txt") and where == "frames 3 to 9" and "keep_empty=true" in reason
    prepare_dataset(PKUReader(keep_empty=True), tmp_path, tmp_path / "k", strict=True, progress=False)
    clips = Store(tmp_path / "k").clips()
    row = Store(tmp_path / "k").names.tolist().index("0003-L_0003-0009_c01")
    assert not clips.clip_mask(row).any() and clips.clip_mask(row + 1)[:, 0].all()
    assert not clips.clip_mask(row + 1)[:, 1].any()


def _damage_line(path, line, change):
    lines = path.read_bytes().split(b"\n")
    lines[line - 1] = change(lines[line - 1])
    path.write_bytes(b"\n".join(lines))


@pytest.mark.parametrize(
    ("line", "change", "place"),
    [
        (5, lambda text: text.replace(b".", b"x", 1), r"line 5: '-?\dx\d+' is not a number"),
        (5, lambda text: text.rsplit(b" ", 1)[0], "line 5: has 149 numbers, expected 150"),
        (5, lambda text: text + b" 1", "line 5: has 151 numbers, expected 150"),
        (5, lambda text: b"", "line 5: has 0 numbers"),
        (9, lambda text: b"nan" + text[text.index(b" ") :], "frame 9, joint spine_base of person 0: .*finite"),
        (4, lambda text: b"1e39" + text[text.index(b" ") :], "frame 4, joint spine_base of person 0: .*finite"),
        (3, lambda text: b"\xff" + text, r"line 3: '\\xff-?\d"),
    ],
)
def test_damage_is_placed_and_spares_the_other_instances(tmp_path, line, change, place):
    write_pku(tmp_path)
    _damage_line(tmp_path / "skeleton" / "0002-M.txt", line, change)
    reader = PKUReader()
    items = _items(reader, tmp_path)
    with pytest.raises(DamagedClip, match=rf"0002-M\.txt, {place}"):
        reader.read(items["0002-M_0003-0009_c02"])
    assert len(reader.read(items["0002-M_0012-0024_c03"]).frames) == 13


def test_a_video_cut_short(tmp_path):
    write_pku(tmp_path)
    path = tmp_path / "skeleton" / "0002-M.txt"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(lines[:14]) + b"\n" + lines[14][:200])
    report = prepare_dataset(PKUReader(), tmp_path, tmp_path / "s", progress=False)
    assert report.clips == 23 and report.skipped[0][1] == "line 15"
    path.write_bytes(b"")
    report = prepare_dataset(PKUReader(), tmp_path, tmp_path / "s", progress=False)
    assert report.clips == 22 and all("among the 0 of the video" in reason for *_, reason in report.skipped)


def test_labels_and_names_that_cannot_be_used(tmp_path):
    write_pku(tmp_path)
    label, skeleton = tmp_path / "label", tmp_path / "skeleton"
    (label / "0002-L.txt").write_text("1,3,9,1\n52,3,9,1\n1,9,3,1\n1,x,9,1\n1,3\n1,3,9,2\n2,3,9,1\n")
    (label / "0003-L.txt").write_bytes(b"\xff1,3,9,1\n")
    (skeleton / "0004-L.txt").unlink()
    (label / "0005-L.txt").unlink()
    (label / "readme.txt").write_text("")
    (skeleton / "0002-L (copy).txt").write_text("")
    (skeleton / ".DS_Store.txt").write_text("")
    reader = PKUReader()
    report = prepare_dataset(reader, tmp_path, tmp_path / "s", progress=False)
    found = {(file.rsplit("/", 1)[-1], where): reason for file, where, reason in report.skipped}
    assert "class 52 is not one of 1..51" in found["0002-L.txt", "line 2"]
    assert "frames 9 to 3" in found["0002-L.txt", "line 3"]
    assert "whole numbers" in found["0002-L.txt", "line 4"] and "whole numbers" in found["0002-L.txt", "line 5"]
    assert found["0002-L.txt", "line 6"] == "repeats line 1"
    assert found["0003-L.txt", "byte 0"] == "is not text"
    assert "its 2 instances have no skeleton text 0004-L.txt" in found["0004-L.txt", ""]
    assert "does not follow the scheme" in found["readme.txt", ""]
    assert "does not follow the scheme" in found["0002-L (copy).txt", ""]
    assert len(found) == 9 and report.clips == 24 - 2 * 4 + 2
    notes = "\n".join(reader.notes)
    assert "1 skeleton texts without labels: 0005-L" in notes
    assert "1 of them have no skeleton text: 0004-L" in notes


def test_twice_the_same_video(tmp_path):
    write_pku(tmp_path)
    write_video(tmp_path / "skeleton" / "more" / "0002-L.txt", np.ones((24, 150)))
    damaged = [item for item in PKUReader().scan(tmp_path) if item.damage]
    assert len(damaged) == 1 and "second file of the clip" in damaged[0].damage[1]


def test_options_are_checked():
    for options in ({"phase": 3}, {"pipeline": "tracks"}, {"bounds": "open"}, {"unlisted": "train"}):
        with pytest.raises(SkelactError, match=f"pku: {next(iter(options))}="):
            PKUReader(**options)


def test_several_workers_make_the_same_store(tmp_path):
    write_pku(tmp_path / "raw")
    write_list(tmp_path / "raw" / "cross-view.txt", VIDEOS[1][:6], VIDEOS[1][6:])
    one = prepare_dataset(PKUReader(), tmp_path / "raw", tmp_path / "a", progress=False)
    two = prepare_dataset(PKUReader(), tmp_path / "raw", tmp_path / "b", progress=False, workers=2)
    assert one.fingerprint == two.fingerprint
