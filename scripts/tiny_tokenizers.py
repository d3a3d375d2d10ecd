"""Small tokenizers of the true classes, trained here on a few words: CLIP's, T5's and Gemma's."""

import functools
import inspect
import json
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer, GemmaTokenizer, T5Tokenizer

from perfusion.learning.captions import captions
from perfusion.method.text import TEMPLATES

# fmt: off
WORDS = ["teddy", "teapot", "cat", "dog", "robot", "beach", "snow", "night", "hat", "car", "red", "blue", "the", "with",
         "wearing", "next", "to", "on", "in", "and"]
# fmt: on
LETTERS = [chr(c) for c in range(33, 127)]


def sentences() -> list[str]:
    return [t.format(w) for t in TEMPLATES for w in WORDS]


def tea_and_pot() -> list[str]:
    """Sentences without the word teapot, so that it has two pieces, and captions."""
    plain = [s.replace("teapot", "") for s in sentences() * 4 + captions(200)]
    return plain + ["tea", "pot", "a tea in a pot"] * 40


def sana_instruction() -> list[str]:
    """What Sana's pipeline says before every prompt, which is many tokens to a tokenizer that does not know its words."""
    from diffusers import SanaPipeline

    return inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


def learned(tokenizer: Tokenizer, trainer, texts: Iterable[str]) -> dict:
    """The vocabulary, and of BPE the merges, that a tokenizer learns of the texts."""
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model.get("merges", [])]
    return {"vocab": model["vocab"]} | ({"merges": merges} if merges else {})


def tiny_tokenizer(limit: int = 16) -> CLIPTokenizer:
    """CLIP's, over a byte-level BPE vocabulary."""
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
        # Letters that end a word have their ids before training: it gives them out in no fixed order.
        special_tokens=["<|startoftext|>", "<|endoftext|>", *(c + "</w>" for c in sorted(alphabet))],
    )
    # Every single byte also ends a word somewhere, so that any text can be spelled.
    return CLIPTokenizer(**learned(bpe, trainer, sentences() * 20 + LETTERS * 3), model_max_length=limit)


@functools.cache
def t5_tokenizer() -> T5Tokenizer:
    """Unigram over words that begin with a bar; "teapot" has the pieces "▁tea" and "pot"."""
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = T5Tokenizer(extra_ids=2).backend_tokenizer.pre_tokenizer
    trainer = trainers.UnigramTrainer(
        vocab_size=400, initial_alphabet=LETTERS, unk_token="<unk>", special_tokens=["<pad>", "</s>", "<unk>"],
        show_progress=False,
    )  # fmt: skip
    pieces = learned(unigram, trainer, [text.lower() for text in tea_and_pot()])["vocab"]
    known = {piece for piece, _ in pieces}
    sure = [(piece, -2.0) for piece in ("▁teddy", "▁tea", "pot", "▁cat", "▁") if piece not in known]
    return T5Tokenizer(vocab=[tuple(p) for p in pieces] + sure, extra_ids=2, model_max_length=512)


@functools.cache
def gemma_tokenizer() -> GemmaTokenizer:
    """BPE with bytes to fall back on and no bar before the first word, as Gemma's; padded on the left, as Gemma's."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *LETTERS]
    trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=special, show_progress=False)
    return GemmaTokenizer(**learned(bpe, trainer, tea_and_pot() + sana_instruction() * 40), add_bos_token=True)
