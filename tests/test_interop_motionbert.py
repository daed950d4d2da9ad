"""Released weights of MotionBERT and MaskCLR: what is loaded computes what theirs computed; the rest is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from skelact.backbones.dstformer import DSTformer
from skelact.backbones.plain_transformer import PlainTransformer
from skelact.errors import SkelactError
from skelact.interop import load_official
from skelact.methods.maskclr import MaskCLR
from skelact.methods.supcon import SupCon
from skelact.methods.supervised import Supervised

FOLDER = Path(__file__).parent / "golden" / "maskclr"
LEFT = {"head.weight", "head.bias", "proj_head.weight", "proj_head.bias"}


def golden(name):
    return {key: torch.from_numpy(value) for key, value in np.load(FOLDER / f"{name}.npz").items()}


def under(arrays, prefix):
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


@pytest.fixture(scope="module")
def action():
    return golden("actionnet")


@pytest.fixture
def state(action):
    return under(action, "cls.sd.")


def close(ours, theirs, atol=2e-5):
    torch.testing.assert_close(ours.detach(), theirs, rtol=0, atol=atol)


def test_action_network(action, state):
    method = load_official("motionbert", state, num_heads=4)
    assert type(method) is Supervised and method.num_classes == 7 and not method.training
    backbone = method.backbone
    sizes = (backbone.width, backbone.token_features, len(backbone.blocks_st), backbone.max_frames)
    assert sizes == (16, 12, 2, 16) and backbone.absent == "count" and backbone.dropout.p == 0.5
    assert method.mode == "train" and method.dropout.p == 0 and method.sampler.frames == 16
    with torch.no_grad():
        close(backbone.represent(action["x"].flatten(0, 1))[0].unflatten(0, (3, 2)), action["cls.backbone_feat"])
        close(method.logits(action["x"]), action["cls.logits_eval"])
        close(method.hidden(action["x"]), action["cls.hidden_eval"])
    other = load_official("motionbert", state, num_heads=2, frames=8, token_dropout=0.1, dropout=0.2)
    assert (other.sampler.frames, other.backbone.dropout.p, other.dropout.p) == (8, 0.1, 0.2)
    with torch.no_grad():
        assert not torch.allclose(other.logits(action["x"]), action["cls.logits_eval"], atol=1e-4)


def test_one_shot_network(action):
    method = load_official("motionbert", under(action, "emb.sd."), num_heads=4)
    assert type(method) is SupCon and method.backbone.dropout.p == 0.1 and method.dropout.p == 0
    with torch.no_grad():
        close(method.embed(action["x"]), action["emb.embedding_eval"])


@pytest.mark.parametrize(
    ("name", "preset", "wrapped"),
    [("two_pathway", "as_released_c2", "module."), ("two_pathway_tm", "as_released_c1", "")],
)
def test_both_releases_of_maskclr(name, preset, wrapped):
    arrays = golden(name)
    state = {f"{wrapped}{key}": value for key, value in under(arrays, "sd.").items()}
    method = load_official("maskclr", state, num_heads=4)
    assert type(method) is MaskCLR and method.preset == preset
    with torch.no_grad():
        close(method.logits(arrays["x"]), arrays["logits_standard"], 5e-5)
        close(method.hidden(arrays["x"]), arrays["hidden_standard"], 5e-5)
    if preset == "as_released_c2":
        assert torch.equal(method.backbone.mask_token, arrays["sd.model.backbone.mask_token"])
    else:  # there was none; ours is fresh
        assert 0 < method.backbone.mask_token.std() < 0.1


def test_maskclr_on_the_plain_transformer(state):
    arrays = golden("vanilla_transformer")
    head = {key: value for key, value in state.items() if key.startswith("head.")}
    head["head.fc1.weight"] = torch.randn(40, 17 * 16)
    backbone = {f"backbone.{key}": value for key, value in under(arrays, "sd.").items()}
    method = load_official("maskclr", backbone | head, num_heads=4)
    assert type(method.backbone) is PlainTransformer and len(method.backbone.decoder_blocks) == 1
    with torch.no_grad():
        close(method.backbone.represent(arrays["x"])[0], arrays["rep"])


def test_pretrained_weights_need_a_number_of_classes():
    arrays = golden("dstformer")
    state = under(arrays, "sd.")
    with pytest.raises(SkelactError, match="num_classes=N"):
        load_official("motionbert", state, num_heads=4)
    with pytest.warns(UserWarning, match="head; that of the method is untrained"):
        method = load_official("motionbert", state, num_heads=4, num_classes=9)
    assert method.heads["all"].fc2.out_features == 9
    with torch.no_grad():
        close(method.backbone.represent(arrays["x"])[0], arrays["out.rep"])


def test_every_written_form_loads_the_same(state, tmp_path):
    expected = load_official("motionbert", state, num_heads=4).state_dict()
    wrapped = {f"module.{name}": value for name, value in state.items()}
    whole = {"epoch": 3, "lr": 1e-4, "optimizer": {"state": {}}, "model": wrapped, "best_acc": np.float64(93.0)}
    torch.save(whole, tmp_path / "best_epoch.bin")
    forms = [wrapped, {f"module.model.module.{k}": v for k, v in state.items()}, whole | {"best_acc": 93.0}]
    for source in [*forms, tmp_path / "best_epoch.bin"]:
        ours = load_official("motionbert", source, num_heads=4).state_dict()
        assert all(torch.equal(ours[name], value) for name, value in expected.items() if name != "backbone.mask_token")
    backbone = {name.removeprefix("backbone."): v for name, v in state.items() if name.startswith("backbone.")}
    torch.save(
        {"model_pos": {f"module.{k}": v for k, v in backbone.items()}, "min_loss": np.float32(1)}, tmp_path / "p.bin"
    )
    with pytest.warns(UserWarning, match="untrained"):
        method = load_official("motionbert", tmp_path / "p.bin", num_heads=4, num_classes=5)
    assert torch.equal(method.backbone.temp_embed, backbone["temp_embed"])


def test_what_does_not_match_is_listed(state):
    del state["backbone.blocks_ts.1.attn_s.qkv.bias"]
    state["backbone.blocks_st.0.norm2_t.weight"] = torch.zeros(3)
    state["backbone.extra"] = torch.zeros(1)
    with pytest.raises(SkelactError) as caught:
        load_official("motionbert", state, num_heads=4)
    for words in (
        "missing: blocks_ts.1.attn_s.qkv.bias",
        "unexpected: extra",
        "misshaped: blocks_st.0.norm2_t.weight (3,)",
    ):
        assert words in str(caught.value)


def test_what_does_not_match_in_the_head_is_listed(state):
    del state["head.bn.weight"]
    state["head.cam.weight"] = torch.zeros(1)
    with pytest.raises(SkelactError, match=r"missing: norm\.weight; unexpected: cam\.weight"):
        load_official("motionbert", state, num_heads=4)


def test_other_files_and_skeletons_are_refused(state, action):
    with pytest.raises(SkelactError, match="missing: pos_embed"):
        load_official("motionbert", {"a": torch.zeros(1)})
    with pytest.raises(SkelactError, match="17 joints; layout=ntu25 has 25"):
        load_official("motionbert", state, num_heads=4, layout="ntu25")
    with pytest.raises(SkelactError, match=r"missing: fc2\.weight"):
        load_official("maskclr", under(action, "emb.sd."), num_heads=4)


def test_a_backbone_begins_with_released_weights(state, tmp_path):
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "lite.bin")
    sizes = {"token_features": 12, "depth": 2, "num_heads": 4, "max_frames": 16}
    encoder = DSTformer("h36m17", width=16, **sizes, pretrained=str(tmp_path / "lite.bin"))
    own = encoder.state_dict()
    given = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    assert set(given) - set(own) == {"head.weight", "head.bias"} and set(own) - set(given) == {"mask_token"}
    assert all(torch.equal(own[name], value) for name, value in given.items() if name in own)
    assert set(encoder.load_released({**given, "proj_head.weight": torch.zeros(16, 8)})) < set(encoder.LEFT_OUT) == LEFT
    with pytest.raises(SkelactError, match=r"lite\.bin: its encoder has other sizes; set backbone\.width=16 backbone"):
        DSTformer("h36m17", width=32, mlp_ratio=4, **sizes, pretrained=str(tmp_path / "lite.bin"))
    with pytest.raises(SkelactError, match="no such checkpoint file"):
        DSTformer("h36m17", width=16, **sizes, pretrained=str(tmp_path / "none.bin"))
    with pytest.raises(SkelactError, match=r"missing: decoder_embed\.weight"):
        PlainTransformer("h36m17", width=16, pretrained=str(tmp_path / "lite.bin"))
