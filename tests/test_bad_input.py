"""Bad input is answered by one line that names the culprit, and nothing is lost."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from skelact.cli import main
from skelact.engine.checkpoint import trained_steps


class Bomb:
    """Leaves a file behind wherever it is unpickled."""

    def __reduce__(self):
        return eval, ("__import__('pathlib').Path('exploded').touch()",)


@pytest.fixture
def refused(skelact_run, capsys):
    """Run, expect exit code 2 (or `code`), and give back the one line."""

    def call(*arguments, code=2, tiny=True):
        capsys.readouterr()
        assert skelact_run(*arguments, tiny=tiny) == code
        text = capsys.readouterr().err
        lines = [line for line in text.splitlines() if line.startswith("skelact: ")]
        assert len(lines) == 1 and "Traceback" not in text, text
        return lines[0]

    return call


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.max_steps=abc", ["trainer.max_steps=abc", "int"]),
        ("trainer.precision=abc", ["trainer", "precision", "abc"]),
        ("data.batch_size=many", ["data.batch_size=many", "int"]),
        ("data.residence=moon", ["data.residence='moon'", "device"]),
        ("data.split=xmoon", ["xmoon", "default"]),
        ("data.num_classes=7", ["data.num_classes=7", "3"]),
        ("backbone.width=wide", ["backbone.width=wide", "int"]),
        ("frames=0", ["frames", "0"]),
        ("frames=abc", ["frames=abc", "int"]),
        ("augment.views=2", ["augment.views=2", "4"]),
        ("method.streams=[joint]", ["two or more streams", "joint"]),
        ("method.streams=[joint,depth]", ["depth"]),
        ("trainer.accelerator=moon", ["moon"]),
    ],
)
def test_a_wrong_value_is_named(refused, override, words, tmp_path):
    line = refused(override, "run_dir=run")
    assert all(word in line for word in words), line
    # what fails in its first step may leave the fresh weights, which another run may overwrite
    assert trained_steps(tmp_path / "run" / "checkpoints" / "last.ckpt") in (None, 0)


def test_a_run_that_failed_in_its_first_step_can_be_repeated(refused, skelact_run):
    refused("method.streams=[joint,depth]", "run_dir=run")
    assert skelact_run("trainer.max_steps=1", "run_dir=run") == 0
    assert "holds a run already" in refused("run_dir=run")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "source=x", "checkpoint=absent"], ["absent", "does not exist"]),
        (["predict", "source=x", "checkpoint=absent", "k=0"], ["k=0"]),
        (["plot", "kind=confusion", "checkpoint=absent"], ["absent", "does not exist"]),
        (["plot", "kind=moon", "checkpoint=absent"], ["kind=moon", "tsne"]),
    ],
)
def test_sub_commands_name_what_is_wrong(refused, arguments, words):
    line = refused(*arguments, tiny=False)
    assert all(word in line for word in words), line


def test_a_store_that_was_cut_short_is_named(refused, home, tmp_path, monkeypatch):
    shutil.copytree(home / "data" / "tiny", tmp_path / "data" / "tiny")
    frames = tmp_path / "data" / "tiny" / "frames.npy"
    frames.write_bytes(frames.read_bytes()[:-100])
    monkeypatch.setenv("SKELACT_DATA", str(tmp_path / "data"))
    assert "frames.npy" in refused("run_dir=run")
    assert str(tmp_path / "data" / "tiny") in refused("info", "data=custom", "data.name=tiny", tiny=False)


def test_a_store_that_is_not_there_is_named(refused):
    line = refused("data.name=absent")
    assert "absent" in line and "skelact prepare" in line


def test_pickles_never_run(refused, raw_clips, tmp_path, capsys):
    torch.save({"skelact": Bomb()}, tmp_path / "bomb.ckpt")
    (tmp_path / "raw.ckpt").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.ckpt", "raw.ckpt"):
        assert name in refused(f"checkpoint={name}", "protocol=retrieval", tiny=False)
        assert name in refused("info", f"checkpoint={name}", tiny=False)
    source = raw_clips(tmp_path / "clips", clips=6)
    np.save(source / "clip02.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    arguments = ["prepare", "data=custom", f"source={source}", f"layout={source / 'stick.yaml'}", "target=made"]
    assert main(arguments) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "clip02.npy" in text and "could run code" in text and "5 clips" in text
    assert not (tmp_path / "exploded").exists()


def prepare(source, target):
    assert (
        main(["prepare", "data=custom", f"source={source}", f"layout={source / 'stick.yaml'}", f"target={target}"]) == 0
    )


def test_clips_of_one_frame_go_all_the_way(skelact_run, raw_clips, tmp_path):
    source = raw_clips(tmp_path / "clips", clips=36)
    for file in source.glob("*.npy"):
        np.save(file, np.load(file)[:1])
    prepare(source, tmp_path / "still")
    options = ["data.store=still", "trainer.max_steps=2", "evaluate=[linear,retrieval,missing]", "run_dir=run"]
    assert skelact_run(*options, "protocols.missing.baselines=false", "protocols.missing.labels=[all]") == 0
    records = json.loads((tmp_path / "run" / "results.json").read_text())
    found = [m for r in records if r["protocol"] != "pretrain" for m in r["metrics"].items()]
    values = [value for name, value in found if not name.startswith("drop")]  # what is lost may be a gain
    assert {r["protocol"] for r in records} == {"pretrain", "linear", "retrieval", "missing"}
    assert values and all(0 <= value <= 100 for value in values)
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for value in state.values())


@pytest.mark.parametrize(("part", "protocol"), [("train", "pretrain"), ("test", "retrieval")])
def test_an_empty_part_is_named(refused, raw_clips, tmp_path, part, protocol):
    source = raw_clips(tmp_path / "clips", clips=36)
    table = source / "clips.csv"
    other = {"train": "test", "test": "train"}[part]
    text = table.read_text().replace(",val", ",train").replace(f",{part}", f",{other}")
    table.write_text(text)
    prepare(source, tmp_path / "bare")
    line = refused("data.store=bare", f"protocol={protocol}", "run_dir=run")
    assert "default" in line and part in line, line


def test_a_directory_that_cannot_be_written_is_named(refused, tmp_path):
    (tmp_path / "file").write_text("in the way")
    line = refused("run_dir=file/run", code=1)
    assert "file/run" in line or "file" in line.split()[1]
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_run_is_not_overwritten_unless_asked(refused, skelact_run, tmp_path):
    options = ["run_dir=run", "trainer.max_steps=1", "callbacks.checkpoint.every_n_train_steps=null"]
    assert skelact_run(*options) == 0
    kept = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    line = refused(*options, "seed=1")
    assert f"run_dir={tmp_path / 'run'}" in line and "resume=" in line and "overwrite=true" in line
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == kept
    line = refused("checkpoint=run", "protocol=retrieval", "run_dir=run", "overwrite=true", tiny=False)
    assert "holds the checkpoint itself" in line
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == kept
    assert skelact_run(*options, "seed=1", "overwrite=true") == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())[0]["seed"] == 1


def test_a_finished_run_resumes_to_itself(skelact_run, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    before = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    rows = (tmp_path / "run" / "metrics.csv").read_text()
    assert skelact_run("resume=run", tiny=False) == 0
    after = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert after["global_step"] == before["global_step"]
    assert all(torch.equal(value, after["state_dict"][name]) for name, value in before["state_dict"].items())
    assert (tmp_path / "run" / "metrics.csv").read_text() == rows
    old, new = (json.loads((d / "results.json").read_text()) for d in (trained, tmp_path / "run"))
    key = ("protocol", "method", "metrics")
    assert [[r[k] for k in key] for r in new if r["protocol"] != "pretrain"] == [
        [r[k] for k in key] for r in old if r["protocol"] != "pretrain"
    ]
