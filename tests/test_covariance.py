"""C against its definition, and its cache."""

import pytest
import torch

from perfusion.covariance import second_moment
from perfusion.errors import UserError
from perfusion.text import encode

CAPTIONS = ["a teddy on a beach", "cat", "a photo of a red car in snow", "the " * 30, "a dog"]


@torch.no_grad()
def literal(pipe, tokens):
    rows = []
    for caption in CAPTIONS:
        e, _ = encode(pipe.tokenizer, pipe.text_encoder, [caption])
        length = min(len(pipe.tokenizer(caption).input_ids), 16)
        rows += list(e[0, {"valid": slice(0, length), "content": slice(1, length - 1), "all": slice(None)}[tokens]])
    x = torch.stack(rows).double()
    return x.T @ x / len(x), len(x)


@pytest.mark.filterwarnings("ignore:prompt")
@pytest.mark.parametrize("tokens", ["valid", "content", "all"])
@pytest.mark.parametrize("batch_size", [2, 256])
def test_is_the_mean_outer_product(pipe, tokens, batch_size):
    found = second_moment(CAPTIONS, pipe.tokenizer, pipe.text_encoder, tokens, batch_size, progress=False)
    C, count = literal(pipe, tokens)
    assert found.count == count and found.C.dtype == torch.float64
    torch.testing.assert_close(found.C, C, rtol=1e-4, atol=1e-5)


def test_cache_is_by_the_hash_of_all_inputs(pipe, tmp_path):
    make = lambda captions=CAPTIONS, tokens="valid": second_moment(
        captions, pipe.tokenizer, pipe.text_encoder, tokens, cache_dir=tmp_path, progress=False
    )
    first = make()
    assert len(list(tmp_path.iterdir())) == 1
    pipe.text_encoder.forward = None  # a second time, the encoder must not run
    again = make()
    del pipe.text_encoder.forward
    assert torch.equal(again.C, first.C) and (again.count, again.hash) == (first.count, first.hash)
    assert make(CAPTIONS[:-1]).hash != first.hash and make(tokens="all").hash != first.hash
    pipe.text_encoder.get_input_embeddings().weight.data[3] += 1
    assert make().hash != first.hash
    assert len(list(tmp_path.iterdir())) == 4


def test_refused(pipe):
    with pytest.raises(UserError, match='tokens="some".*valid, content, all'):
        second_moment(CAPTIONS, pipe.tokenizer, pipe.text_encoder, "some")
    with pytest.raises(UserError, match="captions is empty"):
        second_moment([], pipe.tokenizer, pipe.text_encoder)
