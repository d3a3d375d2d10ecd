"""Words and prompts with CLIP's true tokenizer: super-categories, placeholders anywhere, twins, 77 tokens."""

import pytest
import torch
from random_sd15 import clip_tokenizer

from perfusion.errors import UserError
from perfusion.method.text import add_placeholders, held_tokens, single_token, tokenize, twin_prompts


@pytest.fixture(scope="module")
def clip():
    return clip_tokenizer()


def test_it_is_clips_tokenizer(clip):
    """Token ids as published: openai/clip-vit-large-patch14 gives these for "a photo of a cat"."""
    assert clip("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert len(clip) == 49408


@pytest.mark.parametrize("word, count", [("teddy", 1), ("Teddy", 1), ("teapot", 1), ("cat", 1), ("sneaker", 1)])
def test_single_words(clip, word, count):
    assert single_token(clip, word) == clip.convert_tokens_to_ids(f"{word.lower()}</w>")


@pytest.mark.parametrize(
    "word, near",
    [
        ("stuffed animal", "words are: animal, stuffed"),  # the last word of a phrase carries the lock
        ("teddy bear", "words are: bear, teddy"),
        ("teapott", "teapot"),
        ("flowerpot", "flower"),
        ("", "is 0 tokens"),
        ("  ", "is 0 tokens"),
        ("🧸🪆🛼", "words are: none"),
    ],
)
def test_several_tokens_are_refused_with_near_words(clip, word, near):
    with pytest.raises(UserError, match="exactly 1 is allowed") as error:
        single_token(clip, word)
    assert near in str(error.value)


def test_special_tokens_are_no_super_categories(clip):
    for word in ("<|endoftext|>", "<|startoftext|>"):
        with pytest.raises(UserError, match="exactly 1 is allowed"):
            single_token(clip, word)


@pytest.mark.parametrize("trigger", ["teddy*", "sks-teddy", "<bruno>", "bruno2", "tëddy*", "[V]", "teddy#1"])
@pytest.mark.parametrize(
    "prompt, count",
    [
        ("{}", 1),
        ("{} on a beach", 1),
        ("a photo of {}", 1),
        ("a {}, a {} and a {}", 3),
        ("a {} {}", 2),
        ("({}), a painting; {}!", 2),
        ('a "{}"', 1),
        ("a {}'s hat", 1),
        ("a {}.", 1),
        ("a\n{}\n", 1),
        ("a (({}:1.2))", 1),  # with prompt weighting off, weights are text like any other
        ("x{}", 0),
    ],
)
def test_placeholders_anywhere(clip, trigger, prompt, count):
    tokenizer, ids = add_placeholders(clip, [trigger])
    text = prompt.format(*[trigger] * 3)
    if not trigger[0].isalnum() and prompt.startswith("x"):
        count = 1  # "x<bruno>": no word character on either side of the bracket's own boundary
    positions = tokenize(tokenizer, [text]) == ids[trigger]
    twin = tokenize(clip, twin_prompts([text], {trigger: "teapot"}))
    assert positions.sum() == (twin == single_token(clip, "teapot")).sum()
    if trigger[0].isalnum():
        assert positions.sum() == count
        # No other token changes or moves.
        assert torch.equal(twin[~positions], tokenize(tokenizer, [text])[~positions])


@pytest.mark.parametrize(
    "prompt", ["a teddy* teapot*", "teapot*, teddy*", "a teddy*/teapot* on a cat*", "teddy* teddy*"]
)
def test_several_concepts_adjacent_too(clip, prompt):
    triggers = ["teddy*", "teapot*", "cat*"]
    tokenizer, ids = add_placeholders(clip, triggers)
    tokens = tokenize(tokenizer, [prompt])
    for trigger in triggers:
        assert (tokens == ids[trigger]).sum() == prompt.count(trigger)
        assert (ids[trigger] in held_tokens(tokenizer, [prompt])[0]) == (trigger in prompt)
    words = {"teddy*": "bear", "teapot*": "kettle", "cat*": "lion"}
    twin = tokenize(clip, twin_prompts([prompt], words))
    for trigger, word in words.items():
        assert torch.equal(tokens == ids[trigger], twin == single_token(clip, word))


def test_the_77th_token(clip):
    tokenizer, ids = add_placeholders(clip, ["teddy*"])
    long = "a " * 75 + "teddy*"
    with pytest.warns(UserWarning, match="has 78 tokens, the text encoder takes 77"):
        tokens = tokenize(tokenizer, [long])
    assert tokens.shape == (1, 77) and tokens[0, -1] == clip.eos_token_id
    assert ids["teddy*"] not in held_tokens(tokenizer, [long])[0]  # what is cut off is not edited either
    assert ids["teddy*"] in held_tokens(tokenizer, ["a " * 74 + "teddy*"])[0]
