from __future__ import annotations

import multiprocessing
import random
import struct
import subprocess
import sys
import zipfile

import pytest

from skelact.data.archives import list_members, read_member
from skelact.data.readers.base import DamagedClip
from skelact.errors import SkelactError


def pack(path, members, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def damages(path, suffix="", **options):
    return {member.name: member.damage for member in list_members(path, suffix, **options)}


def test_members_are_listed_by_name_and_read(tmp_path):
    path = pack(tmp_path / "a.zip", [("b/2.txt", b"two"), ("b/", b""), ("b/1.TXT", b"one"), ("b/3.dat", b"3"),
                                     ("__MACOSX/b/._1.txt", b"attributes"), ("b/._2.txt", b"")])  # fmt: skip
    members = list_members(path, ".txt")
    assert [(member.name, member.stem, member.size) for member in members] == [("b/1.TXT", "1", 3), ("b/2.txt", "2", 3)]
    assert [read_member(path, member.name) for member in members] == [b"one", b"two"]
    with pytest.raises(DamagedClip, match=r"a\.zip, b/4\.txt: is not in the archive"):
        read_member(path, "b/4.txt")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../up.txt", "leaves the archive's folder"),
        ("a/../../up.txt", "leaves the archive's folder"),
        ("a\\..\\up.txt", "leaves the archive's folder"),
        ("/etc/abs.txt", "absolute path"),
        ("\\abs.txt", "absolute path"),
        ("C:\\abs.txt", "absolute path"),
    ],
)
def test_paths_that_leave_are_refused(tmp_path, name, reason):
    path = pack(tmp_path / "a.zip", [(name, b"x"), ("good.txt", b"good")])
    found = damages(path)
    assert found.pop("good.txt") == "" and reason in found[name]
    with pytest.raises(DamagedClip, match=reason):
        read_member(path, name)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.zip"]


def test_large_members_are_refused_by_their_word_and_by_their_content(tmp_path):
    path = pack(tmp_path / "a.zip", [("bomb.txt", bytes(1 << 20)), ("good.txt", b"good")])
    assert "claims 1048576 bytes, more than the 1000" in damages(path, limit=1000)["bomb.txt"]
    with pytest.raises(DamagedClip, match="more than the 1000 allowed"):
        read_member(path, "bomb.txt", limit=1000)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"bomb.txt"))
    struct.pack_into("<I", data, at + 24, 900)  # the directory lies
    path.write_bytes(data)
    assert damages(path, limit=1000)["bomb.txt"] == ""
    with pytest.raises(DamagedClip, match=r"a\.zip, bomb\.txt: "):
        read_member(path, "bomb.txt", limit=1000)
    assert read_member(path, "good.txt", limit=1000) == b"good"


def test_passwords_duplicates_and_changed_content_are_damage(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = pack(
            tmp_path / "a.zip", [("a.txt", b"first"), ("b.txt", b"content"), ("c.txt", b"x"), ("a.txt", b"2nd")]
        )
    data = bytearray(path.read_bytes())
    for mark, flag in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        data[data.rindex(mark, 0, data.rindex(b"c.txt") if flag == 8 else data.index(b"c.txt")) + flag] |= 1
    place = data.index(b"b.txt") + len("b.txt")
    data[place : place + 4] = b"\x07\x07\x07\x07"
    path.write_bytes(data)
    members = list_members(path)
    assert [(member.name, member.damage) for member in members] == [
        ("a.txt", ""), ("a.txt", "stands twice in the archive"), ("b.txt", ""), ("c.txt", "is encrypted"),
    ]  # fmt: skip
    assert read_member(path, "a.txt") == b"first"
    for name in ("b.txt", "c.txt"):
        with pytest.raises(DamagedClip):
            read_member(path, name)


def test_what_is_no_archive_is_named(tmp_path):
    path = tmp_path / "a.zip"
    for data in (b"", b"PK\x03\x04", b"no zip at all" * 100):
        path.write_bytes(data)
        with pytest.raises(SkelactError, match=r"a\.zip is not a whole zip file"):
            list_members(path)
        with pytest.raises(DamagedClip):
            read_member(path, "a.txt")
    with pytest.raises(SkelactError, match=r"gone\.zip is not a whole zip file: No such file"):
        list_members(tmp_path / "gone.zip")


def test_a_replaced_archive_is_opened_again(tmp_path):
    path = pack(tmp_path / "a.zip", [("a.txt", b"old")])
    assert read_member(path, "a.txt") == b"old"
    pack(path, [("a.txt", b"newer")])
    assert read_member(path, "a.txt") == b"newer"


FORKS = """
import multiprocessing, sys
from pathlib import Path
from skelact.data.archives import read_member
path = Path(sys.argv[1])
read_member(path, "0.txt")
with multiprocessing.get_context("fork").Pool(2) as pool:
    got = pool.starmap(read_member, [(path, f"{k}.txt") for k in range(20)] * 3, chunksize=1)
sys.stdout.buffer.write(b"".join(got))
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_forked_processes_do_not_share_the_position(tmp_path):
    draw = random.Random(0)
    members = [(f"{k}.txt", draw.randbytes(20_000)) for k in range(20)]
    path = pack(tmp_path / "a.zip", members)
    assert read_member(path, "0.txt") == members[0][1]
    # in a process of its own: a fork of one with threads, as other tests leave them, can wait for ever
    done = subprocess.run([sys.executable, "-c", FORKS, str(path)], capture_output=True, check=True, timeout=120)
    assert done.stdout == b"".join(data for _, data in members) * 3


def test_mutated_archives_raise_nothing_else(tmp_path):
    draw = random.Random(1)
    whole = pack(tmp_path / "a.zip", [(f"{k}.txt", draw.randbytes(50) * 4) for k in range(4)]).read_bytes()
    path, read, refused = tmp_path / "b.zip", 0, 0
    for turn in range(300):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 1, 3, 10])):
            data[draw.randrange(len(data))] = draw.randrange(256)
        if turn % 10 == 0:
            del data[draw.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            members = list_members(path)
        except SkelactError:
            refused += 1
            continue
        for member in members:
            try:
                assert len(read_member(path, member.name)) <= max(member.size, 200)
                read += 1
            except DamagedClip:
                refused += 1
    assert read > 100 and refused > 100
