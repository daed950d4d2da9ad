"""The command line, end to end, in this process."""

import csv
import json

import numpy as np
import pytest

from skelact.cli import COMMANDS, main


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
        (["preset=wrong"], ["preset=wrong", "corrected"]),
        (["resume=nowhere"], ["nowhere", "not a run directory"]),
        (["seed=[1"], ["seed"]),
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


def test_sweeps_run_every_job_in_its_own_directory(skelact_run, tmp_path):
    assert skelact_run("-m", "seed=1,2", "run_dir=sweep", "trainer.max_steps=1") == 0
    seeds = [json.loads((tmp_path / "sweep" / job / "results.json").read_text())[0]["seed"] for job in "01"]
    assert seeds == [1, 2]
    assert all((tmp_path / "sweep" / job / "checkpoints" / "last.ckpt").exists() for job in "01")


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
