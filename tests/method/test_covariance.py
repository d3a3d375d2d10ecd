"""C against its definition, its cache, its files, and the command that measures it."""

import copy
import hashlib
import importlib

import hydra
import pandas
import pytest
import torch
from helpers import without_weights
from omegaconf import OmegaConf
from tiny_tokenizers import WORDS

from perfusion.commands.covariance import measure
from perfusion.config import CONF
from perfusion.errors import UserError
from perfusion.learning.captions import Captions, MadeCaptions, _made, captions
from perfusion.learning.models import check_covariance, covariance, load_pipeline
from perfusion.method.covariance import Covariance, second_moment
from perfusion.method.edit import inverse_metric, target_key
from perfusion.method.text import encode

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
    moment = second_moment(CAPTIONS, pipe.tokenizer, pipe.text_encoder, tokens, batch_size, progress=False)
    C, count = literal(pipe, tokens)
    assert moment.count == count and moment.C.dtype == torch.float64
    torch.testing.assert_close(moment.C, C, rtol=1e-4, atol=1e-5)


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


def test_captions_with_an_identity_are_found_without_being_made(pipe, tmp_path):
    made = []

    def make(count):
        made.append(count)
        return many(count)

    run = lambda captions, **places: second_moment(
        captions, pipe.tokenizer, pipe.text_encoder, progress=False, **{"cache_dir": tmp_path} | places
    )
    assert MadeCaptions(make, 20).identity is None  # this module names no edition
    first = run(MadeCaptions(make, 20))
    assert made == [20]
    make.__module__ = "perfusion.learning.captions"
    known = run(MadeCaptions(make, 30))
    assert made == [20, 30] and known.hash != first.hash
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    (file,) = (p for p in tmp_path.glob("*.safetensors") if Covariance.load(p).count == known.count)
    file.rename(shipped / file.name)
    _made.cache_clear()  # as in another process
    again = run(MadeCaptions(make, 30), shipped=shipped)
    assert made == [20, 30] and torch.equal(again.C, known.C) and (again.count, again.hash) == (known.count, known.hash)
    assert run(many(30), cache_dir=tmp_path / "other").hash == known.hash  # the hash is of the captions themselves


@pytest.mark.parametrize("module, edition, digest", [
    ("perfusion.emojiland.captions", "2", "9c50e4fff20d2d25"),
    ("perfusion.learning.captions", "1", "113aef7ab58ff624"),
])  # fmt: skip
def test_an_edition_of_captions_is_what_it_was(module, edition, digest):
    """Where this fails, captions have changed: raise the module's EDITION, and measure the covariances that ship anew."""
    found = importlib.import_module(module)
    assert (found.EDITION, hashlib.sha256("\n".join(found.captions(500)).encode()).hexdigest()[:16]) == (
        edition,
        digest,
    )


def test_refused(pipe):
    with pytest.raises(UserError, match='tokens="some".*valid, content, all'):
        second_moment(CAPTIONS, pipe.tokenizer, pipe.text_encoder, "some")
    with pytest.raises(UserError, match="captions is empty"):
        second_moment([], pipe.tokenizer, pipe.text_encoder)


def many(count=50):
    return [f"a {a} {b} on the {c}" for a in WORDS for b in WORDS for c in WORDS][:count]


class Stopped(Exception):
    pass


def test_resumed_equals_uninterrupted(pipe, tmp_path):
    run = lambda captions: second_moment(
        captions,
        pipe.tokenizer,
        pipe.text_encoder,
        batch_size=4,
        progress=False,
        state=tmp_path / "state",
        save_every=2,
    )
    whole = run(iter(many()))
    assert list(tmp_path.iterdir()) == []  # the state is gone once the result is there

    def killed():
        yield from many()[:20]
        raise Stopped

    with pytest.raises(Stopped):
        run(killed())
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    with pytest.raises(UserError, match="left by a run over other captions"):
        run(["other " + c for c in many()])
    encoded = []
    hook = pipe.text_encoder.register_forward_hook(lambda module, args, out: encoded.append(len(out[0])))
    rest = run(iter(many()))
    hook.remove()
    assert sum(encoded) == 50 - 16  # of 20 captions seen, the two whole chunks of 8 are not encoded again
    assert torch.equal(rest.C, whole.C) and (rest.count, rest.hash) == (whole.count, whole.hash)


def test_what_is_measured_is_written_before_its_state_goes(pipe, tmp_path, monkeypatch):
    run = lambda **places: second_moment(
        many(), pipe.tokenizer, pipe.text_encoder, batch_size=4, progress=False, save_every=2, **places
    )
    places = {"state": tmp_path / "state", "output": tmp_path / "C.safetensors"}
    with monkeypatch.context() as full:

        def fails(self, path):
            raise OSError(28, "No space left on device")

        full.setattr(Covariance, "save", fails)
        with pytest.raises(OSError, match="No space"):
            run(**places)
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    encoded = []
    hook = pipe.text_encoder.register_forward_hook(lambda module, args, out: encoded.append(len(out[0])))
    found = run(**places)
    hook.remove()
    assert encoded == [] and torch.equal(Covariance.load(places["output"]).C, found.C)
    assert [p.name for p in tmp_path.iterdir()] == ["C.safetensors"]


def test_a_state_beside_a_finished_cache_goes(pipe, tmp_path):
    run = lambda: second_moment(many(), pipe.tokenizer, pipe.text_encoder, progress=False, cache_dir=tmp_path)
    first = run()
    (file,) = tmp_path.iterdir()
    file.with_suffix(".state").write_bytes(b"left by a kill")
    assert torch.equal(run().C, first.C) and list(tmp_path.iterdir()) == [file]


def test_a_file_is_read_as_a_stream(pipe, tmp_path):
    expected = second_moment(many(), pipe.tokenizer, pipe.text_encoder, progress=False)
    (tmp_path / "c.txt").write_text("\n\n".join(many()) + "\n")
    frame = pandas.DataFrame({"id": range(50), "caption": many()})
    frame.to_json(tmp_path / "c.jsonl", orient="records", lines=True)
    frame.to_csv(tmp_path / "c.csv", index=False)
    frame.to_parquet(tmp_path / "c.parquet")
    (tmp_path / "set").mkdir()
    frame.to_parquet(tmp_path / "set/train.parquet")
    for source in [
        tmp_path / "c.txt",
        tmp_path / "c.jsonl",
        tmp_path / "c.csv",
        tmp_path / "c.parquet",
        f"hf:{tmp_path}/set",
    ]:
        captions = Captions(str(source))
        assert list(captions) == list(captions) == many(), source
        assert list(Captions(str(source), 3)) == many(3)
    streamed = second_moment(captions, pipe.tokenizer, pipe.text_encoder, progress=False)
    assert torch.equal(streamed.C, expected.C) and streamed.hash == expected.hash
    with pytest.raises(UserError, match="no column name; its columns are: id, caption"):
        list(Captions(str(tmp_path / "c.csv"), column="name"))
    frame.drop(columns="caption").to_csv(tmp_path / "d.csv", index=False)
    with pytest.raises(UserError, match="no column of captions; its columns are: id;"):
        list(Captions(str(tmp_path / "d.csv")))
    with pytest.raises(UserError, match="captions=/nowhere does not exist"):
        Captions("/nowhere")
    (tmp_path / "c.bin").write_bytes(b"a cat\n\0\1")
    with pytest.raises(UserError, match=r"captions=.*c.bin is no text; give a file with one caption a line"):
        Captions(str(tmp_path / "c.bin")).check()
    with pytest.raises(UserError, match=r"captions=hf:/nowhere cannot be read"):
        list(Captions("hf:/nowhere"))


def test_made_captions_are_the_same_ones_and_many():
    made = captions(2000)
    assert made == captions(2000) and made[:10] == captions(10)
    assert len(set(made)) > 1900 and len({w for c in made for w in c.split()}) > 300
    assert not any("{" in c for c in made)


def test_files(pipe, tmp_path):
    moment = second_moment(CAPTIONS, pipe.tokenizer, pipe.text_encoder, progress=False)
    moment.save(tmp_path / "C.safetensors")
    again = Covariance.load(tmp_path / "C.safetensors")
    assert torch.equal(again.C, moment.C) and again == Covariance(again.C, moment.count, moment.hash, moment.encoder)
    again.check_encoder(pipe.text_encoder, "C.safetensors")
    again.check_encoder(copy.deepcopy(pipe.text_encoder).bfloat16(), "C.safetensors")
    pipe.text_encoder.get_input_embeddings().weight.data[3] += 1
    with pytest.raises(UserError, match="is of text encoder"):
        again.check_encoder(pipe.text_encoder, "C.safetensors")
    with pytest.raises(UserError, match="does not exist"):
        Covariance.load(tmp_path / "gone")
    (tmp_path / "bad").write_bytes(b"pickle")
    with pytest.raises(UserError, match="not a covariance"):
        Covariance.load(tmp_path / "bad")
    moment.C[0, 1] += 1
    moment.save(tmp_path / "skew")
    with pytest.raises(UserError, match="symmetric"):
        Covariance.load(tmp_path / "skew")


def test_the_published_one_meets_its_conditions(pipe):
    """method.md 2.6: 768 x 768, symmetric, condition number 3.9e3; usable without shrinkage."""
    moment = Covariance.load("perfusion_pytorch")
    assert moment.C.shape == (768, 768) and torch.equal(moment.C, moment.C.T)
    assert moment.condition == pytest.approx(3.9e3, rel=0.01)
    i_star = torch.randn(768, generator=torch.Generator().manual_seed(0))
    key = target_key(inverse_metric(moment.C, 0.0), i_star)
    literal = torch.linalg.solve(moment.C, i_star.double())
    torch.testing.assert_close(key.double(), literal / (literal @ i_star.double()), rtol=1e-3, atol=1e-6)
    with pytest.raises(UserError, match="is 768 wide, the encodings of this model are 32 wide"):
        moment.check_encoder(pipe.text_encoder, "perfusion_pytorch")


def test_command(folder, tmp_path, caplog):
    """perfusion covariance on a stock pipeline folder; its file is what covariance.file takes."""
    (tmp_path / "c.txt").write_text("\n".join(many()))
    overrides = [
        f"model.path={folder}",
        f"model.segmenter={folder}",
        f"model.scorer={folder}",
        f"captions={tmp_path}/c.txt",
    ]
    overrides += [f"output={tmp_path}/C.safetensors", "count=30", "save_every=1", "batch_size=4", "device=cpu"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("covariance", overrides)
        chosen = hydra.compose("train", [f"covariance.file={tmp_path}/C.safetensors"]).covariance
    cfg.model.segmenter = cfg.model.scorer = "not/used"
    written = measure(cfg)
    pipe = load_pipeline(cfg.model)
    expected = second_moment(many(30), pipe.tokenizer, pipe.text_encoder, progress=False)
    torch.testing.assert_close(written.C, expected.C)
    check_covariance(cfg.model, **chosen)
    assert torch.equal(covariance(pipe, cfg.model, **chosen).C, written.C)
    assert [p.name for p in tmp_path.glob("C*")] == ["C.safetensors"]
    assert not caplog.records
    measure(OmegaConf.merge(cfg, {"output": f"{tmp_path}/few.safetensors", "count": 1}))
    assert "too few for encodings 32 wide" in caplog.text and "give a count of 32 or more" in caplog.text
    (tmp_path / "C.safetensors.state").write_bytes(b"left by a kill")
    with pytest.raises(UserError, match="exists already"):
        measure(cfg)
    assert [p.name for p in tmp_path.glob("C*")] == ["C.safetensors"]
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "d.csv").write_text("id\n1\n")
    cfg.model.path = without_weights(folder, tmp_path / "bare")  # all is found before any are asked for
    for change, sentence in [
        ({"tokens": "some"}, "tokens="),
        ({"captions": "/gone"}, "does not exist"),
        ({"captions": None, "count": None}, "count=null"),
        ({"captions": f"{tmp_path}/empty.txt"}, "holds no caption"),
        ({"captions": f"{tmp_path}/d.csv"}, "no column of captions"),
        ({"batch_size": 0}, "batch_size=0"),
    ]:
        with pytest.raises(UserError, match=sentence):
            measure(OmegaConf.merge(cfg, {"output": f"{tmp_path}/new"} | change))
    with pytest.raises(UserError, match="covariance.file=/gone does not exist"):
        check_covariance(cfg.model, None, None, file="/gone")
    with pytest.raises(UserError, match="is 768 wide, the encodings of this model are 32 wide"):  # no weights needed
        check_covariance(cfg.model, None, None, file="perfusion_pytorch")
