"""Blocks, temporal encoder, fusion heads and token auto-encoder equal the reference code of ActionMAE."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from skelact.backbones.attention import PreNormTransformer, drop_path
from skelact.backbones.fusion import ConcatFusion, SumFusion, TransformerFusion
from skelact.backbones.temporal import TemporalEncoder
from skelact.backbones.token_autoencoder import TokenAutoencoder
from skelact.backbones.transformer import sinusoids_at
from skelact.objectives import reconstruction_loss

FOLDER = Path(__file__).parents[1] / "golden" / "actionmae"
SIZES = {"num_heads": 4, "mlp_ratio": 2}
NAMES = ("rgb", "depth", "ir", "skeleton")
CORES = ["sum_m4_M2", "sum_m0_M3", "concat_m1_M3", "transformer_m4_M3", "sum_m2_M4", "sum_m1_M3_rawtarget"]
AS_RELEASED = {"fusion_input": "decoded", "full_path": "memory"}


def read(name):
    return {key: torch.as_tensor(v) if v.dtype.kind != "U" else v for key, v in np.load(FOLDER / name).items()}


def under(values, prefix):
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def close(ours, theirs, atol=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def fusion(kind, state, modalities, depth=2):
    """A head with weights under the names of the reference."""
    count, classes = len(modalities), len(state.get("fc.bias", state.get(f"fc.{modalities[0]}.bias")))
    if kind == "sum":
        head = SumFusion(24, count, classes)
        slots = {f"fc.{name}": f"heads.{slot}" for slot, name in enumerate(modalities)}
        state = {f"{slots[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value for key, value in state.items()}
    elif kind == "concat":
        head = ConcatFusion(24, count, classes)
    else:
        head = TransformerFusion(24, count, classes, depth, **SIZES)
    head.load_state_dict(state)
    return head.eval()


def subset(key, modalities):
    """`(M,)` bool: letters of a subset key, or names joined by +."""
    names = key.split("+") if key.split("+")[0] in modalities else [n for n in modalities if n[0] in key]
    return torch.tensor([name in names for name in modalities])


def test_positions_count_valid_frames():
    golden = read("pos_embed.npz")
    position = golden["mask_in"].cumsum(1)
    close(sinusoids_at(position, 24), golden["plain/pos"], 1e-6)
    normalised = 2 * np.pi * position / (position[:, -1:] + 1e-6)
    close(sinusoids_at(normalised, 24), golden["norm_cls1/pos"][:, 1:], 1e-6)
    assert not golden["cls4/pos"][:, :4].any()  # class and memory slots have none, and so do ours


def test_the_temporal_encoder_adds_them_to_the_frames_alone():
    golden = read("pos_embed.npz")
    torch.manual_seed(0)
    with_position, without = (TemporalEncoder(24, position=p, **SIZES).eval() for p in (True, False))
    without.load_state_dict(with_position.state_dict())
    x, mask = torch.randn(2, 5, 24), golden["mask_in"].bool()
    close(with_position(x, mask), without(x + golden["plain/pos"], mask), 1e-6)


def test_the_block_equals_the_released_one_and_reads_its_mask():
    golden = read("transformer_block.npz")
    model = PreNormTransformer(24, 2, **SIZES).eval()
    model.load_state_dict(under(golden, "sd/"))
    x = golden["x"]
    with torch.no_grad():
        close(model.blocks[0](x), golden["block0/out"])
        close(model(x), golden["out"])
        close(model(x, torch.ones(3, 5, dtype=torch.bool)), golden["out"])
        keep = ~golden["key_padding_mask"]
        masked = model(x, keep)
        for row, seen in enumerate(keep):  # the reference ignores its mask; ours is leaving those tokens out
            close(masked[row, seen], model(x[row : row + 1, seen])[0], 1e-6)
        assert not torch.allclose(masked[~keep.all(1)], golden["out_with_pos_and_mask"][~keep.all(1)], atol=1e-2)


def test_stochastic_depth_equals_the_released_one():
    golden = under(read("transformer_block.npz"), "droppath/")
    torch.manual_seed(5)
    close(drop_path(golden["x"], float(golden["p"]), True, axes=1), golden["out_seed5"], 1e-6)
    torch.manual_seed(0)
    block = PreNormTransformer(8, 1, 2, 2, drop_path=0.5).train()
    x = torch.randn(40, 3, 8)
    assert 0 < (block(x) == x).flatten(1).all(1).sum() < 40  # of some clips both branches were left out


@pytest.mark.parametrize("kind", ["sum", "concat", "transformer"])
def test_fusion_heads_and_their_gradients(kind):
    golden, modalities = read("fusion_modules.npz"), NAMES[:3]
    own = under(golden, f"{kind}/")
    head = fusion(kind, under(own, "sd/"), modalities, depth=4)
    x = torch.stack([golden[f"x/{name}"] for name in modalities], 1).requires_grad_()
    out = head(x)
    close(out, own["out"])
    close(head(x, torch.ones(4, 3, dtype=torch.bool)), own["out"])
    loss = F.cross_entropy(out, golden["targets"], label_smoothing=0.1)
    close(loss, own["ce_ls0.1"])
    loss.backward()
    for slot, name in enumerate(modalities):
        close(x.grad[:, slot], own[f"gradx/{name}"], 5e-5)
    for name, parameter in head.named_parameters():
        theirs = f"fc.{modalities[int(name.split('.')[1])]}.{name.split('.')[2]}" if kind == "sum" else name
        close(parameter.grad, own[f"grad/{theirs}"], 5e-5)
    only = under(own, "out_only_")
    assert bool(only) == (kind != "concat")
    for key, scores in only.items():
        close(head(x, subset(key, modalities).expand(4, -1)), scores)
    turned = head(x[:, [2, 0, 1]])
    close(turned, own["out_order_ir_rgb_depth"]) if kind != "sum" else None
    close(turned, own["out"]) if kind == "transformer" else None


def temporal(golden, name):
    encoder = TemporalEncoder(24, position=False, **SIZES).eval()
    state = {f"transformer.{key}": value for key, value in under(golden, f"sd/t_encoder.{name}.").items()}
    state |= {f"norm.{key}": value for key, value in under(golden, f"sd/t_encoder_norm.{name}.").items()}
    encoder.load_state_dict({"cls_token": golden[f"sd/t_cls_token.{name}"], **state})
    return encoder


@torch.no_grad()
def test_the_baseline():
    golden, modalities = read("baseline.npz"), NAMES[:3]
    tokens = torch.stack([temporal(golden, name)(golden[f"feat/{name}"]) for name in modalities], 1)
    close(tokens, torch.stack([golden[f"token/{name}"] for name in modalities], 1))
    padded = ~golden["frame_mask"].bool().all(1)  # as released what lies behind the end takes part; by default not
    masked = temporal(golden, "rgb")(golden["feat/rgb"], golden["frame_mask"].bool())
    close(masked[~padded], golden["token/rgb"][~padded])
    assert not torch.allclose(masked[padded], golden["token/rgb"][padded], atol=1e-2)
    for kind in ("sum", "concat", "transformer"):
        own = under(golden, f"{kind}/")
        head = fusion(kind, under(own, "sd/fusion_module."), modalities)
        close(head(tokens), own["preds"])
        close(F.cross_entropy(head(tokens), golden["targets"], label_smoothing=0.1), own["loss_label"])
        for key, scores in under(own, "preds_only_").items():
            close(head(tokens, subset(key, modalities).expand(3, -1)), scores)
        alone = head.unimodal(tokens)
        if kind == "transformer":
            assert alone is None
        else:
            for slot, name in enumerate(modalities):
                close(alone[slot], own[f"unimodal_logits/{name}"])


def core_of(golden, modalities, memory):
    core = TokenAutoencoder(24, len(modalities), memory, modality_embedding=False, **SIZES).eval()
    state = under(golden, "sd/")
    core.load_state_dict({k: v for k, v in state.items() if not k.startswith(("fusion_module.", "t_"))})
    return core


def check_subsets(golden, modalities, memory, kind, normalise=True):
    """Every subset alone as released; then all of them in one batch, in the right slots and around the auto-encoder."""
    core = core_of(golden, modalities, memory)
    head = fusion(kind, under(golden, "sd/fusion_module."), modalities)
    tokens, targets = golden["tokens"], golden["targets"]
    keys = sorted({key.split("/")[1] for key in golden if key.startswith("eval/")})
    assert len(keys) == 2 ** len(modalities) - 1
    mixed = torch.stack([subset(key, modalities) for key in keys]).repeat_interleave(len(tokens), 0)
    many = tokens.repeat(len(keys), 1, 1)
    results = {}
    for slots in ("packed", "own"):
        encoded, decoded = core(many, mixed, slots=slots)
        results[slots] = encoded.split(len(tokens)), decoded.split(len(tokens))
    for place, key in enumerate(keys):
        own, kept = under(golden, f"eval/{key}/"), subset(key, modalities).expand(len(tokens), -1)
        assert kept[0].nonzero()[:, 0].tolist() == own["keep_idx"].tolist()
        encoded, decoded = core(tokens, kept, slots="packed")
        close(encoded, results["packed"][0][place], 1e-5) if kept.all() else None
        close(decoded, results["packed"][1][place], 1e-5)
        close(encoded[:, : memory + len(own["keep_idx"])], own["enc_out"])
        logits = head(core.choose(tokens, kept, encoded, decoded, **AS_RELEASED))
        close(logits, own["logits"])
        close(F.cross_entropy(logits, targets, label_smoothing=0.1), own["loss_cls"])
        loss = reconstruction_loss(decoded, tokens, ~kept, normalise)
        if "recon" in own:
            close(decoded, own["recon"])
            close(loss, own["loss_rec"])
        else:
            assert kept.all() and loss == 0
        encoded, decoded = (result[place] for result in results["own"])
        fixed = head(core.choose(tokens, kept, encoded, decoded, fusion_input="decoded"))
        close(fixed, own["derived_slotfix/logits"])
        close(head(core.choose(tokens, kept, encoded, decoded)), own["derived_paper/logits"])
        if "derived_slotfix/recon" in own:
            close(decoded, own["derived_slotfix/recon"])
            close(reconstruction_loss(decoded, tokens, ~kept, normalise), own["derived_slotfix/loss_rec"])


@torch.no_grad()
@pytest.mark.parametrize("name", CORES)
def test_the_core_for_all_subsets(name):
    golden = read(f"actionmae_core_{name}.npz")
    modalities = [str(m) for m in golden["modalities"]]
    check_subsets(golden, modalities, int(golden["num_mem_token"]), name.split("_")[0], "raw" not in name)


@torch.no_grad()
def test_the_whole_network_but_for_the_cnn():
    golden, modalities = read("actionmae_sum_m1.npz"), NAMES[:3]
    tokens = torch.stack([temporal(golden, name)(golden[f"feat/{name}"]) for name in modalities], 1)
    close(tokens, golden["tokens"])
    check_subsets(golden, modalities, 1, "sum")


@torch.no_grad()
@pytest.mark.parametrize("memory", [1, 4])
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_training_with_recorded_draws(memory, keep):
    weights, golden = read("actionmae_sum_m1.npz"), read("actionmae_train_masking.npz")
    if memory == 4:
        weights["sd/mem_token"] = golden["mem4/sd/mem_token"]
    core, head = core_of(weights, NAMES[:3], memory), fusion("sum", under(weights, "sd/fusion_module."), NAMES[:3])
    own, tokens = under(golden, f"mem{memory}/keep{keep}/"), golden["tokens"]
    order = own["noise"].argsort(1)
    assert order.equal(own["ids_shuffle"]) and order.argsort(1).equal(own["ids_restore"])
    kept = order.argsort(1) < keep
    assert kept.equal(~own["removed_mask"].bool())
    encoded, decoded = core(tokens, kept, order)
    close(encoded[:, : memory + keep], own["enc_out"])
    logits = head(core.choose(tokens, kept, encoded, decoded, order, **AS_RELEASED))
    close(logits, own["logits"])
    close(F.cross_entropy(logits, golden["targets"], label_smoothing=0.1), own["loss_cls"])
    if keep < 3:
        close(decoded, own["recon"])
        close(reconstruction_loss(decoded, tokens, ~kept), own["loss_rec"])
    else:
        fixed = head(core.choose(tokens, kept, encoded, decoded, order, fusion_input="decoded"))
        close(fixed, own["derived_slotfix/logits"])
    unshuffled = core(tokens, kept)[1]
    close(decoded, unshuffled)  # the order is of no consequence
