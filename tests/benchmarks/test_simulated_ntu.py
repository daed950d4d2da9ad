"""Simulated NTU RGB+D 60: official names and counts, files that the reader takes, and the commands at small size."""

import json
import zipfile

import numpy as np
import pytest

from skelact.benchmarks import simulated_ntu as simulated
from skelact.cli import main
from skelact.data.readers.ntu import NTUReader
from skelact.data.readers.ntu_parse import parse_skeleton
from skelact.data.readers.ntu_protocols import EXEMPLARS, TRAIN_SUBJECTS_60, impossible, missing_skeletons, parse_name
from skelact.errors import SkelactError
from skelact.skeleton.layouts import get_layout


def test_names_are_the_sets_and_all_counts_are_as_published():
    names = simulated.names()
    assert len(set(names)) == len(names) == 56_880 and names == sorted(names)
    factors = [parse_name(name) for name in names]
    assert not any(impossible(numbers, 60) for numbers in factors)
    assert len({numbers["subject"] for numbers in factors}) == 40 and len({n["setup"] for n in factors}) == 17
    missing = {name for name in missing_skeletons() if parse_name(name)["setup"] <= 17}
    assert len(missing) == 302 and missing <= set(names)
    assert {name for name in EXEMPLARS if name.startswith("S001")} <= set(names)
    for left_out, counts in ((set(), (40_320, 37_920)), (missing, (40_091, 37_646))):
        kept = [numbers for name, numbers in zip(names, factors, strict=True) if name not in left_out]
        found = sum(n["subject"] in TRAIN_SUBJECTS_60 for n in kept), sum(n["camera"] != 1 for n in kept)
        assert found == counts and len(kept) == 56_880 - len(left_out)


def test_a_part_of_the_set_is_mixed_and_nested():
    some = [parse_name(name) for name in simulated.names(600)]
    assert {numbers["action"] for numbers in some} == set(range(1, 61))
    assert 0.6 < np.mean([numbers["subject"] in TRAIN_SUBJECTS_60 for numbers in some]) < 0.8
    assert set(simulated.names(30)) < set(simulated.names(600))
    for wrong in (0, 56_881):
        with pytest.raises(SkelactError, match="1 to 56880"):
            simulated.names(wrong)


def test_lengths_are_about_those_of_the_set():
    lengths = np.array([simulated.skeleton_frames(name) for name in simulated.names(1500)])
    assert 32 <= lengths.min() < 37 and 220 < lengths.max() <= 300
    assert 72 <= np.median(lengths) <= 78 and 80 <= lengths.mean() <= 86


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("simulated") / "raw"
    simulated.write(target, 64, workers=1, progress=False)
    return target


def test_files_are_of_the_official_form(folder, tmp_path):
    paths = sorted((folder / simulated.FOLDER).glob("*.skeleton"))
    assert "Made up" in (folder / simulated.FOLDER / "READ_ME.txt").read_text()
    assert [path.stem for path in paths] == simulated.names(64)
    bodies, near = {}, 0
    for path in paths:
        data = path.read_bytes()
        assert data.count(b"\r\n") == data.count(b"\n") and data.endswith(b"\r\n")
        found = bodies[path.stem] = parse_skeleton(data, str(path))
        assert len(found.nbody) == simulated.skeleton_frames(path.stem)
        assert (found.ids >= 2**56).all() and set(np.unique(found.tracking)) <= {0, 1, 2}
        near += len(set(found.ids.tolist())) > len(set(found.ids.astype(float).tolist()))
        assert 1 < np.median(found.xyz[found.nbody > 0, 0, :, 2]) < 5
    mutual = {name: found.nbody.max() for name, found in bodies.items() if parse_name(name)["action"] >= 50}
    assert mutual and set(mutual.values()) == {2} and near  # IDs of two persons that are one float
    name = "S001C001P001R001A001"
    empty = simulated.skeleton_text(name, simulated._bodies(1, 1, 1, 1), empty=True)
    assert empty.split(b"\r\n")[1:-1] == [b"0"] * simulated.skeleton_frames(name)
    left_hand = get_layout("ntu25").index("left_hand")
    assert np.ptp(next(iter(bodies.values())).xyz[:, 0, left_hand], axis=0).max() > 0.05  # it moves


def test_archive_has_the_same_files(folder, tmp_path):
    numbers = simulated.write(tmp_path / "raw.zip", 64, workers=2, progress=False, archive=True)
    with zipfile.ZipFile(tmp_path / "raw.zip") as archive:
        contents = {name: archive.read(name) for name in archive.namelist() if name.endswith(".skeleton")}
    assert contents == {f"{simulated.FOLDER}/{p.name}": p.read_bytes() for p in folder.rglob("*.skel*")}
    assert numbers["bytes"] == sum(map(len, contents.values()))
    assert len(NTUReader().scan(tmp_path / "raw.zip")) == len(NTUReader().scan(folder))


def test_nothing_is_overwritten_and_no_disk_is_filled(folder, tmp_path, monkeypatch):
    with pytest.raises(SkelactError, match="exists; give a new folder"):
        simulated.write(folder, 2)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**9}))
    with pytest.raises(SkelactError, match=r"need 17 GB, 1 are free"):
        simulated.write(tmp_path / "new")


@pytest.fixture
def prepared(folder, tmp_path, monkeypatch, capsys):
    """An empty folder with a store made by the command; what the command printed."""
    monkeypatch.setenv("SKELACT_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "data=ntu60", "data.pipeline=energy", f"source={folder}", "workers=2"]) == 0
    return capsys.readouterr().out


def test_prepare_and_info_compare_with_the_published_counts(folder, prepared, capsys):
    count = len(NTUReader().scan(folder))
    assert f"{count} clips" in prepared and f"clips {count} ({count - 56_578:+d} from 56578)" in prepared
    assert main(["info", "data=ntu60", "data.pipeline=energy"]) == 0
    out = capsys.readouterr().out
    assert "published counts" in out and "energy" in out and "drink water" in out and f"{count - 56_578:+d}" in out


@pytest.mark.slow
def test_the_commands_of_a_user_with_the_real_files(prepared, tmp_path):
    """Pretraining, linear and retrieval on simulated files, all of it short."""
    short = [
        "experiment=umurl_ntu60_xsub", "data.pipeline=energy", "trainer.accelerator=cpu", "trainer.precision=32-true",
        "frames=8", "backbone.width=8", "method.projector_width=16", "data.batch_size=8", "callbacks=minimal",
        "trainer.max_epochs=-1", "trainer.max_steps=2", "augment.sampler.min_crop=8",
    ]  # fmt: skip
    assert main([*short, "run_dir=run"]) == 0
    asked = ["checkpoint=run", "data.pipeline=energy", "trainer.accelerator=cpu", "protocol.draws=2"]
    tiny = ["protocol.epochs=2", "protocol.seeds=2", "protocol.recipe=skelact_linear_v1"]
    assert main(["protocol=linear", *asked, *tiny, "run_dir=linear"]) == 0
    assert main(["protocol=retrieval", *asked, "run_dir=retrieval"]) == 0
    for run in ("linear", "retrieval"):
        records = json.loads((tmp_path / run / "results.json").read_text())
        assert records and all(record["data"] == "ntu60" and record["split"] == "xsub" for record in records)
