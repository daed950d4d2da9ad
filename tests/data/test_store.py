from __future__ import annotations

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skelact.data import store as store_module
from skelact.data.npyfile import GrowingNpy
from skelact.data.store import Store, StoreError, file_entry, fingerprint
from skelact.data.writer import StoreWriter, statistics
from skelact.errors import SkelactError

from .conftest import make_card, make_clips, write_store


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_round_trip(tmp_path, masked, dtype):
    store = write_store(tmp_path / "s", masked=masked, dtype=dtype)
    clips = store.clips(residence="ram")
    assert clips.frames.dtype == torch.float32
    for row, (name, frames, label, mask, subject) in enumerate(make_clips()):
        assert store.names[row] == name and store.label[row] == label and store.columns["subject"][row] == subject
        np.testing.assert_array_equal(clips.clip(row).numpy(), frames.astype(dtype).astype(np.float32))
        if masked:
            np.testing.assert_array_equal(clips.clip_mask(row).numpy(), mask)
    assert (clips.mask is None) == (not masked)
    store.verify()
    # NumPy alone reads it
    plain = np.load(tmp_path / "s" / "frames.npy", mmap_mode="r")
    assert plain.shape == store.shape and plain.dtype == dtype
    assert not list(tmp_path.glob("s.*"))


def test_disk_and_ram_clips_are_the_same(masked_store):
    rows = np.array([5, 2, 17])
    disk, ram = masked_store.clips(rows), masked_store.clips(rows, residence="ram")
    assert disk.index.tolist() == ram.index.tolist() == [5, 2, 17]
    for k in range(3):
        assert torch.equal(disk.clip(k), ram.clip(k)) and torch.equal(disk.clip_mask(k), ram.clip_mask(k))
    with pytest.raises(SkelactError, match="residence"):
        masked_store.clips(rows, residence="tape")


def test_store_pickles_without_its_maps(store):
    _ = store.frames
    other = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) < 20_000
    np.testing.assert_array_equal(other.frames, store.frames)


def test_writing_to_the_map_does_not_reach_the_file(store):
    store.clips().frames.fill_(7.0)
    assert not (Store(store.path).frames == 7.0).all()


@pytest.mark.parametrize("name", ["frames.npy", "clips.npz", "card.json", "mask.npy"])
@pytest.mark.parametrize("whole", [True, False])
def test_every_file_cut_short_is_refused(tmp_path, monkeypatch, name, whole):
    write_store(tmp_path / "s", masked=True)
    if not whole:
        monkeypatch.setattr(store_module, "WHOLE_CHECK_BYTES", 0)
    path = tmp_path / "s" / name
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StoreError, match=name):
        Store(tmp_path / "s")


@pytest.mark.parametrize("name", ["frames.npy", "clips.npz", "mask.npy"])
def test_a_changed_byte_is_refused(tmp_path, name):
    write_store(tmp_path / "s", masked=True)
    path = tmp_path / "s" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=rf"{name}: was changed"):
        Store(tmp_path / "s")


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A store that is treated as a large one, and the place of a byte between two sampled blocks of its frames."""
    write_store(tmp_path / "s", count=400)
    monkeypatch.setattr(store_module, "WHOLE_CHECK_BYTES", 0)
    step = ((tmp_path / "s" / "frames.npy").stat().st_size - 4096) // 64
    assert step > 4200  # there is room between two sampled blocks
    return tmp_path / "s", step + 4096 + 50


def _flip(path, position, keep_time=False):
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_large_stores_are_read_whole_when_a_file_was_touched(large, capsys):
    path, between = large
    Store(path)
    assert capsys.readouterr().err == ""  # as preparation left it: sampled only
    os.utime(path / "frames.npy")
    Store(path)
    assert "reading all" in capsys.readouterr().err
    Store(path)
    assert capsys.readouterr().err == ""  # it was remembered
    _flip(path / "frames.npy", between)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"frames.npy: was changed"):
            Store(path)


def test_without_its_note_a_large_store_is_read_whole(large, capsys):
    path, between = large
    (path / ".verified.json").unlink()
    Store(path)
    assert "reading all" in capsys.readouterr().err and (path / ".verified.json").exists()
    for content in ("{", "[]", '{"fingerprint": "other", "files": {}}'):
        (path / ".verified.json").write_text(content)
        Store(path)
        assert "reading all" in capsys.readouterr().err
    _flip(path / "frames.npy", between)
    (path / ".verified.json").unlink()
    with pytest.raises(StoreError, match="changed"):
        Store(path)


def test_read_only_media_are_sampled(large, monkeypatch, capsys):
    path, between = large
    (path / ".verified.json").unlink()
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    Store(path)
    assert capsys.readouterr().err == "" and not (path / ".verified.json").exists()
    _flip(path / "frames.npy", between - 4096)  # inside a sampled block
    with pytest.raises(StoreError, match="changed"):
        Store(path)


def test_verify_sees_what_sampling_does_not(large):
    path, between = large
    _flip(path / "frames.npy", between, keep_time=True)
    store = Store(path)
    with pytest.raises(StoreError, match="changed"):
        store.verify()


def _forge(path, **card_changes):
    """Make the hashes of a changed store fit again, as a careless script would."""
    card = json.loads((path / "card.json").read_text())
    card |= card_changes
    card["files"] = {name: file_entry(path / name) for name in card["files"]}
    card["fingerprint"] = fingerprint(card)
    (path / "card.json").write_text(json.dumps(card))


def test_nan_coordinates_are_refused_even_with_fitting_hashes(store):
    frames = np.load(store.path / "frames.npy")
    frames[7, 0, 3, 1] = np.nan
    np.save(store.path / "frames.npy", frames)
    _forge(store.path)
    with pytest.raises(StoreError, match=r"frame 7 .*finite"):
        Store(store.path)


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [("start", -1, "asks for frames"), ("length", 0, "asks for frames"), ("length", 2**62, "asks for frames"),
     ("label", 3, "label"), ("name", "clip001", "unique")],
)  # fmt: skip
def test_a_table_that_points_outside_is_refused(store, column, value, reason):
    table = {key: np.array(values) for key, values in store.columns.items()}
    table[column][3] = value
    np.savez(store.path / "clips.npz", **table)
    _forge(store.path)
    with pytest.raises(StoreError, match=reason):
        Store(store.path)


def test_pickles_are_refused(store, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    table = {**store.columns, "name": np.array([Bomb()] * len(store), object)}
    np.savez(store.path / "clips.npz", **table)
    _forge(store.path)
    with pytest.raises(StoreError, match=r"clips.npz"):
        Store(store.path)
    np.save(store.path / "frames.npy", np.array([Bomb()], object))
    with pytest.raises(StoreError):
        Store(store.path)
    assert not (tmp_path / "ran").exists()


def test_card_must_fit(store):
    with pytest.raises(StoreError, match="promises"):
        _forge(store.path, persons=2)
        Store(store.path)
    _forge(store.path, persons=1, format=99)
    with pytest.raises(StoreError, match="format 99"):
        Store(store.path)
    (store.path / "card.json").write_text("[]")
    with pytest.raises(StoreError, match="format None"):
        Store(store.path)
    with pytest.raises(StoreError, match="no such folder"):
        Store(store.path / "elsewhere")
    (store.path / "card.json").unlink()
    with pytest.raises(StoreError, match="never finished"):
        Store(store.path)


def test_errors_survive_worker_processes():
    error = pickle.loads(pickle.dumps(StoreError("a/b", "is odd")))
    assert str(error) == "store a/b: is odd" and error.reason == "is odd"


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (np.zeros((0, 1, 20, 3)), "shape"),
        (np.zeros((4, 1, 25, 3)), "shape"),
        (np.full((4, 1, 20, 3), np.inf), "finite"),
        (np.full((4, 1, 20, 3), 1e300), "finite in float32"),
    ],
)
def test_writer_refuses(tmp_path, frames, reason):
    writer = StoreWriter(tmp_path / "s", make_card())
    with pytest.raises(SkelactError, match=reason), np.errstate(over="ignore"):
        writer.add("x", frames, 0, subject=1)
    writer.add("x", np.zeros((4, 1, 20, 3)), 0, subject=1)
    with pytest.raises(SkelactError, match="given twice"):
        writer.add("x", np.zeros((4, 1, 20, 3)), 0, subject=1)
    with pytest.raises(SkelactError, match="columns"):
        writer.add("y", np.zeros((4, 1, 20, 3)), 0, camera=1)
    writer.close()


def test_an_empty_store_is_not_written(tmp_path):
    with pytest.raises(SkelactError, match="no clip"), StoreWriter(tmp_path / "s", make_card()):
        pass
    assert not (tmp_path / "s").exists()


def test_same_clips_same_bytes_and_fingerprint(tmp_path):
    a, b = write_store(tmp_path / "a", masked=True), write_store(tmp_path / "b", masked=True)
    for name in ("frames.npy", "mask.npy", "clips.npz", "card.json"):
        assert (a.path / name).read_bytes() == (b.path / name).read_bytes()
    assert write_store(tmp_path / "c", masked=True, class_names=["a", "b", "d"]).fingerprint != a.fingerprint


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stop=st.integers(0, 24),
    cut=st.integers(0, 4000),
    which=st.sampled_from(["frames.npy", "mask.npy", "journal.jsonl"]),
)
def test_a_killed_writer_is_continued_to_the_same_bytes(tmp_path_factory, stop, cut, which):
    """Whatever of an unfinished folder is lost at its end, the finished store is the uninterrupted one."""
    root = tmp_path_factory.mktemp("kill")
    want = write_store(root / "want", masked=True)
    clips = list(make_clips())
    writer = StoreWriter(root / "got", make_card(), masked=True)
    for name, frames, label, mask, subject in clips[:stop]:
        writer.add(name, frames, label, mask, subject=subject)
    writer.close()  # no finish: the process died
    path = root / "got.partial" / which
    content = path.read_bytes()
    path.write_bytes(content[: max(len(content) - cut, 0)])
    with StoreWriter(root / "got", make_card(), masked=True) as writer:
        assert len(writer.done) <= stop
        if cut == 0:
            assert len(writer.done) == stop
        for name, frames, label, mask, subject in clips[len(writer.done) :]:
            writer.add(name, frames, label, mask, subject=subject)
    assert Store(root / "got").fingerprint == want.fingerprint
    for name in ("frames.npy", "mask.npy", "clips.npz", "card.json"):
        assert (root / "got" / name).read_bytes() == (want.path / name).read_bytes()


def test_another_dataset_does_not_continue_an_unfinished_one(tmp_path):
    writer = StoreWriter(tmp_path / "s", make_card())
    writer.add("x", np.ones((4, 1, 20, 3)), 0, subject=1)
    writer.close()
    other = StoreWriter(tmp_path / "s", make_card(fps=25.0))
    assert other.done == []
    other.close()


def test_the_old_store_stays_until_the_new_one_is_whole(store):
    before = store.fingerprint
    with pytest.raises(RuntimeError), StoreWriter(store.path, make_card()) as writer:
        writer.add("x", np.ones((4, 1, 20, 3)), 0, subject=1)
        raise RuntimeError
    assert Store(store.path).fingerprint == before
    # died between the two renames: the old store comes back
    store.path.rename(store.path.with_name("toy.old"))
    StoreWriter(store.path, make_card()).close()
    assert Store(store.path).fingerprint == before
    shutil.rmtree(store.path.with_name("toy.partial"))
    replaced = write_store(store.path, count=5)
    assert len(replaced) == 5 and not store.path.with_name("toy.old").exists()


def test_growing_npy_is_a_plain_npy(tmp_path):
    grown = GrowingNpy(tmp_path / "x.npy", np.dtype("int16"), (2, 3))
    for k in range(5):
        grown.append(np.full((k, 2, 3), k))
    grown.truncate(6)
    grown.finish()
    loaded = np.load(tmp_path / "x.npy")
    assert loaded[:, 0, 0].tolist() == [1, 2, 2, 3, 3, 3] and loaded.dtype == np.int16


def test_statistics_count_what_is_absent():
    draw = np.random.default_rng(0)
    frames = draw.standard_normal((9000, 2, 5, 4))
    mask = draw.random((9000, 2, 5)) > 0.2
    frames[::3, 1], mask[::3, 1] = 0, False
    found = statistics(frames, mask)
    np.testing.assert_allclose(found["mean"], frames[mask].mean(0), atol=2e-6)
    np.testing.assert_allclose(found["std"], frames[mask].std(0), atol=2e-6)
    assert found["absent_persons"] == pytest.approx(1 - mask.any(2).mean(), abs=1e-6)
    assert found["absent_joints"] == pytest.approx(1 - mask.sum() / (5 * mask.any(2).sum()), abs=1e-6)
    plain = statistics(frames, None)
    assert plain["absent_persons"] == pytest.approx(1 / 6, abs=1e-6) and "absent_joints" not in plain
    np.testing.assert_allclose(plain["mean"], frames.reshape(-1, 4).mean(0), atol=2e-6)
