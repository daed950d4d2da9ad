from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from skelact.backbones.video import ImageEncoder
from skelact.data import frame_features as module_under_test
from skelact.data.media import MediaStore
from skelact.data.multimodal import MultiModalDataModule
from skelact.errors import SkelactError

from .modal_stores import write_modal


class Plain(nn.Module):
    """Pixels over 255, resized to one shape; in training shifted."""

    def __init__(self, scale=255.0):
        super().__init__()
        self.scale = scale

    def forward(self, images, mask, draws):
        x = images.float().permute(0, 1, 4, 2, 3).expand(-1, -1, 3, -1, -1).flatten(0, 1) / self.scale
        x = nn.functional.interpolate(x, (32, 32)).unflatten(0, images.shape[:2])
        return x if draws is None else x + 1000


_WIDTH = 96


def _encoder(source, seed=0, frozen=True):
    torch.manual_seed(seed)
    network = {"name": "test_resnet", "tag": None, "pretrained": False}  # timm's smallest
    encoder = ImageEncoder(width=8, source=source, **network, frozen=frozen, depth=1, num_heads=1).eval()
    with torch.no_grad():
        for weight in encoder.frames.parameters():  # frozen random ones are all alike
            weight += 0.01 * seed
    return encoder


def _method(**encoders):
    return SimpleNamespace(encoders=encoders)


def _module(root, modalities=("depth", "rgb"), **options):
    options = {"images": {"depth": Plain(), "rgb": Plain()}, "cache_features": True, "frames": 4, **options}
    return MultiModalDataModule(str(root / "toy"), "xsub", list(modalities), batch_size=4, eval_batch_size=5, **options)


@pytest.fixture
def root(tmp_path):
    write_modal(tmp_path, skip=("inertial",), rgb_sizes=((6, 8), (4, 5)))
    return tmp_path


@pytest.mark.parametrize("residence", ["disk", "ram"])
def test_loaders_give_the_encoders_features_and_decode_nothing(root, residence, monkeypatch):
    monkeypatch.setattr(module_under_test, "CHUNK", 7)
    method = _method(depth=_encoder("depth"), rgb=_encoder("rgb", 1))
    module = _module(root, residence=residence)
    images = list(_module(root, cache_features=False).batches("test"))
    module.attach(method)
    for name in ("depth", "rgb"):
        (file,) = (root / f"toy.{name}.features").glob("*.npy")
        rows = np.load(file)
        assert rows.dtype == np.float16 and rows.shape == (MediaStore(root / f"toy.{name}").shape[0], _WIDTH)
    decoded = []
    monkeypatch.setattr(MediaStore, "decode", lambda *a: decoded.append(a))
    for batch, want in zip(module.batches("test", device="cpu"), images, strict=True):
        assert batch.index.tolist() == want.index.tolist() and torch.equal(batch.available, want.available)
        for name, part in batch.parts.items():
            encoder = method.encoders[name]
            features = encoder.frames(want.parts[name].values.flatten(0, 1)).unflatten(0, part.mask.shape)
            assert part.values.dtype == torch.float32 and torch.equal(part.mask, want.parts[name].mask)
            torch.testing.assert_close(part.values, features, rtol=2e-3, atol=2e-3)
            torch.testing.assert_close(encoder(part), encoder(want.parts[name]), rtol=1e-2, atol=1e-2)
    loader = module.train_dataloader()
    for batch in loader:
        parts = module.transfer_batch_to_device(batch, torch.device("cpu")).parts
        assert all(part.values.shape[1:] == (4, _WIDTH) and part.values.max() < 500 for part in parts.values())
    assert not decoded


def test_a_file_belongs_to_encoder_transform_and_store(root, monkeypatch):
    made = []
    real = module_under_test._extract
    monkeypatch.setattr(module_under_test, "_extract", lambda *a: made.append(1) or real(*a))
    _module(root, ["depth"]).attach(_method(depth=_encoder("depth")))
    _module(root, ["depth"], frames=9, seed=3).attach(_method(other=_encoder("depth")))
    assert len(made) == 1  # the same frames, whatever is taken of them
    _module(root, ["depth"]).attach(_method(depth=_encoder("depth", seed=1)))
    _module(root, ["depth"], images={"depth": Plain(100.0)}).attach(_method(depth=_encoder("depth")))
    assert len(made) == 3
    _module(root, ["depth"], cache_features=False).attach(_method(depth=_encoder("depth", seed=2)))
    assert len(made) == len(list((root / "toy.depth.features").glob("*.npy"))) == 3
    one = _module(root, ["depth"])
    plain = one.reading
    one.attach(_method(depth=_encoder("depth", seed=1)))
    other = one.reading
    one.attach(_method(depth=_encoder("depth"), again=_encoder("depth")))  # alike: one file serves both
    assert len({plain, other, one.reading}) == 3  # features of clips must not be taken for one another's
    few = one.variant(batch_size=2)
    assert next(few.batches("test")).parts["depth"].values.ndim == 3 and len(made) == 3


def test_what_cannot_be_cached_is_said(root):
    with pytest.raises(SkelactError, match=r"method\.encoders\.depth\.frozen=true"):
        _module(root).attach(_method(depth=_encoder("depth", frozen=False)))
    with pytest.raises(SkelactError, match="left, right see depth differently"):
        _module(root).attach(_method(left=_encoder("depth"), right=_encoder("depth", seed=1)))
    with pytest.raises(SkelactError, match=r"data\.images\.depth is missing"):
        _module(root, images={}).attach(_method(depth=_encoder("depth")))


def test_an_interrupted_extraction_leaves_nothing(root, monkeypatch):
    monkeypatch.setattr(module_under_test, "CHUNK", 7)
    method = _method(depth=_encoder("depth"))
    count = []
    forward = type(method.encoders["depth"].frames).forward

    def stopping(self, images):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return forward(self, images)

    monkeypatch.setattr(type(method.encoders["depth"].frames), "forward", stopping)
    with pytest.raises(KeyboardInterrupt):
        _module(root, ["depth"]).attach(method)
    folder = root / "toy.depth.features"
    assert not list(folder.glob("*.npy")) and not list(folder.glob(".*.npy"))
    _module(root, ["depth"]).attach(method)
    assert len(list(folder.glob("*.npy"))) == 1


def _attach(rank, counts):
    from pathlib import Path

    made = []
    real = module_under_test._extract
    module_under_test._extract = lambda *a: made.append(1) or real(*a)
    module = _module(Path(counts[rank]), ["depth"])
    module.attach(_method(depth=_encoder("depth")))
    batch = next(module.batches("test"))
    return torch.tensor(len(made)), batch.parts["depth"].values


def test_one_process_extracts_and_the_others_wait(root, on_ranks):
    results = on_ranks(_attach, [str(root)] * 2)
    assert sum(int(made) for made, _ in results) == 1
    assert torch.equal(results[0][1], results[1][1])
