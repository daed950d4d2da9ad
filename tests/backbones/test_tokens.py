"""Token encoders: who is encoded, with what weight, and what must not matter."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.backbones.dstformer import DSTformer
from skelact.backbones.plain_transformer import PlainTransformer
from skelact.backbones.tokens import TOKENS_AT_ONCE
from skelact.clips import RaggedClips
from skelact.errors import SkelactError

KINDS = (DSTformer, PlainTransformer)
T, V = 5, 17


def encoder(kind=DSTformer, **options):
    torch.manual_seed(0)
    model = kind("h36m17", **{"width": 16, "token_features": 6, "depth": 2, "num_heads": 2, "max_frames": 9, **options})
    for parameter in model.parameters():  # far from the small weights of a fresh network
        torch.nn.init.normal_(parameter, std=0.4 if parameter.ndim > 1 else 0.2)
    return model.double().eval()


def clips(n=3, m=2, t=T, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, t, m, V, 3, generator=generator, dtype=torch.float64).transpose(1, 2)


def seen(present):
    """Mask `(N, M, T, V)` of a table of who is there."""
    return torch.tensor(present, dtype=torch.bool)[..., None, None].expand(-1, -1, T, V)


def same(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


presence = st.integers(1, 3).flatmap(
    lambda m: st.lists(st.lists(st.booleans(), min_size=m, max_size=m), min_size=1, max_size=4)
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(present=presence)
def test_people_left_out_computed_or_alone_are_the_same(kind, present):
    x, mask = clips(len(present), len(present[0])), seen(present)
    packed, whole = encoder(kind), encoder(kind, pack="never")
    with torch.no_grad():
        feature = packed({"joint": x}, mask)
        same(whole({"joint": x}, mask), feature)
        for n, row in enumerate(present):  # each clip is the mean of its people alone
            alone = [packed.represent(x[n, m][None])[0].mean(1).flatten(1) for m, there in enumerate(row) if there]
            if alone:
                same(feature[n], torch.cat(alone).mean(0))


@settings(max_examples=25, deadline=None)
@given(present=presence, data=st.data())
def test_the_order_of_persons_does_not_matter(present, data):
    order = data.draw(st.permutations(range(len(present[0]))))
    present = [row if any(row) else [True] * len(row) for row in present]
    x, mask, model = clips(len(present), len(present[0])), seen(present), encoder()
    with torch.no_grad():
        same(model({"joint": x[:, order]}, mask[:, order]), model({"joint": x}, mask))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("garbage", [7.0, float("nan"), float("inf")])
@pytest.mark.parametrize("pack", ["eval", "never"])
def test_what_stands_in_an_absent_slot_does_not_matter(kind, garbage, pack):
    x, mask, model = clips(), seen([[1, 0], [0, 1], [1, 1]]), encoder(kind, pack=pack)
    other = torch.where(mask[..., None], x, garbage)
    with torch.no_grad():
        same(model({"joint": other}, mask), model({"joint": x}, mask))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_do_not_depend_on_packing(kind):
    x, mask, grads = clips(), seen([[1, 0], [0, 0], [1, 1]]), []
    weight = torch.randn(3, V * 6, dtype=torch.float64)
    for pack in ("always", "never", "eval"):
        model = encoder(kind, pack=pack).train()
        model.mask_token.requires_grad_(False)
        rows = len(model.people({"joint": x}, mask).rows)
        assert rows == (4 if pack == "always" else 6)
        (model({"joint": x}, mask) * weight).sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for other in grads[1:]:
        for name, grad in grads[0].items():
            same(grad, other[name], 1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pack", ["always", "auto"])
def test_people_are_left_out_by_what_the_host_knows_of_their_clips(kind, pack):
    """Of the five in the clips, the views show four."""
    of_clips, of_views = seen([[1, 0, 0], [0, 0, 0], [1, 1, 1]]), seen([[1, 0, 0], [0, 0, 0], [0, 1, 1]])
    x, weight = clips(m=3), torch.randn(3, V * 6, dtype=torch.float64)
    shown = torch.where(of_views[..., None], x, torch.nan)
    shown[1, 0] = 0  # a clip with nobody keeps its first slot
    batch = RaggedClips.pack(list(x.transpose(1, 2)), mask=list(of_clips.transpose(1, 2)))
    assert batch.people == 5
    results = []
    for model in (encoder(kind, pack=pack).train(), encoder(kind, pack="never").train()):
        model.mask_token.requires_grad_(False)
        model.expect(batch)
        feature = model({"joint": shown}, of_views)
        (feature * weight).sum().backward()
        results.append([feature, *(p.grad for p in model.parameters() if p.requires_grad)])
        people = model.people({"joint": x}, of_views)
        assert len(people.rows) == (9 if model.pack == "never" else 5)
        assert (people.weight > 0).sum() == 4
        assert people.clip.tolist() == sorted(people.clip.tolist())
    for own, other in zip(*results, strict=True):
        same(own, other, 1e-9)


def test_what_the_host_knows_holds_for_training_views_of_the_same_clips():
    x, some, everybody = clips(), seen([[1, 0], [0, 1], [1, 1]]), seen([[1, 1]] * 3)
    model = encoder().train()
    model.expect(RaggedClips.pack(list(x.transpose(1, 2)), mask=list(some.transpose(1, 2))))
    with pytest.raises(RuntimeError, match="more people than their clips"):
        model.people({"joint": x}, everybody)
    assert len(model.people({"joint": x}).rows) == 6  # without a mask others may be there
    assert len(model.people({"joint": x[:2]}, everybody[:2]).rows) == 4
    assert len(model.eval().people({"joint": x}, everybody).rows) == 6
    model.train().expect(RaggedClips.pack(list(x.transpose(1, 2))))
    assert len(model.people({"joint": x}, everybody).rows) == 6


def test_who_is_there_without_a_mask():
    x, model = clips(), encoder()
    x[0, 1] = x[1, 0] = x[2] = 0
    people = model.people({"joint": x})
    assert people.shape == (3, 2)
    assert list(zip(people.clip.tolist(), people.slot.tolist(), strict=True)) == [(0, 0), (1, 1), (2, 0)]
    assert people.weight.tolist() == [1, 1, 1]
    same(people.rows, torch.stack([x[0, 0], x[1, 1], x[2, 0]]))
    placed = people.unpack(people.rows)
    same(placed, x)
    counted = encoder(absent="count").people({"joint": x})
    assert len(counted.rows) == 6 and counted.weight.tolist() == [0.5] * 6
    with torch.no_grad():
        tokens = encoder(absent="count")({"joint": x})
        same(tokens, encoder().represent(x.flatten(0, 1))[0].mean(1).flatten(1).view(3, 2, -1).mean(1))
        assert not torch.allclose(tokens, model({"joint": x}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", [1, 4, 9])
def test_importance_is_a_distribution_for_each_query(kind, frames):
    model, x = encoder(kind), clips(2, 1, frames)[:, 0]
    tokens, importance = model.represent(x, importance=True)
    same(tokens, model.represent(x)[0])
    assert tokens.shape == (2, frames, V, 6) and importance.shape == (2, frames, V)
    assert tokens.requires_grad and not importance.requires_grad
    total, axes = (V, (2,)) if kind is DSTformer else (V * frames, (1, 2))
    same(importance.sum(axes), torch.full_like(importance.sum(axes), total))
    assert model.represent(x)[1] is None


@pytest.mark.parametrize("kind", KINDS)
def test_masked_tokens_are_the_mask_token_wherever_they_are(kind):
    model, x = encoder(kind), clips(2, 1)[:, 0]
    masked = torch.rand(2, T, V, generator=torch.Generator().manual_seed(2)) < 0.4
    with torch.no_grad():
        same(model.represent(x.masked_fill(masked[..., None], 3.0), masked)[0], model.represent(x, masked)[0])
        assert not torch.allclose(model.represent(x, masked)[0], model.represent(x)[0])
        model.mask_token.copy_(model.joints_embed(torch.full((3,), 3.0).double())[None, None])
        same(model.represent(x.masked_fill(masked[..., None], 3.0))[0], model.represent(x, masked)[0])


def test_unobserved_joints_can_become_the_mask_token():
    model, x = encoder(unobserved="token"), clips()
    mask = torch.rand(3, 2, T, V, generator=torch.Generator().manual_seed(3)) < 0.7
    mask[1, 1] = False
    with torch.no_grad():
        feature = model({"joint": x}, mask)
        same(model({"joint": x.masked_fill(~mask[..., None], 5.0)}, mask), feature)
        model.pack = "never"
        same(model({"joint": x}, mask), feature)
        model.unobserved = "zero"
        assert not torch.allclose(model({"joint": x}, mask), feature)


@pytest.mark.parametrize("kind", KINDS)
def test_without_gradients_a_few_persons_at_a_time(kind, monkeypatch):
    model, x, mask = encoder(kind), clips(5), seen([[1, 0], [1, 1], [0, 0], [0, 1], [1, 1]])
    whole = model({"joint": x}, mask)
    for tokens in (1, 2 * T * V, 3 * T * V):
        monkeypatch.setitem(TOKENS_AT_ONCE, "cpu", tokens)
        with torch.no_grad():
            same(model({"joint": x}, mask), whole.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_batches_without_clips_and_dropout(kind):
    model = encoder(kind, dropout=0.5)
    with torch.no_grad():
        assert model({"joint": clips(0)}).shape == (0, model.num_features) == (0, V * 6)
        once = model({"joint": clips()})
        same(model({"joint": clips()}), once)
        model.train()
        assert not torch.allclose(model({"joint": clips()}), once)


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_cannot_read(kind):
    model = encoder(kind)
    with pytest.raises(SkelactError, match=r"10 frames.*positions for 9.*set backbone\.max_frames=10"):
        model({"joint": clips(t=10)})
    with pytest.raises(ValueError, match="was built for"):
        model({"joint": clips()[..., :2]})
    with pytest.raises(ValueError, match="reads 'joint'"):
        model({"bone": clips()})
    with pytest.raises(SkelactError, match=r"method\.streams=\[joint\]"):
        kind("h36m17", streams=("joint", "bone"))
    for key in ("absent", "pack", "unobserved"):
        with pytest.raises(SkelactError, match=f"{key}=maybe is none of"):
            kind("h36m17", width=8, **{key: "maybe"})
    with pytest.raises(ValueError, match="multiple of num_heads"):
        kind("h36m17", width=10, num_heads=4)


@pytest.mark.parametrize("kind", KINDS)
def test_group_matcher_and_decay_names_name_real_parameters(kind):
    model = encoder(kind)
    names = {name for name, _ in model.named_parameters()}
    matcher = model.group_matcher()
    patterns = [matcher["stem"], *(pattern for pattern, _ in matcher["blocks"])]
    matched = [[name for name in names if re.match(pattern, name)] for pattern in patterns]
    assert all(matched) and sorted(name for some in matched for name in some) == sorted(names)
    assert model.no_weight_decay() < names


def test_stochastic_depth_is_for_frames_and_grows():
    model = encoder(depth=3, drop_path=0.5)
    assert [block.drop for block in model.blocks_ts] == [0.0, 0.25, 0.5]
    from skelact.backbones.attention import drop_path

    x = torch.ones(400, 7, V, 4)
    out = drop_path(x, 0.25, training=True)
    assert (out == out[:, :, :1, :1]).all() and out.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert 0.7 < (out[..., 0, 0] > 0).float().mean() < 0.8
    assert drop_path(x, 0.25, training=False) is x
    x = {"joint": clips()}
    with torch.no_grad():
        same(model(x), model(x))
        assert not torch.allclose(model.train()(x), model(x))


def count(kind, **options):
    with torch.device("meta"):
        model = kind("h36m17", **options)
    return sum(p.numel() for p in model.parameters()), model


@pytest.mark.parametrize(
    ("width", "ratio", "whole", "block"), [(512, 2, 42_466_317, 4_205_568), (256, 4, 16_001_549, 1_579_520)]
)
def test_sizes_are_the_published_ones(width, ratio, whole, block):
    ours, model = count(DSTformer, width=width, mlp_ratio=ratio)
    head_3d, mask_token = 512 * 3 + 3, width
    assert ours == whole - head_3d + mask_token
    projection = width // 2 * width + width  # DSTformerv2 has the mask token and this
    assert ours + head_3d + projection == {512: 42_598_413, 256: 16_034_829}[width]
    assert sum(p.numel() for p in model.blocks_st[0].parameters()) == block
    assert count(PlainTransformer)[0] + head_3d == 11_311_619


def test_initialisation():
    model = DSTformer("h36m17", width=64, depth=2, max_frames=20)
    weights = torch.cat(
        [m.weight.flatten() for m in model.modules() if type(m) is torch.nn.Linear and m.out_features > 2]
    )
    assert 0.0198 < weights.std() < 0.0202 and weights.abs().max() > 3.5 * 0.02  # not cut at two deviations
    for table in (model.pos_embed, model.temp_embed, model.mask_token):
        assert 0.015 < table.std() < 0.025
    for fusion in model.ts_attn:
        assert fusion.weight.count_nonzero() == 0 and (fusion.bias == 0.5).all()
    assert all(m.eps == 1e-6 for m in model.modules() if isinstance(m, torch.nn.LayerNorm))
    plain = PlainTransformer("h36m17", width=64)
    bound = (6 / (64 + 192)) ** 0.5
    assert 0.95 * bound < plain.blocks[0].attn.qkv.weight.abs().max() <= bound
    assert all(m.eps == 1e-5 for m in plain.modules() if isinstance(m, torch.nn.LayerNorm))


def test_initialisation_follows_the_seed_alone():
    states = []
    for _ in range(2):
        torch.manual_seed(4)
        states.append(DSTformer("h36m17", width=16, depth=1, max_frames=4).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
