"""What a command line means: defaults, checkpoints, protocols."""

import json

import pytest
import yaml

from skelact.engine.settings import keys_of


def config(path):
    return yaml.safe_load((path / "config.yaml").read_text())


def test_keys_of_overrides():
    assert keys_of(["a.b=1", "+c=2", "~d", "++e.f=[1,2]", "protocol=linear"]) == ["a.b", "c", "d", "e.f", "protocol"]


def test_a_checkpoint_brings_method_and_data(skelact_run, trained, tmp_path):
    options = ["protocol=retrieval", "protocol.draws=2", "protocol.k=[1,3]", "run_dir=probe"]
    assert skelact_run(f"checkpoint={trained}", *options, tiny=False) == 0
    given, own = config(trained), config(tmp_path / "probe")
    for key in ("method", "data", "frames", "backbone", "augment"):
        assert own[key] == given[key]
    assert own["protocol"]["k"] == [1, 3] and own["protocols"]["retrieval"]["k"] == [1, 3]
    first = [r for r in json.loads((trained / "results.json").read_text()) if r["protocol"] == "retrieval"]
    second = json.loads((tmp_path / "probe" / "results.json").read_text())
    knn = [next(r for r in rs if r["method"] == "umurl")["metrics"]["knn1"] for rs in (first, second)]
    assert knn[0] == pytest.approx(knn[1])
    assert second[0]["checkpoint"] == str(trained)


def test_data_overrides_come_on_top_of_a_checkpoint(skelact_run, trained, tmp_path):
    arguments = [f"checkpoint={trained}", "protocol=retrieval", "protocol.draws=2", "data.eval_batch_size=5"]
    assert skelact_run(*arguments, "run_dir=probe", tiny=False) == 0
    assert config(tmp_path / "probe")["data"]["eval_batch_size"] == 5
    assert config(tmp_path / "probe")["data"]["name"] == "tiny"


@pytest.mark.parametrize(
    "override",
    ["method.projector_width=8", "backbone=umurl", "frames=9", "augment=none", "sampling@method.sampler=whole"],
)
def test_a_checkpoint_decides_its_method(skelact_run, trained, override, capsys):
    assert skelact_run(f"checkpoint={trained}", "protocol=linear", override, tiny=False) == 2
    text = capsys.readouterr().err
    assert override.split("=")[0] in text and "checkpoint" in text


def test_data_of_another_layout_are_refused_with_advice(skelact_run, trained, capsys):
    assert skelact_run(f"checkpoint={trained}", "protocol=linear", "data=hdm05", tiny=False) == 2
    text = capsys.readouterr().err
    assert "stick" in text and "hdm05_31" in text and "no conversion" in text


def test_protocol_options_can_be_given_both_ways(skelact_run, tmp_path):
    common = ["protocol=retrieval", "protocol.draws=2", "run_dir=a"]
    assert skelact_run(*common, "protocols.retrieval.k=[2]", "protocol.labels=[all]") == 0
    assert config(tmp_path / "a")["protocol"]["k"] == [2] and config(tmp_path / "a")["protocol"]["labels"] == ["all"]


def test_a_store_that_is_not_there_is_named(skelact_run, capsys):
    assert skelact_run("data.name=absent", "data.layout=ntu25", "data.num_classes=3") == 2
    assert "absent" in capsys.readouterr().err
