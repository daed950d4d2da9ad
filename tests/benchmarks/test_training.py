import json

import pytest
import torch
from hydra import compose, initialize_config_module

from skelact.benchmarks import methods
from skelact.benchmarks.steps import PARTS, made_up_clips, peak_memory, spread_of, times_of
from skelact.benchmarks.straightforward import FORMS
from skelact.cli import main
from skelact.results import read_records

SMALL = ["trainer=cpu", "seconds=0.02"]


def test_the_recipe_of_a_method_is_measured(tmp_path, capsys):
    file = tmp_path / "results.json"
    sizes = ["data.batch_size=4", "frames=8", "backbone.width=8", "method.projector_width=16"]
    assert main(["benchmark", "experiment=umurl_hdm05", *SMALL, *sizes, f"output={file}"]) == 0
    (record,) = read_records(file)
    assert (record.protocol, record.method, record.data) == ("benchmark", "umurl", "hdm05_views")
    m = record.metrics
    assert m["clips_per_s"] == pytest.approx(4e3 / m["step_ms"], rel=1e-6)
    assert all(m[f"{part}_ms"] > 0 for part in PARTS)
    own, plain = m["given_its_views_step_ms"], m["given_its_views_straightforward_step_ms"]
    assert m["given_its_views_times_as_fast"] == pytest.approx(plain / own)
    assert m["share_of_the_peak_percent"] == pytest.approx(
        100 * m["achieved_gflop_per_s"] / m["peak_matrix_product_gflop_per_s"]
    )
    printed = capsys.readouterr().out
    assert "given its views: times as fast" in printed and str(file) in printed


def test_the_last_stage_is_measured_unless_the_first_is_asked_for():
    from skelact.benchmarks.steps import build_method
    from skelact.engine.commands import _resolved

    sizes = ["backbone.hidden=4", "backbone.num_features=8", "method.embedding=8", "method.predictor_hidden=8"]
    with initialize_config_module("skelact.conf", version_base="1.3"):
        configs = [
            _resolved(compose("benchmark", overrides=["experiment=caca_hdm05", *sizes, f"stage={stage}", "run_dir=x"]))
            for stage in ("last", "first")
        ]
    assert [build_method(config, torch.device("cpu")).crossing for config in configs] == [True, False]


def test_methods_are_rows_of_a_table(tmp_path, capsys):
    file = tmp_path / "results.json"
    sizes = ["data.batch_size=4", "frames=8", "backbone.width=8", "method.projector_width=16"]
    assert main(["benchmark", "methods", "only=umurl", *SMALL, *sizes, f"output={file}"]) == 0
    assert [record.method for record in read_records(file)] == ["umurl"]
    assert json.loads(file.read_text())[0]["metrics"]["batch"] == 4
    printed = capsys.readouterr().out
    assert "times as fast" in printed and "umurl" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sizes=huge"], "sizes=huge is none of small, published"),
        (["only=umurrl"], "only='umurrl'"),
        (["only=umurl", "backbone.nothing=1"], "nothing"),
    ],
)
def test_what_cannot_be_measured_is_named(arguments, said, capsys):
    assert main(["benchmark", "methods", *SMALL, *arguments]) != 0
    assert said in capsys.readouterr().err


def test_every_recipe_of_the_table_composes_and_every_form_is_of_a_method_in_it():
    recipes = {recipe: name for rows in methods.SIZES.values() for name, recipe in rows.items()}
    found = {}
    with initialize_config_module("skelact.conf", version_base="1.3"):
        for (experiment, *own), name in recipes.items():
            cfg = compose("benchmark", overrides=["run_dir=x", f"experiment={experiment}", *own])
            found.setdefault(cfg.method["_target_"].rpartition(".")[2], set()).add(name.partition(",")[0])
    assert all(len(names) == 1 for names in found.values())
    assert set(FORMS) <= set(found)


def test_people_of_made_up_clips():
    clips = made_up_clips(200, 2, 5, 3, torch.device("cpu"), classes=4)
    second = torch.stack([clips.clip_mask(row)[:, 1].any() for row in range(200)])
    assert 0.08 < second.float().mean() < 0.3
    assert not clips.frames[~clips.mask].any()
    assert clips.label.unique().tolist() == [0, 1, 2, 3]


def test_memory_and_times():
    grown = peak_memory(lambda: torch.ones(50_000_000).sum(), torch.device("cpu"))  # too much to be held already
    assert grown is None or 150 < grown < 300  # 200 MB
    calls = [0, 0]

    def count(i):
        calls[i] += 1

    times = times_of([lambda: count(0), lambda: count(1)], torch.device("cpu"), 0.0)
    assert calls == [4, 4] and [len(t) for t in times] == [3, 3]
    assert spread_of([1.0, 2.0, 3.0]) == pytest.approx(100.0)
