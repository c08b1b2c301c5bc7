"""Contrastive pre-training of a sentence about the lungs with the scan of these lungs (CLIP, Radford et al. 2021,
arXiv:2103.00020; CIResDiff, Sec. 2.3).

The text tower is transformers' CLIPTextModel. Its tokenizer is trained on our own sentences, digit by digit, so that
every number can be said; published CLIP weights with their tokenizer are taken from a folder that the user names.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from concordct.errors import ConcordctError
from concordct.nets.blocks import ChannelNorm, convolution

#: Special words and their ids: the end of a sentence may not be 2, which transformers reads as an old file's.
SPECIALS = ("[pad]", "[unk]", "[start]", "[end]")
#: Numbers of the sentences, rounded as they are there: age, per cent and weeks, flow in l/min, volumes in ml.
NUMBERS = (*range(300), *range(300, 1000, 10), *range(1000, 10001, 50))
#: From which number on, middle and spread of what patients have: where its word lies on its line.
LINES = ((1000, 2400.0, 800.0), (150, 400.0, 150.0), (0, 60.0, 15.0))
#: Published CLIP's sentence length, ours as well.
LENGTH = 77
#: Radford et al. 2021, section 2.5: the temperature starts at 0.07 and its inverse stays below 100.
TEMPERATURE, LARGEST_SCALE = 0.07, 100.0


@dataclass(frozen=True)
class TextConfig:
    """Size of the text tower; `vocabulary` follows from the tokenizer.

    Attributes
    ----------
    width : channels. layers, heads : of the transformer. length : positions. vocabulary : words.
    end : id of the word that ends a sentence, whose features stand for all of it.
    """

    width: int = 64
    layers: int = 2
    heads: int = 4
    length: int = LENGTH
    vocabulary: int = 0
    end: int = SPECIALS.index("[end]")


def _need(name: str) -> None:
    raise ConcordctError(f"expected {name} for the lung-function text, found none: pip install 'concordct[followup]'")


def train_tokenizer(sentences: Sequence[str]) -> str:
    """Words, punctuation and whole numbers as a tokenizer, in its own JSON; every number in `NUMBERS` has a word.

    Raises
    ------
    ConcordctError : `tokenizers` is not installed.
    """
    try:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    except ImportError:
        _need("tokenizers")
    tokenizer = Tokenizer(models.WordLevel(unk_token="[unk]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=list(SPECIALS), show_progress=False)
    # Every number and "unknown" have a word, whatever these subjects happen to have.
    tokenizer.train_from_iterator([*sentences, " ".join(map(str, NUMBERS)), "unknown"], trainer)
    return str(tokenizer.to_str())


def tokenize(tokenizer: str, sentences: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """Ids [b, length], and where words are [b, length] bool.

    Raises
    ------
    ConcordctError : a sentence of more words than positions, or `tokenizers` is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        _need("tokenizers")
    loaded = Tokenizer.from_str(tokenizer)
    loaded.no_padding()
    loaded.no_truncation()
    start, end = ends(tokenizer)
    pad = loaded.token_to_id("[pad]")
    ids = torch.full((len(sentences), length), end if pad is None else pad)
    there = torch.zeros((len(sentences), length), dtype=torch.bool)
    for row, sentence in enumerate(sentences):
        found = [start, *loaded.encode(sentence, add_special_tokens=False).ids, end]
        if len(found) > length:
            raise ConcordctError(f"expected a sentence of at most {length} tokens, found {len(found)}")
        ids[row, : len(found)] = torch.tensor(found)
        there[row, : len(found)] = True
    return ids, there


def vocabulary(tokenizer: str) -> int:
    """Words that a tokenizer knows."""
    from tokenizers import Tokenizer

    return int(Tokenizer.from_str(tokenizer).get_vocab_size())


def ends(tokenizer: str) -> tuple[int, int]:
    """Ids of a sentence's first and last word: ours, or published CLIP's.

    Raises
    ------
    ConcordctError : a tokenizer of neither kind.
    """
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_str(tokenizer)
    for pair in (("[start]", "[end]"), ("<|startoftext|>", "<|endoftext|>")):
        first, last = (loaded.token_to_id(word) for word in pair)
        if first is not None and last is not None:
            return int(first), int(last)
    raise ConcordctError("expected a tokenizer with [start] and [end], or CLIP's own, found neither")


def text_tower(config: TextConfig) -> nn.Module:
    """CLIPTextModel of this size with random weights.

    Raises
    ------
    ConcordctError : `transformers` is not installed.
    """
    try:
        from transformers import CLIPTextConfig, CLIPTextModel
    except ImportError:
        _need("transformers")
    tower: nn.Module = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=config.length,
            pad_token_id=SPECIALS.index("[pad]"),
            bos_token_id=SPECIALS.index("[start]"),
            eos_token_id=config.end,
        )
    )
    return tower


def published_tower(folder: Path) -> tuple[TextConfig, str, dict[str, Tensor]]:
    """Published CLIP from disk: its size, its tokenizer's JSON, the text tower's weights. Nothing is unpickled.

    Parameters
    ----------
    folder : `config.json`, `tokenizer.json` and `model.safetensors` as the model's publisher lays them out.

    Raises
    ------
    ConcordctError : a file is missing or not CLIP's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = json.loads((folder / "config.json").read_text())
        fields = found.get("text_config", found)
        weights = load_file(folder / "model.safetensors")
        tokenizer = (folder / "tokenizer.json").read_text()
        config = TextConfig(
            int(fields.get("hidden_size", 512)),
            int(fields.get("num_hidden_layers", 12)),
            int(fields.get("num_attention_heads", 8)),
            int(fields.get("max_position_embeddings", LENGTH)),
            int(fields.get("vocab_size", 49408)),
            ends(tokenizer)[1],
        )
    except (OSError, ValueError, AttributeError, SafetensorError, ConcordctError) as error:
        raise ConcordctError(
            f"{folder}: expected CLIP's config.json, tokenizer.json and model.safetensors, found no whole set "
            f"({type(error).__name__})"
        ) from None
    # Published files hold both towers, the text's under a prefix; a text tower alone has none.
    tower = {name.removeprefix("text_model."): one for name, one in weights.items() if name.startswith("text_model.")}
    parts = ("embeddings.", "encoder.", "final_layer_norm.")
    kept = {name: one for name, one in (tower or weights).items() if name.startswith(parts)}
    return config, tokenizer, {name: one for name, one in kept.items() if not name.endswith("position_ids")}


class ScanEncoder(nn.Module):
    """A small convolutional encoder of a whole scan at coarse spacing: strided convolutions, then the mean."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        inputs = (1, *widths[:-1])
        self.layers = nn.ModuleList(
            nn.Sequential(convolution(a, b, dims=3, stride=2), ChannelNorm(b), nn.SiLU(), convolution(b, b, dims=3))
            for a, b in zip(inputs, widths, strict=True)
        )

    def forward(self, scan: Tensor) -> Tensor:
        """[b, 1, z, y, x] to [b, widths[-1]]."""
        for layer in self.layers:
            scan = functional.silu(layer(scan))
        return scan.mean(dim=(2, 3, 4))


class ContrastivePair(nn.Module):
    """Text tower and scan encoder, brought to one space."""

    def __init__(self, text: TextConfig, widths: Sequence[int], *, space: int = 32) -> None:
        super().__init__()
        self.text, self.scan = text_tower(text), ScanEncoder(widths)
        self.of_text = nn.Linear(text.width, space, bias=False)
        self.of_scan = nn.Linear(widths[-1], space, bias=False)
        self.log_scale = nn.Parameter(torch.tensor([1 / TEMPERATURE]).log())

    def words(self, ids: Tensor, there: Tensor) -> Tensor:
        """Features of every word: [b, L] to [b, L, width]."""
        found: Tensor = self.text(input_ids=ids, attention_mask=there.long()).last_hidden_state
        return found

    @torch.no_grad()
    def order_numbers(self, tokenizer: str) -> None:
        """Let the embeddings of numbers start on a line, so that 44 lies between 40 and 50 (Golkar et al. 2023,
        arXiv:2310.02989, go further).

        As unrelated words or digits, fifty sentences do not teach them their order: what such a tower says of new
        patients does not go with their gas transfer (docs/decisions.md).
        """
        from tokenizers import Tokenizer

        loaded = Tokenizer.from_str(tokenizer)
        weight = self.text.get_input_embeddings().weight  # type: ignore[operator]
        along, middle = (weight[loaded.token_to_id(word)].clone() for word in ("0", "1"))
        for number in NUMBERS:
            centre, spread = next(line for least, *line in LINES if number >= least)
            weight[loaded.token_to_id(str(number))] = middle + (number - centre) / spread * along

    def forward(self, scan: Tensor, ids: Tensor, there: Tensor, who: Tensor) -> tuple[Tensor, Tensor]:
        """The contrastive loss, and the share of scans whose own sentence is the nearest.

        Parameters
        ----------
        scan : [b, 1, z, y, x]. ids, there : [b, L]. who : [b] subject of each; one subject twice in a batch is no
            contrast, so its sentences share the target.
        """
        pooled = self.text(input_ids=ids, attention_mask=there.long()).pooler_output
        t = functional.normalize(self.of_text(pooled), dim=1)
        s = functional.normalize(self.of_scan(self.scan(scan)), dim=1)
        logits = self.log_scale.exp().clamp(max=LARGEST_SCALE) * s @ t.T
        same = (who[:, None] == who[None]).to(logits.dtype)
        wanted = same / same.sum(dim=1, keepdim=True)
        # Radford et al. 2021, figure 3: the mean of both directions' cross-entropy.
        loss = (functional.cross_entropy(logits, wanted) + functional.cross_entropy(logits.T, wanted)) / 2
        hit = same.gather(1, logits.argmax(dim=1, keepdim=True)).mean()
        return loss, hit
