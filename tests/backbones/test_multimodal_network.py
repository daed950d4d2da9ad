"""Fusion and token auto-encoder: one masked pass equals gathering survivors, and what is absent does not matter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skelact.backbones.fusion import ConcatFusion, LateFusion, SumFusion, TransformerFusion
from skelact.backbones.token_autoencoder import TokenAutoencoder
from skelact.errors import SkelactError

D, M, C = 16, 4, 5
HEADS = [SumFusion, ConcatFusion, TransformerFusion, LateFusion]
TABLES = st.lists(st.lists(st.booleans(), min_size=M, max_size=M).filter(any), min_size=1, max_size=6)


def head(kind, seed=0):
    torch.manual_seed(seed)
    made = kind(D, M, C, num_heads=2) if kind is TransformerFusion else kind(D, M, C)
    for parameter in made.parameters():  # biases and class token too
        torch.nn.init.normal_(parameter, std=0.3)
    return made.double().eval()


def core(seed=0, **options):
    torch.manual_seed(seed)
    return TokenAutoencoder(D, M, num_heads=2, **options).double().eval()


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


def gathered(model, token, kept):
    """Encoder outputs and predictions of one clip from its survivors alone."""
    code = 0 if model.modality_embedding is None else model.modality_embedding
    survivors = (token + code)[:, kept]
    memory = [] if model.mem_token is None else [model.mem_token]
    encoded = model.encoder_norm(model.encoder(torch.cat([*memory, survivors], 1)))
    m = model.num_memory
    slots = model.mask_token.expand(1, M, -1).clone()
    slots[:, kept] = encoded[:, m:]
    decoded = model.decoder_norm(model.decoder(torch.cat([encoded[:, :m], slots + code], 1)))
    return encoded, model.decoder_pred(decoded[:, m:])


@torch.no_grad()
@settings(max_examples=25, deadline=None)
@given(table=TABLES, memory=st.sampled_from([0, 1, 4]), embedding=st.booleans())
def test_one_pass_over_mixed_subsets_equals_gathering_survivors(table, memory, embedding):
    kept, model = torch.tensor(table), core(num_memory=memory, modality_embedding=embedding)
    tokens = noise(len(kept), M, D)
    encoded, decoded = model(tokens, kept)
    fused = model.choose(tokens, kept, encoded, decoded)
    for row, own in enumerate(kept):
        alone, predicted = gathered(model, tokens[row : row + 1], own)
        torch.testing.assert_close(encoded[row, memory:][own], alone[0, memory:])
        torch.testing.assert_close(encoded[row, :memory], alone[0, :memory])
        torch.testing.assert_close(decoded[row], predicted[0])
        torch.testing.assert_close(fused[row], torch.where(own[:, None], tokens[row], predicted[0]))


@torch.no_grad()
@settings(max_examples=25, deadline=None)
@given(table=TABLES, kind=st.sampled_from(HEADS))
def test_a_head_reads_the_tokens_that_are_there(table, kind):
    present, model = torch.tensor(table), head(kind)
    tokens = noise(len(present), M, D)
    scores = model(tokens, present)
    torch.testing.assert_close(scores, model(tokens.masked_fill(~present[..., None], float("nan")), present))
    for row, own in enumerate(present):
        torch.testing.assert_close(scores[row : row + 1], model(tokens[row : row + 1], own[None]))
        if kind is TransformerFusion:
            torch.testing.assert_close(scores[row], model(tokens[row : row + 1, own])[0])
        elif kind is not ConcatFusion or own.all():
            alone = model.each(tokens)[own, row] if kind is not ConcatFusion else model.unimodal(tokens)[:, row]
            torch.testing.assert_close(scores[row], alone.mean(0) if kind is LateFusion else alone.sum(0))
        else:  # slice of the weights, bias by the share that is there
            torch.testing.assert_close(scores[row], model.unimodal(tokens)[own, row].sum(0))


@torch.no_grad()
def test_everything_present_is_the_same_as_no_mask():
    tokens, everything = noise(3, M, D), torch.ones(3, M, dtype=torch.bool)
    for kind in HEADS:
        torch.testing.assert_close(head(kind)(tokens, everything), head(kind)(tokens))
    none = torch.zeros(3, M, dtype=torch.bool)
    for kind in HEADS:
        assert torch.isfinite(head(kind)(tokens, none)).all()
    for memory in (0, 2):
        assert all(torch.isfinite(x).all() for x in core(num_memory=memory)(tokens, none))


@torch.no_grad()
def test_what_stands_in_an_absent_slot_does_not_matter():
    model, tokens = core(), noise(2, M, D)
    kept = torch.tensor([[True, False, True, False], [False, True, True, True]])
    spoilt = tokens.masked_fill(~kept[..., None], float("nan"))
    for slots in ("own", "packed"):
        for ours, theirs in zip(model(tokens, kept, slots=slots), model(spoilt, kept, slots=slots), strict=True):
            torch.testing.assert_close(ours, theirs)


@torch.no_grad()
def test_transformer_fusion_does_not_know_an_order_and_the_others_do():
    tokens, turned = noise(3, M, D), [2, 0, 3, 1]
    torch.testing.assert_close(head(TransformerFusion)(tokens[:, turned]), head(TransformerFusion)(tokens))
    for kind in (SumFusion, ConcatFusion, LateFusion):
        assert not torch.allclose(head(kind)(tokens[:, turned]), head(kind)(tokens), atol=1e-3)


@torch.no_grad()
def test_missing_modalities_are_told_apart_by_embeddings_or_their_own_mask_tokens():
    tokens, kept = noise(3, M, D), torch.tensor([[True, False, False, True]]).expand(3, -1)
    _, plain = core(modality_embedding=False)(tokens, kept)
    torch.testing.assert_close(plain[:, 1], plain[:, 2], rtol=0, atol=1e-12)
    for options in ({}, {"modality_embedding": False, "mask_token": "per_modality"}):
        _, decoded = core(**options)(tokens, kept)
        assert (decoded[:, 1] - decoded[:, 2]).abs().max() > 1e-3
    with pytest.raises(SkelactError, match="mask_token=own"):
        core(mask_token="own")


@torch.no_grad()
def test_order_changes_nothing_but_places_and_packed_slots_change_predictions():
    model, tokens = core(), noise(2, M, D)
    kept = torch.tensor([[False, True, False, True], [True, True, True, True]])
    order = torch.tensor([[3, 1, 0, 2], [1, 3, 2, 0]])
    encoded, decoded = model(tokens, kept)
    shuffled, same = model(tokens, kept, order)
    torch.testing.assert_close(decoded, same)
    torch.testing.assert_close(shuffled[0, 4:6], encoded[0, 4:][order[0, :2]])
    for option in ({}, {"fusion_input": "decoded"}):
        torch.testing.assert_close(
            model.choose(tokens, kept, shuffled, same, order, **option),
            model.choose(tokens, kept, encoded, decoded, **option),
        )
    _, packed = model(tokens, kept, slots="packed")
    assert not torch.allclose(packed[0], decoded[0], atol=1e-3)
    torch.testing.assert_close(packed[1], decoded[1])  # nothing is missing: nothing moves


def test_the_start_is_that_of_the_paper():
    torch.manual_seed(0)
    model, fusion = TokenAutoencoder(64, 3, num_memory=8), TransformerFusion(64, 3, C)
    for token in (model.mem_token, model.mask_token, model.modality_embedding):
        assert token.std().item() == pytest.approx(0.02, rel=0.3) and token.mean().abs() < 0.01
    assert not fusion.cls_token.any()
    for module in [*model.modules(), *fusion.modules()]:
        if isinstance(module, torch.nn.Linear):
            bound = (6 / (module.in_features + module.out_features)) ** 0.5
            assert not module.bias.any() and 0.9 * bound < module.weight.abs().max() <= bound
        if isinstance(module, torch.nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any() and module.eps == 1e-6


def test_every_parameter_gets_a_gradient_whatever_is_missing():
    """Ranks wait for one another's gradients, and what a rank's clips lack is not known to the others."""
    kept = torch.ones(2, M, dtype=torch.bool)
    for rows in (kept, ~kept):
        model = core()
        tokens = noise(2, M, D)
        model.choose(tokens, rows, *model(tokens, rows)).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
