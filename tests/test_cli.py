"""The command line, end to end, in this process."""

import csv
import json
import shutil

import numpy as np
import pytest

from skelact.cli import COMMANDS, main
from skelact.results import load_scores, save_scores


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_reads_like_a_product(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert "skelact" in text and ("Usage" in text or "usage" in text)
    assert "Powered by Hydra" not in text


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("skelact ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data=hdm05x"], ["hdm05x", "did you mean hdm05"]),
        (["trainer.max_stepss=3"], ["trainer.max_stepss", "trainer.max_steps"]),
        (["benchmrk"], ["benchmrk", "benchmark"]),
        (["checkpoint=nowhere", "protocol=linear"], ["nowhere", "does not exist"]),
        (["evaluate=[lineal]"], ["lineal", "linear"]),
        (["protocol=ensemble", "protocol.runs=[here]", "evaluate=[linear]"], ["evaluate=['linear']", "ensemble"]),
        (["protocol=ensemble"], ["protocol.runs=[RUN_A,RUN_B]"]),
        (["protocol=ensemble", "protocol.runs=[here,there]"], ["here", "no such file"]),
        (["preset=wrong"], ["preset=wrong", "corrected"]),
        (["resume=nowhere"], ["nowhere", "not a run directory"]),
        (["seed=[1"], ["seed"]),
        (["prepare", "data=ntu60", "sorce=here"], ["sorce", "did you mean source"]),
        (["prepare", "data=ntu60", "source=.", "workers=-3"], ["workers=-3", "auto"]),
        (["prepare", "data=ntu60", "source=."], ["no clips found in .", "SsssCcccPpppRrrrAaaa.skeleton"]),
        (["prepare", "data=ntu60", "source=.", "data.pipeline=foo"], ["tracks, file_order", "foo"]),
        (["prepare", "data=utd_mhad", "source=.", "modalities=[rbg]"], ["rbg", "rgb"]),
        (["info", "data=custom", "data.name=mine"], ["prepare data=custom data.name=mine layout=", "source=FOLDER"]),
    ],
)
def test_mistakes_get_one_line_and_no_traceback(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    text = capsys.readouterr().err
    assert len(text.strip().splitlines()) == 1 and "Traceback" not in text
    assert all(word in text for word in words), text


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    from skelact.errors import SkelactError

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SkelactError):
        main(["checkpoint=nowhere", "protocol=linear", "debug=traceback"])
    monkeypatch.setenv("SKELACT_TRACEBACK", "1")
    with pytest.raises(SkelactError):
        main(["checkpoint=nowhere", "protocol=linear"])


def test_cfg_shows_the_resolved_config(capsys):
    assert main(["--cfg", "job", "--resolve", "experiment=umurl_hdm05", "run_dir=somewhere"]) == 0
    text = capsys.readouterr().out
    assert "run_dir: somewhere" in text and "max_steps:" in text


def test_a_run_leaves_what_it_promises(trained):
    assert {"config.yaml", "metrics.csv", "results.json", "scores.npz"} <= {p.name for p in trained.iterdir()}
    assert (trained / "checkpoints" / "last.ckpt").is_file()
    records = json.loads((trained / "results.json").read_text())
    keys = {
        "protocol", "method", "data", "split", "seed", "metrics", "ci95", "selection", "checkpoint", "fingerprint",
        "parameters", "gflops", "wall_s", "samples_per_s", "device", "version",
    }  # fmt: skip
    assert all(keys <= set(record) for record in records)
    assert {r["protocol"] for r in records} == {"pretrain", "linear", "retrieval", "missing"}
    methods = {r["method"] for r in records if r["protocol"] == "linear"}
    assert methods == {"umurl", "umurl (untrained)", "raw pose"}
    rows = list(csv.DictReader((trained / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3, 4] and all(row["train/loss"] for row in rows)


def test_results_gathers_runs(trained, capsys, tmp_path):
    assert main(["results", str(trained), "--format", "markdown", "--protocol", "linear"]) == 0
    assert "raw pose" in capsys.readouterr().out
    assert main(["results", str(trained), "--format", "csv", "--output", str(tmp_path / "t.csv")]) == 0
    assert "knn1" in (tmp_path / "t.csv").read_text()
    assert main(["results", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err


def test_results_compares_two_runs_and_logs_tables(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "other", ignore=shutil.ignore_patterns("checkpoints", "features"))
    found = load_scores(trained)
    flipped = {"linear/umurl/all": found.entry("linear/umurl/all")[:, ::-1]}
    save_scores(tmp_path / "other/scores.npz", found.names, found.labels, flipped, found.groups)
    assert main(["results", str(trained), "other", "--paired", "--wandb", "tables"]) == 0
    text, told = capsys.readouterr()
    assert "linear/umurl/all" in text and "McNemar p" in text and "linear/raw pose/all" not in text
    assert "upload it with: wandb sync" in told and list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert main(["results", str(trained), "--paired"]) == 2
    assert "skelact results RUN_A RUN_B" in capsys.readouterr().err
    assert main(["results", str(trained), "other", "--paired", "--format", "markdown", "--protocol", "missing"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("| scores | first |")


def test_sweeps_run_every_job_in_its_own_directory(skelact_run, tmp_path):
    assert skelact_run("-m", "seed=1,2", "trainer.max_steps=1") == 0  # the folder is named by method, data and time
    (sweep,) = (tmp_path / "runs" / "umurl_custom").iterdir()
    seeds = [json.loads((sweep / job / "results.json").read_text())[0]["seed"] for job in "01"]
    assert seeds == [1, 2]
    assert all((sweep / job / "checkpoints" / "last.ckpt").exists() for job in "01")


def test_an_untrained_encoder_can_be_probed(skelact_run, tmp_path):
    assert skelact_run("protocol=retrieval", "checkpoint=null", "run_dir=probe") == 0
    records = json.loads((tmp_path / "probe" / "results.json").read_text())
    assert {r["extra"]["encoder"] if "extra" in r else r["encoder"] for r in records} == {"untrained", "raw_pose"}
    assert not (tmp_path / "probe" / "checkpoints").exists()
    assert (tmp_path / "probe" / "metrics.csv").read_text().startswith("step")


def test_predict_labels_and_embeddings(skelact_run, trained, home, capsys, tmp_path):
    source = home / "clips" / "clip04.npy"
    assert skelact_run("predict", f"checkpoint={trained}", f"source={source}", tiny=False) == 0
    head, row = capsys.readouterr().out.strip().splitlines()
    assert head == "name,label,share" and row.startswith("clip04.npy,motion")
    out = tmp_path / "e.npz"
    arguments = ["predict", f"checkpoint={trained}", f"source={home / 'clips'}", "what=embeddings", f"output={out}"]
    assert skelact_run(*arguments, tiny=False) == 0
    with np.load(out) as found:
        assert found["features"].shape == (36, 16) and np.isfinite(found["features"]).all()
        names = found["name"].tolist()
        features = found["features"]
    from skelact.engine.run import load_run

    method, datamodule, _ = load_run(trained)
    batch = next(datamodule.batches("test"))
    rows = [names.index(f"{name}.npy") for name in datamodule.clip_names("test")]
    np.testing.assert_allclose(method.features(batch).detach().numpy(), features[rows], atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "tsne", "confusion", "subsets"])
def test_plots(skelact_run, trained, tmp_path, kind, capsys):
    out = tmp_path / ("a.gif" if kind == "clip" else "a.png")
    assert skelact_run("plot", f"checkpoint={trained}", f"kind={kind}", f"output={out}", tiny=False) == 0
    written = [line for line in capsys.readouterr().out.splitlines() if line.endswith((".gif", ".png"))]
    from PIL import Image

    assert written
    for name in written:
        with Image.open(name) as picture:
            assert picture.size[0] > 100


def test_info(skelact_run, trained, capsys):
    assert skelact_run("info", tiny=False) == 0
    assert "tiny" in capsys.readouterr().out
    assert skelact_run("info", f"checkpoint={trained}", tiny=False) == 0
    assert "stick, 6 joints" in capsys.readouterr().out
    assert skelact_run("info", "data=custom", "data.name=tiny", "verify=true", tiny=False) == 0
    assert "motion2" in capsys.readouterr().out


def test_prepare_names_damaged_files(raw_clips, tmp_path, monkeypatch, capsys):
    source = raw_clips(tmp_path / "clips", clips=6)
    frames = np.load(source / "clip03.npy")
    frames[2, 1] = np.nan
    np.save(source / "clip03.npy", frames)
    monkeypatch.setenv("SKELACT_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    arguments = ["prepare", "data=custom", f"source={source}", f"layout={source / 'stick.yaml'}"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "clip03.npy" in text and "1 damaged" in text and "5 clips" in text
    assert main([*arguments, "strict=true"]) == 2
    assert "1 of 6" in capsys.readouterr().err


def test_wandb_offline_needs_no_account(skelact_run, tmp_path):
    assert skelact_run("logger=wandb", "logger.wandb.mode=offline", "trainer.max_steps=1", "run_dir=w") == 0
    assert list((tmp_path / "w" / "wandb").glob("offline-run-*/*.wandb"))
    assert (tmp_path / "w" / "metrics.csv").exists()
    import wandb

    assert wandb.run is None


def test_wandb_gets_pictures_tables_and_the_config(skelact_run, tmp_path):
    assert skelact_run("logger=wandb", "evaluate=[linear]", "run_dir=w", "trainer.max_steps=2") == 0
    (run,) = (tmp_path / "w" / "wandb").glob("offline-run-*")
    files = {str(p.relative_to(run / "files")) for p in run.rglob("*") if p.is_file() and "files" in p.parts}
    media = sorted(f for f in files if f.startswith("media/"))
    for start in ("images/pictures/tsne_", "images/pictures/confusion_", "table/results/linear_"):
        assert any(f.startswith(f"media/{start}") for f in media), media
    (table,) = (f for f in media if f.startswith("media/table/results/linear_"))
    content = json.loads((run / "files" / table).read_text())
    assert "top1" in content["columns"]
    assert {row[content["columns"].index("method")] for row in content["data"]} == {
        "umurl", "umurl (untrained)", "raw pose",
    }  # fmt: skip
    history, config, summary, code = read_wandb(next(run.glob("*.wandb")))
    assert {"train/loss", "trainer/global_step"} <= history
    assert config["frames"] == 8 and config["method"]["_target_"].endswith("UmURL")
    assert "linear/umurl/all/top1" in summary and code == 0


def read_wandb(file):
    """Names logged, the config, names of the summary and the exit code, from the run's own record file."""
    from wandb.proto import wandb_internal_pb2

    history, config, summary, code = set(), {}, set(), None
    for data in log_entries(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            history |= {item.key or "/".join(item.nested_key) for item in record.history.item}
        elif kind in ("config", "run"):
            update = record.config.update if kind == "config" else record.run.config.update
            config |= {item.key: json.loads(item.value_json) for item in update if item.key}
        elif kind == "summary":
            summary |= {item.key or "/".join(item.nested_key) for item in record.summary.update}
        elif kind == "exit":
            code = record.exit.exit_code
    return history, config, summary, code


def log_entries(content):
    """Entries of a LevelDB log behind seven bytes of W&B's own: blocks of 32 KiB, chunks of crc, length, type."""
    at, entry = 7, b""
    while at + 7 <= len(content):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        entry += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last chunk
            yield entry
            entry = b""


def test_wandb_run_is_continued_and_ended_after_a_failure(skelact_run, tmp_path, monkeypatch):
    import wandb

    from skelact.methods.umurl import UmURL

    assert skelact_run("logger=wandb", "trainer.max_steps=1", "run_dir=w") == 0
    step = UmURL.training_step

    def fails_at_three(self, batch, batch_idx=0):
        if self.global_step == 2:
            raise OSError("the disk is full")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(UmURL, "training_step", fails_at_three)
        with pytest.raises(OSError, match="disk"):
            skelact_run("resume=w", "trainer.max_steps=3", tiny=False)
    assert wandb.run is None
    runs = sorted((tmp_path / "w" / "wandb").glob("offline-run-*"))
    assert len({run.name.rpartition("-")[2] for run in runs}) == 1 and len(runs) == 2
    assert [read_wandb(next(run.glob("*.wandb")))[3] for run in runs] == [0, 1]


def test_streams_alone_late_fusion_and_an_ensemble_of_runs(skelact_run, trained, tmp_path, capsys):
    own = [f"checkpoint={trained}", "trainer.accelerator=cpu", "protocol=linear", "protocol.labels=all"]
    short = ["protocol.recipe=umurl", "protocol.epochs=2", "protocol.seeds=1", "protocol.baselines=false"]
    late = ["protocol.fusion=late", "protocol.weights={joint: 0.6, bone: 0.6, motion: 0.4}", "run_dir=late"]
    assert skelact_run(*own, *short, *late, tiny=False) == 0
    assert skelact_run(*own, *short, "protocol.streams=[motion]", "run_dir=motion", tiny=False) == 0
    assert (tmp_path / "late" / "scores_val.npz").exists()
    join = ["protocol=ensemble", f"protocol.runs=[late,motion,{trained}]", "run_dir=ensemble"]
    assert skelact_run(*join, "protocol.weights=val", tiny=False) == 0
    rows = json.loads((tmp_path / "ensemble" / "results.json").read_text())
    assert [r["streams"] for r in rows] == ["joint+bone+motion", "motion", "joint+bone+motion", "joint+bone+motion"]
    assert rows[3]["selection"] == "val:weights" and len(rows[3]["weights"]) == 3
    assert skelact_run(*join, tiny=False) == 2 and "holds a run already" in capsys.readouterr().err
    assert skelact_run(*join, "overwrite=true", "protocol.runs=[late]", tiny=False) == 0
    assert main(["results", str(tmp_path), "--protocol", "ensemble"]) == 0
    assert "ensemble: tiny default" in capsys.readouterr().out
