"""The 3D networks: what sees what, shapes of eq. 5, patches against volumes, the text tower, the classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from concordct.errors import ConcordctError
from concordct.nets.unet3d import (
    AttentionUNet3d,
    ImageQueryAttention,
    SkipGate,
    TextQueryAttention,
    fold,
    unfold,
)
from learning import awaken

SENTENCES = (
    "Sex male, age 67 years. Forced vital capacity 2550 ml, 68 percent of predicted. Next scan after 52 weeks.",
    "Sex female, age unknown. Forced vital capacity unknown. Next scan after 40 weeks.",
)


def _random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_fold_keeps_every_voxel_in_its_block() -> None:
    x = _random(0, 2, 3, 4, 6, 8)
    folded = fold(x, 2)
    assert folded.shape == (2, 24, 2, 3, 4)
    assert torch.equal(unfold(folded, 2), x)
    assert set(folded[0, :8, 1, 2, 3].tolist()) == set(x[0, 0, 2:4, 4:6, 6:8].flatten().tolist())


@pytest.mark.parametrize("query", ["none", "text", "image"])
def test_the_network_starts_at_no_change_and_then_uses_what_it_is_given(query: str) -> None:
    net = AttentionUNet3d(2, (8, 8), fold=2, query=query, text=6, length=5, attend=(1,))  # type: ignore[arg-type]
    x, time, words = _random(0, 1, 2, 8, 8, 8), torch.tensor([0.5]), _random(1, 1, 5, 6)
    there = torch.ones(1, 5, dtype=torch.bool)
    assert net.divisor == 4
    assert not net(x, time, words, there).any()
    awaken(net)
    with torch.no_grad():
        found = net(x, time, words, there)
        assert found.shape == (1, 1, 8, 8, 8)
        assert not torch.equal(found, net(x, time + 0.1, words, there))
        assert torch.equal(found, net(x, time, _random(2, 1, 5, 6), there)) == (query == "none")


def test_a_gate_weighs_a_skip_by_the_coarser_scale() -> None:
    gate = SkipGate(4, 6)
    skip, coarse = _random(0, 1, 4, 4, 4, 4), _random(1, 1, 6, 2, 2, 2)
    assert torch.allclose(gate(skip, coarse), skip * torch.sigmoid(torch.tensor(2.0)))
    awaken(gate)
    weight = gate(skip, coarse) / skip
    assert ((weight > 0) & (weight < 1)).all()
    assert torch.allclose(weight, weight[:, :1].expand_as(weight), atol=1e-5)


@pytest.mark.parametrize("by_text", [True, False])
def test_padding_of_a_sentence_is_never_read_and_no_voxel_looks_at_another(by_text: bool) -> None:
    layer = TextQueryAttention(8, 6) if by_text else ImageQueryAttention(8, 6, 5)
    awaken(layer)
    x, words = _random(0, 1, 8, 3, 3, 3), _random(1, 1, 5, 6)
    there = torch.tensor([[True, True, True, False, False]])
    with torch.no_grad():
        found = layer(x, words, there)
        other = words.clone()
        other[:, 3:] = 9.0
        assert torch.equal(layer(x, other, there), found)
        assert not torch.equal(layer(x, 2 * words, there), found)
        poked = x.clone()
        poked[0, :, 0, 0, 0] += 1.0
        moved = (layer(poked, words, there) - found).abs().amax(dim=(0, 1))
    assert moved[0, 0, 0] > 0
    moved[0, 0, 0] = 0
    assert moved.max() < 1e-6


def test_a_text_laid_over_the_voxels_would_cancel() -> None:
    """The other reading of eq. 5: one text vector at every voxel has equal logits, so that no text changes anything."""
    bias = _random(0, 27, 27)
    weights = []
    for seed in (1, 2):
        text = _random(seed, 1, 4).expand(27, 4)
        weights.append((text @ text.T / 2 + bias).softmax(dim=-1))
    assert torch.allclose(*weights, atol=1e-6)


def test_text_as_query_mixes_groups_of_channels_by_eq_5() -> None:
    layer = TextQueryAttention(6, 4, groups=3, heads=1, depth=4)
    awaken(layer)
    x, text, there = _random(0, 1, 6, 2, 2, 2), _random(1, 1, 1, 4), torch.ones(1, 1, dtype=torch.bool)
    with torch.no_grad():
        q, k = (one(text)[0, 0].reshape(3, 4) for one in (layer.query, layer.key))
        weights = (q @ k.T / 2.0 + layer.bias[0]).softmax(dim=-1)  # d = 4
        v = layer.value(layer.norm(x))  # [1, 3 groups of 2, ...]
        mixed = torch.einsum("ij,jmzyx->imzyx", weights, v.reshape(3, 2, 2, 2, 2)).reshape(1, 6, 2, 2, 2)
        assert torch.allclose(layer(x, text, there), x + layer.out(layer.mixed(mixed)), atol=1e-5)


def test_a_text_and_its_opposite_mix_differently_from_the_start() -> None:
    """Products of queries and keys are even in the text unless both have a bias of the text's size."""
    layer = TextQueryAttention(6, 4)
    awaken(layer)
    x, text, there = _random(0, 1, 6, 2, 2, 2), _random(1, 1, 1, 4), torch.ones(1, 1, dtype=torch.bool)
    with torch.no_grad():
        one, other = layer(x, text, there), layer(x, -text, there)
    assert (one - other).abs().max() > 0.05 * (one - x).abs().max()


def test_a_patch_and_the_volume_agree_away_from_the_border() -> None:
    net = AttentionUNet3d(2, (8, 8), fold=2, query="text", text=6, length=5, attend=(0, 1))
    awaken(net)
    x, words, there = _random(0, 1, 2, 48, 24, 24), _random(1, 1, 5, 6), torch.ones(1, 5, dtype=torch.bool)
    time = torch.tensor([0.3])
    with torch.no_grad():
        whole, part = net(x, time, words, there), net(x[:, :, :40], time, words, there)
    assert torch.allclose(whole[:, :, :8], part[:, :, :8], atol=1e-5)
    assert not torch.allclose(whole[:, :, 36:40], part[:, :, 36:], atol=1e-2)


# The text tower


def test_a_sentence_becomes_words_and_whole_numbers() -> None:
    clip = pytest.importorskip("concordct.nets.clip")
    pytest.importorskip("tokenizers")
    tokenizer = clip.train_tokenizer(SENTENCES)
    ids, there = clip.tokenize(tokenizer, (SENTENCES[0], SENTENCES[0].replace("2550", "3150")), 77)
    assert (ids[0] != ids[1]).sum() == 1
    assert not (ids[there] == 1).any()  # every number is a known word, also one that no sentence had
    assert clip.train_tokenizer(SENTENCES) == tokenizer
    with pytest.raises(ConcordctError, match="at most 5 tokens, found"):
        clip.tokenize(tokenizer, SENTENCES, 5)


def test_every_number_that_a_sentence_can_round_to_is_known_and_starts_between_its_neighbours() -> None:
    clip = pytest.importorskip("concordct.nets.clip")
    pytest.importorskip("transformers")
    tokenizer = clip.train_tokenizer(SENTENCES)
    for volume in range(0, 10001, 50):
        assert volume in clip.NUMBERS
    pair = clip.ContrastivePair(clip.TextConfig(16, 1, 2, 40, clip.vocabulary(tokenizer), 3), (4, 8), space=8)
    pair.order_numbers(tokenizer)
    ids = [int(clip.tokenize(tokenizer, [str(number)], 5)[0][0, 1]) for number in (36, 44, 52, 2350, 2400, 2450)]
    low, middle, high, less, about, more = pair.text.get_input_embeddings().weight.detach()[ids]
    assert torch.allclose(middle, (low + high) / 2, atol=1e-6)
    assert not torch.allclose(low, high)
    assert torch.allclose(about, (less + more) / 2, atol=1e-6)
    assert not torch.allclose(less, more)


def test_contrast_brings_a_scan_to_its_sentence() -> None:
    clip = pytest.importorskip("concordct.nets.clip")
    pytest.importorskip("transformers")
    tokenizer = clip.train_tokenizer(SENTENCES)
    torch.manual_seed(0)
    size = clip.TextConfig(16, 1, 2, 40, clip.vocabulary(tokenizer), clip.ends(tokenizer)[1])
    pair = clip.ContrastivePair(size, (4, 8), space=8)
    ids, there = clip.tokenize(tokenizer, SENTENCES, 40)
    scans, who = _random(0, 2, 1, 8, 8, 8), torch.tensor([0, 1])
    optimizer = torch.optim.Adam(pair.parameters(), lr=0.01)
    before = float(pair(scans, ids, there, who)[0].detach())
    for _ in range(30):
        optimizer.zero_grad()
        pair(scans, ids, there, who)[0].backward()
        optimizer.step()
    after, hit = pair(scans, ids, there, who)
    assert float(after.detach()) < 0.1 * before
    assert float(hit) == 1.0
    # One subject twice is no contrast: whatever the features, both sentences are right.
    assert float(pair(scans[:1].repeat(2, 1, 1, 1, 1), ids[:1].repeat(2, 1), there[:1].repeat(2, 1), who * 0)[1]) == 1.0
    # What stands behind the end of a sentence changes no word.
    assert torch.allclose(pair.words(ids, there)[0, :5], pair.words(torch.where(there, ids, 1), there)[0, :5])


def test_published_weights_come_from_a_folder_and_are_checked(tmp_path: Path) -> None:
    clip = pytest.importorskip("concordct.nets.clip")
    transformers = pytest.importorskip("transformers")
    with pytest.raises(ConcordctError, match="expected CLIP's config"):
        clip.published_tower(tmp_path)
    tokenizer = clip.train_tokenizer(SENTENCES)
    config = transformers.CLIPTextConfig(
        vocab_size=clip.vocabulary(tokenizer), hidden_size=8, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=30, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    transformers.CLIPTextModel(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tokenizer)
    size, found, weights = clip.published_tower(tmp_path)
    assert (size.width, size.layers, size.length, size.end) == (8, 1, 30, 3)
    assert found == tokenizer
    clip.text_tower(size).load_state_dict(weights)


def test_the_classifier_sees_scans_and_table() -> None:
    pytest.importorskip("monai")
    from concordct.nets.classifier3d import PairClassifier

    torch.manual_seed(0)
    net = PairClassifier(2, table=3, widths=(4, 4, 8, 8), blocks=(1, 1, 1, 1)).eval()
    scans, table = _random(0, 2, 2, 16, 16, 16), _random(1, 2, 3)
    with torch.no_grad():
        found = net(scans, table)
        assert found.shape == (2,)
        assert not torch.allclose(found, net(scans.flip(1), table))
        assert not torch.allclose(found, net(scans, table + 1))
        assert not any(isinstance(one, torch.nn.BatchNorm3d) for one in net.modules())
        # No statistics are shared within a batch.
        assert torch.allclose(net(scans[:1], table[:1]), found[:1], atol=1e-5)
