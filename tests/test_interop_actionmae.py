"""Checkpoints of ActionMAE's code: full-size networks compute what theirs computed, and nothing is lost on the way."""

import functools
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from skelact.clips import Frames, ModalClips, RaggedClips
from skelact.errors import SkelactError
from skelact.interop import load_official
from skelact.interop.actionmae import LEFT_OUT, MODALITIES
from skelact.methods.actionmae import ActionMAE
from skelact.methods.multimodal import MultiModal
from skelact.objectives import reconstruction_loss

FOLDER = Path(__file__).parent / "golden" / "actionmae"
TAGS = {
    "actionmae_small_rgb_depth_ir_sum_m4_c60": ("rgb", "depth", "ir"),
    "actionmae_small_rgb_depth_transformer_m1_c60": ("rgb", "depth"),
    "actionmae_small_rgb_skeleton_concat_m1_c60": ("rgb", "skeleton"),
    "baseline_small_rgb_depth_ir_transformer_c60": ("rgb", "depth", "ir"),
}
RUNS = {  # name: (a network of the same kind, modalities, memory tokens)
    "mae_tiny_transformer_m4": ("actionmae_small_rgb_depth_transformer_m1_c60", ("rgb", "depth", "ir"), 4),
    "mae_tiny_concat_m1": ("actionmae_small_rgb_skeleton_concat_m1_c60", ("rgb", "depth", "ir"), 1),
    "mae_tiny_rgb_skeleton_sum_m1": ("actionmae_small_rgb_depth_ir_sum_m4_c60", ("rgb", "skeleton"), 1),
    "baseline_tiny_transformer": ("baseline_small_rgb_depth_ir_transformer_c60", ("rgb", "depth", "ir"), 0),
}


def names_of(tag):
    """Names, shapes and dtypes of a released network."""
    golden = np.load(FOLDER / "state_dict_names.npz")
    shapes = [tuple(s[:n].tolist()) for s, n in zip(golden[f"{tag}/shapes"], golden[f"{tag}/ndim"], strict=True)]
    dtypes = [getattr(torch, str(dtype).removeprefix("torch.")) for dtype in golden[f"{tag}/dtypes"]]
    return {
        str(name): (shape, dtype) for name, shape, dtype in zip(golden[f"{tag}/names"], shapes, dtypes, strict=True)
    }


@functools.cache
def formula(name, shape):
    """Weights by name, as the golden files' README has them."""
    seed = zlib.crc32(name.encode()) & 0x7FFFFFFF
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith("running_var"):
        return torch.from_numpy(1 + 0.5 * np.random.RandomState(seed).random_sample(shape)).float()
    g = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    if name.endswith("running_mean"):
        return torch.from_numpy(g * np.float32(0.1))
    if len(shape) >= 2 and "_token" not in name:
        return torch.from_numpy(g * np.float32(1 / np.sqrt(np.prod(shape[1:]))))
    if name.endswith("weight"):
        return torch.from_numpy(1 + np.float32(0.1) * g)
    return torch.from_numpy(np.float32(0.02 if "token" in name else 0.1) * g)


def tiny(tag, modalities, memory, classes=10):
    """Shapes by name of such a network with ResNet-18, other modalities, memory tokens and classes."""
    found, skeleton = {}, names_of("actionmae_small_rgb_skeleton_concat_m1_c60")
    for name, (shape, _) in names_of(tag).items():
        if re.search(r"layer\d\.[2-9]", name) or any(re.match(rule, name) for rule in LEFT_OUT):
            continue
        owner = [part for part in name.split(".") if part in MODALITIES]
        if owner == ["rgb"]:  # the others have the same
            read = [m for m in modalities if m != "skeleton" or not name.startswith("s_encoder")]
            found |= {name.replace("rgb", modality): shape for modality in read}
        elif not owner and not name.startswith("skel_"):
            found[name] = shape
    if "skeleton" in modalities:
        found |= {name: shape for name, (shape, _) in skeleton.items() if name.startswith("skel_")}
    if memory:
        found["mem_token"] = (1, memory, 512)
    for name, shape in found.items():
        if name.startswith("fusion_module.fc"):
            found[name] = (classes, *(512 * len(modalities) if "concat" in tag else size for size in shape[1:]))
    return found


def clips(golden, modalities):
    """The made-up clips of the golden run: three frames, of which the second clip has two."""
    count, frames, size = golden["shape_N_T_HW"].tolist()
    mask, parts = torch.from_numpy(golden["frame_mask"]).bool(), {}
    for name in modalities:
        shape = (count, frames, 25, 3) if name == "skeleton" else (count, frames, 3, size, size)
        seed = zlib.crc32(f"e2e/src/{name}".encode()) & 0x7FFFFFFF
        values = torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))
        values[~mask] = 0
        parts[name] = Frames(values, mask)
        if name == "skeleton":
            rows = [clip[own][:, None] for clip, own in zip(values, mask, strict=True)]
            parts[name] = RaggedClips.pack(rows)
    label = torch.from_numpy(golden["targets"])
    everywhere = torch.ones(count, len(modalities), dtype=torch.bool)
    return ModalClips(parts, everywhere, tuple(modalities), label, torch.arange(count))


SLOW = ("mae_tiny_concat_m1", "baseline_tiny_transformer")  # what they add is in small goldens too


@pytest.mark.parametrize("run", [pytest.param(r, marks=pytest.mark.slow) if r in SLOW else r for r in RUNS])
def test_full_size_networks_compute_what_theirs_did(run):
    tag, modalities, memory = RUNS[run]
    golden = np.load(FOLDER / "e2e_formula.npz")
    state = {f"module.{name}": formula(name, shape) for name, shape in tiny(tag, modalities, memory).items()}
    for name in modalities:  # what theirs has and nothing uses
        state[f"module.s_encoder.{name}.fc.weight"] = torch.zeros(1000, 512)
    method = load_official("actionmae", state, frames=3)
    assert method.streams == modalities and method.preset == "as_released" and not method.training
    batch = clips(golden, modalities)

    def close(ours, key):
        torch.testing.assert_close(ours, torch.from_numpy(golden[f"{run}/{key}"]), rtol=0, atol=1e-4)

    with torch.no_grad():
        for name in modalities:
            if name != "skeleton":
                close(method.encoders[name].frames(batch.parts[name].values.flatten(0, 1)), f"spatial/{name}")
        tokens, present = method.tokens(batch)
        if not memory:
            assert type(method) is MultiModal
            logits = method.classify(batch)
            close(logits, "base/logits")
            return close(F.cross_entropy(logits, batch.label, label_smoothing=0.1), "base/loss_cls")
        assert type(method) is ActionMAE and method.core.num_memory == memory
        close(tokens, "tokens")
        keys = [key.split("/")[1] for key in golden if key.startswith(f"{run}/") and key.endswith("/logits")]
        assert len(keys) == 2 ** len(modalities) - 1
        subsets = [tuple(name for name in modalities if name[0] in key) for key in keys]
        for key, subset, logits in zip(keys, subsets, method.classify_subsets(batch, subsets), strict=True):
            close(logits, f"{key}/logits")
            close(F.cross_entropy(logits, batch.label, label_smoothing=0.1), f"{key}/loss_cls")
            kept = torch.tensor([[name in subset for name in modalities]]).expand(len(batch), -1)
            loss = reconstruction_loss(method.complete(tokens, kept, slots="packed")[1], tokens, present & ~kept)
            close(loss, f"{key}/loss_rec")


@pytest.mark.parametrize("tag", TAGS)
def test_every_name_of_a_released_network_has_its_place(tag):
    """On the meta device, where a network of 97 million numbers costs nothing."""
    golden, modalities = names_of(tag), TAGS[tag]
    with torch.device("meta"):
        state = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in golden.items()}
        method = load_official("actionmae", state)
    left = [name for name in golden if any(re.match(rule, name) for rule in LEFT_OUT)]
    assert len(method.state_dict()) == len(golden) - len(left)
    assert method.streams == modalities and method.num_classes == 60
    assert all(method.encoders[name].frames.net.layer3[5] is not None for name in modalities if name != "skeleton")


@pytest.fixture(scope="module")
def state():
    shapes = tiny("actionmae_small_rgb_depth_ir_sum_m4_c60", ("rgb", "skeleton"), 1)
    with torch.device("meta"):
        return {name: torch.empty(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("decoder_pred.bias"), "missing: core.decoder_pred.bias"),
        (lambda s: s.pop("s_encoder.rgb.layer4.1.bn2.weight"), "missing: encoders.rgb.frames.net.layer4.1.bn2.weight"),
        (lambda s: s.update({"gate.weight": torch.zeros(2)}), "unexpected: gate.weight"),
        (lambda s: s.update({"mask_token": torch.zeros(1, 2, 512)}), "misshaped: core.mask_token"),
        (lambda s: s.update({"t_cls_token.flow": torch.zeros(1, 1, 512)}), "class tokens of .*flow"),
        (lambda s: s.update({"s_encoder.rgb.layer1.2.conv1.weight": torch.zeros(2)}), "not a ResNet"),
        (lambda s: s.clear() or s.update({"fc.weight": torch.zeros(2)}), "no modality"),
    ],
)
def test_other_files_are_refused_by_name(state, change, message):
    changed = dict(state)
    change(changed)
    with torch.device("meta"), pytest.raises(SkelactError, match=message):
        load_official("actionmae", changed)
