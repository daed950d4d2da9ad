"""FLOPs by the rule, against the table of measured costs of the published models (2 FLOPs a multiply-add, one clip)."""

from functools import partial

import pytest
import torch
from torch import nn

from skelact.backbones.base import Encoder
from skelact.backbones.dstformer import DSTformer
from skelact.backbones.stgcn import STGCN
from skelact.backbones.umurl import UmURLEncoder
from skelact.backbones.video import ImageEncoder
from skelact.clips import Frames, ModalClips, RaggedClips
from skelact.methods import cost
from skelact.methods.actionmae import ActionMAE
from skelact.methods.caca import CACA
from skelact.methods.cost import forward_cost, gflops, step_gflops
from skelact.methods.maskclr import MaskCLR
from skelact.methods.moco import AimCLR, CrosSCLR, SkeletonCLR
from skelact.methods.supcon import SupCon
from skelact.methods.supervised import Supervised
from skelact.methods.umurl import UmURL
from skelact.transforms.sampling import CenterCrop

STREAMS = ("joint", "bone", "motion")
META = torch.device("meta")


@pytest.fixture(autouse=True)
def nothing_is_computed(monkeypatch):
    """No count of this file computes anything, but where a test says otherwise."""
    counted, computed = cost._count, []

    def count(network, call, training, device):
        computed.append(device.type != "meta")
        return counted(network, call, training, device)

    monkeypatch.setattr(cost, "_count", count)
    yield computed
    assert not any(computed)


def views(method, clips=1, frames=64, persons=2):
    shape = clips, persons, frames, method.layout.num_joints, method.backbone.channels
    return [(torch.empty(shape, device=META), None)] * method.num_views


def stgcn(hidden):
    return Supervised(STGCN("ntu25", hidden=hidden), "ntu25", CenterCrop(64), 60)


def umurl():
    return UmURL(UmURLEncoder("ntu25", streams=STREAMS), "ntu25", CenterCrop(64), streams=STREAMS)


def dstformer(width=512, ratio=2):
    return Supervised(DSTformer("h36m17", width=width, mlp_ratio=ratio), "h36m17", CenterCrop(243), 60, head="action")


@pytest.mark.parametrize(
    ("hidden", "frames", "published", "parameters"),
    [
        (16, 50, 1.225, 0.84),
        (16, 64, 1.519, 0.84),
        (64, 50, 5.809, 3.10),
        (64, 64, 7.293, 3.10),
        (64, 300, 34.19, 3.10),
    ],
)
def test_stgcn(hidden, frames, published, parameters):
    with META:
        method = stgcn(hidden)
    found = forward_cost(method, (2, frames, 25, 3))
    assert found.gflops == pytest.approx(published, rel=1e-3)
    assert found.parameters / 1e6 == pytest.approx(parameters, rel=5e-3)  # a classifier of 60 classes among them
    assert forward_cost(method.backbone, (2, frames, 25, 3)).gflops == found.gflops


def test_umurl():
    with META:
        method = umurl()
    clip = 2, 64, 25, 3
    assert forward_cost(method, clip, ["joint"]).gflops == pytest.approx(1.740, rel=1e-3)
    fused = forward_cost(method.backbone, clip)
    assert fused == (pytest.approx(22.2e6, rel=1e-2), pytest.approx(2.536, rel=1e-3))
    assert gflops(
        method, lambda plain, device: plain.embed([(torch.empty(1, 2, 64, 25, 3, device=device), None)] * 4)
    ) == pytest.approx(7.957, rel=1e-3)
    assert forward_cost(method, clip).parameters == pytest.approx(72.5e6, rel=1e-2)


@pytest.mark.parametrize(
    ("width", "ratio", "frames", "persons", "published"),
    [(512, 2, 243, 2, 741.6), (512, 2, 243, 1, 370.8), (512, 2, 100, 2, 295.3), (256, 4, 243, 2, 284.2)],
)
def test_dstformer(width, ratio, frames, persons, published):
    with META:
        method = dstformer(width, ratio)
    found = forward_cost(method, (persons, frames, 17, 3))
    assert found.gflops == pytest.approx(published, rel=1e-3)
    assert width != 512 or found.parameters == pytest.approx(60.4e6, rel=1e-3)


def modal(names, frames=8, clips=1):
    with META:
        method = ActionMAE({name: partial(ImageEncoder, source=name, pretrained=False) for name in names}, names, 60)
    row = torch.zeros(clips, dtype=torch.int64)
    parts = {
        n: Frames(torch.empty(clips, frames, 3, 224, 224, device=META), torch.ones(clips, frames) > 0) for n in names
    }
    return method, ModalClips(parts, torch.ones(clips, len(names)) > 0, names, row, row)


def test_actionmae():
    names = "rgb", "depth", "ir"
    method, short = modal(names)
    _, long = modal(names, 16)
    found = forward_cost(method, short)
    assert found.gflops == pytest.approx(177.9, rel=0.01) and found.parameters == pytest.approx(109.8e6, rel=0.015)
    assert forward_cost(method, long).gflops == pytest.approx(354.1, rel=0.01)
    assert gflops(
        method, lambda plain, device: plain.encoder("ir").frames(torch.empty(1, 3, 224, 224, device=device))
    ) == pytest.approx(7.326, rel=1e-3)
    parts = [method.encoder("rgb").frames, *(method.encoder(n).temporal for n in names), method.core, method.fusion]
    image, *temporal, core, fusion = (sum(p.numel() for p in part.parameters()) / 1e6 for part in parts)
    assert (image, sum(temporal), core, fusion) == tuple(pytest.approx(x, rel=0.025) for x in (21.3, 18.9, 12.6, 12.6))
    # all of a step has gradients
    assert step_gflops(method, short) == pytest.approx(3 * found.gflops, rel=1e-3)
    method.encoder("rgb").frames.net.requires_grad_(False)
    assert step_gflops(method, short) == pytest.approx(3 * found.gflops - 2 * 8 * 7.326, rel=1e-3)


def test_what_is_counted_does_not_depend_on_the_form_of_the_network_and_leaves_it_alone():
    torch.manual_seed(0)
    plain, grouped = (
        SkeletonCLR(
            STGCN("ntu25", hidden=4, form=form, ignore_absent=True), "ntu25", CenterCrop(8), queue_size=64
        ).eval()
        for form in ("plain", "grouped")
    )
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    given = [(torch.zeros(3, 2, 8, 25, 3), torch.zeros(3, 2, 8, 25, dtype=torch.bool))] * 2
    assert step_gflops(plain, given) == step_gflops(grouped, given)
    assert not plain.training and plain.backbone.form == "plain" and "views" not in vars(plain)
    for name, value in plain.state_dict().items():
        assert value.device.type == "cpu" and torch.equal(value, before[name])
    # attention of one head multiplies weights before tokens where there are many of these
    with META:
        method = UmURLEncoder("ntu25", width=16)
    one, many = (
        gflops(method, lambda net, device, n=n: net({"joint": torch.empty(n, 2, 64, 25, 3, device=device)}))
        for n in (1, 64)
    )
    assert many == pytest.approx(64 * one)


def test_a_step_is_three_forward_passes_of_what_learns_and_one_of_what_does_not():
    clips, clip = 6, (2, 64, 25, 3)
    with META:
        method, options = umurl(), {"queue_size": 1024, "embedding": 128}
        moco = SkeletonCLR(STGCN("ntu25"), "ntu25", CenterCrop(64), **options)
        frozen = Supervised(STGCN("ntu25"), "ntu25", CenterCrop(64), 60, head_only=True)
    gram = 6 * 2 * clips**2 * 4096 / 1e9
    assert step_gflops(method, views(method, clips)) == pytest.approx(3 * (clips * 7.957 + gram), rel=1e-3)
    one = forward_cost(moco, clip).gflops + 2 * (256**2 + 256 * 128) / 1e9  # backbone and head
    similar = 2 * 128 * 1024 / 1e9
    assert step_gflops(moco, views(moco, clips)) == pytest.approx(clips * (4 * one + 3 * similar), rel=1e-9)
    one = forward_cost(frozen, clip).gflops
    assert step_gflops(frozen, views(frozen, clips)) == pytest.approx(clips * (one + 3 * 2 * 256 * 60 / 1e9), rel=1e-9)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", ["crosclr", "aimclr", "caca", "maskclr", "supcon"])
def test_every_kind_of_step_is_counted_on_nothing(kind, last):
    epoch = 0 if last else 9
    streams = ("joint",) if kind == "aimclr" else STREAMS
    with META:
        trunks = STGCN("ntu25", streams=streams, hidden=2, num_features=8)
        tokens = DSTformer("ntu25", width=8, token_features=4, depth=1, num_heads=2)
        sizes = {"embedding": 4, "streams": streams}
        method = {
            "crosclr": lambda: CrosSCLR(trunks, "ntu25", CenterCrop(8), cross_epoch=epoch, queue_size=16, **sizes),
            "aimclr": lambda: AimCLR(trunks, "ntu25", CenterCrop(8), mining_epoch=epoch, queue_size=16, **sizes),
            "caca": lambda: CACA(trunks, "ntu25", CenterCrop(8), cross_epoch=epoch, **sizes),
            "maskclr": lambda: MaskCLR(tokens, "ntu25", CenterCrop(8), 5, msk_path_start_epoch=epoch, head_hidden=8),
            "supcon": lambda: SupCon(tokens, "ntu25", CenterCrop(8), embedding=4),
        }[kind]()
    forward = forward_cost(method, (2, 8, 25, 3)).gflops
    # passes with and without gradient: CACA embeds two views on both sides, MaskCLR's second pathway begins later
    passes = {"crosclr": 4, "aimclr": 7, "caca": 8, "maskclr": 6 if last else 3, "supcon": 3}[kind]
    found = step_gflops(method, views(method, 4, 8))
    assert 4 * passes * forward < found < 4 * passes * forward * 1.2


def test_a_network_that_looks_at_values_is_run(nothing_is_computed):
    class Curious(Encoder):
        streams, num_features, channels = ("joint",), 4, 3

        def __init__(self):
            super().__init__()
            self.map = nn.Linear(3, 4)

        def forward_features(self, streams, mask=None):
            x = self.map(streams["joint"]).mean((1, 2, 3))
            return x if float(x.sum()) else x + 1

    network = Curious()
    assert forward_cost(network, (2, 8, 25, 3)).gflops == pytest.approx(2 * 2 * 8 * 25 * 12 / 1e9)
    assert nothing_is_computed == [False, True]
    nothing_is_computed.clear()


def test_inputs_of_the_wrong_kind_are_named():
    with META:
        method, (several, batch) = stgcn(2), modal(("rgb",))
    forward_cost(several, batch)
    with pytest.raises(TypeError, match="ActionMAE is given clips"):
        forward_cost(several, (2, 8, 25, 3))
    with pytest.raises(TypeError, match="Supervised is given the shape"):
        forward_cost(method, batch)
    with pytest.raises(TypeError, match="Supervised is given its batch if it reads several"):
        step_gflops(method, RaggedClips.pack([torch.zeros(3, 2, 25, 3)]))
