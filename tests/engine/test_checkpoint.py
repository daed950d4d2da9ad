"""Checkpoints carry themselves, load without trust, and are never half written."""

import copy
import pickle

import pytest
import torch

import skelact
from skelact.engine.checkpoint import KEY, AtomicCheckpointIO, CheckpointError, find, read
from skelact.errors import SkelactError


def plain(value):
    if isinstance(value, dict):
        return all(isinstance(k, (str, int)) and plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(plain, value))
    return value is None or type(value) in (str, int, float, bool, torch.Tensor)


def test_load_gives_the_trained_method_back(trained):
    method = skelact.load(trained)
    assert not method.training and method.layout.name == "stick" and method.streams == ("joint", "bone", "motion")
    state = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[name]) for name, value in method.state_dict().items())
    again = skelact.load(trained / "checkpoints" / "last.ckpt")
    views = torch.randn(2, 1, 8, 6, 3)
    torch.testing.assert_close(method.encode(views), again.encode(views))
    assert method.encode(views, streams=["bone"]).shape == (2, method.num_features)


def test_the_card_is_plain_and_complete(trained):
    card = read(trained)[KEY]
    assert plain(card)
    assert {"format", "version", "config", "layout", "class_names", "fingerprint", "logger_id"} <= set(card)
    assert card["class_names"] == ["motion0", "motion1", "motion2"] and card["progress"]["step"] == 5


class Bomb:
    def __reduce__(self):
        return eval, ("__import__('pathlib').Path('exploded').touch()",)


def test_a_checkpoint_that_would_run_code_is_refused(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = dict(read(trained))
    torch.save({**content, "extra": Bomb()}, tmp_path / "bomb.ckpt")
    with pytest.raises(CheckpointError, match="refused"):
        skelact.load(tmp_path / "bomb.ckpt")
    (tmp_path / "pickle.ckpt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError):
        skelact.load(tmp_path / "pickle.ckpt")
    assert not (tmp_path / "exploded").exists()


def changed(trained, path, change):
    content = copy.deepcopy(dict(read(trained)))
    change(content)
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c[KEY]["config"]["method"].update(_target_="os.system"), "os.system"),
        (lambda c: c[KEY]["config"]["method"]["sampler"].update(_target_="torch.hub.load"), "torch.hub.load"),
        (lambda c: c[KEY]["config"]["method"].update(seed="${oc.env:HOME}"), "unresolved"),
        (lambda c: c[KEY].update(format=99), "update skelact"),
        (lambda c: c.pop(KEY), "not written by skelact"),
        (lambda c: c["state_dict"].popitem(), "missing"),
        (lambda c: c["state_dict"].update(more=torch.zeros(1)), "unexpected"),
    ],
)
def test_foreign_and_tampered_checkpoints_are_refused(trained, tmp_path, change, words):
    with pytest.raises(SkelactError, match=words):
        skelact.load(changed(trained, tmp_path / "x.ckpt", change))


def test_missing_and_cut_files_are_named(trained, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        find(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match=r"no checkpoints/last.ckpt"):
        find(tmp_path)
    whole = (trained / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"cut\.ckpt"):
        read(tmp_path / "cut.ckpt")


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"a": torch.ones(3)}, path)
    save = torch.save

    def interrupted(content, file):
        save(content, file)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        io.save_checkpoint({"a": torch.zeros(3)}, path)
    assert torch.equal(io.load_checkpoint(path)["a"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
