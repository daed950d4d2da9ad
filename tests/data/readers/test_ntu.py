from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections import Counter

import numpy as np
import pytest

from skelact.data.prepare import prepare_dataset
from skelact.data.readers import ntu_protocols as protocols
from skelact.data.readers.base import Clip, DamagedClip
from skelact.data.readers.ntu import NTUReader
from skelact.data.readers.ntu_bodies import PIPELINES
from skelact.data.splits import SplitRule, resolve
from skelact.data.store import Store
from skelact.errors import SkelactError
from tests.data.readers.ntu_files import FILES, GOLDEN, NAMES, content, walk, write


def scan(source, **options):
    """Good items by name, damage by name, notes."""
    reader = NTUReader(**options)
    items = reader.scan(source)
    return (
        {item.name: item for item in items if item.damage is None},
        {item.name: item.damage for item in items if item.damage is not None},
        list(reader.notes),
    )


def pack(path, names, folder="nturgb+d_skeletons"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir(folder)
        for name in names:
            archive.writestr(f"{folder}/{name}.skeleton", content(name))
    return path


# --- names, the official list, protocols


def test_the_official_list_gives_the_published_counts():
    """535 names, 302 of them of NTU-60; captured less missing is what the papers count, on every side."""
    missing = protocols.missing_skeletons()
    factors = {name: protocols.parse_name(name) for name in missing}
    assert len(missing) == 535 and not [f for f in factors.values() if protocols.impossible(f, 120)]
    later = {f["setup"] for f in factors.values() if f["setup"] > 17}
    assert later == set(range(19, 33)) and not missing & set(protocols.EXEMPLARS)
    for sets, count in ((60, 302), (120, 535)):
        names = sorted(name for name in missing if sets == 120 or factors[name]["setup"] <= 17)
        assert len(names) == count
        columns = {
            "name": np.array(names),
            **{key: np.array([factors[n][key] for n in names]) for key in factors[names[0]]},
        }
        left, whole = protocols.published(sets), protocols.published(sets, whole=True)
        assert whole["clips"] - count == left["clips"]
        assert left["clips"] == {60: 56_578, 120: 113_945}[sets]
        for split, rule in protocols.SPLITS[sets].items():
            parts = SplitRule.from_dict(rule).parts(columns)
            for part, captured in whole["splits"][split].items():
                assert captured - len(parts[part]) == left["splits"][split][part], (sets, split, part)
    assert protocols.published(120)["splits"] == {
        "xsub": {"train+val": 63_026, "test": 50_919},
        "xset": {"train+val": 54_468, "test": 59_477},
        "oneshot": {"train+val": 95_001, "test": 18_924, "exemplars": 20},
    }
    assert protocols.published(60)["splits"] == {
        "xsub": {"train+val": 40_091, "test": 16_487}, "xview": {"train+val": 37_646, "test": 18_932},
    }  # fmt: skip


def test_the_card_says_what_the_paper_says():
    assert len(protocols.CLASSES) == len(set(protocols.CLASSES)) == 120
    picked = {10: "clapping", 41: "sneeze/cough", 60: "walking apart from each other", 61: "put on headphone",
              105: "blow nose", 120: "finger-guessing game (rock-paper-scissors)"}  # fmt: skip
    assert all(protocols.CLASSES[number - 1] == name for number, name in picked.items())
    assert len(protocols.TRAIN_SUBJECTS_60) == 20 and len(protocols.TRAIN_SUBJECTS_120) == 53
    assert set(protocols.TRAIN_SUBJECTS_120) & set(range(41)) == set(protocols.TRAIN_SUBJECTS_60)
    assert len(protocols.EXEMPLARS) == 20 and protocols.EXEMPLARS[9:11] == (
        "S001C003P008R001A055", "S018C003P008R001A061",
    )  # fmt: skip
    for sets in (60, 120):
        card = NTUReader(sets).card([])
        assert len(card["class_names"]) == sets and card["persons"] == 2 and card["fps"] == 30.0
        assert card["layout"]["name"] == "ntu25" and "no redistribution" in card["licence"]


def test_sides_of_the_stored_files_are_the_golden_ones():
    with np.load(GOLDEN / "synth.npz") as golden:
        items = scan(FILES, sets=120)[0]
        columns = {key: np.array([items[name].columns[key] for name in NAMES]) for key in protocols.FACTORS}
        columns["name"] = np.array(NAMES)
        assert [items[name].label for name in NAMES] == [int(golden[f"{name}/label"]) for name in NAMES]
        rules = {"xsub60": (60, "xsub"), "xview": (60, "xview"), "xsub120": (120, "xsub"), "xset": (120, "xset")}
        for key, (sets, split) in rules.items():
            parts = SplitRule.from_dict(protocols.SPLITS[sets][split]).parts(columns)
            want = [row for row, name in enumerate(NAMES) if golden[f"{name}/{key}_train"]]
            assert parts["train+val"].tolist() == want, key
            assert sorted([*parts["train+val"], *parts["test"]]) == list(range(len(NAMES)))


def test_aimclrs_parser_and_splits_agree(tmp_path):
    """Files of its own fixture: coordinates, and the sides after its list of samples to leave out."""
    with np.load(GOLDEN / "aimclr_raw_parse.npz") as golden:
        names = [key.split("/")[-1] for key in golden.files if "/text/" in key]
        for name in names:
            (tmp_path / name).write_bytes(golden[f"ntu/text/{name}"].tobytes())
        reader = NTUReader(60, "file_order")
        items = {item.name + ".skeleton": item for item in reader.scan(tmp_path)}
        for name in names:
            got, want = reader.read(items[name]).frames, golden[f"ntu/xyz/{name}"]
            assert np.allclose(got.transpose(3, 0, 2, 1)[:, : want.shape[1]], want, rtol=0, atol=1e-6)
            assert not got[want.shape[1] :].any()
        kept = [name for name in names if name != "S002C001P006R001A002.skeleton"]  # on the fixture's list
        columns = {key: np.array([items[name].columns[key] for name in kept]) for key in protocols.FACTORS}
        for split in ("xsub", "xview"):
            parts = SplitRule.from_dict(protocols.SPLITS[60][split]).parts(columns)
            for side, part in (("train", "train+val"), ("val", "test")):
                chosen = [kept[row] for row in parts[part]]
                assert chosen == sorted(golden[f"ntu/{split}/{side}/names"].tolist())
                assert [items[name].label for name in chosen] == golden[f"ntu/{split}/{side}/labels"].tolist()


def test_one_shot_takes_the_exemplars_out_of_the_test_part():
    names = [*protocols.EXEMPLARS, "S001C001P008R001A001", "S018C001P008R001A115", "S001C001P001R001A002",
             "S001C001P001R001A003"]  # fmt: skip
    factors = [protocols.parse_name(name) for name in names]
    columns = {"name": np.array(names), **{key: np.array([f[key] for f in factors]) for key in protocols.FACTORS}}
    rule = SplitRule.from_dict(protocols.SPLITS[120]["oneshot"])
    parts = {part: rows.tolist() for part, rows in rule.parts(columns).items()}
    assert parts == {"train": [23], "val": [22], "train+val": [22, 23], "test": [20, 21], "exemplars": list(range(20))}
    assert SplitRule.from_dict(rule.to_dict()) == rule
    assert len(rule.train) == 100 and len(rule.val[1]) == 10


# --- scanning


def test_ntu60_is_the_first_seventeen_setups():
    items, damage, notes = scan(FILES, sets=60)
    assert list(items) == NAMES[:6] and not damage
    assert notes == ["2 samples of set-ups 18..32, not part of NTU RGB+D 60: left out"]
    first = items["S001C001P001R001A023"]
    assert first.label == 22
    assert first.columns == {"setup": 1, "camera": 1, "subject": 1, "repetition": 1, "action": 23}
    assert list(scan(FILES, sets=120)[0]) == NAMES


def test_missing_skeletons_are_left_out_and_counted_or_kept(tmp_path):
    for name in ("S001C002P005R002A008", "S020C002P041R001A063", "S001C001P001R001A001"):
        (tmp_path / f"{name}.skeleton").write_bytes(write(walk(2)))
    items, damage, notes = scan(tmp_path, sets=120)
    assert list(items) == ["S001C001P001R001A001"] and not damage
    assert notes == ["2 samples on the official list of missing skeletons: left out"]
    assert len(scan(tmp_path, sets=120, missing="keep")[0]) == 3
    assert scan(tmp_path, sets=60)[2] == [
        "1 sample on the official list of missing skeletons: left out",
        "1 sample of set-ups 18..32, not part of NTU RGB+D 60: left out",
    ]
    assert NTUReader(120, missing="keep").card([])["published"]["clips"] == 114_480


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("S001C001P001R001A001 (1)", "not of the form SsssCcccPpppRrrrAaaa"),
        ("s001c001p001r001a001", "not of the form"),
        ("S001C001P001R001A001_rgb", "not of the form"),
        ("S001C001P001R001A000", r"action 0 is not one of 1\.\.120"),
        ("S018C001P001R001A121", r"action 121 is not one of 1\.\.120"),
        ("S001C004P001R001A001", r"camera 4 is not one of 1\.\.3"),
        ("S001C001P107R001A001", r"subject 107 is not one of 1\.\.106"),
        ("S001C001P001R003A001", r"repetition 3 is not one of 1\.\.2"),
        ("S033C001P001R001A061", r"setup 33 is not one of 1\.\.32"),
        ("S003C001P001R001A061", "action 61 cannot come from set-up 3"),
        ("S018C001P001R001A060", "action 60 cannot come from set-up 18"),
    ],
)
def test_impossible_names_are_damage(tmp_path, name, reason):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / f"{name}.skeleton").write_bytes(write(walk(2)))
    (tmp_path / f"{NAMES[0]}.skeleton").write_bytes(content(NAMES[0]))
    items, damage, _ = scan(tmp_path, sets=120)
    assert list(items) == NAMES[:1] and list(damage) == [f"sub/{name}.skeleton"]
    assert re.search(reason, damage[f"sub/{name}.skeleton"][1])


def test_ntu60_knows_forty_performers(tmp_path):
    (tmp_path / "S001C001P041R001A001.skeleton").write_bytes(write(walk(2)))
    assert "subject 41 is not one of 1..40" in next(iter(scan(tmp_path, sets=60)[1].values()))[1]
    assert not scan(tmp_path, sets=120)[1]


def test_duplicates_are_named_and_the_first_is_read(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(FILES / f"{NAMES[0]}.skeleton", tmp_path / folder)
    items, damage, _ = scan(tmp_path)
    assert items[NAMES[0]].path.parent.name == "a"
    assert list(damage) == [f"b/{NAMES[0]}.skeleton"] and "is a second" in damage[f"b/{NAMES[0]}.skeleton"][1]


def test_unpacked_files_count_before_archives(tmp_path):
    pack(tmp_path / "a.zip", NAMES[:3])
    pack(tmp_path / "b.zip", NAMES[2:5])
    shutil.copy(FILES / f"{NAMES[0]}.skeleton", tmp_path)
    items, damage, notes = scan(tmp_path)
    assert list(items) == NAMES[:5] and items[NAMES[0]].member == "" and items[NAMES[2]].path.name == "a.zip"
    assert list(damage) == [f"b.zip/nturgb+d_skeletons/{NAMES[2]}.skeleton"]
    assert notes == ["1 sample also in an archive; the unpacked files are read"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_are_followed_and_loops_end(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "link").symlink_to(FILES)
    (tmp_path / "source" / "loop").symlink_to(tmp_path / "source")
    items, damage, _ = scan(tmp_path / "source", sets=120)
    assert list(items) == NAMES and not damage


def test_wrong_sources_and_options_are_refused(tmp_path):
    with pytest.raises(SkelactError, match="source=FOLDER"):
        NTUReader().scan(None)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(SkelactError, match="neither a folder nor a zip file"):
        NTUReader().scan(tmp_path / "a.txt")
    (tmp_path / "a.zip").write_text("x")
    with pytest.raises(SkelactError, match="not a whole zip file"):
        NTUReader().scan(tmp_path / "a.zip")
    for options, reason in (({"sets": 61}, "60 or 120"), ({"pipeline": "best"}, "tracks, file_order"),
                            ({"missing": "no"}, "official or keep")):  # fmt: skip
        with pytest.raises(SkelactError, match=reason):
            NTUReader(**options)


# --- reading


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_clips_have_two_persons_and_extras_go_with_them(pipeline):
    reader, rich = NTUReader(120, pipeline), NTUReader(120, pipeline, extras=True)
    assert rich.card([])["channels"] == ["x", "y", "z", "depth_x", "depth_y", "color_x", "color_y", "tracking"]
    assert reader.card([])["pipeline"] == pipeline
    with np.load(GOLDEN / "synth.npz") as golden:
        for item in reader.scan(FILES):
            plain, clip = reader.read(item), rich.read(item)
            assert plain.frames.shape[1:] == (2, 25, 3) and plain.frames.dtype == np.float32
            assert clip.frames.shape[1:] == (2, 25, 8) and clip.frames.dtype == np.float32
            assert np.array_equal(clip.frames[..., :3], plain.frames)
            present = plain.frames.any(axis=(2, 3))
            assert set(np.unique(clip.frames[present][..., 7])) == {2} and not clip.frames[~present].any()
            if reader.masked:
                assert plain.mask.shape == plain.frames.shape[:3] and np.array_equal(plain.mask.any(-1), present)
                assert np.array_equal(plain.mask.all(-1), present) and len(present) == len(
                    golden[f"{item.name}/parse_nbody"]
                )
            else:
                assert plain.mask is None
            if f"{item.name}/parse_color" in golden.files and pipeline == "file_order":
                assert np.array_equal(clip.frames[..., 5:7], golden[f"{item.name}/parse_color"][:, :2])
                assert np.array_equal(clip.frames[..., 3:5], golden[f"{item.name}/parse_depth"][:, :2])


def test_pixels_that_are_no_numbers_become_zero(tmp_path):
    joints = walk(12)
    joints[0][0][1][3, 4] = 1e30
    data = write(joints)
    first = data.split(b"\r\n")[4].split()
    data = data.replace(b" ".join(first), b" ".join([*first[:5], b"-1.#IND", b"nan", *first[7:]]))
    (tmp_path / "S001C001P001R001A001.skeleton").write_bytes(data)
    reader = NTUReader(extras=True)
    frames = reader.read(reader.scan(tmp_path)[0]).frames
    assert np.isfinite(frames).all() and frames[0, 0, 0, 5:7].tolist() == [0, 0] and frames[0, 0, 3, 4] == 0


def test_damaged_files_are_named(tmp_path):
    reader = NTUReader()

    def read(data):
        (tmp_path / "S001C001P001R001A001.skeleton").write_bytes(data)
        (item,) = reader.scan(tmp_path)
        return reader.read(item)

    with pytest.raises(DamagedClip, match=r"S001C001P001R001A001\.skeleton: no body in any of 3 frames"):
        read(write([[], [], []]))
    with pytest.raises(DamagedClip, match=r"A001\.skeleton, line 1: "):
        read(b"")
    with pytest.raises(DamagedClip, match=r"A001\.skeleton, line \d+: the file ends"):
        read(content(NAMES[0])[:5000])
    assert isinstance(read(content(NAMES[0])), Clip)
    reader = NTUReader(pipeline="denoise")
    still = np.zeros((25, 12))
    with pytest.raises(DamagedClip, match="no frame is left"):
        read(write([[(1, still), (2, still)]] * 15))


# --- from the source to a store


def test_folder_and_archives_give_the_same_store(tmp_path):
    pack(tmp_path / "nturgbd.zip", NAMES)
    pack_dir = tmp_path / "zips"
    pack_dir.mkdir()
    pack(pack_dir / "nturgbd_skeletons_s001_to_s017.zip", NAMES[:6])
    pack(pack_dir / "nturgbd_skeletons_s018_to_s032.zip", NAMES[6:])
    prints = set()
    for number, source in enumerate((FILES, tmp_path / "nturgbd.zip", pack_dir)):
        report = prepare_dataset(NTUReader(120), source, tmp_path / f"store{number}", progress=False)
        assert report.clips == 8 and not report.skipped
        prints.add(report.fingerprint)
    assert len(prints) == 1
    store = Store(tmp_path / "store1")
    assert store.names.tolist() == NAMES and store.mask is not None and store.card["pipeline"] == "tracks"
    parts = resolve(store, "xset")
    assert set(store.columns["setup"][parts["train+val"]] % 2) == {0} and len(parts["test"]) == 3


def test_damage_is_skipped_and_the_rest_finished(tmp_path):
    """A truncated file, an empty one, a foreign name, a bad archive, a member that leaves: named, counted, skipped."""
    source = tmp_path / "source"
    source.mkdir()
    good = content(NAMES[0])
    (source / "S001C001P001R001A001.skeleton").write_bytes(good[:4000])
    (source / "S001C001P001R001A002.skeleton").write_bytes(b"0\r\n")
    (source / "S001C001P001R001A003.skeleton").write_bytes(good)
    (source / "notes.skeleton").write_bytes(good)
    (source / "broken.zip").write_bytes(b"PK no zip")
    with zipfile.ZipFile(source / "odd.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../S001C001P001R001A004.skeleton", good)
        archive.writestr("/S001C001P001R001A005.skeleton", good)
        archive.writestr("S001C001P001R001A006.skeleton", good.replace(b"\r\n25\r\n", b"\r\n24\r\n", 1))
        archive.writestr("S001C001P001R001A007.skeleton", good)
        archive.writestr("S001C001P001R001A008.skeleton", bytes(65 << 20))
    report = prepare_dataset(NTUReader(60), source, tmp_path / "store", progress=False)
    assert Store(tmp_path / "store").names.tolist() == ["S001C001P001R001A003", "S001C001P001R001A007"]
    reasons = Counter(reason for _, _, reason in report.skipped)
    parts = ("frames is 0", "ends in the middle of joint", "not of the form", "not a whole zip file",
             "leaves the archive's folder", "has an absolute path", "joints of body 0 of frame 0 is 24",
             "claims 68157440 bytes")  # fmt: skip
    for part in parts:
        assert sum(part in f"{where} {reason}" for _, where, reason in report.skipped) == 1, (part, reasons)
    assert len(report.skipped) == 8
    assert any("odd.zip/S001C001P001R001A006.skeleton" in path for path, _, _ in report.skipped)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "store", "store.lock"]


def test_workers_read_archives(tmp_path):
    path = pack(tmp_path / "nturgbd.zip", NAMES)
    one = prepare_dataset(NTUReader(120, "energy"), path, tmp_path / "one", progress=False)
    two = prepare_dataset(NTUReader(120, "energy"), path, tmp_path / "two", progress=False, workers=2)
    assert one.fingerprint == two.fingerprint and two.clips == 8
