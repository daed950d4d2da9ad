from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skelact.data.datamodules import SkeletonDataModule
from skelact.data.prepare import prepare_dataset
from skelact.data.readers.base import Clip, DamagedClip
from skelact.data.readers.ntu_protocols import EXEMPLARS, SPLITS, TRAIN_SUBJECTS_60
from skelact.data.readers.pyskl import PysklReader
from skelact.data.readers.pyskl_splits import held_out, origin
from skelact.data.splits import SplitRule, resolve
from skelact.data.store import Store
from skelact.errors import SkelactError

from ..pyskl_files import annotation, kinetics, ntu_file, write


def scanned(path, content, protocol=2, **options):
    reader = PysklReader("poses", **options)
    return reader, reader.scan(write(path / "set.pkl", content, protocol))


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_reads_what_was_written(tmp_path, protocol):
    content = ntu_file()
    reader, items = scanned(tmp_path, content, protocol)
    assert reader.persons == 2 and not reader.notes and len(items) == len(content["annotations"])
    for item, note in zip(items, content["annotations"], strict=True):
        clip, people = reader.read(item), len(note["keypoint"])
        assert clip.frames.shape == (note["total_frames"], 2, 17, 3) and clip.frames.dtype == np.float32
        np.testing.assert_array_equal(clip.frames[:, :people, :, :2].swapaxes(0, 1), note["keypoint"])
        np.testing.assert_array_equal(clip.frames[:, :people, :, 2].swapaxes(0, 1), note["keypoint_score"])
        assert clip.mask[:, :people].all() and not clip.mask[:, people:].any()
        name = item.name
        assert item.label == note["label"] and item.columns["subject"] == int(name[9:12])
        assert (item.columns["height"], item.columns["width"]) == (1080, 1920)
        assert item.columns["setup"] == int(name[1:4]) and item.columns["total_frames"] == note["total_frames"]


def test_a_store_with_the_file_s_splits(tmp_path):
    content = ntu_file()
    source = write(tmp_path / "in" / "ntu60_hrnet.pkl", content)
    reader = PysklReader("ntu60_hrnet", coordinates="centered")
    report = prepare_dataset(reader, tmp_path / "in", tmp_path / "store", strict=True, progress=False)
    store = Store(tmp_path / "store")
    assert report.clips == len(content["annotations"]) and store.class_names == ["0", "1", "2", "3"]
    assert store.card["pipeline"] == "centered" and "published" not in store.card
    for split in ("xsub", "xview"):
        parts = resolve(store, split)
        assert set(store.names[parts["train+val"]]) == set(content["split"][f"{split}_train"])
        assert set(store.names[parts["test"]]) == set(content["split"][f"{split}_val"])
        held = set(store.columns["subject"][parts["val"]])
        assert held and not held & set(store.columns["subject"][parts["train"]])
    data = SkeletonDataModule(tmp_path / "store", "xsub", layout="h36m17", scores="as_released", channels=3)
    batch = next(data.batches("test"))
    plain = next(SkeletonDataModule(tmp_path / "store", "xsub", layout="h36m17").batches("test"))
    coco = next(SkeletonDataModule(tmp_path / "store", "xsub").batches("test"))
    np.testing.assert_array_equal(batch.frames[..., 2], coco.frames[..., 2])
    np.testing.assert_array_equal(batch.frames[..., :2], plain.frames[..., :2])
    assert not np.array_equal(plain.frames[..., 2], coco.frames[..., 2])
    assert source.exists()


def test_ntu_s_own_rules(tmp_path):
    notes = [annotation(f"S001C00{k % 3 + 1}P{k:03d}R001A{k + 1:03d}", k, seed=k) for k in range(1, 41)]
    names = [note["frame_dir"] for note in notes]
    train = [name for name in names if int(name[9:12]) in TRAIN_SUBJECTS_60]
    split = {"xsub_train": train, "xsub_val": sorted(set(names) - set(train))}
    bad = [annotation("clip", 3), annotation("S001C001P001R001A009", 3), annotation("S001C004P001R001A004", 3)]
    reader = PysklReader("ntu60_hrnet", ntu=60)
    source = write(tmp_path / "set.pkl", {"split": split, "annotations": [*notes, *bad]})
    report = prepare_dataset(reader, source, tmp_path / "store", progress=False)
    text = "\n".join(reason for _, _, reason in report.skipped)
    assert report.clips == 40 and len(report.skipped) == 3 and not reader.notes
    assert "not named by the scheme" in text and "label 3, its name says 8" in text and "camera 4 is not" in text
    store = Store(tmp_path / "store")
    assert store.card["published"]["clips"] == 56578 and store.class_names[59] == "walking apart from each other"
    parts = resolve(store, "xsub")
    assert set(store.columns["subject"][parts["val"]]) == set(SPLITS[60]["xsub"]["val"]["values"])
    with pytest.raises(SkelactError, match="ntu=61"):
        PysklReader("x", ntu=61)


def test_numbered_and_plain_lists(tmp_path):
    notes = [annotation(f"v_{k}_g01", k % 3, seed=k) for k in range(40)]
    names = [note["frame_dir"] for note in notes]
    split = {f"train{n}": names[n:30] for n in (1, 2, 3)} | {f"test{n}": names[30:] for n in (1, 2, 3)}
    split |= {"train": names[:20], "val": names[20:], "trials_train": names[:10], "trials_val": names[10:15]}
    split |= {"trials_test": names[15:], "everything": names}
    reader, items = scanned(tmp_path, {"split": split, "annotations": notes})
    rules = reader.card(items)["splits"]
    assert set(rules) == {"1", "2", "3", "default", "trials"}
    assert any("'everything' names neither" in note for note in reader.notes)
    prepare_dataset(reader, tmp_path, tmp_path / "store", progress=False)
    store = Store(tmp_path / "store")
    for key, (train, val, test) in {
        "2": (names[2:30], None, names[30:]),
        "default": (names[:20], None, names[20:]),
        "trials": (names[:10], names[10:15], names[15:]),
    }.items():
        parts = {part: set(store.names[rows]) for part, rows in resolve(store, key).items()}
        val = {name for name in train if held_out(name)} if val is None else set(val)
        assert val and parts["val"] == val and parts["train"] == set(train) - val
        assert parts["test"] == set(test)
    module = SkeletonDataModule(tmp_path / "store", 1)  # `data.split=1` is a number
    assert len(module.clip_names("test")) == 10
    for pair in (
        ("v_Archery_g01_c02", "v_Archery_g01_c07"),
        ("0LtLS9wROrk_E_002407_002435_A_0003_0005", "0LtLS9wROrk_E_002407_002435_A_0007_0009"),
        ("April_09_brush_hair_u_nm_np1_ba_goo_0", "April_09_brush_hair_u_nm_np1_ba_goo_2"),
        ("0KUhJUKsQb8_00012", "0KUhJUKsQb8_00345"),
    ):
        assert origin(pair[0]) == origin(pair[1]) != origin("another_" + pair[0])  # a video is not torn apart
    assert origin("--07WQ2iBlw") == "--07WQ2iBlw"
    shares = [held_out(f"clip{k}") for k in range(5000)]
    assert 0.08 < np.mean(shares) < 0.12


def test_one_shot_lists(tmp_path):
    notes = [annotation(f"S001C001P{k % 5 + 1:03d}R{k // 5 + 1:03d}A{k % 5 + 1:03d}", k % 5, seed=k) for k in range(20)]
    names = [note["frame_dir"] for note in notes]
    new = [name for name in names if name.endswith("A001")]
    split = {"oneshot_train": new[:1], "oneshot_val": new}
    reader, items = scanned(tmp_path, {"split": split, "annotations": notes})
    rule = reader.card(items)["splits"]["oneshot"]
    sides = {item.name: item.columns["split_oneshot"] for item in items}
    assert [name for name in names if sides[name] == "exemplar"] == new[:1]
    assert [name for name in names if sides[name] == "test"] == new[1:]
    assert rule["train"] == ["auxiliary"] and rule["exemplars"] == {"factor": "split_oneshot", "values": ["exemplar"]}


def test_ntu_120_has_its_one_shot_split_whatever_the_file_lists(tmp_path):
    names = [*EXEMPLARS[:2], "S001C001P001R001A001", "S001C001P001R001A002", "S001C001P001R001A003"]
    notes = [annotation(name, int(name[-3:]) - 1, seed=k) for k, name in enumerate(names)]
    split = {"xsub_train": names[2:], "xsub_val": names[:2]}
    reader, items = scanned(tmp_path, {"split": split, "annotations": notes}, ntu=120)
    card = reader.card(items)
    parts = SplitRule.from_dict(card["splits"]["oneshot"]).parts(
        {key: np.array([item.columns.get(key, item.name) for item in items]) for key in ("name", "action")}
    )
    found = {part: [items[row].name for row in rows] for part, rows in parts.items()}
    assert found["exemplars"] == names[:2] and found["test"] == names[2:3]
    assert found["val"] == names[3:4] and found["train"] == names[4:]
    assert card["published"]["splits"]["oneshot"] == {"train+val": 95_001, "test": 18_924, "exemplars": 20}


def test_lists_that_do_not_fit_are_noted(tmp_path):
    notes = [annotation(f"v{k}", seed=k) for k in range(10)]
    names = [note["frame_dir"] for note in notes]
    split = {"train": [*names[:6], "gone", "v0"], "val": names[5:9]}
    reader, items = scanned(tmp_path, {"split": split, "annotations": notes})
    text = "\n".join(reader.notes)
    assert "1 names without annotation: gone" in text and "v0 more than once" in text
    assert "1 clips stand on both sides and do not train: v5" in text and "1 annotated clips are in no list: v9" in text
    assert {item.name: item.columns["split_default"] for item in items}["v5"] == "test"


@pytest.mark.parametrize(
    ("damage", "place"),
    [
        ({"keypoint": np.zeros((1, 12, 18, 2), "f2")}, r"v0: keypoint is of shape \(1, 12, 18, 2\)"),
        ({"keypoint": np.zeros((12, 17, 2), "f2")}, "keypoint is of shape"),
        ({"keypoint": np.zeros((0, 12, 17, 2), "f2")}, "nobody"),
        ({"keypoint": np.zeros((1, 12, 17, 2), "f2")}, "has no person in any frame"),
        ({"keypoint": "letters"}, "keypoint is 'letters'"),
        ({"keypoint": np.full((1, 12, 17, 2), "a")}, "keypoint is ndarray"),
        ({"keypoint": ...}, "keypoint is None"),
        ({"keypoint": np.full((1, 12, 17, 2), np.nan)}, "frame 0, joint nose: a coordinate is not a finite"),
        ({"keypoint": np.full((1, 12, 17, 2), 1e300)}, "not a finite"),
        ({"keypoint_score": np.full((1, 12, 17), np.inf)}, "not a finite"),
        ({"keypoint_score": np.zeros((1, 11, 17))}, "keypoint_score does not fit"),
        ({"keypoint_score": [1, 2]}, "keypoint_score does not fit"),
        ({"total_frames": 13}, "total_frames is 13, keypoint has 12"),
        ({"total_frames": [1]}, "total_frames is list"),
        ({"label": -1}, "label -1 is not one of"),
        ({"label": 99}, "label 99 is not one of 0 .. 9"),
        ({"label": "two"}, "label is 'two', not a whole number"),
        ({"label": ...}, "label is None"),
        ({"frame_dir": 7}, r"annotations\[0\]: is not a mapping"),
        ({"frame_dir": "bell\x07"}, "is not a mapping"),
        ({"frame_dir": "v1"}, r"'v1' was given by annotations\[0\]"),
        ({"img_shape": ..., "original_shape": ...}, "has no img_shape"),
        ({"img_shape": (0, 10)}, "has no img_shape"),
    ],
)
def test_damage_is_named_counted_and_the_rest_finished(tmp_path, damage, place):
    notes = [annotation("v0", 1, **damage), annotation("v1", 2), annotation("v2", 0, people=2)]
    source = write(tmp_path / "set.pkl", {"split": {"train": ["v1"], "val": ["v2"]}, "annotations": notes})
    reader = PysklReader("poses", num_classes=10, coordinates="centered")
    report = prepare_dataset(reader, source, tmp_path / "store", progress=False)
    assert report.clips == 2 and len(report.skipped) == 1
    with pytest.raises(DamagedClip, match=place) as caught:
        raise DamagedClip(*report.skipped[0])
    assert str(source) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2][0], "is not {split"),
        ({"annotations": {}}, "is not {split"),
        ({"split": [], "annotations": []}, "is not {split"),
        ({"split": {"train": "abc"}, "annotations": []}, "'train' is not a list of clip names"),
        ({"split": {"train": [1]}, "annotations": []}, "not a list of clip names"),
        ({"split": {3: ["a"]}, "annotations": []}, "'3' is not a list"),
        (np.zeros(3, object), "dtype 'O8'"),
        ({"annotations": [Clip(np.zeros(3))]}, "asks for 'skelact.data.readers.base.Clip'"),
    ],
)
def test_wrong_files(tmp_path, content, reason):
    with pytest.raises(SkelactError, match=reason) as caught:
        scanned(tmp_path, content)
    assert str(tmp_path / "set.pkl") in str(caught.value)


def test_where_the_file_is(tmp_path):
    reader = PysklReader("poses")
    with pytest.raises(SkelactError, match="source=FOLDER"):
        reader.scan(None)
    with pytest.raises(SkelactError, match="does not exist"):
        reader.scan(tmp_path / "no")
    with pytest.raises(SkelactError, match=r"should hold one .pkl file, it has none"):
        reader.scan(tmp_path)
    write(tmp_path / "a.pkl", ntu_file(6))
    assert len(reader.scan(tmp_path)) == len(reader.scan(tmp_path / "a.pkl")) == 6
    write(tmp_path / "b.pkl", ntu_file(6))
    with pytest.raises(SkelactError, match=r"it has a.pkl, b.pkl"):
        reader.scan(tmp_path)


def test_options_that_cannot_be():
    for options in (
        {"coordinates": "metres"},
        {"repair": "magic"},
        {"persons": 0},
        {"persons": 3, "repair": "motionbert"},
        {"layout": "ntu25", "coordinates": "centered"},
    ):
        with pytest.raises(SkelactError, match=r"one of|3D|at least one|two people"):
            PysklReader("poses", **options)


def test_coordinates(tmp_path):
    note = annotation("v", people=1)
    note["keypoint"][0, 0, 0] = (960, 540)  # the middle
    note["keypoint"][0, 1, 0] = (1920, 1080)
    note["keypoint_score"][0, 2, 3] = 0.005
    want = {
        "pixel": ((960, 540), (1920, 1080)),
        "centered": ((0, 0), (1, 0.5625)),
        "pyskl": ((0, 0), (1, 1)),
        "motionbert": ((0, -0.4375), (1, 0.125)),
    }
    for form, (middle, corner) in want.items():
        reader, items = scanned(tmp_path, {"split": {}, "annotations": [note]}, coordinates=form, masked=True)
        clip = reader.read(items[0])
        np.testing.assert_allclose(clip.frames[0, 0, 0, :2], middle, atol=1e-6)
        np.testing.assert_allclose(clip.frames[1, 0, 0, :2], corner, atol=1e-6)
        assert (clip.frames[2, 0, 3, :2] == 0).all() == (form == "pyskl") and clip.mask.all()


def test_people_and_scores_that_are_not_there(tmp_path):
    note = annotation("v", people=2)
    note["keypoint"][1, 3:5] = note["keypoint_score"][1, 3:5] = 0  # the second leaves for two frames
    note["keypoint_score"][0, 7, 9] = 0
    content = {"split": {}, "annotations": [note, annotation("w")]}
    reader, items = scanned(tmp_path, content, coordinates="centered")
    clip = reader.read(items[0])
    assert (clip.frames[3:5, 1] == 0).all() and not clip.mask[3:5, 1].any()
    assert not clip.mask[7, 0, 9] and (clip.frames[7, 0, 9, :2] != 0).any()  # masked, but kept
    assert clip.mask.sum() == clip.mask.size - 2 * 17 - 1
    loose, items = scanned(tmp_path, content, min_score=None)
    assert loose.read(items[0]).mask[7, 0, 9]
    released, items = scanned(tmp_path, content, coordinates="motionbert", repair="none")
    clip = released.read(items[0])
    assert clip.mask is None and (clip.frames[3:5, 1, :, :2] == -1).all()  # what the released code sees
    assert not released.masked and (released.read(items[1]).frames[:, 1] == 0).all()


def test_more_people_than_slots(tmp_path):
    note = annotation("v", people=4)
    note["keypoint_score"][0] *= 0.1
    note["keypoint_score"][2] *= 0.2
    content = {"split": {}, "annotations": [note]}
    reader, items = scanned(tmp_path, content)
    assert reader.persons == 2
    np.testing.assert_array_equal(reader.read(items[0]).frames[..., :2].swapaxes(0, 1), note["keypoint"][[1, 3]])
    reader, items = scanned(tmp_path, content, persons=5)
    clip = reader.read(items[0])
    assert clip.frames.shape[1] == 5 and not clip.mask[:, 4].any() and clip.mask[:, :4].all()
    assert scanned(tmp_path, {"split": {}, "annotations": [annotation("v")]})[0].persons == 1


def test_files_without_scores_and_odd_names_are_noted(tmp_path):
    notes = [annotation("S001C001P001R001A001", keypoint_score=...), annotation("x", 3)]
    reader, items = scanned(tmp_path, {"split": {}, "annotations": notes})
    assert (reader.read(items[0]).frames[..., 0, :, 2] == 1).all()
    assert any("1 clips have no keypoint_score" in note for note in reader.notes)
    assert any("1 names are not of NTU's scheme" in note for note in reader.notes)
    relabelled = [annotation("S001C001P001R001A001", 5)]
    assert "another label" in scanned(tmp_path, {"split": {}, "annotations": relabelled})[0].notes[0]


def test_kinetics(tmp_path):
    notes, packed = kinetics(tmp_path)
    reader = PysklReader("k400_hrnet", persons=2)
    report = prepare_dataset(reader, tmp_path, tmp_path / "store", strict=True, progress=False)
    store = Store(tmp_path / "store")
    assert report.clips == 4 and list(store.names) == ["video1", "video3", "video0", "video2"]  # file by file
    assert set(store.names[resolve(store, "default")["test"]]) == {"video3"}
    for row, name in enumerate(store.names):
        note, skeletons = notes[int(name[-1])], packed[str(name)].astype(np.float32)
        first = store.start[row]
        assert store.length[row] == note["total_frames"]
        for frame in range(note["total_frames"]):
            here = skeletons[note["frame_inds"] == frame]
            here = here[np.argsort(-here[..., 2].sum(-1), kind="stable")][:2]  # some frame has three: ranked
            np.testing.assert_array_equal(store.frames[first + frame, : len(here)], here)
            assert (store.mask[first + frame].all(-1) == [len(here) > 0, len(here) > 1]).all()


def test_kinetics_in_file_order_where_slots_suffice(tmp_path):
    notes, packed = kinetics(tmp_path, people=2)
    reader = PysklReader("k400_hrnet", keypoints=tmp_path / "kpfiles")
    for item in reader.scan(tmp_path):
        frame = int(np.flatnonzero(np.bincount(notes[int(item.name[-1])]["frame_inds"]) == 2)[0])
        here = packed[item.name][notes[int(item.name[-1])]["frame_inds"] == frame]
        np.testing.assert_array_equal(reader.read(item).frames[frame], here.astype(np.float32))


@pytest.mark.parametrize(
    ("damage", "place"),
    [
        (lambda n, f: f["kp_0.pkl"].pop("video1"), "has no skeletons in this key point file"),
        (lambda n, f: f.pop("kp_0.pkl"), "No such file"),
        (lambda n, f: f.__setitem__("kp_0.pkl", [np.float32]), "asks for 'numpy.float32'"),
        (lambda n, f: f["kp_0.pkl"].__setitem__("video1", {"keypoint": np.zeros((4, 16, 3))}), "expected .S, 17, 3."),
        (lambda n, f: n[1].__setitem__("frame_inds", np.zeros(2, int)), "frame_inds does not name"),
        (lambda n, f: n[1].__setitem__("frame_inds", "x"), "frame_inds does not name"),
        (lambda n, f: n[1].__setitem__("total_frames", 2), "in a video of 2 frames"),
        (lambda n, f: n[1].__setitem__("total_frames", 10**9), "in a video of 1000000000 frames"),
        (lambda n, f: n[1].__setitem__("frame_inds", n[1]["frame_inds"] - 1), "frame_inds has -1 .."),
        (lambda n, f: n[1].__setitem__("raw_file", "../../../etc/passwd"), "passwd.*No such file"),
    ],
)
def test_damaged_kinetics(tmp_path, damage, place):
    notes, _ = kinetics(tmp_path)
    files = {path.name: pickle.loads(path.read_bytes()) for path in (tmp_path / "kpfiles").iterdir()}
    damage(notes, files)
    write(tmp_path / "k400_hrnet.pkl", {"split": {}, "annotations": notes})
    for path in (tmp_path / "kpfiles").iterdir():
        path.unlink()
    for name, content in files.items():
        write(tmp_path / "kpfiles" / name, content)
    reader = PysklReader("k400_hrnet")
    outcomes = {item.name: _outcome(reader, item) for item in reader.scan(tmp_path)}
    with pytest.raises(DamagedClip, match=place):
        raise outcomes["video1"]
    assert isinstance(outcomes["video0"], Clip) and isinstance(outcomes["video2"], Clip)


def test_a_reader_travels_without_the_file_s_content(tmp_path):
    reader, items = scanned(tmp_path, ntu_file())
    assert reader.in_process
    text = pickle.dumps(reader)
    assert len(text) < 20_000
    np.testing.assert_array_equal(pickle.loads(text).read(items[3]).frames, reader.read(items[3]).frames)


def _outcome(reader, item):
    try:
        return reader.read(item)
    except DamagedClip as error:
        return error


def _read_all(path):
    reader = PysklReader("poses", coordinates="centered", repair="corrected")
    try:
        items = reader.scan(path)
    except SkelactError:
        return
    for item in items:
        outcome = _outcome(reader, item)
        if isinstance(outcome, Clip):
            assert outcome.frames.shape[1:] == (reader.persons, 17, 3) and np.isfinite(outcome.frames).all()
            assert outcome.mask.shape == outcome.frames.shape[:3] and outcome.mask.any() and len(outcome.frames)
            assert outcome.frames.dtype == np.float32 and item.label >= 0
    reader.card(items)


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5), st.just((1080, 1920)),
    st.lists(st.integers(-3, 3), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(0, 3), max_size=2),
    st.sampled_from([
        np.zeros(()), np.zeros(3), np.zeros((1, 12, 17, 3)), np.ones((2, 12, 17, 2), "f2"), np.ones((1, 12, 17), "u1"),
        np.ones((12, 17, 3)), np.array("text"), np.float32("nan"), np.int8(-4), np.arange(12), np.array([1080, 1920]),
    ]),
)  # fmt: skip
KEYS = ["frame_dir", "label", "img_shape", "total_frames", "keypoint", "keypoint_score", "frame_inds", "raw_file"]
FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(st.dictionaries(st.sampled_from(KEYS), ODD, min_size=1, max_size=4), ODD)
def test_odd_fields(tmp_path, changes, other):
    notes = [annotation("v0", people=2), annotation("v1", **changes), other, changes]
    _read_all(write(tmp_path / "odd.pkl", {"split": {"train": ["v0"], "val": ["v1"]}, "annotations": notes}))


CONTENT = pickle.dumps(
    {"split": {"train": ["a"], "val": ["b"]}, "annotations": [annotation("a", frames=2), annotation("b", frames=3)]}, 2
)


@FUZZ
@given(
    st.lists(st.tuples(st.integers(0, len(CONTENT) - 1), st.integers(0, 255)), min_size=1, max_size=5), st.booleans()
)
def test_mutated_files(tmp_path, changes, cut):
    content = bytearray(CONTENT)
    for at, value in changes:
        content[at] = value
    path = tmp_path / "mutated.pkl"
    path.write_bytes(content[: changes[0][0]] if cut else content)
    _read_all(path)
