"""ST-GCN: equal to the released encoder, in both forms, for several streams, with and without absent persons."""

from pathlib import Path

import numpy as np
import pytest
import torch

from skelact.backbones.stgcn import STGCN, attention_drop
from skelact.backbones.stgcn_blocks import keep_mask, temporal_conv
from skelact.benchmarks.straightforward.stgcn import StraightforwardSTGCN

FOLDER = Path(__file__).parents[1] / "golden" / "aimclr"
FORMS = ("plain", "grouped")
TOLERANCE = {torch.float64: {"rtol": 1e-8, "atol": 1e-8}, torch.float32: {"rtol": 2e-4, "atol": 2e-4}}


@pytest.fixture(scope="module")
def golden():
    return {key: torch.from_numpy(value) for key, value in np.load(FOLDER / "stgcn.npz").items() if "__" not in key}


def released(golden, form, dtype):
    model = STGCN("ntu25", hidden=4, num_features=24, dropout=0.0, form=form)
    model.load_trunk_state("joint", {k.removeprefix("state/"): v for k, v in golden.items() if k.startswith("state/")})
    head = torch.nn.Linear(24, 8)
    head.load_state_dict({"weight": golden["state/fc.weight"], "bias": golden["state/fc.bias"]})
    return model.to(dtype), head.to(dtype), {"joint": golden["x"].to(dtype).permute(0, 4, 2, 3, 1)}


def small(streams=("joint", "bone"), **options):
    torch.manual_seed(0)
    model = STGCN("ntu25", **{"streams": streams, "hidden": 4, "num_features": 12, "dropout": 0.0, **options})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.double()


def clips(*streams, n=3, m=2, t=13, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return {s: torch.randn(n, t, m, 25, 3, generator=generator, dtype=dtype).transpose(1, 2) for s in streams}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_evaluation_equals_the_released_encoder(golden, form, dtype):
    model, head, x = released(golden, form, dtype)
    close = lambda a, key: torch.testing.assert_close(a.to(golden[key]), golden[key], **TOLERANCE[dtype])  # noqa: E731
    model.eval()
    with torch.no_grad():
        close(model(x), "eval/pooled")
        close(head(model(x)), "eval/out")
        features = model.feature_map(x)
        assert features.shape == (1, 3, 2, 24, 4, 25)
        torch.testing.assert_close(features.flatten(1, 2)[0, :2].float(), golden["eval/block9"], rtol=2e-5, atol=2e-6)
        close(head(model.pool(features)[0]), "eval/drop_x")
        dropped = attention_drop(features[0].flatten(0, 1)).unflatten(0, (3, 2))[None]
        close(head(model.pool(dropped)[0]), "eval/drop_y")


@pytest.mark.parametrize("number", [0, 4, 9])
@pytest.mark.parametrize("form", FORMS)
def test_blocks_equal_the_released_ones(golden, form, number):
    model, _, x = released(golden, form, torch.float64)
    model.eval().st_gcn_networks = model.st_gcn_networks[: number + 1]
    model.edge_importance = model.edge_importance[: number + 1]
    with torch.no_grad():
        found = model.feature_map(x).flatten(1, 2)[0, :2]
    expected = golden[f"eval/block{number}"]
    torch.testing.assert_close(found.float(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_training_equals_the_released_encoder(golden, form, dtype):
    model, head, x = released(golden, form, dtype)
    tolerance = TOLERANCE[dtype]
    out = head(model.train()(x))
    torch.testing.assert_close(out.double(), golden["train/out"], **tolerance)
    (out * golden["train/grad_weight"].to(dtype)).sum().backward()
    stored = np.load(FOLDER / "stgcn.npz")
    norms = dict(zip(stored["train/grad__names"], stored["train/grad__l2"], strict=True))
    sums = dict(zip(stored["train/grad__names"], stored["train/grad__sum"], strict=True))
    found = {name: p.grad[0] for name, p in model.named_parameters()}
    found |= {f"fc.{name}": p.grad for name, p in head.named_parameters()}
    assert set(found) == set(norms)
    for name, grad in found.items():
        scale = max(1.0, norms[name])
        assert abs(grad.double().norm().item() - norms[name]) < tolerance["atol"] * scale, name
        assert abs(grad.double().sum().item() - sums[name]) < tolerance["atol"] * scale * grad.numel() ** 0.5, name
        if f"train/grad/{name}" in golden:
            torch.testing.assert_close(grad.double(), golden[f"train/grad/{name}"], **tolerance)
    with torch.no_grad():
        features = model.feature_map(x)
        dropped = attention_drop(features[0].flatten(0, 1)).unflatten(0, (3, 2))[None]
    torch.testing.assert_close(head(model.pool(features)[0]).double(), golden["train/drop_x"], **tolerance)
    torch.testing.assert_close(head(model.pool(dropped)[0]).double(), golden["train/drop_y"], **tolerance)
    for key in golden:
        name = key.removeprefix("train/buffers_after/")
        if name != key and name.endswith(("mean", "var")):
            torch.testing.assert_close(model.get_buffer(name)[0].double(), golden[key], **tolerance)
    assert model.data_bn.num_batches_tracked[0] == golden["state/data_bn.num_batches_tracked"][0] + 2


@pytest.mark.parametrize("keep", ["0.7", "0.9"])
def test_attention_drop_equals_the_released_one(keep):
    stored = {key: torch.from_numpy(value) for key, value in np.load(FOLDER / "eadm.npz").items()}
    x = stored["x"].double().requires_grad_()
    out = attention_drop(x, float(keep))
    (out * stored["grad_weight"].double()).sum().backward()
    torch.testing.assert_close(out, stored[f"keep{keep}/out"], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(x.grad, stored[f"keep{keep}/grad_in"], rtol=1e-10, atol=1e-10)


def test_attention_drop_that_would_keep_nothing_keeps_all():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(attention_drop(x, keep=0.1), x)


@pytest.mark.parametrize("streams", [("joint", "bone"), ("bone",)])
@pytest.mark.parametrize("training", [True, False])
def test_both_forms_agree_and_equal_the_straightforward_one(streams, training):
    models = [small(form=form).train(training) for form in FORMS]
    x = clips(*streams)
    outs = [model(x) for model in models]
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(outs[0])
    for out in outs:
        (out * weight).sum().backward()
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-7, atol=1e-8, msg=name)
    for (name, a), b in zip(models[0].named_buffers(), models[1].buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=name)
    if len(streams) == 2:
        plain = StraightforwardSTGCN(small()).double().train(training)
        torch.testing.assert_close(plain(x), outs[0], rtol=1e-9, atol=1e-9)
    else:
        assert not outs[0][:, :12].any() and outs[0][:, 12:].any()  # the stream that was not given
        assert models[0].data_bn.num_batches_tracked.tolist() == [0, int(training)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [True, False])
def test_absent_persons_change_nothing(form, training):
    model = small(("joint",), form=form, ignore_absent=True).train(training)
    x = clips("joint")["joint"].contiguous()
    mask = torch.ones(x.shape[:4], dtype=torch.bool)
    mask[1, 1] = mask[2] = False
    x[1, 1] = x[2] = 0
    features = model({"joint": x}, mask)
    x[1, 1] = 7.0
    again = small(("joint",), form=form, ignore_absent=True).train(training)
    torch.testing.assert_close(again({"joint": x}, mask), features)
    assert features.isfinite().all()
    maps = again.eval().feature_map({"joint": x}, mask)
    assert not maps[0, 1, 1].any()
    torch.testing.assert_close(again.pool(maps, mask)[0], again({"joint": x}, mask))
    alone = again({"joint": x[1:2, :1]})
    torch.testing.assert_close(again({"joint": x}, mask)[1:2], alone)


@pytest.mark.parametrize("rows", [6, 7])
@pytest.mark.parametrize(("frames", "stride"), [(1, 1), (2, 1), (4, 2), (5, 1), (13, 1), (16, 2), (25, 2), (50, 1)])
def test_products_of_spectra_are_the_convolution(frames, stride, rows):
    """Gradients too; even numbers of such narrow rows are taken in pairs."""
    torch.manual_seed(0)
    x, weight = torch.randn(frames, rows, 5).double(), torch.randn(4, 5, 9, 1).double()
    found = []
    for spectral in (True, False):
        own = [t.clone().requires_grad_() for t in (x, weight)]
        y = temporal_conv(*own, stride, spectral)
        found.append((y, *torch.autograd.grad(y.square().sum(), own)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("p", [0.5, 0.25, 0.3])
def test_dropout_keeps_its_share(p):
    torch.manual_seed(0)
    mask = keep_mask(torch.empty(1001, 97), p)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask.mean().item() == pytest.approx(1 - p, abs=5 * (p * (1 - p) / mask.numel()) ** 0.5)


@pytest.mark.parametrize("form", FORMS)
def test_dropout_acts_in_training_only_and_keeps_the_mean(form):
    model, x = small(("joint",), form=form, dropout=0.5), clips("joint", n=2)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_states_travel_between_trunks_under_released_names():
    model, other = small(), small(("motion",))
    other.load_trunk_state("motion", model.trunk_state("bone"))
    x = clips("bone")["bone"]
    torch.testing.assert_close(other.eval()({"motion": x}), model.eval()({"bone": x})[:, 12:])
    state = model.trunk_state("bone")
    assert state["st_gcn_networks.4.tcn.2.weight"].shape == (8, 8, 9, 1)
    with pytest.raises(ValueError, match=r"data_bn\.bias"):
        other.load_trunk_state("motion", {k: v for k, v in state.items() if k != "data_bn.bias"})
    with pytest.raises(ValueError, match="graph"):
        other.load_trunk_state("motion", state | {"A": state["A"] + 0.1})


def test_published_sizes():
    count = lambda **options: sum(p.numel() for p in STGCN("ntu25", **options).parameters())  # noqa: E731
    assert count() == 821_380 and count(hidden=64) == 3_083_412 and count(num_features=512) == 2_659_204


@pytest.mark.parametrize("layout", ["kinect20", "coco17", "hdm05_31"])
def test_any_layout_and_partition(layout):
    for strategy in ("uniform", "distance", "spatial"):
        model = STGCN(layout, hidden=4, num_features=8, strategy=strategy, max_hop=2, edge_importance=False)
        assert model({"joint": torch.randn(2, 1, 9, model.joints, 3)}).shape == (2, 8)


def test_wrong_inputs_are_named():
    model = small()
    with pytest.raises(ValueError, match="motion"):
        model(clips("motion"))
    with pytest.raises(ValueError, match="25, 3"):
        model({"joint": torch.zeros(1, 2, 8, 20, 3)})
    with pytest.raises(ValueError, match="odd"):
        STGCN("ntu25", temporal_kernel=8)


def test_initialisation_by_fan_in_keeps_untrained_features_readable():
    """The released weights shrink a map from layer to layer as long as no statistics normalise it."""
    spread = {}
    for init in ("released", "he"):
        torch.manual_seed(0)
        model = STGCN("ntu25", hidden=8, num_features=32, init=init).eval()
        weight = model.st_gcn_networks[5].tcn["2"].weight
        assert weight.std().item() == pytest.approx(
            {"released": 0.02, "he": (2 / weight[0, 0].numel()) ** 0.5}[init], rel=0.1
        )
        with torch.no_grad():
            spread[init] = model(clips("joint", n=8, dtype=torch.float32)).std(0).mean()
    assert spread["he"] > 100 * spread["released"]
    with pytest.raises(ValueError, match="init must be"):
        STGCN("ntu25", init="xavier")
