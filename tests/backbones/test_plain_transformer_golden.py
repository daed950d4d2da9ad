"""The plain transformer equals MaskCLR's `MAMPformer`, which forgets the residual of attention."""

from pathlib import Path

import numpy as np
import pytest
import torch

from skelact.backbones.plain_transformer import PlainTransformer

FILE = Path(__file__).parents[1] / "golden" / "maskclr" / "vanilla_transformer.npz"


@pytest.fixture(scope="module")
def golden():
    return {key: torch.from_numpy(value) for key, value in np.load(FILE).items()}


def released(golden, legacy_residual):
    model = PlainTransformer(
        "h36m17", width=16, token_features=16, depth=2, decoder_depth=1, num_heads=4, max_frames=6,
        legacy_residual=legacy_residual,
    )  # fmt: skip
    state = {k.removeprefix("sd."): v for k, v in golden.items() if k.startswith("sd.") and "decoder_pred" not in k}
    state["joints_embed.weight"] = state.pop("joints_embed.proj.weight")[:, :, 0, 0]
    state["joints_embed.bias"] = state.pop("joints_embed.proj.bias")
    model.load_state_dict(state)
    return model.eval()


def close(ours, theirs, atol=1e-5):
    torch.testing.assert_close(ours.detach().reshape(theirs.shape), theirs, rtol=0, atol=atol)


@torch.no_grad()
def test_both_passes(golden):
    model = released(golden, legacy_residual=True)
    tokens, importance = model.represent(golden["x"], importance=True)
    close(tokens, golden["rep"])
    close(importance, golden["attn"], 2e-5)
    a, u = golden["attn"], golden["u"]
    score = (a / (0.75 * a.amax(1, keepdim=True) + 1e-10)).softmax(1).log() - (-(u + 1e-10).log() + 1e-10).log()
    masked = score.argsort(1).argsort(1) >= a.shape[1] // 2  # the lower half of each clip's tokens is kept
    tokens, importance = model.represent(golden["x"], masked.view(golden["x"].shape[:3]), importance=True)
    close(tokens, golden["rep_masked"])
    close(importance, golden["attn_masked"], 2e-5)


@torch.no_grad()
def test_a_block_as_released_and_mended(golden):
    close(released(golden, True).blocks[0](golden["block0_in"])[0], golden["block0_out"])
    close(released(golden, False).blocks[0](golden["block0_in"])[0], golden["block0_out_fixed"])
    assert PlainTransformer("h36m17", width=8, token_features=8).blocks[0].legacy_residual is False
