"""What a prompt's words are taken for, as the page says it and as drawing does it."""

from tiny_tokenizers import t5_tokenizer

from perfusion.method.text import add_placeholders, held_tokens, near_words, single_token
from perfusion.web.words import bold, hints, spans

SUPERS = {"teddy*": "teddy", "cat*": "cat"}


def test_spans_put_the_prompt_together_again():
    for prompt in ("a teddy* on a beach", "Teddy*, cat* and teddy*", "a teddy", "", "teddy*"):
        assert "".join(text for text, _ in spans(prompt, ["teddy*", "cat*"])) == prompt
    assert spans("a Teddy* and a cat*", ["teddy*", "cat*"]) == [
        ("a ", None),
        ("Teddy*", "teddy*"),
        (" and a ", None),
        ("cat*", "cat*"),
    ]


def test_what_is_highlighted_is_what_the_tokenizer_takes_for_the_concept(pipe):
    tokenizer, ids = add_placeholders(pipe.tokenizer, ["teddy*"])
    for prompt in (
        "a teddy* on",
        "TEDDY*",
        "teddy*s",
        "xteddy*",
        "teddy**",
        "(teddy*)",
        "a teddy",
        "teddy *",
        "teddy*,",
    ):
        shown = any(word for _, word in spans(prompt, ["teddy*"]))
        assert shown == (ids["teddy*"] in held_tokens(tokenizer, [prompt])[0]), prompt


def test_hints_name_the_word_and_the_way_out():
    assert hints("a teddy* and a cat*", SUPERS, [*SUPERS]) == []
    assert hints("a teddy on a beach", {"teddy*": "teddy"}, ["teddy*"]) == [
        '"teddy" shows the base model\'s teddy; write "teddy*" for the concept.'
    ]
    assert 'did you mean "teddy*"' in hints("a tedy* here", {"teddy*": "teddy"}, ["teddy*"])[0]
    assert "is not in play" in hints("a cat* and a teddy*", {"teddy*": "teddy"}, ["teddy*", "cat*"])[0]
    assert "is not in the prompt" in hints("a beach", {"teddy*": "teddy"}, ["teddy*"])[0]


def test_the_words_that_are_offered_are_single_tokens(pipe):
    for text in ("teddy", "tedd", "a red robot", "beech"):
        near = near_words(pipe.tokenizer, text)
        assert near and all(single_token(pipe.tokenizer, word) for word in near[:1])
    assert near_words(pipe.tokenizer, "teddy")[0] == "teddy" and near_words(pipe.tokenizer, "red robot")[0] == "robot"


def test_near_words_of_tokens_that_tell_where_a_word_begins():
    assert near_words(t5_tokenizer(), "tedy")[0] == "teddy" and "cat" in near_words(t5_tokenizer(), "cat")


def test_a_word_in_markdown_keeps_its_asterisk():
    assert bold("teddy*") == r"**teddy\***" and bold("tédi_2*") == r"**tédi\_2\***"
