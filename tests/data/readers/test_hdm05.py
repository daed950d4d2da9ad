from __future__ import annotations

import numpy as np
import pytest

from skelact.data.prepare import prepare_dataset
from skelact.data.readers.hdm05 import EMBEDDED, INCH, ORIGINAL, HDM05Reader, compact
from skelact.data.store import Store
from skelact.errors import SkelactError

from ..conftest import shared


def test_embedded_copy():
    reader = HDM05Reader()
    items = reader.scan(None)
    assert len(items) == 288 and EMBEDDED.stat().st_size < 4e6
    subjects = [item.columns["subject"] for item in items]
    assert {s: subjects.count(s) for s in set(subjects)} == {"bd": 62, "bk": 66, "dg": 61, "mm": 44, "tr": 55}
    labels = np.bincount([item.label for item in items])
    assert labels.tolist() == [32, 27, 29, 36, 17, 29, 20, 16, 16, 52, 14]
    frames = reader.read(items[0]).frames
    assert frames.shape[1:] == (1, 31, 3) and frames.dtype == np.float32
    height = frames[0, 0, :, 1].max() - frames[0, 0, :, 1].min()
    assert 1.5 < height < 2.0  # metres, y up
    thigh = np.linalg.norm(frames[:, 0, 2] - frames[:, 0, 1], axis=-1)
    assert thigh.std() < 1e-3 and 0.35 < thigh.mean() < 0.5


def test_licence_travels_with_the_data():
    text = (EMBEDDED.parent / "README.md").read_text()
    for words in ("Attribution-ShareAlike 3.0", "The data used in this project was obtained from HDM05", "CG-2007-2"):
        assert words in text


def _write_original(folder, count=6):
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 40, count)
    names = np.array([f"HDM_bd_squat_{k:03d}_120" for k in range(count)])
    arrays = {
        "data": draw.standard_normal((lengths.sum(), 31, 3)).astype(np.float32) * 30,
        "offsets": np.concatenate([[0], np.cumsum(lengths)]),
        "label": np.arange(count) % 2,
        "subject": np.arange(count) % 2,
        "take": np.arange(count),
        "name": names,
        "class_names": np.array(["a", "b"]),
        "subject_names": np.array(["bd", "mm"]),
        "joint_names": np.array([f"j{k}" for k in range(31)]),
        "fps": np.int64(120),
    }
    np.savez(folder / ORIGINAL, **arrays)
    return arrays


def test_original_and_compact_copy_give_one_store(tmp_path):
    arrays = _write_original(tmp_path)
    compact(tmp_path, tmp_path / "small.npz")
    a = prepare_dataset(HDM05Reader(), tmp_path, tmp_path / "a", progress=False)
    b = prepare_dataset(HDM05Reader(), tmp_path / "small.npz", tmp_path / "b", progress=False)
    assert a.fingerprint == b.fingerprint
    clips = Store(tmp_path / "a").clips()
    for row in range(len(clips)):
        want = arrays["data"][arrays["offsets"][row] : arrays["offsets"][row + 1]][::4] * INCH
        np.testing.assert_allclose(clips.clip(row)[:, 0].numpy(), want, atol=0.000126)


def test_a_frame_that_is_not_finite_is_named(tmp_path):
    arrays = _write_original(tmp_path)
    arrays["data"][arrays["offsets"][2], 4, 1] = np.nan
    np.savez(tmp_path / ORIGINAL, **arrays)
    report = prepare_dataset(HDM05Reader(), tmp_path, tmp_path / "s", progress=False)
    assert report.clips == 5 and report.skipped[0][1] == "frame 0, joint j4"


@pytest.mark.parametrize("damage", ["cut", "pickle", "offsets", "missing"])
def test_a_damaged_archive_is_refused(tmp_path, damage):
    arrays = _write_original(tmp_path)
    path = tmp_path / ORIGINAL
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-300])
    elif damage == "missing":
        path.unlink()
    else:
        change = {"name": np.array([{}] * 6, object)} if damage == "pickle" else {"offsets": arrays["offsets"][::-1]}
        np.savez(path, **{**arrays, **change})
    with pytest.raises(SkelactError, match="holds neither" if damage == "missing" else "not a whole copy"):
        HDM05Reader().scan(tmp_path)


@pytest.mark.data
def test_embedded_is_the_compact_copy_of_the_original(tmp_path):
    compact(shared("hdm05_11"), tmp_path / "again.npz")
    with np.load(tmp_path / "again.npz") as a, np.load(EMBEDDED) as b:
        assert set(a.files) == set(b.files)
        for key in a.files:
            np.testing.assert_array_equal(a[key], b[key])
