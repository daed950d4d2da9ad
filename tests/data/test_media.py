from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from skelact.data.media import SIZES, MediaStore, MediaWriter
from skelact.data.prepare import prepare_dataset
from skelact.data.readers.media_ntu import NTUMedia
from skelact.data.store import Store, StoreError
from skelact.data.writer import StoreWriter
from skelact.errors import SkelactError

from .conftest import make_card
from .pictures import cut, numbers, picture, write_folder, write_ntu, write_video

ENCODINGS = ("raw", "png", "jpeg")


def _card(kind="image", encoding="raw", shape=(6, 8, 3), colour="rgb"):
    media = {"modality": "rgb", "kind": kind, "encoding": encoding, "shape": list(shape), "colour": colour}
    return {"name": "toy", "class_names": ["a", "b"], "fps": 30.0, "media": media, "channels": ["x"] * shape[-1]}


def _prepared(tmp_path, encoding="raw", **options):
    write_ntu(tmp_path / "raw")
    reader = NTUMedia("rgb", frames=4, encoding=encoding, **options)
    return prepare_dataset(reader, tmp_path / "raw", tmp_path / "s.rgb", progress=False)


def _same(a, b):
    names = sorted(path.name for path in a.iterdir() if not path.name.startswith("."))
    assert names == sorted(path.name for path in b.iterdir() if not path.name.startswith("."))
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in names)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_frames_come_back(tmp_path, encoding):
    report = _prepared(tmp_path, encoding)
    store = MediaStore(report.target)
    assert (report.clips, report.frames, store.shape[0]) == (3, 12, 12) and store.length.tolist() == [4, 4, 4]
    assert report.fingerprint == store.fingerprint and store.card["counts"]["frames"] == 12
    assert store.names.tolist() == [f"S001C001P001R001A00{k}" for k in (1, 2, 3)] and store.label.tolist() == [0, 1, 2]
    assert set(store.columns) >= {"setup", "camera", "subject", "repetition", "action"}
    frames = store.read(0)
    assert frames.shape == (4, 24, 32, 3) and frames.dtype == np.uint8
    assert numbers(frames) == [1, 4, 7, 10]  # centres of four segments of twelve frames
    assert numbers(store.read(2)) == [1, 5, 8, 12]  # of fourteen
    assert numbers(store.read(0, [3, 0, 0])) == [10, 1, 1]
    assert (store.modality, store.kind, store.fps) == ("rgb", "image", 30.0)


def test_only_what_is_asked_for_is_decoded(tmp_path, monkeypatch):
    store = MediaStore(_prepared(tmp_path, "png").target)
    calls = []
    real = MediaStore.decode
    monkeypatch.setattr(MediaStore, "decode", lambda self, *arguments: calls.append(1) or real(self, *arguments))
    assert store.read(1, [2, 2]).shape[0] == 2 and len(calls) == 1


@pytest.mark.parametrize("indices", [[4], [-1], [], [[0]]])
def test_frames_that_are_not_there(tmp_path, indices):
    store = MediaStore(_prepared(tmp_path).target)
    with pytest.raises(SkelactError, match=r"S001C001P001R001A001 .* has frames 0 to 3"):
        store.read(0, indices)


def test_grey_and_depth_in_colour(tmp_path):
    from skelact.data.colour import colour_depth

    write_ntu(tmp_path / "raw")
    stores = {}
    for modality in ("ir", "depth"):
        target = tmp_path / f"s.{modality}"
        prepare_dataset(NTUMedia(modality, encoding="png"), tmp_path / "raw", target, progress=False)
        stores[modality] = MediaStore(target)
    grey = stores["ir"].read(0, [0, 5])
    assert grey.shape == (2, 24, 32, 1)
    np.testing.assert_array_equal(stores["ir"].images(0, [0, 5]), np.repeat(grey, 3, axis=-1))
    index = stores["depth"].read(0, [3])
    np.testing.assert_array_equal(stores["depth"].images(0, [3]), colour_depth(index[..., 0]))
    assert stores["depth"].images(0, [3])[0, 0, 0].tolist() == [0, 0, 127]  # the background is dark blue


def test_signals(tmp_path):
    draw = np.random.default_rng(0)
    rows = [draw.standard_normal((length, 6)).astype(np.float32) for length in (3, 1, 40)]
    with MediaWriter(tmp_path / "s", _card("signal", shape=(6,))) as writer:
        for k, values in enumerate(rows):
            writer.add(f"c{k}", values, k % 2, subject=k)
        with pytest.raises(SkelactError, match="not finite"):
            writer.add("bad", np.full((2, 6), np.nan, np.float32), 0, subject=1)
        with pytest.raises(SkelactError, match=r"float32 \(2, 5\), expected"):
            writer.add("bad", np.zeros((2, 5), np.float32), 0, subject=1)
        with pytest.raises(SkelactError, match="twice"):
            writer.add("c0", rows[0], 0, subject=1)
    store = MediaStore(tmp_path / "s")
    for k, values in enumerate(rows):
        np.testing.assert_array_equal(store.read(k), values)
    np.testing.assert_allclose(store.card["statistics"]["mean"], np.concatenate(rows).mean(axis=0), atol=1e-5)
    with pytest.raises(SkelactError, match="no images"):
        store.images(0)


def test_cheap_to_send(tmp_path):
    store = MediaStore(_prepared(tmp_path, "png").target)
    store.read(0)
    copy = pickle.loads(pickle.dumps(store))
    assert not copy._maps and len(pickle.dumps(store)) < 20_000
    np.testing.assert_array_equal(copy.read(1), store.read(1))


def test_not_a_skeleton_store_and_the_reverse(tmp_path, store):
    media = MediaStore(_prepared(tmp_path).target)
    with pytest.raises(StoreError, match="lacks layout"):
        Store(media.path)
    with pytest.raises(StoreError, match="lacks media"):
        MediaStore(store.path)
    with pytest.raises(SkelactError, match="not skeletons"):
        media.clips()


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_a_store_that_changed_is_refused(tmp_path, encoding):
    target = _prepared(tmp_path, encoding).target
    names = ["frames.npy", "clips.npz", *([SIZES] if encoding == "png" else [])]
    for name in names:
        whole = (target / name).read_bytes()
        for content, reason in (
            (whole[:-1], "instead of"),
            (whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:], "hash"),
            (None, "missing"),
        ):
            (target / name).unlink()
            if content is not None:
                (target / name).write_bytes(content)
            with pytest.raises(StoreError, match=rf"{name}.*{reason}"):
                MediaStore(target)
        (target / name).write_bytes(whole)
    MediaStore(target).verify()
    card = json.loads((target / "card.json").read_text())
    card["media"]["colour"] = "jet"
    (target / "card.json").write_text(json.dumps(card))
    with pytest.raises(StoreError, match="fingerprint"):
        MediaStore(target)


def _die_at_the_fourth(source, target, encoding):
    real = MediaWriter.add

    def add(self, *arguments, **options):
        if len(self.done) == 3:
            self._frames.append(np.zeros((1, *self.row), self.dtype))  # a torn end
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, *arguments, **options)

    MediaWriter.add = add
    prepare_dataset(NTUMedia("rgb", frames=4, encoding=encoding), source, target, progress=False)


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_killed_and_started_again_gives_the_same_store(tmp_path, encoding):
    write_ntu(tmp_path / "raw", count=5, frames=6)
    reader = NTUMedia("rgb", frames=4, encoding=encoding)
    prepare_dataset(reader, tmp_path / "raw", tmp_path / "want", progress=False)
    arguments = (tmp_path / "raw", tmp_path / "got", encoding)
    process = multiprocessing.get_context("fork").Process(target=_die_at_the_fourth, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (tmp_path / "got").exists()
    report = prepare_dataset(reader, tmp_path / "raw", tmp_path / "got", progress=False)
    assert (report.kept, report.clips) == (3, 5)
    assert _same(tmp_path / "got", tmp_path / "want")


def test_originals_are_never_replaced(tmp_path):
    clips = write_ntu(tmp_path / "raw")
    with pytest.raises(SkelactError, match="is no store; it is not replaced"):
        prepare_dataset(NTUMedia("rgb"), tmp_path / "raw", tmp_path / "raw", progress=False)
    assert (tmp_path / "raw" / "nturgb+d_rgb_s001" / f"{clips[0]}_rgb.avi").is_file()
    for make in (lambda: MediaWriter(tmp_path / "raw", _card()), lambda: StoreWriter(tmp_path / "raw", make_card())):
        with pytest.raises(SkelactError, match="choose another target"):
            make()


def test_workers_give_the_same_store(tmp_path):
    write_ntu(tmp_path / "raw", count=4)
    cut(tmp_path / "raw" / "nturgb+d_rgb_s001" / "S001C001P001R001A002_rgb.avi", 0.5)
    for workers in (1, 2):
        reader = NTUMedia("rgb", frames=4, encoding="raw")
        report = prepare_dataset(reader, tmp_path / "raw", tmp_path / f"s{workers}", workers=workers, progress=False)
        assert report.clips == 3 and "cut short" in report.skipped[0][2]
    assert _same(tmp_path / "s1", tmp_path / "s2")


def test_other_options_start_anew(tmp_path):
    first = _prepared(tmp_path, "raw").fingerprint
    (tmp_path / "s.rgb").rename(tmp_path / "s.rgb.partial")
    report = prepare_dataset(NTUMedia("rgb", frames=3), tmp_path / "raw", tmp_path / "s.rgb", progress=False)
    assert report.kept == 0 and report.frames == 9 and report.fingerprint != first


def test_damaged_originals_are_named_and_skipped(tmp_path):
    clips = write_ntu(tmp_path / "raw", count=5)
    rgb, deep = (
        tmp_path / "raw" / "nturgb+d_rgb_s001",
        tmp_path / "raw/nturgb+d_depth_masked_s001/nturgb+d_depth_masked",
    )
    cut(rgb / f"{clips[0]}_rgb.avi", 0.7)
    (rgb / f"{clips[1]}_rgb.avi").write_bytes(b"")
    (rgb / "S001C001P001R001A1234_rgb.avi").write_bytes(b"")
    write_video(rgb / "again" / f"{clips[3]}_rgb.avi", 3)
    write_video(rgb / "S001C001P001R001A099_rgb.avi", 3)
    report = prepare_dataset(NTUMedia("rgb"), tmp_path / "raw", tmp_path / "s.rgb", progress=False)
    assert report.clips == 3 and len(report.skipped) == 5
    text = str(report)
    for expected in ("cut short", "is not SsssCcccPpppRrrrAaaa", "is also", "action 99 is not one of 1..60"):
        assert expected in text, text
    cut(deep / clips[2] / "MDepth-00000005.png", 0.5)
    (deep / clips[4] / "MDepth-00000001.png").unlink()
    for path in (deep / clips[1]).iterdir():
        path.unlink()
    report = prepare_dataset(NTUMedia("depth", frames=None), tmp_path / "raw", tmp_path / "s.depth", progress=False)
    assert report.clips == 3 and [os.path.basename(entry[0]) for entry in report.skipped] == [
        clips[1], "MDepth-00000005.png",
    ]  # fmt: skip
    assert MediaStore(report.target).length.tolist() == [12, 15, 15]


def test_a_clip_of_another_size_does_not_fit_a_raw_store(tmp_path):
    write_ntu(tmp_path / "raw")
    write_video(tmp_path / "raw" / "S002C001P001R001A001_rgb.avi", 5, height=48, width=48)
    for options, clips in (({"encoding": "raw"}, 3), ({"encoding": "png"}, 4), ({"size": [20, 20]}, 4)):
        report = prepare_dataset(NTUMedia("rgb", **options), tmp_path / "raw", tmp_path / "s", progress=False)
        assert report.clips == clips and all("use encoding=png" in entry[2] for entry in report.skipped)
    assert MediaStore(tmp_path / "s").read(3).shape == (5, 20, 20, 3)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"modality": "audio"}, "no modality 'audio'; it has rgb, depth, ir"),
        ({"modality": "depth", "encoding": "jpeg"}, "would blur"),
        ({"modality": "rgb", "encoding": "gif"}, "encoding is one of"),
        ({"modality": "rgb", "frames": 0}, "at least 1"),
        ({"modality": "rgb", "size": 0}, "size is null"),
        ({"modality": "rgb", "size": [1, 2, 3]}, "size is null"),
        ({"modality": "rgb", "classes": 61}, "60 or 120"),
        ({"modality": "depth", "span": [3000, 500]}, "span is null"),
    ],
)
def test_options_that_make_no_sense(options, reason):
    with pytest.raises(SkelactError, match=reason):
        NTUMedia(**options)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 31), min_size=1, max_size=6), min_size=1, max_size=5),
    st.sampled_from(["raw", "png"]),
    st.data(),
)
def test_any_clips_and_any_indices(tmp_path_factory, clips, encoding, data):
    import io

    def encoded(image):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "png")
        return stream.getvalue()

    target = tmp_path_factory.mktemp("any") / "s"
    with MediaWriter(target, _card(encoding=encoding)) as writer:
        for k, clip in enumerate(clips):
            images = [picture(number, 6, 8) for number in clip]
            writer.add(f"c{k}", np.stack(images) if encoding == "raw" else [encoded(i) for i in images], 0)
    store = MediaStore(target)
    row = data.draw(st.integers(0, len(clips) - 1))
    indices = data.draw(st.lists(st.integers(0, len(clips[row]) - 1), min_size=1, max_size=9))
    assert numbers(store.read(row, indices)) == [clips[row][k] for k in indices]
    assert numbers(store.read(row)) == clips[row]


def test_frames_of_one_clip_differ_in_size(tmp_path):
    folder = write_folder(tmp_path / "raw" / "S001C001P001R001A001_rgb", ["1.png", "2.png"])
    write_folder(tmp_path / "raw" / "S001C001P001R001A002_rgb", ["1.png", "2.png"])
    Image.fromarray(picture(1, 8, 8)).save(folder / "3.png")
    for encoding in ("raw", "png"):
        reader = NTUMedia("rgb", encoding=encoding)
        report = prepare_dataset(reader, tmp_path / "raw", tmp_path / f"s.{encoding}", progress=False)
        assert report.clips == 1 and "(8, 8), (24, 32)" in report.skipped[0][2]


def test_folders_of_frames_without_a_usable_clip(tmp_path):
    write_folder(tmp_path / "raw" / "S001C001P001R001A001_rgb", ["notes.txt.png"])
    with pytest.raises(SkelactError, match="not one of 1 clips can be read"):
        prepare_dataset(NTUMedia("rgb"), tmp_path / "raw", tmp_path / "s", progress=False)
    with pytest.raises(SkelactError, match="none of 1 clips could be used"):
        prepare_dataset(NTUMedia("rgb", encoding="png"), tmp_path / "raw", tmp_path / "s", progress=False)
    assert not (tmp_path / "s").exists()
