"""The UmURL encoder and its transformer layer."""

import pytest
import torch

from skelact.backbones.transformer import PositionTable, Transformer, sinusoids
from skelact.backbones.umurl import UmURLEncoder, spatial_tokens, temporal_tokens
from skelact.skeleton.layouts import get_layout


def dense(n=3, m=2, t=8, v=25, c=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, t, m, v, c, generator=generator).transpose(1, 2)


def encoder(**options):
    torch.manual_seed(0)
    return UmURLEncoder("ntu25", **{"persons": 2, "frames": 8, "width": 16, **options})


@pytest.mark.parametrize(("heads", "length"), [(1, 9), (2, 9), (1, 200)])
def test_layer_equals_torch(heads, length):
    torch.manual_seed(0)
    ours = Transformer(16, depth=2, num_heads=heads, hidden=24).double()
    layer = torch.nn.TransformerEncoderLayer(16, heads, 24, dropout=0.0, batch_first=True)
    theirs = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double()
    for parameter in ours.parameters():  # biases that are not zero, layers that differ
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, length, 16, dtype=torch.float64)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = ours(a), theirs(b)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-11)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-11, msg=name)


def test_initialisation_is_torchs_and_layers_start_equal():
    ours = Transformer(64, depth=2, num_heads=1, hidden=64)
    first, second = (dict(layer.named_parameters()) for layer in ours.layers)
    assert all(torch.equal(first[name], second[name]) and first[name] is not second[name] for name in first)
    assert first["self_attn.in_proj_bias"].count_nonzero() == first["self_attn.out_proj.bias"].count_nonzero() == 0
    bound = (6 / (64 + 192)) ** 0.5  # Xavier of the packed projection
    assert 0.95 * bound < first["self_attn.in_proj_weight"].abs().max() <= bound
    assert 0.95 / 8 < first["linear1.weight"].abs().max() <= 1 / 8


def test_temporal_tokens_of_sampled_views_are_not_copied():
    x = dense()
    assert temporal_tokens(x).data_ptr() == x.data_ptr()
    assert temporal_tokens(x).shape == (3, 8, 150) and spatial_tokens(x).shape == (3, 50, 24)


def test_spatial_half_ignores_the_order_of_persons_and_joints():
    model, x = encoder(), dense()
    shuffled = x[:, [1, 0]][:, :, :, torch.randperm(25)]
    with torch.no_grad():
        a, b = model({"joint": x}), model({"joint": shuffled})
    torch.testing.assert_close(a[:, 16:], b[:, 16:], rtol=0, atol=1e-5)
    assert not torch.allclose(a[:, :16], b[:, :16], atol=1e-3)
    coded = encoder(joint_code="learned")
    with torch.no_grad():
        assert not torch.allclose(coded({"joint": x})[:, 16:], coded({"joint": shuffled})[:, 16:], atol=1e-4)


@pytest.mark.parametrize(("layout", "persons", "frames", "channels"), [("hdm05_31", 1, 5, 3), ("coco17", 3, 33, 2)])
def test_any_layout_persons_length_and_channels(layout, persons, frames, channels):
    model = UmURLEncoder(layout, persons, frames, channels, width=8)
    joints = get_layout(layout).num_joints
    x = dense(2, persons, frames, joints, channels)
    assert model({"joint": x, "motion": x}).shape == (2, model.num_features) == (2, 16)
    with pytest.raises(ValueError, match="was built for"):
        model({"joint": x[:, :, 1:]})
    with pytest.raises(ValueError, match="'depth' is not one of this encoder's"):
        model({"depth": x})


def test_joint_pass_equals_separate_passes():
    model, x, y = encoder(), dense(), dense(2, seed=1)
    with torch.no_grad():
        together = model.forward_many([{"joint": x}, {"bone": y, "joint": y}])
        torch.testing.assert_close(together[0], model({"joint": x}), rtol=0, atol=1e-5)
        torch.testing.assert_close(together[1], model({"joint": y, "bone": y}), rtol=0, atol=1e-5)


def test_long_clips_extend_the_position_table():
    table = PositionTable(8, 20)
    assert table.state_dict()["pe"].shape == (1, 20, 8)
    out = table(torch.zeros(1, 50, 8))
    torch.testing.assert_close(out[0], sinusoids(0, 50, 8))
    assert sinusoids(0, 3, 5).shape == (3, 5)
    model = UmURLEncoder("ntu25", 1, 230, width=8)
    assert model({"joint": dense(1, 1, 230)}).shape == (1, 16)


def test_absent_joints_can_be_left_out_of_attention():
    model, x = encoder(mask_absent=True), dense()
    mask = torch.ones(3, 2, 8, 25, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(model({"joint": x}, mask), model({"joint": x}), rtol=0, atol=1e-5)
        mask[:, 1] = False
        other = x.clone()
        other[:, 1] += 5
        a, b = model({"joint": x}, mask), model({"joint": other}, mask)
        torch.testing.assert_close(a[:, 16:], b[:, 16:], rtol=0, atol=1e-5)
        assert not torch.allclose(a[:, 16:], model({"joint": x})[:, 16:], atol=1e-4)
        assert torch.isfinite(model({"joint": x}, torch.zeros_like(mask))).all()


def test_group_matcher_and_decay_names_name_real_parameters():
    import re

    model = encoder(joint_code="learned", depth=2)
    names = [name for name, _ in model.named_parameters()]
    matcher = model.group_matcher()
    stem = [name for name in names if re.match(matcher["stem"], name)]
    blocks = [name for name in names if re.match(matcher["blocks"], name)]
    assert sorted(stem + blocks) == sorted(names) and stem and blocks
    assert model.no_weight_decay() <= set(names)
    with pytest.raises(ValueError, match="joint_code"):
        encoder(joint_code="wavelet")
