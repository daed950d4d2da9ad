"""The command on protocol robustness: after a training, on a checkpoint, against a reference, and its pictures."""

import pytest

from skelact.results import load_scores, read_records

NETWORK = ["backbone=stgcn", "backbone.hidden=2", "backbone.num_features=4"]
TRAIN = ["data=custom", "data.name=tiny", "frames=8", "data.batch_size=8", "callbacks=minimal", "trainer=cpu"]
SUPERVISED = [
    *TRAIN, *NETWORK, "protocol=supervised", "method=supervised", "augment=none", "trainer.max_epochs=1",
    "method.scheduler=null",
]  # fmt: skip
SOME = "[joint_noise,frame_loss_block,person_swap]"
QUICK = [f"protocols.robustness.corruptions={SOME}", "protocols.robustness.severities=[2,5]"]


@pytest.fixture(scope="module")
def judged(home):
    """A classifier, trained for an epoch and judged in the same command."""
    from skelact.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKELACT_DATA", str(home / "data"))
        patch.chdir(home)
        assert main([*SUPERVISED, *QUICK, "evaluate=[robustness]", "run_dir=robust"]) == 0
    return home / "robust"


def test_a_training_is_judged_in_the_same_command(judged):
    records = read_records(judged)
    supervised, found = records[0], [r for r in records if r.protocol == "robustness"]
    assert [r.method for r in found] == ["supervised stgcn", "supervised stgcn", "raw pose", "raw pose"]
    assert found[0].metrics["top1/clean"] == pytest.approx(supervised.metrics["top1"])
    assert found[0].extra["skipped"] == {"person_swap": "the data have one person slot"}
    assert {m for m in found[0].metrics if m.count("/") == 2} == {
        f"top1/{name}/{severity}" for name in ("joint_noise", "frame_loss_block") for severity in (2, 5)
    }
    assert "robustness/supervised stgcn/interpolate/frame_loss_block/5" in load_scores(judged).scores


def test_a_checkpoint_is_judged_against_a_reference_and_drawn(skelact_run, judged, tmp_path, capsys):
    ask = [
        f"checkpoint={judged}",
        "protocol=robustness",
        "trainer=cpu",
        "callbacks=minimal",
        "protocol.severities=[2,5]",
    ]
    ask += [f"protocol.corruptions={SOME}"]
    assert skelact_run(*ask, f"protocol.reference={judged}", "run_dir=again", tiny=False) == 0
    out = capsys.readouterr().out
    records = read_records(tmp_path / "again")
    assert records[0].metrics["mce"] == pytest.approx(100)
    assert records[0].metrics["top1/joint_noise/5"] == read_records(judged)[-4].metrics["top1/joint_noise/5"]
    for words in ("supervised stgcn (robust)", "mce", "frame_loss_block", "left out, the data have one person slot"):
        assert words in out
    assert not any("joint_noise/5" in line for line in out.splitlines())
    capsys.readouterr()
    assert (
        skelact_run("plot", f"checkpoint={judged}", "kind=robustness", "runs=[again]", "output=two.png", tiny=False)
        == 0
    )
    names = ["two-robustness_curves.png", "two-robustness_heatmap.png"]
    assert capsys.readouterr().out.split() == names and all((tmp_path / name).stat().st_size for name in names)
    assert skelact_run("plot", f"checkpoint={judged}", "kind=confusion", tiny=False) == 0
    assert skelact_run("results", str(judged), "again", "--protocol", "robustness", "--format", "csv", tiny=False) == 0
    assert "top1/joint_noise/5" in capsys.readouterr().out


def test_an_encoder_is_judged_by_linear_heads(skelact_run, tmp_path):
    options = ["protocols.robustness.seeds=2", "protocols.robustness.epochs=2", *QUICK]
    assert skelact_run("evaluate=[robustness]", *options, "run_dir=umurl") == 0
    found = [r for r in read_records(tmp_path / "umurl") if r.protocol == "robustness"]
    assert [r.method for r in found] == [m for m in ("umurl", "umurl (untrained)", "raw pose") for _ in range(2)]
    assert found[0].extra["judge"] == "linear head" and found[0].extra["repetitions"] == 2


def test_wrong_requests_are_refused_in_one_line(skelact_run, judged, capsys):
    ask = [f"checkpoint={judged}", "protocol=robustness", "trainer=cpu", "run_dir=wrong"]
    for option, words in (
        ("protocol.corruptions=[rain]", "rain is not known; choose from joint_noise"),
        ("protocol.noise_sweep=true", "leave it out"),
        ("protocol.reference=nowhere", "nowhere/results.json: no such file"),
    ):
        assert skelact_run(*ask, option, tiny=False) == 2
        assert words in capsys.readouterr().err
    assert skelact_run("plot", f"checkpoint={judged}", "kind=subsets", tiny=False) == 2


def test_wandb_gets_tables_and_pictures(skelact_run, judged, tmp_path):
    ask = [f"checkpoint={judged}", "protocol=robustness", "trainer=cpu", "callbacks=minimal", "protocol.severities=[5]"]
    assert skelact_run(*ask, "protocol.corruptions=[drift]", "logger=wandb", "run_dir=w", tiny=False) == 0
    files = list((tmp_path / "w" / "wandb").glob("offline-run-*/files/media/**/*"))
    names = " ".join(str(file) for file in files)
    assert "robustness_curves" in names and "robustness_heatmap" in names and "table" in names
