from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from skelact.clips import RaggedClips
from skelact.data.datamodules import SkeletonDataModule
from skelact.data.loading import DealtBatches, available_memory
from skelact.data.store import Store, StoreError
from skelact.data.writer import StoreWriter
from skelact.errors import SkelactError
from skelact.transforms.normalize import Normalize

from .conftest import make_card, write_store


def _equal(a: RaggedClips, b: RaggedClips) -> None:
    assert a.index.tolist() == b.index.tolist() and a.label.tolist() == b.label.tolist()
    assert a.length.tolist() == b.length.tolist() and a.total == b.total == sum(a.length.tolist())
    people = [max(int(a.clip_mask(row).any(2).any(0).sum()), 1) for row in range(len(a))]
    assert a.people == b.people == (None if a.mask is None else sum(people))
    for row in range(len(a)):
        assert torch.equal(a.clip(row), b.clip(row)) and torch.equal(a.clip_mask(row), b.clip_mask(row))


@pytest.mark.parametrize("layout", [None, "ntu25"])
@pytest.mark.parametrize("normalize", [None, "center", "umurl"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_three_residences_give_equal_batches(tmp_path, monkeypatch, layout, normalize, masked):
    monkeypatch.setattr("skelact.data.loading.CHUNK_FRAMES", 50)
    write_store(tmp_path / "s", masked=masked)
    modules = {
        residence: SkeletonDataModule(
            str(tmp_path / "s"), "xsub", layout=layout, normalize=normalize, residence=residence, batch_size=4,
            eval_batch_size=5,
        )
        for residence in ("disk", "ram", "device")
    }  # fmt: skip
    cpu = torch.device("cpu")
    for part in ("train", "val", "test", "train+val"):
        reference = list(modules["ram"].batches(part))
        assert [i for batch in reference for i in batch.index.tolist()] == modules["ram"].rows(part).tolist()
        for module in modules.values():
            for a, b in zip(reference, module.batches(part, device="cpu"), strict=True):
                _equal(a, b)
                assert a.frames.dtype == torch.float32
    loaders = [(m, m.train_dataloader()) for m in modules.values()]
    assert len({len(loader) for _, loader in loaders}) == 1
    for batches in zip(*(loader for _, loader in loaders), strict=True):
        got = [m.transfer_batch_to_device(batch, cpu) for (m, _), batch in zip(loaders, batches, strict=True)]
        _equal(got[0], got[1])
        _equal(got[0], got[2])


@pytest.mark.parametrize("residence", ["disk", "ram"])
@pytest.mark.parametrize("extra", [["depth_x", "tracking"], ["depth_x", "score", "tracking"], ["score"]])
def test_batches_have_coordinates_and_a_score_whatever_else_the_store_keeps(tmp_path, residence, extra):
    """Pixels and tracking states stay in the store; `score`, wherever it stands, comes last."""
    channels = ["x", "y", "z", *extra]
    draw = np.random.default_rng(0)
    with StoreWriter(tmp_path / "s", make_card(channels=channels)) as writer:
        clips = [draw.standard_normal((5 + k, 1, 20, len(channels))).astype("f4") for k in range(8)]
        for k, frames in enumerate(clips):
            writer.add(f"c{k}", frames, k % 3, subject=1 + k % 4)
    want = [0, 1, 2] + ([channels.index("score")] if "score" in extra else [])
    module = SkeletonDataModule(str(tmp_path / "s"), "xsub", residence=residence, channels=len(want), eval_batch_size=3)
    assert module.num_channels == len(want)
    for batch in module.batches("train+val"):
        for row, index in enumerate(batch.index.tolist()):
            np.testing.assert_array_equal(batch.clip(row).numpy(), clips[index][..., want])
    assert module.store.frames.shape[3] == len(channels)
    assert module._ready.nbytes() == module._ready.load_all().frames.nbytes
    with pytest.raises(SkelactError, match=rf"data.channels={len(want)}"):
        SkeletonDataModule(str(tmp_path / "s"), "xsub", channels=9).setup()


def test_resident_batches_are_integers(store):
    module = SkeletonDataModule(str(store.path), "xsub", residence="device")
    batch = next(iter(module.train_dataloader()))
    assert batch.dtype == torch.int64 and batch.ndim == 1


def test_a_store_is_sent_to_its_device_once(masked_store):
    """For training and evaluation; the host knows of each batch how many frames it has."""
    module = SkeletonDataModule(str(masked_store.path), "xsub", residence="device", eval_batch_size=3)
    rows, meta = next(iter(module.train_dataloader())), torch.device("meta")
    batch = module.transfer_batch_to_device(rows, meta)
    assert batch.device == meta and batch.total == masked_store.length[rows].sum()
    assert batch.people == int(module._ready.load(rows).people_in_each().sum())
    batches = [batch, *module.batches("val", device=meta), *module.batches("test", device=meta)]
    assert len(batches) > 2 and all(b.frames is batch.frames and b.mask is batch.mask for b in batches)


def test_disk_loader_workers_give_the_same(masked_store):
    def epoch(workers):
        module = SkeletonDataModule(
            str(masked_store.path), "xsub", normalize="center", residence="disk", batch_size=4, num_workers=workers
        )
        return list(module.train_dataloader())

    for a, b in zip(epoch(0), epoch(2), strict=True):
        _equal(a, b)


def test_one_store_is_shared_by_pickled_loaders(store):
    module = SkeletonDataModule(str(store.path), "xsub", normalize="center", residence="disk")
    loader = pickle.loads(pickle.dumps(module._ready))
    _equal(loader.load(np.array([1, 2])), module._ready.load(np.array([1, 2])))


def test_one_frame_clips_pass_through(store):
    module = SkeletonDataModule(str(store.path), "xsub", normalize="umurl")
    lengths = torch.cat([batch.length for batch in module.batches("train+val")])
    assert lengths.min() == 1


def test_normalise_module_equals_its_name(store):
    by_name = SkeletonDataModule(str(store.path), "xsub", normalize="center")
    by_module = SkeletonDataModule(str(store.path), "xsub", normalize=Normalize("center", "kinect20"))
    for a, b in zip(by_name.batches("test"), by_module.batches("test"), strict=True):
        _equal(a, b)


def test_attributes_without_an_explicit_setup(store):
    module = SkeletonDataModule(str(store.path), "xsub")
    assert module.layout.name == "kinect20" and module.num_classes == 3 and module.num_persons == 1
    assert module.fingerprint == store.fingerprint and module.num_channels == 3
    assert module.groups("test").tolist() == module.clip_names("test")
    assert module.labels("test").tolist() == store.label[module.rows("test")].tolist()
    assert SkeletonDataModule(str(store.path), "xsub").name is None and module.name == "toy"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_classes": 60}, r"data.num_classes=60, but .* has 3: set data.num_classes=3"),
        ({"persons": 2}, "data.persons=1"),
        ({"channels": 2}, "data.channels=3"),
        ({"layout": "coco17"}, "data.layout=coco17 does not suit .*kinect20.*set data.layout=kinect20"),
        ({"layout": "ntu52"}, "unknown layout 'ntu52'"),
        ({"normalize": "centre"}, "data.normalize does not suit .*unknown normalisation 'centre'"),
        ({"normalize": {"mode": "center", "fil": "copy"}}, "data.normalize takes mode, center, fill, chunk, no fil"),
        ({"split": "xview"}, "no split 'xview'.*xsub"),
        ({"residence": "cloud"}, "data.residence='cloud'"),
        ({"fit": "test"}, "data.fit='test'"),
        ({"label_fraction": 0.1, "labels_per_class": 1}, "not both"),
    ],
)
def test_configuration_that_does_not_fit_the_store(store, options, reason):
    with pytest.raises(SkelactError, match=reason):
        SkeletonDataModule(**{"store": str(store.path), "split": "xsub", **options}).setup()


def test_normalisation_with_options(store):
    module = SkeletonDataModule(str(store.path), "xsub", normalize={"mode": "body", "center": "shoulder_center"})
    assert (next(module.batches("test")).frames[:, :, module.layout.index("shoulder_center")] == 0).all()


def test_a_missing_store_names_the_command(tmp_path):
    with pytest.raises(StoreError, match=r"no store yet.*skelact prepare data=nw_ucla source=FOLDER"):
        SkeletonDataModule(str(tmp_path / "nw_ucla"), "xview", name="nw_ucla").setup()
    with pytest.raises(StoreError, match=r"prepare data=ntu60 data.pipeline=energy source=FOLDER"):
        SkeletonDataModule(str(tmp_path / "ntu60_energy"), "xsub", name="ntu60", pipeline="energy").setup()
    with pytest.raises(StoreError, match=r"prepare data=custom data.name=gestures layout=NAME_OR_FILE source=FOLDER"):
        SkeletonDataModule(str(tmp_path / "gestures"), "default", name="gestures").setup()


def test_a_store_without_a_pipeline_is_told_as_the_command_line_writes_it(store):
    with pytest.raises(SkelactError, match=r"set data\.pipeline=null"):
        SkeletonDataModule(str(store.path), "xsub", pipeline="energy").setup()


def test_an_empty_part_is_named(tmp_path):
    rule = {"factor": "subject", "train": [1, 2], "test": [9], "val": {"factor": "subject", "values": [5]}}
    write_store(tmp_path / "s", splits={"odd": rule})
    module = SkeletonDataModule(str(tmp_path / "s"), "odd")
    for part in ("val", "test"):
        with pytest.raises(SkelactError, match=rf"part '{part}' of split 'odd' of toy has no clips"):
            next(iter(module.batches(part)))
    with pytest.raises(SkelactError, match="part 'val'"):
        module.val_dataloader()
    with pytest.raises(SkelactError, match="part 'test'"):
        module.test_dataloader()


@pytest.mark.parametrize("residence", ["disk", "ram"])
def test_changed_clips_are_read_converted_changed_and_normalised(store, residence):
    options = {"layout": "ntu25", "normalize": "center", "residence": residence, "eval_batch_size": 5}
    module = SkeletonDataModule(str(store.path), "xsub", **options)
    plain = list(module.batches("test"))
    seen = []

    def twice(clips: RaggedClips) -> RaggedClips:
        seen.append(clips.shape[1])
        return replace(clips, frames=2 * clips.frames)

    for stored, joints in ((False, 25), (True, module.store.shape[2])):
        seen.clear()
        changed = list(module.batches("test", device="cpu", change=twice, stored=stored))
        assert set(seen) == {joints} and len(seen) == len(plain)
        for a, b in zip(plain, changed, strict=True):
            assert torch.allclose(2 * a.compact().frames, b.frames, atol=1e-5) and torch.equal(a.index, b.index)
    for a, b in zip(plain, module.batches("test"), strict=True):
        _equal(a, b)  # what is resident stays


def test_validation_is_optional(tmp_path, store):
    write_store(tmp_path / "s", splits={"plain": {"factor": "subject", "train": [1, 2]}})
    assert SkeletonDataModule(str(tmp_path / "s"), "plain").val_dataloader() == []
    assert SkeletonDataModule(str(store.path), "xsub", validation=False).val_dataloader() == []


def test_few_labels_cut_the_training_part_only(store):
    module = SkeletonDataModule(str(store.path), "xsub", labels_per_class=1)
    full = SkeletonDataModule(str(store.path), "xsub")
    assert sorted(module.labels("train").tolist()) == [0, 1, 2]
    assert module.size("val") == full.size("val") and module.size("test") == full.size("test")
    assert set(module.clip_names("train")) <= set(full.clip_names("train"))
    assert module.clip_names("train") != SkeletonDataModule(
        str(store.path), "xsub", labels_per_class=1, label_draw=1
    ).clip_names("train")
    seen = {int(i) for batch in module.train_dataloader() for i in batch}
    assert len(seen) == 3  # fewer clips than a batch still train


def test_fit_train_and_val(store):
    module = SkeletonDataModule(str(store.path), "xsub", fit="train+val", batch_size=1)
    assert sorted(int(i) for batch in module.train_dataloader() for i in batch) == module.rows("train+val").tolist()


def test_variants_share_frames_and_differ_in_options(store):
    module = SkeletonDataModule(str(store.path), "xsub", batch_size=1, residence="ram")
    next(module.batches("train"))
    few = module.variant(fit="train+val", labels_per_class=1, batch_size=4, validation=False)
    assert few.size("train+val") == 3 and module.size("train+val") > 3 and few.val_dataloader() == []
    assert next(few.batches("test")).frames.data_ptr() == next(module.batches("test")).frames.data_ptr()
    assert len(list(few.train_dataloader())) == 1 and len(list(module.train_dataloader())) == module.size("train")
    with pytest.raises(SkelactError, match=r"data\.split cannot be changed"):
        module.variant(split="other")
    for options in ({"label_rule": "random"}, {"label_rule": "aimclr", "labels_per_class": 1}):
        with pytest.raises(SkelactError, match="label_rule"):
            module.variant(**options)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("drop_last", [True, False])
def test_global_batches_do_not_depend_on_ranks(world, drop_last):
    rows = np.arange(100, 203)

    def deal(epoch):
        ranks = []
        for rank in range(world):
            sampler = DealtBatches(rows, 8, rank, world, shuffle=True, seed=3, drop_last=drop_last)
            sampler.set_epoch(epoch)
            ranks.append(list(sampler))
            assert len(sampler) == len(ranks[-1])
        assert len({len(batches) for batches in ranks}) == 1
        return [torch.cat(parts) for parts in zip(*ranks, strict=True)]

    single = DealtBatches(rows, 8, shuffle=True, seed=3, drop_last=drop_last)
    for epoch in (0, 1):
        single.set_epoch(epoch)
        want = list(single)
        got = deal(epoch)
        for a, b in zip(want[:12], got[:12], strict=True):
            assert a.tolist() == b.tolist()
    assert deal(0)[0].tolist() != deal(1)[0].tolist()
    everything = torch.cat(deal(0)).tolist()
    assert len(set(everything)) == len(everything) and set(everything) <= set(rows.tolist())


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 7, 64, 103])
def test_evaluation_is_exact_on_any_number_of_ranks(world, count):
    dealt = [
        i for rank in range(world) for batch in DealtBatches(np.arange(count), 8, rank, world) for i in batch.tolist()
    ]
    assert sorted(dealt) == list(range(count))
    assert len({len(DealtBatches(np.arange(count), 8, rank, world)) for rank in range(world)}) == 1


def test_batches_that_ranks_cannot_share():
    with pytest.raises(SkelactError, match="multiple of 3"):
        DealtBatches(np.arange(100), 64, 0, 3, shuffle=True)
    with pytest.raises(SkelactError, match="cannot be shared"):
        DealtBatches(np.arange(2), 3, 0, 3, shuffle=True)
    with pytest.raises(SkelactError, match="at least one"):
        DealtBatches(np.arange(2), 0)


class _Seen(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.order, self.val, self.tested = [], [], []

    def training_step(self, batch, batch_idx):
        assert isinstance(batch, RaggedClips)
        self.order.append((self.current_epoch, batch.index.tolist()))
        return (self.weight * batch.frames.mean()).sum()

    def validation_step(self, batch, batch_idx):
        self.val += batch.index.tolist()

    def test_step(self, batch, batch_idx):
        self.tested += batch.index.tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("residence", ["disk", "ram", "auto"])
def test_under_a_trainer(store, residence, tmp_path):
    module = SkeletonDataModule(str(store.path), "xsub", residence=residence, batch_size=4, eval_batch_size=4)
    seen = _Seen()
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(seen, datamodule=module)
    trainer.test(seen, datamodule=module, verbose=False)
    epochs = [[i for epoch, rows in seen.order if epoch == k for i in rows] for k in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == module.rows("train").tolist()
    assert epochs[0] != epochs[1]  # the trainer tells the sampler the epoch
    assert seen.val == 2 * module.rows("val").tolist() and seen.tested == module.rows("test").tolist()
    assert module.residence == ("ram" if residence == "auto" else residence)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_device_residence(masked_store):
    module = SkeletonDataModule(str(masked_store.path), "xsub", normalize="center", residence="device")
    reference = SkeletonDataModule(str(masked_store.path), "xsub", normalize="center", residence="disk")
    for a, b in zip(module.batches("train", device="cuda"), reference.batches("train"), strict=True):
        assert a.device.type == "cuda" and len(a.frames) == masked_store.shape[0]  # shared, not copied
        _equal(a.to("cpu"), b)


@pytest.mark.parametrize(("name", "sizes"), [("hdm05", (128, 61, 99)), ("hdm05_views", (384, 183, 297))])
def test_embedded_datasets_prepare_themselves(embedded_root, name, sizes):
    module = SkeletonDataModule(
        str(embedded_root / name), "xsub", name=name, layout="hdm05_31", persons=1, channels=3, num_classes=11
    )
    assert tuple(module.size(part) for part in ("train", "val", "test")) == sizes
    assert "CC BY-SA 3.0" in module.card["licence"] and "HDM05" in module.card["citation"]
    groups = module.groups("test")
    assert len(set(groups.tolist())) == 99
    motions = {name.rsplit("_c", 1)[0] if "views" in module.name else name for name in module.clip_names("test")}
    assert motions == set(groups.tolist())
    assert Store(embedded_root / name).fingerprint == module.fingerprint


def test_card_of_conftest_is_whole(tmp_path):
    assert set(make_card()) <= set(write_store(tmp_path / "s").card)


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="reads /proc/meminfo")
def test_memory_that_caches_hold_can_be_had():
    with open("/proc/meminfo") as stream:
        numbers = {line.split(":")[0]: int(line.split()[1]) << 10 for line in stream}
    assert numbers["MemFree"] / 2 < available_memory() <= numbers["MemTotal"]
