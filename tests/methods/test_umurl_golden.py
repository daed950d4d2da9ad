"""UmURL against tensors computed with the reference code."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from skelact.backbones.umurl import UmURLEncoder, spatial_tokens, temporal_tokens
from skelact.interop import load_official
from skelact.methods.umurl import UmURL
from skelact.skeleton.layouts import get_layout
from skelact.skeleton.streams import derive

GOLDEN = Path(__file__).parents[1] / "golden" / "umurl"
STREAMS = ("joint", "bone", "motion")
ZERO_GRADIENT = ("_projector.0.bias", "_projector.3.bias", "norm2.bias")


def golden(name):
    return {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / f"{name}.npz", allow_pickle=False).items()}


def dense(x):
    """The reference's (N, C, T, V, M) as our (N, M, T, V, C), in the samplers' memory order."""
    return x.permute(0, 2, 4, 3, 1).contiguous().transpose(1, 2)


@pytest.fixture(scope="module")
def io():
    return golden("bc_model_io")


@pytest.fixture(scope="module")
def views(io):
    return [dense(io[f"data_v{k}"]) for k in (1, 2, 3, 4)]


@pytest.fixture
def method():
    return load_official("umurl", golden("bc_model_state"))


def close(ours, theirs, atol, rtol=0.0):
    torch.testing.assert_close(ours.detach(), theirs, atol=atol, rtol=rtol)


def test_tokens_equal_reference():
    data = golden("a_modality")
    layout = get_layout("ntu25")
    pairs = [[child + 1, parent + 1] for child, parent in enumerate(layout.parents)]
    assert pairs == data["bone_pairs_1based"].tolist()
    for prefix, x in (("index", data["x_index"]), ("real", data["x_real"])):
        for stream, value in derive(dense(x), STREAMS, layout).items():
            assert torch.equal(temporal_tokens(value), data[f"{prefix}_{stream}_t"])
            assert torch.equal(spatial_tokens(value), data[f"{prefix}_{stream}_s"])


def test_intermediates_equal_reference(method, io, views):
    backbone = method.backbone
    with torch.no_grad():
        for k, (stream, view) in enumerate(zip(STREAMS, views, strict=False)):
            t, s = backbone.embedding(stream)([method.derive(view, [stream])[stream]])[0]
            close(t, io[f"emb_{'jbm'[k]}_t"], 1e-5)
            close(s, io[f"emb_{'jbm'[k]}_s"], 1e-5)
        fused = backbone.mm_fusion([backbone.embedding(k)([x])[0] for k, x in method.derive(views[3]).items()])
        close(fused[0], io["fused_t"], 1e-5)
        close(fused[1], io["fused_s"], 1e-5)
        encoder = backbone.ma_encoder
        close(encoder.pe(io["emb_j_t"]), io["enc_t_in_pe"], 1e-6)
        close(encoder.t_tr(io["enc_t_in_pe"]), io["enc_t_out"], 1e-5)
        close(encoder.s_tr(io["emb_j_s"]), io["enc_s_out"], 1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_features_equal_reference(method, io, views, training):
    method.train(training)
    with torch.no_grad():
        for name, stream, view in zip("jbm", STREAMS, views, strict=False):
            close(method.encode(view, [stream]), io[f"y_{name}"], 1e-5)
        close(method.encode(views[3]), io["y_u"], 1e-5)
        close(method.encode(views[3]), io["y_u_evalmode"], 1e-5)


def test_embeddings_and_running_statistics_equal_reference(method, io, views):
    with torch.no_grad():
        uni, fused = method.eval().embed([(view, None) for view in views])
        for name, z, z_u in zip("jbm", uni, fused, strict=True):
            close(z[:, :128], io[f"eval_z_{name}_first128"], 1e-5)
            close(z_u[:, :128], io[f"eval_z_u{name}_first128"], 1e-5)
        uni, fused = method.train().embed([(view, None) for view in views])
    for name, z, z_u in zip("jbm", uni, fused, strict=True):
        close(z, io[f"train_z_{name}"], 1e-4)
        close(z_u, io[f"train_z_u{name}"], 1e-4)
    state = method.state_dict()
    expected = {k.split("::")[1]: v for k, v in io.items() if k.startswith("after_train_fwd::")}
    assert len(expected) == 18
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-7)  # means near zero: float32


def test_two_heads_and_two_layers_equal_reference(io, views):
    data = golden("bc_backbone_h2l2")
    backbone = UmURLEncoder("ntu25", persons=2, frames=16, width=16, depth=2, num_heads=2)
    backbone.load_state_dict({k.split("::")[1]: v for k, v in data.items() if "::" in k})
    layout = get_layout("ntu25")
    for mode in ("train", "eval"):
        backbone.train(mode == "train")
        with torch.no_grad():
            for name, stream, view in zip("jbm", STREAMS, views, strict=False):
                close(backbone(derive(view, [stream], layout)), data[f"{mode}_y_{name}"], 1e-5)
            close(backbone(derive(views[3], STREAMS, layout)), data[f"{mode}_y_u"], 1e-5)


def steps(method, views, count, fused=False):
    data = golden("f_optim_step")
    adam = partial(torch.optim.Adam, lr=float(data["lr"]), weight_decay=float(data["weight_decay"]), fused=fused)
    method.optimizer = adam
    optimizer = method.configure_optimizers()
    for _ in range(count):
        terms = method.objective(*method.embed([(view, None) for view in views]))
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        yield terms


@pytest.mark.parametrize("fused", [False, True])
def test_first_optimiser_step_equals_reference_in_float64(method, views, fused):
    data = golden("f_optim_step")
    method.double().train()
    views = [view.double() for view in views]
    for number, terms in enumerate(steps(method, views, 4, fused)):
        close(terms.total, data["loss_f64"][number], 0, 1e-9)
        if number:
            continue
        close(terms.intra, data["terms_intra"], 0, 1e-9)
        close(terms.inter, data["terms_inter"], 0, 1e-9)
        close(5 * terms.variance + terms.covariance, data["terms_vc"], 0, 1e-9)
        gradients = {name: p.grad for name, p in method.named_parameters()}
        compared = set()
        for key, value in data.items():
            kind, _, name = key.partition("::")
            if kind == "grad":
                close(gradients[name], value, 1e-11, 1e-9)
                compared.add(name)
            elif kind == "grad_rows32":
                close(gradients[name][:32], value, 1e-11, 1e-9)
                compared.add(name)
            elif kind == "gradnorm":
                close(gradients[name].norm(), value, 0, 1e-9)
        assert compared == set(gradients)
        after = {name: value.clone() for name, value in method.state_dict().items()}
        for key, value in data.items():
            kind, _, name = key.partition("::")
            if not kind.startswith("post") or name.endswith(ZERO_GRADIENT):
                continue
            ours = after[name][:32] if kind == "post_rows32" else after[name]
            if name.endswith("in_proj_bias"):  # the key third has a zero gradient: Adam turns its noise into steps
                d = len(value) // 3
                ours, value = torch.cat([ours[:d], ours[2 * d :]]), torch.cat([value[:d], value[2 * d :]])
            torch.testing.assert_close(ours, value, rtol=1e-9, atol=1e-12, msg=key)


def test_losses_of_four_float32_steps_equal_reference(method, views):
    expected = golden("f_optim_step")["loss_f32"]
    for number, terms in enumerate(steps(method.train(), views, 4)):
        close(terms.total, expected[number].to(terms.total.dtype), 0, 1e-5 if number == 0 else 1e-4)


def test_published_schedule_equals_reference():
    expected = golden("f_lr_schedules")["pretrain_lr"]
    method = UmURL(
        UmURLEncoder("ntu25", width=4, frames=8),
        "ntu25",
        torch.nn.Identity(),
        projector_width=4,
        optimizer=partial(torch.optim.Adam, lr=5e-4, weight_decay=1e-5),
        scheduler=partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[351], gamma=0.1),
    )
    built = method.configure_optimizers()
    assert built["lr_scheduler"]["interval"] == "epoch"
    rates = []
    for _ in range(len(expected)):
        rates.append(built["optimizer"].param_groups[0]["lr"])
        built["optimizer"].step()
        built["lr_scheduler"]["scheduler"].step()
    torch.testing.assert_close(torch.tensor(rates, dtype=torch.float64), expected, rtol=1e-12, atol=0)


def test_frozen_features_reproduce_the_reference_probe(method, views):
    data = golden("g_linear_probe")
    with torch.no_grad():
        features = method.encode(views[3])
    close(features, data["features"], 1e-6)
    head = torch.nn.Linear(32, 10)
    with torch.no_grad():
        head.weight.copy_(data["fc_weight0"])
        head.bias.copy_(data["fc_bias0"])
    optimizer = torch.optim.SGD(head.parameters(), lr=0.03, momentum=0.9)
    close(head(features), data["logits0"], 1e-6)
    for step in range(3):
        loss = F.cross_entropy(head(features), data["labels"])
        close(loss.double(), data["loss"][step], 1e-6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        close(head.weight, data[f"fc_weight{step + 1}"], 1e-6)
        close(head.bias, data[f"fc_bias{step + 1}"], 1e-6)
