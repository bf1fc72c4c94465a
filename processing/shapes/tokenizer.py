# SPDX-License-Identifier: Apache-2.0
"""A small CLIP tokenizer in which every word of the shapes world is one token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .lexicon import vocabulary

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


BEGIN, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 32
_WORD_END = "</w>"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def byte_pair_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, in order, that turn every word into a single token.

    Words that were not asked for fall back to parts or letters.
    """
    parts = [(*word[:-1], word[-1] + _WORD_END) for word in words]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for word in parts for pair in zip(word, word[1:], strict=False))
        if not pairs:
            return merges
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        parts = [_merge(word, best) for word in parts]


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    i = 0
    while i < len(word):
        if word[i : i + 2] == pair:
            merged.append(word[i] + word[i + 1])
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return tuple(merged)


def build_tokenizer(words: Sequence[str] | None = None) -> CLIPTokenizer:
    """A `CLIPTokenizer` for the words of the world (or for `words`), padding to 32 tokens.

    The end token has the highest id, which is what both of CLIP's rules for finding the end of a sentence expect; set
    `text_config.eos_token_id` to `tokenizer.eos_token_id`.
    """
    from transformers import CLIPTokenizer

    merges = byte_pair_merges(sorted(words or vocabulary()))
    tokens = [*_LETTERS, *(letter + _WORD_END for letter in _LETTERS), *(first + second for first, second in merges)]
    tokens += [BEGIN, END]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)  # type: ignore[arg-type]
