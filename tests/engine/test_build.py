"""Nothing is built that was not allowed, and wrong arguments are named."""

import pytest
import torch

from skelact.engine import build as module
from skelact.engine.build import allow, build, locate
from skelact.errors import SkelactError


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.run",
        "torch.load",
        "torch.hub.load",
        "skelact.cli.main",
        "skelact.methods.base.torch.load",  # a way out through another module's import
        "skelact.data.store.Path",
        "torch.nn.functional.torch.hub.load",
        "torch.optim.os.system",
    ],
)
def test_targets_outside_are_refused(target):
    with pytest.raises(SkelactError, match=r"may|found"):
        build({"_target_": target, "anything": 1})


def test_a_hidden_target_is_refused_before_anything_is_built(tmp_path):
    node = {"_target_": "torch.nn.Linear", "in_features": {"_target_": "os.mkdir", "path": str(tmp_path / "x")}}
    with pytest.raises(SkelactError, match="in_features"):
        build(node, "method")
    assert not (tmp_path / "x").exists()


def test_arguments_that_do_not_fit_are_named():
    with pytest.raises(SkelactError, match=r"method \(torch.nn.Linear\).*widht"):
        build({"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 2, "widht": 3}, "method")


def test_lists_arrive_plain_and_partials_are_factories():
    factory = build({"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.5})
    assert factory(torch.nn.Linear(1, 1).parameters()).defaults["lr"] == 0.5
    norm = build({"_target_": "torch.nn.Unflatten", "dim": 1, "unflattened_size": [2, 3]})
    assert type(norm.unflattened_size) is list


def test_users_extend_the_list_in_code_and_environment(monkeypatch):
    monkeypatch.setattr(module, "_PREFIXES", list(module._PREFIXES))
    target = "fractions.Fraction"
    with pytest.raises(SkelactError, match="SKELACT_TARGETS"):
        locate(target)
    monkeypatch.setenv("SKELACT_TARGETS", "other, fractions")
    assert build({"_target_": target, "numerator": 3}) == 3
    monkeypatch.delenv("SKELACT_TARGETS")
    allow("fractions")
    assert build({"_target_": target, "numerator": 4}) == 4
    with pytest.raises(SkelactError):
        locate("fractionsx.Fraction")
