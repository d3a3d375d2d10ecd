"""One call of a pipeline's `encode_prompt`: what it was given, and other texts encoded as it encodes."""

import inspect
from collections.abc import Callable, Iterable

from torch import Tensor


class PromptCall:
    """A call with args and kwargs of `encode`, the pipeline's own method.

    encoder, tokenizer: of the pipeline's prompts (text_encoders.text_encoder_of); towers: how many texts a prompt may be,
    one for each text encoder.
    """

    def __init__(self, encode: Callable, encoder, tokenizer, towers: int, args: tuple, kwargs: dict):
        bound = inspect.signature(encode).bind(*args, **kwargs)
        bound.apply_defaults()
        self.given = bound.arguments | bound.arguments.pop("kwargs", {})
        self.images: int = self.given["num_images_per_prompt"]
        self._encode, self._encoder, self._tokenizer, self._towers = encode, encoder, tokenizer, towers
        self._masked = "prompt_attention_mask" in self.given

    def keep(self, words: Iterable[str]) -> None:
        """Leave captions uncleaned where they hold one of the words: cleaning takes the * out of teddy*."""
        if self.given.get("clean_caption"):
            texts = [*(self.texts("prompt", 1) or [[]])[0], *_listed(self.given["negative_prompt"] or "")]
            if any(word.lower() in text.lower() for text in texts for word in words):
                self.given["clean_caption"] = False

    def encode(self) -> list:
        """What the pipeline's own method returns; `places` says where in it the encodings are."""
        return list(self._encode(**self.given))

    @property
    def places(self) -> tuple[int, int]:
        """Of the prompts' encodings and the negative prompts' in `encode`'s list; attention masks come between them."""
        return 0, 2 if self._masked else 1

    def texts(self, kind: str, count: int) -> list[list[str]] | None:
        """What each text encoder is given as `kind`: one list each, one text said `count` times; None where not known."""
        if self.given[f"{kind}_embeds"] is not None:
            return None
        first = self.given[kind] or ""
        texts = [first, self.given.get(f"{kind}_2") or first][: self._towers]
        return [_listed(t) * count if isinstance(t, str) else _listed(t) for t in texts]

    def encoder(self, kind: str):
        """The text encoder, as this call asks it."""
        if not self._masked:
            return self._encoder
        given = self._given(kind)
        instruction = given.get("complex_human_instruction") or None
        return self._encoder.asked(self._tokenizer, given["max_sequence_length"], instruction)

    def again(self, kind: str, texts: list[list[str]]) -> Tensor:
        """Encodings [B, T, c] of other texts, as this call's are made."""
        changed = {"prompt": texts[0], "do_classifier_free_guidance": False, "negative_prompt": None}
        changed |= {"prompt_2": texts[1]} if len(texts) > 1 else {}
        changed |= {name: None for name in self.given if name.endswith(("_embeds", "_attention_mask"))}
        return self._encode(**(self._given(kind) | changed))[0]

    def _given(self, kind: str) -> dict:
        """A preamble (Sana's) is for the prompts alone."""
        alone = kind != "prompt" and "complex_human_instruction" in self.given
        return self.given | ({"complex_human_instruction": False} if alone else {})


def _listed(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)
