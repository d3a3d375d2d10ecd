"""Emojiland's own CLIP tokenizer: byte-level BPE learned from its captions, every word of the world one token."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: list[str], vocabulary: int, length: int, folder: Path) -> CLIPTokenizer:
    """Learn merges from captions and save a CLIPTokenizer; rows of the text encoder above its size stay spare.

    Args:
        vocabulary: the most tokens it may have, the two special ones included.
        length: the longest prompt in tokens, BOS and EOS included.
    """
    bpe = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2,
        initial_alphabet=alphabet,
        # These would get ids in no fixed order, and ids break ties between merges.
        special_tokens=[a + "</w>" for a in alphabet],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    learned = json.loads(bpe.to_str())["model"]
    # CLIP's order: the 256 bytes, the same ending a word, the merges; BOS and EOS last, so that EOS is the largest id.
    pairs = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *dict.fromkeys(a + b for a, b in pairs)]
    tokens = [*dict.fromkeys(tokens), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=length)
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)
