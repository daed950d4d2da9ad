"""Bytes changed, cut, doubled: a valid clip or one that is named as damaged, never anything else, and soon."""

from __future__ import annotations

import lzma
import time
from pathlib import Path

import numpy as np
import pytest

from skelact.data.readers.base import Clip, DamagedClip, read_or_damage
from skelact.data.readers.custom import CustomReader
from skelact.data.readers.hdm05 import HDM05Reader
from skelact.data.readers.nw_ucla import NWUCLAReader
from skelact.data.readers.pku import PKUReader
from skelact.data.readers.utd_mhad import UTDMHADReader
from skelact.errors import SkelactError

from ..originals import write_ucla, write_utd
from .pku_originals import VIDEOS, write_pku

HDM05 = Path(__file__).parents[2] / "golden" / "hdm05"
ROUNDS = 60
SECONDS = 5.0  # for any one file; whole ones take milliseconds


def mutate(data, draw):
    """Change a few bytes, cut the end, take a piece out, or put one in twice."""
    kind = draw.integers(5)
    at = int(draw.integers(len(data)))
    if kind == 0:
        return data[:at]
    if kind == 1:
        end = min(len(data), at + int(draw.integers(1, 200)))
        return data[:at] + data[end:]
    if kind == 2:
        piece = data[at : at + int(draw.integers(1, 200))]
        return data[:at] + piece + data[at:]
    values = bytearray(data)
    alphabet = b"0123456789.-+eEnaif \t\r\n,:[]{}\"'\x00\xff" if kind == 3 else bytes(range(256))
    for _ in range(int(draw.integers(1, 8))):
        values[int(draw.integers(len(values)))] = alphabet[int(draw.integers(len(alphabet)))]
    return bytes(values)


def outcomes(reader, items):
    for item in items:
        began = time.perf_counter()
        outcome = read_or_damage(reader, item)
        assert time.perf_counter() - began < SECONDS
        assert isinstance(outcome, (Clip, DamagedClip))
        if isinstance(outcome, DamagedClip):
            assert outcome.reason and "\n" not in outcome.reason
        yield outcome


def check(clip, persons, joints):
    assert clip.frames.ndim == 4 and len(clip.frames) and clip.frames.shape[1:] == (persons, joints, 3)
    assert clip.frames.dtype == np.float32 and np.isfinite(clip.frames).all()
    assert clip.mask is None or clip.mask.shape == clip.frames.shape[:3]


def fuzz(path, make_reader, source, persons, joints, seed, wanted=None, rounds=ROUNDS):
    """Mutate one file of a small source again and again; (clips, damaged) over all rounds."""
    whole, draw = path.read_bytes(), np.random.default_rng(seed)
    counts = [0, 0]
    for _ in range(rounds):
        path.write_bytes(mutate(whole, draw))
        reader = make_reader()
        try:
            items = [item for item in reader.scan(source) if item.path == path or wanted is None or wanted(item)]
        except SkelactError:
            counts[1] += 1
            continue
        for outcome in outcomes(reader, items):
            if isinstance(outcome, Clip):
                check(outcome, persons, joints)
            counts[isinstance(outcome, DamagedClip)] += 1
    assert all(counts), counts
    return counts


@pytest.mark.parametrize("seed", range(2))
def test_pku_videos(tmp_path, seed):
    write_pku(tmp_path)
    path = tmp_path / "skeleton" / f"{VIDEOS[1][1]}.txt"
    fuzz(path, PKUReader, tmp_path, 2, 25, seed, lambda item: False)


@pytest.mark.parametrize("file", ["label/0002-M.txt", "cross-view.txt"])
def test_pku_labels_and_lists(tmp_path, file):
    write_pku(tmp_path)
    fuzz(tmp_path / file, PKUReader, tmp_path, 2, 25, 0, lambda item: item.path.stem == "0002-M")


def test_nw_ucla(tmp_path):
    path = write_ucla(tmp_path)[7]
    fuzz(path, NWUCLAReader, tmp_path, 1, 20, 0, lambda item: False, rounds=200)


@pytest.mark.parametrize("packed", [False, True])
def test_utd_mhad(tmp_path, packed):
    from scipy.io import loadmat, savemat

    write_utd(tmp_path)
    path = tmp_path / "Skeleton" / "a1_s1_t1_skeleton.mat"
    savemat(path, {"d_skel": loadmat(path)["d_skel"]}, do_compression=packed)
    # a changed byte of a packed file is always noticed: its check sum
    other = (lambda item: item.path.name.startswith("a1_s1_t2")) if packed else (lambda item: False)
    fuzz(path, UTDMHADReader, tmp_path, 1, 20, 0, other, rounds=200)


@pytest.mark.parametrize("suffix", [".asf", ".amc"])
def test_acclaim(tmp_path, suffix):
    for path in HDM05.glob("*.xz"):
        text = lzma.decompress(path.read_bytes())
        if path.stem.endswith(".amc"):
            text = text[: text.index(b"\n9\n") + 1]
        (tmp_path / path.stem).write_bytes(text)
    path = next(tmp_path.glob(f"*{suffix}"))
    fuzz(path, HDM05Reader, tmp_path, 1, 31, 0, lambda item: True, rounds=150)


@pytest.mark.parametrize("file", ["a.npy", "b.npz", "c.csv", "clips.csv"])
def test_custom(tmp_path, file):
    frames = np.random.default_rng(0).standard_normal((6, 20, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", frames)
    np.savez_compressed(tmp_path / "b.npz", frames=frames, mask=np.ones((6, 20), bool))
    np.savetxt(tmp_path / "c.csv", frames.reshape(6, 60), delimiter=",")
    (tmp_path / "clips.csv").write_text("name,file,label,subject\nx,a.npy,0,1\ny,b.npz,1,2\nz,c.csv,0,3\n")
    wanted = (lambda item: True) if file in ("b.npz", "clips.csv") else (lambda item: False)
    fuzz(tmp_path / file, lambda: CustomReader("kinect20"), tmp_path, 1, 20, 0, wanted, rounds=100)
