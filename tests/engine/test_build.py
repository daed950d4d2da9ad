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


class Base:
    def __init__(self, width: int = 1):
        self.width = width


class Handing(Base):
    """Hands what it does not know itself on to its base."""

    def __init__(self, depth=1, **options):
        super().__init__(**options)


class Broken(Base):
    """Its own mistake, which no config can mend."""

    def __init__(self, width=1):
        super().__init__(widht=width)


class Clumsy:
    def __init__(self, widht=1):
        Base(widht=widht)


def test_arguments_that_a_base_class_does_not_know_are_named(monkeypatch):
    monkeypatch.setenv("SKELACT_TARGETS", __name__)
    assert build({"_target_": f"{__name__}.Handing", "width": 3}).width == 3
    with pytest.raises(SkelactError, match=rf"method \({__name__}.Handing\): Base.__init__\(\).*'widht'"):
        build({"_target_": f"{__name__}.Handing", "widht": 3}, "method")
    with pytest.raises(SkelactError, match=r"method\.width=wide: must be int, not str"):
        build({"_target_": f"{__name__}.Handing", "width": "wide"}, "method")
    for name, options in (("Broken", {}), ("Clumsy", {"widht": 3})):
        with pytest.raises(TypeError, match="unexpected keyword argument 'widht'"):
            build({"_target_": f"{__name__}.{name}", **options})


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
