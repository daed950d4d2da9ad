"""Official checkpoints: accepted in every published form, refused by name otherwise."""

from pathlib import Path

import numpy as np
import pytest
import torch

from skelact.errors import SkelactError
from skelact.interop import load_official

GOLDEN = Path(__file__).parent / "golden" / "umurl"


@pytest.fixture
def state():
    data = np.load(GOLDEN / "bc_model_state.npz", allow_pickle=False)
    return {name: torch.from_numpy(value) for name, value in data.items()}


def test_sizes_are_read_off_the_tensors(state):
    method = load_official("umurl", state)
    backbone = method.backbone
    assert (backbone.width, backbone.frames, backbone.persons, backbone.joints) == (16, 16, 2, 25)
    assert method.j_projector[6].out_features == 4096
    assert method.preset == "as_released" and method.loss_in_autocast is True
    assert not method.training and method.sampler.frames == 16
    assert set(method.state_dict()) == set(state)


def test_every_written_form_loads_the_same(state, tmp_path):
    expected = load_official("umurl", state).state_dict()
    prefixed = {f"module.{name}": value for name, value in state.items()}
    torch.save({"epoch": 451, "state_dict": prefixed, "optimizer": {"state": {}}}, tmp_path / "checkpoint.pth.tar")
    torch.save(state, tmp_path / "plain.pt")
    forms = [prefixed, {"state_dict": state}, tmp_path / "plain.pt", str(tmp_path / "checkpoint.pth.tar")]
    for source in forms:
        ours = load_official("umurl", source).state_dict()
        assert all(torch.equal(ours[name], value) for name, value in expected.items())


def test_downstream_checkpoint(state):
    with_head = {**state, "fc.weight": torch.zeros(60, 32), "fc.bias": torch.zeros(60)}
    load_official("umurl", with_head)
    no_projectors = {name: value for name, value in with_head.items() if "projector" not in name}
    with pytest.warns(UserWarning, match="no projectors"):
        method = load_official("umurl", no_projectors)
    own = method.backbone.state_dict()
    assert all(torch.equal(own[name.removeprefix("backbone.")], state[name]) for name in state if "backbone" in name)


def test_mismatches_are_listed_by_name(state):
    del state["b_projector.3.bias"]
    state["m_projector.4.weight"] = torch.zeros(7)
    state["extra.weight"] = torch.zeros(1)
    with pytest.raises(SkelactError) as caught:
        load_official("umurl", state)
    message = str(caught.value)
    assert "missing: b_projector.3.bias" in message
    assert "unexpected: extra.weight" in message
    assert "misshaped: m_projector.4.weight (7,) for (32,)" in message


@pytest.mark.parametrize(
    ("options", "words"),
    [({"layout": "kinect20"}, "do not fit layout=kinect20"), ({"frames": 64}, "16 frames, not 64")],
)
def test_wrong_skeleton_or_length_is_refused(state, options, words):
    with pytest.raises(SkelactError, match=words):
        load_official("umurl", state, **options)


def test_other_systems_and_files_are_refused(tmp_path):
    with pytest.raises(
        SkelactError, match="no importer for 'cacao'; this version reads checkpoints of: umurl, skeletonclr"
    ):
        load_official("cacao", {})
    with pytest.raises(SkelactError, match="no such checkpoint"):
        load_official("umurl", tmp_path / "none.pt")
    with pytest.raises(SkelactError, match=r"missing: backbone\.j_emb"):
        load_official("umurl", {"a": torch.zeros(1)})
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(SkelactError, match=r"cut\.pt: not a checkpoint of plain tensors"):
        load_official("umurl", tmp_path / "cut.pt")


class Trap:
    """Runs code when unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("trap-was-sprung"),))


def test_pickled_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": Trap()}}, "evil.pt")
    with pytest.raises(SkelactError, match="not a checkpoint of plain tensors"):
        load_official("umurl", "evil.pt")
    assert not Path("trap-was-sprung").exists()
