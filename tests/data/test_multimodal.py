from __future__ import annotations

import pickle

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skelact.clips import Frames, ModalClips, RaggedClips
from skelact.data.media import MediaStore
from skelact.data.modal_loading import Source
from skelact.data.multimodal import MultiModalDataModule
from skelact.data.store import Store, StoreError
from skelact.errors import SkelactError
from skelact.transforms.draws import Draws

from .conftest import shared
from .modal_stores import CLIPS, LACKS, brightness, length_of, write_modal

CPU = torch.device("cpu")
ALL = ("skeleton", "inertial", "depth", "rgb")


class Shift(nn.Module):
    """In place of a real transform: brightness as a number, in training one random shift a clip."""

    def forward(self, images, mask, draws):
        assert images.dtype == torch.uint8 and images.ndim == 5
        out = images.float().mean((2, 3, 4))[:, :, None, None, None].expand(-1, -1, 3, 2, 2)
        if draws is not None:
            out = out + draws.uniform("shift")[:, None, None, None, None]
        return out * mask[:, :, None, None, None]


IMAGES = {"depth": Shift(), "rgb": Shift()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modal")
    write_modal(folder)
    return folder


def _module(root, modalities=ALL, **options):
    options = {"images": IMAGES, "frames": 4, "signal_frames": 8, "batch_size": 4, "eval_batch_size": 5, **options}
    return MultiModalDataModule(str(root / "toy"), "xsub", list(modalities), **options)


def _clips(module, batch):
    """Clip number -> modality -> what came out of it."""
    names = module.store.names[batch.index.numpy()]
    found = {int(name[1:]): {} for name in names}
    for name, part in batch.parts.items():
        rows = batch.rows(name)
        assert len(rows) == len(part)
        for at, row in enumerate(rows.tolist()):
            number = int(names[row][1:])
            if isinstance(part, RaggedClips):
                assert int(part.index[at]) == int(batch.index[row]) and int(part.label[at]) == number % 3
                found[number][name] = part.clip(at)
            else:
                found[number][name] = (part.values[at], part.mask[at])
    return found


def _epoch(module, epoch=0):
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)
    batches = [module.transfer_batch_to_device(batch, CPU) for batch in loader]
    return {k: v for batch in batches for k, v in _clips(module, batch).items()}, batches


def _draws(module, clip, epoch):
    """Of one clip."""
    index = module.store.names.tolist().index(f"c{clip:02d}")
    return Draws(module.seed, epoch, torch.tensor([index]))


def _same(a, b):
    assert a.keys() == b.keys()
    for number, parts in a.items():
        assert parts.keys() == b[number].keys()
        for name, value in parts.items():
            torch.testing.assert_close(value, b[number][name], rtol=0, atol=0)


@pytest.mark.parametrize("residence", ["disk", "ram", "device"])
def test_every_clip_comes_with_what_it_has(root, residence):
    module = _module(root, residence=residence)
    store = Store(root / "toy")
    seen = {}
    for part in ("train", "val", "test"):
        for batch in module.batches(part, device="cpu"):
            assert isinstance(batch, ModalClips) and batch.modalities == ALL
            assert batch.label.tolist() == [k % 3 for k in batch.index.tolist()]
            seen |= _clips(module, batch)
    assert sorted(seen) == list(range(CLIPS)) and module.store.names.tolist() == [f"c{k:02d}" for k in range(CLIPS)]
    for k, parts in seen.items():
        assert set(parts) == {name for name in ALL if k not in LACKS[name]}
        if "skeleton" in parts:
            row = store.names.tolist().index(f"c{k:02d}")
            np.testing.assert_array_equal(parts["skeleton"], store.clips([row], "ram").frames)
        for name in set(parts) & {"depth", "rgb"}:
            length, (values, mask) = length_of(name, k), parts[name]
            assert mask.all() and values.shape == (4, 3, 2, 2)
            want = [brightness(k, round(i * length / 4)) for i in range(4)]
            assert values[:, 0, 0, 0].tolist() == want


def test_short_videos_are_masked(root):
    module = _module(root, ["depth"], frames=7)
    batch = next(module.batches("train+val"))
    for number, parts in _clips(module, batch).items():
        values, mask = parts["depth"]
        length = length_of("depth", number)
        assert mask.tolist() == [i < length for i in range(7)]
        want = [brightness(number, i if length < 8 else round(i * 8 / 7)) for i in range(min(length, 7))]
        assert values[:, 0, 0, 0].tolist() == want + [0] * (7 - len(want))


def test_a_modality_that_no_clip_of_the_batch_has_is_no_part(root):
    module = _module(root, eval_batch_size=1)
    batches = {int(batch.index): batch for part in ("train+val", "test") for batch in module.batches(part)}
    assert set(batches[4].parts) == {"skeleton", "rgb"} and batches[4].available.tolist() == [
        [True, False, False, True]
    ]
    assert set(batches[15].parts) == {"depth", "rgb"}


@pytest.mark.parametrize("residence", ["disk", "ram"])
def test_absent_modalities_are_not_read(root, residence, monkeypatch):
    """Every gathered row and every decoded picture is counted, and belongs to a clip that has it."""
    taken, decoded, loaded = [], [], []
    take, decode, clips = Source.take, MediaStore.decode, Store.clips
    monkeypatch.setattr(
        Source, "take", lambda self, at: taken.append((self.store.modality, at.numel())) or take(self, at)
    )
    monkeypatch.setattr(MediaStore, "decode", lambda self, at, row: decoded.append(at) or decode(self, at, row))
    monkeypatch.setattr(
        Store, "clips", lambda self, rows, *a, **o: loaded.append(len(rows)) or clips(self, rows, *a, **o)
    )
    module = _module(root, residence=residence, withhold={"depth": 0.5}, eval_batch_size=3)
    module.setup()
    loaded.clear()
    batches = [batch for part in ("train+val", "test") for batch in module.batches(part, device="cpu")]
    having = torch.cat([batch.available for batch in batches]).sum(0).tolist()
    assert having[2] < CLIPS - len(LACKS["depth"])  # some were withheld
    assert sum(count for name, count in taken if name == "depth") == 4 * having[2]
    assert sum(count for name, count in taken if name == "inertial") == 2 * 8 * having[1]
    assert len(decoded) == 4 * having[3]
    if residence == "disk":
        assert sum(loaded) == having[0]
    counts = len(taken), len(decoded), len(loaded)
    one = _module(root, ["inertial"], residence=residence)
    list(one.batches("test"))
    assert len(decoded) == counts[1] and len(loaded) == counts[2]  # what is not chosen is not opened either
    assert {name for name, _ in taken[counts[0] :]} == {"inertial"}


@pytest.mark.parametrize("modalities", [("depth", "rgb"), ("inertial",), ("rgb",)])
def test_without_skeletons_their_store_is_not_needed(tmp_path, root, modalities):
    write_modal(tmp_path, skip=("skeleton",))
    module = _module(tmp_path, modalities, layout="kinect20")
    whole = _module(root, modalities)
    assert module.layout.name == "kinect20" and module.class_names == ["a", "b", "c"]
    for part in ("train", "val", "test"):
        assert module.clip_names(part) == whole.clip_names(part)
    with pytest.raises(SkelactError, match=r"data.modalities=\[skeleton,...\] adds them"):
        _ = module.num_channels
    with pytest.raises(StoreError, match="no store yet"):
        _module(tmp_path, ["skeleton", *modalities]).setup()


def test_training_draws_belong_to_seed_epoch_and_clip(root):
    one, _ = _epoch(_module(root))
    other, _ = _epoch(_module(root, batch_size=2, residence="disk"))
    both = one.keys() & other.keys()  # drop_last leaves different clips
    assert len(both) > 4
    _same({k: one[k] for k in both}, {k: other[k] for k in both})
    later, _ = _epoch(_module(root), epoch=1)
    seed, _ = _epoch(_module(root, seed=1))
    for changed in (later, seed):
        keys = [k for k in one.keys() & changed.keys() if "rgb" in one[k]]
        assert any(not torch.equal(one[k]["rgb"][0], changed[k]["rgb"][0]) for k in keys)


@pytest.mark.parametrize("residence", ["disk", "ram"])
def test_loader_workers_give_the_same(root, residence):
    alone, _ = _epoch(_module(root, residence=residence), epoch=2)
    module = _module(root, residence=residence, num_workers=2)
    _same(alone, _epoch(module, epoch=2)[0])
    want = list(_module(root, residence=residence).batches("test"))
    for a, b in zip(want, module.batches("test"), strict=True):
        _same(_clips(module, a), _clips(module, b))


def test_readers_can_be_sent(root):
    module = _module(root)
    next(module.batches("test"))
    reader = pickle.loads(pickle.dumps(module._reader(ALL)))
    rows = torch.tensor([0, 1, 15])
    for name, part in reader.read(rows, 3, ALL).items():
        want = module._reader(ALL).read(rows, 3, ALL)[name]
        if isinstance(part, Frames):
            torch.testing.assert_close(part.values, want.values)


def test_random_frames_are_those_that_are_drawn(root):
    """Both video modalities take the frames that the numbers of the clip say; uniform ones on request."""
    module = _module(root, ["depth", "rgb"])
    found, _ = _epoch(module, epoch=5)
    for k, parts in found.items():
        unit = _draws(module, k, 5).uniform("frames", 40)[0]
        for name, (values, _) in parts.items():
            length = length_of(name, k)
            want = sorted(unit[:length].argsort()[:4].tolist())
            shift = _draws(module, k, 5).scope(name).uniform("shift")
            got = values[:, 0, 0, 0] - shift
            assert got.round().tolist() == [brightness(k, n) for n in want]
    uniform, _ = _epoch(_module(root, ["depth"], temporal="uniform"))
    for k, parts in uniform.items():
        want = [brightness(k, round(i * length_of("depth", k) / 4)) for i in range(4)]
        assert parts["depth"][0][:, 0, 0, 0].floor().tolist() == want


def test_signals_are_resampled_and_standardised_by_training_clips(tmp_path):
    rows = write_modal(tmp_path)
    module = _module(tmp_path, ["inertial"], signal_frames=9)
    train = [k for k in rows if k % 4 in (0, 1)]
    stacked = np.concatenate([rows[k] for k in train]).astype(np.float64)
    found = {
        k: v
        for part in ("train+val", "test")
        for batch in module.batches(part)
        for k, v in _clips(module, batch).items()
    }
    assert set(train) < set(found)
    for k, parts in found.items():
        values, mask = parts["inertial"]
        place = np.linspace(0, len(rows[k]) - 1, 9)
        want = np.stack([np.interp(place, np.arange(len(rows[k])), rows[k][:, c]) for c in range(2)], 1)
        np.testing.assert_allclose(values, (want - stacked.mean(0)) / stacked.std(0), rtol=1e-4, atol=1e-4)
        assert mask.all()
    drawn, _ = _epoch(module)
    ends = {k: parts["inertial"][0][[0, -1]] for k, parts in drawn.items()}
    assert all(not torch.equal(ends[k], found[k]["inertial"][0][[0, -1]]) for k in ends)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 99))
def test_a_random_part_of_a_signal_is_long_enough_and_inside(root, length, frames, epoch):
    source = _module(root, ["inertial"], signal_frames=frames)
    source.setup()
    signal = source._sources["inertial"]
    signal.spans = lambda rows: (torch.zeros_like(rows), torch.full_like(rows, length))
    signal._held = torch.arange(length, dtype=torch.float32)[:, None]  # the value is the place
    values = signal.read(torch.arange(3), Draws(0, epoch, torch.arange(3))).values[..., 0]
    assert values.min() >= 0 and values.max() <= length - 1 and (values.diff(dim=1) >= 0).all()
    if frames > 1:
        share = (values[:, -1] - values[:, 0]) / max(length - 1, 1)
        assert length == 1 or ((share >= 0.8 - 1e-5) & (share <= 1 + 1e-5)).all()


def test_withheld_clips_are_of_the_training_side_and_frozen(root):
    module = _module(root, withhold={"depth": 0.5})
    plain = _module(root)
    column = module.modalities.index("depth")
    side, test = plain.rows("train+val"), plain.rows("test")
    module.setup(), plain.setup()
    lost = np.flatnonzero((plain._at[:, column] >= 0) & (module._at[:, column] < 0))
    assert set(lost) <= set(side) and not set(lost) & set(test)
    assert len(lost) == int(0.5 * (plain._at[side, column] >= 0).sum() + 0.5)
    assert module.store.names[lost].tolist() == WITHHELD
    less = _module(root, withhold={"depth": 0.2})
    less.setup()
    assert {k for k in lost} >= set(np.flatnonzero((plain._at[:, column] >= 0) & (less._at[:, column] < 0)))
    assert module.fingerprint == plain.fingerprint  # the same stores, the same test clips


WITHHELD = ["c00", "c05", "c08", "c10", "c12"]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=2))
@settings(max_examples=20, deadline=None)
def test_a_clip_keeps_a_modality_whatever_is_withheld(root, shares):
    module = _module(root, ["depth", "inertial"], withhold=dict(zip(["depth", "inertial"], shares, strict=True)))
    try:
        module.setup()
    except SkelactError as error:
        assert "no training clip has" in str(error) and max(shares) > 0.5
        return
    assert (module._at >= 0).any(axis=1).all()


def test_complete_clips_only(root):
    module = _module(root, complete=True)
    lacking = set().union(*LACKS.values())
    names = [name for part in ("train", "val", "test") for name in module.clip_names(part)]
    assert sorted(names) == [f"c{k:02d}" for k in range(CLIPS) if k not in lacking]
    assert all(batch.available.all() for batch in module.batches("test"))
    assert module.fingerprint != _module(root).fingerprint


def test_pictures_of_different_sizes(tmp_path):
    """Where sources crop by the person each clip has a size of its own."""
    write_modal(tmp_path, rgb_sizes=((6, 8), (4, 5), (9, 7)))
    module = _module(tmp_path, ["rgb"], temporal="uniform")
    found, _ = _epoch(module)
    assert len(found) >= 8
    for k, parts in found.items():
        shift = _draws(module, k, 0).scope("rgb").uniform("shift")
        want = [brightness(k, round(i * length_of("rgb", k) / 4)) + float(shift) for i in range(4)]
        torch.testing.assert_close(parts["rgb"][0][:, 0, 0, 0], torch.tensor(want))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"modalities": []}, "name at least one"),
        ({"modalities": ["rgb", "rgb"]}, "each once"),
        ({"modalities": ["thermal"]}, r"no store of thermal yet.*skelact prepare data=toy source=FOLDER modalities"),
        ({"temporal": "sometimes"}, "data.temporal='sometimes'"),
        ({"frames": 0}, "data.frames=0"),
        ({"withhold": {"ir": 0.1}}, "data.withhold.ir=0.1"),
        ({"withhold": {"rgb": 1.5}}, "data.withhold.rgb=1.5"),
        ({"num_classes": 60}, "set data.num_classes=3"),
        ({"split": "xset"}, "no split 'xset'"),
    ],
)
def test_what_does_not_fit_is_said(root, options, reason):
    options = {"split": "xsub", "modalities": ALL, "images": IMAGES, **options}
    with pytest.raises(SkelactError, match=reason):
        MultiModalDataModule(str(root / "toy"), **options).setup()


def test_what_decides_about_a_batch_is_told(root):
    """Kept features of clips belong to it."""
    plain = {"modalities": ["depth", "inertial"]}
    changes = [{}, {"frames": 5}, {"signal_frames": 9}, {"withhold": {"depth": 0.5}}, {"modalities": ["inertial"]}]
    told = [_module(root, **{**plain, **change}).reading for change in changes]
    assert len(set(told)) == len(told) and told[0] == _module(root, **plain, seed=5, batch_size=2).reading


def test_a_transform_that_is_missing_is_named(root):
    module = _module(root, ["depth"], images={})
    with pytest.raises(SkelactError, match=r"data\.images\.depth is missing"):
        next(module.batches("test"))


def test_stores_that_do_not_belong_together(tmp_path):
    write_modal(tmp_path)
    module = _module(tmp_path)
    from skelact.data.modalities import ModalTable, open_modalities

    stores = open_modalities(tmp_path / "toy", {"inertial": {}, "depth": {}})
    stores["depth"].columns["subject"] = stores["depth"].columns["subject"] + 1
    with pytest.raises(SkelactError, match="clip c00 has different values of subject"):
        ModalTable(stores)
    stores = open_modalities(tmp_path / "toy", {"depth": {}})
    del stores["depth"].columns["subject"]  # then clip 15, which has no skeleton, has no subject
    assert "subject" not in ModalTable(stores).columns and "subject" in module.store.columns
    stores["depth"].card["class_names"].append("d")
    with pytest.raises(SkelactError, match=r"have \[3, 4\] classes"):
        ModalTable(stores)


def test_variants_and_changes(root):
    module = _module(root, residence="ram")
    few = module.variant(fit="train+val", labels_per_class=1, batch_size=1)
    assert few.size("train+val") == 3 and len(_epoch(few)[0]) == 3
    assert few._sources is module._sources
    doubled = list(module.batches("test", change=lambda clips: _twice(clips), device="cpu"))
    for a, b in zip(module.batches("test"), doubled, strict=True):
        a, b = _clips(module, a), _clips(module, b)
        for k in a:
            if "skeleton" in a[k]:
                torch.testing.assert_close(2 * a[k].pop("skeleton"), b[k].pop("skeleton"))
        _same(a, b)
    with pytest.raises(SkelactError, match="no skeletons to change"):
        next(_module(root, ["rgb"]).batches("test", change=_twice))


def _twice(clips):
    from dataclasses import replace

    return replace(clips, frames=2 * clips.frames)


class _Seen(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.shift, self.val = {}, []

    def training_step(self, batch, batch_idx):
        assert isinstance(batch, ModalClips)
        for row, value in zip(batch.rows("rgb").tolist(), batch.parts["rgb"].values[:, 0, 0, 0, 0], strict=True):
            self.shift.setdefault(self.current_epoch, {})[int(batch.index[row])] = float(value)
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.val += batch.index.tolist()
        assert all(value == int(value) for value in batch.parts["rgb"].values.flatten().tolist())  # no draws

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("workers", [0, 2])
def test_under_a_trainer(root, tmp_path, workers):
    module = _module(root, num_workers=workers, drop_last=False)
    seen = _Seen()
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(seen, datamodule=module)
    assert sorted(seen.val) == sorted([*module.rows("val")] * 2)
    for epoch in (0, 1):
        want, _ = _epoch(_module(root, drop_last=False), epoch)
        names = module.store.names
        got = {int(names[k][1:]): value for k, value in seen.shift[epoch].items()}
        assert got == {k: float(v["rgb"][0][0, 0, 0, 0]) for k, v in want.items() if "rgb" in v}
    assert seen.shift[0] != seen.shift[1]


@pytest.mark.data
def test_utd_mhad(tmp_path, monkeypatch, capsys):
    """One command prepares what the configuration reads, and the published sides come out."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from skelact.cli import main
    from skelact.engine.build import build_data

    from .test_conf import CONF

    source = shared("utd_mhad")
    monkeypatch.setenv("SKELACT_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "data=utd_mhad_multi", f"source={source}", "workers=1"]) == 0
    assert "861 clips, 861 of them in all of skeleton, inertial, depth" in capsys.readouterr().out
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=["data=utd_mhad_multi", "data.withhold={depth:0.3}", "data.batch_size=16"])
    module = build_data(OmegaConf.to_container(cfg.data, resolve=True))
    assert (module.size("train"), module.size("val"), module.size("test")) == (323, 108, 430)
    batch = next(module.batches("test", 8))
    assert batch.available.all() and batch.parts["skeleton"].shape == (1, 20, 3)
    assert batch.parts["inertial"].values.shape == (8, 64, 6)
    assert batch.parts["depth"].values.shape == (8, 16, 3, 112, 112) and batch.parts["depth"].mask.all()
    side = torch.from_numpy(module._at[module.rows("train+val"), 2] >= 0)
    assert int((~side).sum()) == int(0.3 * 431 + 0.5)
    images = next(iter(module.train_dataloader()))
    trained = module.transfer_batch_to_device(images, CPU)
    assert len(trained.parts["depth"]) == int(trained.has("depth").sum()) < 16 == len(trained.parts["skeleton"])
    assert main(["info", "data=utd_mhad_multi", "data.modalities=[inertial,depth]"]) == 0
    shown = capsys.readouterr().out
    assert "modalities: 861 clips" in shown and "swipe left" in shown


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("residence", ["disk", "ram", "device"])
def test_on_a_gpu(root, residence):
    module, host = _module(root, residence=residence), _module(root, residence="disk")
    loaders = module.train_dataloader(), host.train_dataloader()
    for a, b in zip(*loaders, strict=True):
        a, b = module.transfer_batch_to_device(a, torch.device("cuda")), host.transfer_batch_to_device(b, CPU)
        assert all(part.to("cpu") is not part for part in a.parts.values()) and a.available.is_cuda
        a, b = _clips(module, a.to("cpu")), _clips(host, b)
        assert a.keys() == b.keys()
        for k, parts in b.items():
            assert parts.keys() == a[k].keys()
            torch.testing.assert_close(a[k], parts, rtol=1e-5, atol=1e-5)
