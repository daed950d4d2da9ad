"""The multi-modal datamodule under a trainer, on the real set, and on a GPU."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from skelact.clips import ModalClips

from .conftest import shared
from .modal_stores import CPU, by_number, epoch_of, modal, write_modal


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modal")
    write_modal(folder)
    return folder


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
    module = modal(root, num_workers=workers, drop_last=False)
    seen = _Seen()
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(seen, datamodule=module)
    assert sorted(seen.val) == sorted([*module.rows("val")] * 2)
    for epoch in (0, 1):
        want, _ = epoch_of(modal(root, drop_last=False), epoch)
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
    module, host = modal(root, residence=residence), modal(root, residence="disk")
    loaders = module.train_dataloader(), host.train_dataloader()
    for a, b in zip(*loaders, strict=True):
        a, b = module.transfer_batch_to_device(a, torch.device("cuda")), host.transfer_batch_to_device(b, CPU)
        assert all(part.to("cpu") is not part for part in a.parts.values()) and a.available.is_cuda
        a, b = by_number(module, a.to("cpu")), by_number(host, b)
        assert a.keys() == b.keys()
        for k, parts in b.items():
            assert parts.keys() == a[k].keys()
            torch.testing.assert_close(a[k], parts, rtol=1e-5, atol=1e-5)
