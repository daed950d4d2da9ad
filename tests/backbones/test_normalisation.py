"""Layers and encoders trained by several processes equal one process with the whole batch."""

import copy

import pytest
import torch

from skelact.backbones.normalisation import GlobalBatchNorm, StackedBatchNorm, global_batch_norm, over_ranks
from skelact.backbones.stgcn import STGCN, attention_drop
from skelact.methods.layers import SyncBatchNorm1d
from skelact.objectives import global_mean, world_size

pytestmark = pytest.mark.ddp
COUNTS = [(5, 3), (4, 0, 4)]  # clips of each rank


def noise(*shape):
    return 3 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


def trained(module, loss, out):
    """What a step leaves; gradients as DDP averages them."""
    loss.backward()
    grads = {name: p.grad / world_size() for name, p in module.named_parameters()}
    for grad in grads.values() if world_size() > 1 else ():
        torch.distributed.all_reduce(grad)
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    return {"loss": loss.detach(), "out": out.detach(), "grads": grads, "buffers": buffers}


def layers(rank, counts):
    """Both layers on rows of features, twice, so that running statistics have moved."""
    found = {}
    for name, norm, streams in [
        ("sync", SyncBatchNorm1d(6), None),
        ("cumulative", SyncBatchNorm1d(6, momentum=None, affine=False), None),
        ("all streams", StackedBatchNorm(3, 6), (0, 1, 2)),
        ("some streams", StackedBatchNorm(3, 6), (2, 0)),
    ]:
        torch.manual_seed(0)
        module = torch.nn.ModuleList([torch.nn.Linear(5, 6), norm]).double()
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter)
        x, scale = noise(len(streams or "1"), 8, 5), noise(1, 8, 6).split(counts, 1)[rank]
        for _ in range(2):
            y = module[0](x.split(counts, 1)[rank])
            y = norm(y[0])[None] if streams is None else norm(y, streams)
            x = x.square()
        found[name] = trained(module, global_mean((y * scale).sin().transpose(1, 2)).mean(), y.transpose(0, 1))
    return found


def trunks(rank, counts):
    """Encoders with two views of a clip, one of them through attention-guided drop."""
    found = {}
    for form in ("plain", "grouped"):
        for absent in (False, True):
            for frames in (13, 40):  # products of spectra and direct convolutions
                torch.manual_seed(0)
                options = {"hidden": 4, "num_features": 8, "dropout": 0.0, "form": form, "ignore_absent": absent}
                model = STGCN("coco17", streams=("joint", "bone", "motion"), **options).double()
                for parameter in model.parameters():
                    torch.nn.init.normal_(parameter, std=0.3)
                x, mask = noise(2, 8, 2, frames, 17, 3), torch.ones(8, 2, frames, 17, dtype=torch.bool)
                mask[1, 1] = mask[2, 0] = mask[3, 1] = mask[6] = False
                x, mask = x.split(counts, 1)[rank], mask.split(counts)[rank]
                given = {"joint": x[0], "motion": x[1]}
                out = model(given, mask)
                maps = model.feature_map({"joint": x[0]}, mask)
                dropped = attention_drop(maps[0].flatten(0, 1), keep=0.67).view_as(maps)
                loss = (
                    global_mean(out.sin().sum(1)) + global_mean(model.pool(dropped, mask).sin().transpose(1, 2)).mean()
                )
                found[f"{form}, {absent}, {frames}"] = trained(model, loss, torch.cat([out, maps[0].flatten(1)], 1))
    return found


def halves(rank, counts):
    """Half precision in, float32 statistics."""
    x = (100 + noise(8, 6, 4)).bfloat16().split(counts)[rank].requires_grad_()
    (out,), mean, variance = global_batch_norm([x], torch.ones(6), torch.zeros(6), 1e-5)
    (out * noise(8, 6, 4).flip(0).bfloat16().split(counts)[rank]).sum().backward()
    return {"out": out.detach(), "mean": mean, "variance": variance, "grad": x.grad}


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("function", [layers, trunks])
def test_processes_equal_one(function, counts, on_ranks):
    expected = function(0, (8,))
    results = on_ranks(function, counts)
    for name, one in expected.items():
        out = torch.cat([r[name]["out"] for r in results])
        torch.testing.assert_close(out, one["out"], rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
        for r in results:
            for part in ("loss", "grads", "buffers"):
                torch.testing.assert_close(
                    r[name][part], one[part], rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
                )


def test_statistics_of_half_precision_are_float32(on_ranks):
    results = on_ranks(halves, (5, 3))
    x = (100 + noise(8, 6, 4)).bfloat16().float().requires_grad_()
    y = torch.nn.functional.batch_norm(x, None, None, training=True)
    (y * noise(8, 6, 4).flip(0).bfloat16()).sum().backward()
    for r in results:
        torch.testing.assert_close(r["mean"], x.detach().mean((0, 2)))
        torch.testing.assert_close(r["variance"], x.detach().transpose(0, 1).flatten(1).var(1))
    for name, exact in (("out", y), ("grad", x.grad)):
        found = torch.cat([r[name] for r in results])
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), exact.detach(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_byobnet"])
def test_a_foreign_network_stays_what_it_is_in_one_process(name):
    """The second and third have layers that also activate."""
    import timm

    theirs = timm.create_model(name, num_classes=0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = over_ranks(copy.deepcopy(theirs))
    layers = [m for m in ours.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert layers and all(isinstance(m, GlobalBatchNorm) for m in layers)
    x = torch.randn(3, 3, 32, 32)
    for mode in (True, True, False):
        outputs = [model.train(mode)(x) for model in (theirs, ours)]
        assert outputs[0].equal(outputs[1])
    for model in (theirs, ours):
        model.train()(x).sin().sum().backward()
    for (key, p), (other, q) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
        assert key == other and torch.equal(p.grad, q.grad)
    states = theirs.state_dict(), ours.state_dict()
    assert list(states[0]) == list(states[1]) and all(states[0][key].equal(states[1][key]) for key in states[0])
