"""The command on protocol missing: a classifier judged after its training, its pictures and tables."""

import pytest

from skelact.results import load_scores, read_records

TRAIN = [
    "data=custom", "data.name=tiny", "frames=8", "data.batch_size=8", "callbacks=minimal", "trainer=cpu",
    "backbone=umurl", "backbone.width=8", "method.streams=[joint,bone,motion]",
    "protocol=supervised", "method=supervised", "augment=none",
    "trainer.max_epochs=1", "method.scheduler=null",
]  # fmt: skip


@pytest.fixture(scope="module")
def judged(home):
    """A classifier of three streams, trained for an epoch and judged in the same command."""
    from skelact.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKELACT_DATA", str(home / "data"))
        patch.chdir(home)
        assert main([*TRAIN, "evaluate=[missing]", "run_dir=lacking"]) == 0
    return home / "lacking"


def test_a_classifier_is_judged_in_the_same_command(judged):
    records = read_records(judged)
    supervised, found = records[0], [r for r in records if r.protocol == "missing"]
    rows = [(r.method, r.extra["fill"]) for r in found]
    assert rows == [("supervised umurl", "drop"), ("supervised umurl", "zero_input"), ("raw pose", "drop")]
    assert found[0].metrics["top1/bone+joint+motion"] == pytest.approx(supervised.metrics["top1"])
    assert "missing/supervised umurl/drop/bone+joint" in load_scores(judged).scores


def test_pictures_and_tables(skelact_run, judged, tmp_path, capsys):
    ask = [f"checkpoint={judged}", "protocol=missing", "trainer=cpu", "callbacks=minimal", "protocol.fills=[drop]"]
    options = ["protocol.rates=[0.5]", "protocol.label=again", "logger=wandb", "run_dir=again"]
    assert skelact_run(*ask, *options, tiny=False) == 0
    again = read_records(tmp_path / "again")
    assert again[0].method == "again"
    assert (
        again[0].metrics["top1/rate0.5"] == read_records(judged)[-3].metrics["top1/rate0.5"]
    )  # the same clips lack the same
    out = capsys.readouterr().out
    assert all(words in out for words in ("each stream is missing", "chance 33.3", "incomplete", "again - raw pose"))
    files = list((tmp_path / "again" / "wandb").glob("offline-run-*/files/media/**/*"))
    names = " ".join(str(file) for file in files)
    assert all(name in names for name in ("subsets_heatmap", "missing_rates", "table"))
    options = ["kind=subsets", f"runs=[{judged}]", "output=two.png"]
    assert skelact_run("plot", "checkpoint=again", *options, tiny=False) == 0
    names = ["two-subsets.png", "two-subsets_heatmap.png", "two-missing_rates.png"]
    assert capsys.readouterr().out.split() == names and all((tmp_path / name).stat().st_size for name in names)
    assert skelact_run("plot", f"checkpoint={judged}", "kind=confusion", "output=c.png", tiny=False) == 0


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("protocol.fills=[reconstruct]", "choose from drop, zero_input"),
        ("protocol.subsets=[[depth]]", "must be some of joint, bone, motion"),
        ("protocol.rates=[2]", "each is a probability"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(skelact_run, judged, capsys, option, words):
    ask = [f"checkpoint={judged}", "protocol=missing", "trainer=cpu", "callbacks=minimal", "run_dir=wrong"]
    assert skelact_run(*ask, option, tiny=False) == 2
    assert words in capsys.readouterr().err


def test_wrong_requests_are_refused_before_the_training(skelact_run, tmp_path, capsys):
    ask = ["evaluate=[missing]", "protocols.missing.fills=[reconstruct]", "run_dir=early"]
    assert skelact_run(*TRAIN, *ask, tiny=False) == 2
    assert "choose from drop, zero_input" in capsys.readouterr().err
    assert not (tmp_path / "early" / "checkpoints").exists()
