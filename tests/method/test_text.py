"""Placeholder words, twins, positions, truncation."""

import pytest
import torch

from perfusion.errors import UserError
from perfusion.method.text import (
    add_placeholders,
    encode,
    held_tokens,
    placeholder_rows,
    single_token,
    super_encoding,
    tokenize,
    twin_prompts,
    word_embedding,
)


def test_super_category_must_be_one_token(pipe):
    assert single_token(pipe.tokenizer, "teddy") == single_token(pipe.tokenizer, "Teddy")
    with pytest.raises(UserError, match='super_category="teddie".*exactly 1.*teddy'):
        single_token(pipe.tokenizer, "teddie")
    with pytest.raises(UserError, match="words are: teddy"):
        single_token(pipe.tokenizer, "stuffed teddy")


@pytest.mark.parametrize(
    "prompt, count",
    [
        ("a teddy* on a beach", 1),
        ("teddy*, in snow", 1),
        ("a Teddy* and a TEDDY*!", 2),
        ("a teddy on a beach", 0),
        ("teddy*", 1),
        ("bigteddy*", 0),
        ("teddy*s", 0),
        ("a teddy*'s hat", 1),
        ("a teddy", 0),
    ],
)
def test_trigger_is_found_wherever_it_stands(pipe, prompt, count):
    tokenizer, ids = add_placeholders(pipe.tokenizer, ["teddy*"])
    positions = tokenize(tokenizer, [prompt]) == ids["teddy*"]
    assert positions.sum() == count
    assert (ids["teddy*"] in held_tokens(tokenizer, [prompt])[0]) == (count > 0)
    # The twin has the class word at the very same positions, and the same tokens elsewhere.
    twin = tokenize(pipe.tokenizer, twin_prompts([prompt], {"teddy*": "teapot"}))
    assert (twin[positions] == single_token(pipe.tokenizer, "teapot")).all()
    assert (twin == tokenize(tokenizer, [prompt]))[~positions].all()


def test_one_trigger_inside_another(pipe):
    tokenizer, ids = add_placeholders(pipe.tokenizer, ["cat*", "cat*2"])
    tokens = tokenize(tokenizer, ["a cat* and a cat*2"])
    assert [(tokens == i).sum() for i in ids.values()] == [1, 1]


@pytest.mark.parametrize(
    "triggers, match",
    [
        (["teddy*", "Teddy*"], "collides"),
        (["teddy"], "already a word"),
        (["my teddy*"], "one word"),
        ([""], "one word"),
    ],
)
def test_bad_triggers(pipe, triggers, match):
    with pytest.raises(UserError, match=match):
        add_placeholders(pipe.tokenizer, triggers)


def test_tokenizer_and_embedding_are_left_alone(pipe):
    before, weight = tokenize(pipe.tokenizer, ["a teddy* on"]), pipe.text_encoder.get_input_embeddings().weight.clone()
    tokenizer, ids = add_placeholders(pipe.tokenizer, ["teddy*"])
    plain, _ = encode(pipe.tokenizer, pipe.text_encoder, ["a teddy on"])
    with torch.no_grad():
        encode(tokenizer, pipe.text_encoder, ["a teddy* on"], {ids["teddy*"]: torch.ones(32)})
    assert torch.equal(tokenize(pipe.tokenizer, ["a teddy* on"]), before)
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight, weight)
    assert torch.equal(encode(pipe.tokenizer, pipe.text_encoder, ["a teddy on"])[0], plain)


def test_the_class_words_embedding_gives_the_twins_encodings(pipe):
    tokenizer, ids = add_placeholders(pipe.tokenizer, ["teddy*"])
    rows = {ids["teddy*"]: word_embedding(pipe.tokenizer, pipe.text_encoder, "teapot")}
    e, _ = encode(tokenizer, pipe.text_encoder, ["a teddy* on a beach"], rows)
    twin, _ = encode(pipe.tokenizer, pipe.text_encoder, ["a teapot on a beach"])
    assert torch.equal(e, twin)


def test_gradient_reaches_the_embedding_alone(pipe):
    pipe.text_encoder.requires_grad_(False)
    tokenizer, ids = add_placeholders(pipe.tokenizer, ["teddy*"])
    row = torch.nn.Parameter(word_embedding(pipe.tokenizer, pipe.text_encoder, "teddy"))
    e, tokens = encode(tokenizer, pipe.text_encoder, ["a teddy* on", "in snow"], {ids["teddy*"]: row})
    e[1].sum().backward(retain_graph=True)
    assert (row.grad == 0).all()  # no trigger there
    e[0][tokens[0] == ids["teddy*"]].square().sum().backward()
    assert row.grad.abs().sum() > 0
    assert all(p.grad is None for p in pipe.text_encoder.parameters())


def test_hooks_leave_with_an_exception(pipe):
    with pytest.raises(KeyError), placeholder_rows(pipe.text_encoder, {999: torch.ones(32)}):
        raise KeyError
    embedding = pipe.text_encoder.get_input_embeddings()
    assert not embedding._forward_hooks and not embedding._forward_pre_hooks


def test_truncation_is_warned_with_count_and_limit(pipe):
    with pytest.warns(UserWarning, match="has 22 tokens, the text encoder takes 16"):
        ids = tokenize(pipe.tokenizer, ["a " * 20])
    assert ids.shape == (1, 16)


def test_super_encoding_is_deterministic(pipe):
    one = super_encoding(pipe.tokenizer, pipe.text_encoder, "teddy")
    assert one.shape == (32,) and torch.equal(one, super_encoding(pipe.tokenizer, pipe.text_encoder, "teddy"))
