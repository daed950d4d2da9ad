"""DSTformer equals the released one: intermediate features, attention maps, importance, the masked pass.

Computed in double precision: what differs is the single precision in which the golden arrays were made, 6e-6 in the
tokens and 1.1e-5 in features of the last block, whose entries are of size 3, and not that of the machine of the test.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from skelact.backbones.attention import received
from skelact.backbones.dstformer import DSTformer

FILE = Path(__file__).parents[1] / "golden" / "maskclr" / "dstformer.npz"
LEFT = ("head.weight", "head.bias", "proj_head.weight", "proj_head.bias")


@pytest.fixture(scope="module")
def golden():
    return {key: torch.from_numpy(value).double() for key, value in np.load(FILE).items()}


def released(golden, **options):
    width, features, depth, heads, ratio, _, frames = (
        int(v) for v in golden["cfg_dim_feat_rep_depth_heads_mlp_joints_maxlen"]
    )
    sizes = {"width": width, "token_features": features, "depth": depth, "num_heads": heads, "mlp_ratio": ratio}
    model = DSTformer("h36m17", **sizes, max_frames=frames, **options)
    state = {k.removeprefix("sd."): v for k, v in golden.items() if k.startswith("sd.")}
    model.load_state_dict(
        {k: v for k, v in state.items() if k not in LEFT and (model.adaptive_fusion or "ts_attn" not in k)}
    )
    return model.double().eval()


def close(ours, theirs, atol=1e-5):
    torch.testing.assert_close(ours.detach().reshape(theirs.shape), theirs, rtol=0, atol=atol)


def listen(module, seen, name):
    def keep(_module, inputs, output):
        seen[name] = [*inputs, output]

    module.register_forward_hook(keep)


def attention_map(attention, tokens):
    """Soft-maxed attention `(B, G, H, S, S)` of tokens `(B, S, G, C)`, written out."""
    b, s, g, c = tokens.shape
    q, k, _ = attention.qkv(tokens).view(b, s, g, 3, attention.num_heads, -1).permute(3, 0, 2, 4, 1, 5)
    return (q @ k.transpose(-1, -2) * (c // attention.num_heads) ** -0.5).softmax(-1)


@torch.no_grad()
def test_every_layer_equals_the_released_one(golden):
    model, seen = released(golden), {}
    for name in ("blocks_st.0", "blocks_st.1", "blocks_ts.0", "blocks_ts.1", "joints_embed", "norm"):
        listen(model.get_submodule(name), seen, name)
        if name.startswith("blocks"):
            listen(model.get_submodule(f"{name}.attn_s"), seen, f"{name}.s")
            listen(model.get_submodule(f"{name}.attn_t"), seen, f"{name}.t")
    tokens, importance = model.represent(golden["x"], importance=True)
    close(seen["joints_embed"][-1], golden["out.embed"])
    for depth in (0, 1):
        both = [seen[f"blocks_{order}.{depth}"][-1][0] for order in ("st", "ts")]
        for order, features in zip(("st", "ts"), both, strict=True):
            name = f"blocks_{order}.{depth}"
            close(features, golden[f"out.feat.{name}"], atol=2e-5)
            spatial = attention_map(model.get_submodule(name).attn_s, seen[f"{name}.s"][0])
            close(spatial, golden[f"out.attn.{name}.spatial"])
        share = model.share(depth, *both)
        close(torch.cat([share, 1 - share], -1), golden[f"out.alpha.{depth}"])
    temporal = attention_map(model.blocks_st[1].attn_t, seen["blocks_st.1.t"][0])  # (B, V, H, T, T)
    close(temporal.transpose(1, 2), golden["out.attn.blocks_st.1.temporal"])
    close(seen["norm"][-1], golden["out.final_norm"], atol=2e-5)
    close(tokens, golden["out.rep"])
    close(torch.nn.functional.linear(tokens, golden["sd.head.weight"], golden["sd.head.bias"]), golden["out.pose3d"])
    close(importance, golden["out.attn_colsum"])
    close(importance.softmax(-1), golden["out.attn_softmax"])  # as the first release returns it
    close(model.represent(golden["x"][:, :1])[0], golden["out.rep_F1"])


@torch.no_grad()
def test_masked_pass(golden):
    masked = (golden["mask.mask_J_BF"] > 0).T.reshape(golden["x"].shape[:3])
    tokens, importance = released(golden).represent(golden["x"], masked, importance=True)
    close(tokens, golden["out.rep_masked"])
    close(importance, golden["out.attn_colsum_masked"], atol=2e-5)


@torch.no_grad()
def test_single_precision(golden):
    tokens, importance = released(golden).float().represent(golden["x"].float(), importance=True)
    close(tokens, golden["out.rep"].float(), atol=2e-5)
    close(importance, golden["out.attn_colsum"].float(), atol=2e-5)


@torch.no_grad()
def test_without_adaptive_fusion(golden):
    model = released(golden, adaptive_fusion=False)
    assert not any("ts_attn" in name for name in model.state_dict())
    close(model.represent(golden["x"])[0], golden["out.rep_nofuse"])


def test_received_attention_in_slices(monkeypatch):
    q, k = torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 4)
    whole = received(q, k)
    torch.testing.assert_close(whole, (q @ k.transpose(-1, -2) / 2).softmax(-1).sum(2))
    monkeypatch.setattr("skelact.backbones.attention.RECEIVED_AT_ONCE", 2 * 3 * 7 * 2)
    torch.testing.assert_close(received(q, k), whole)
