"""The baselines on a tiny real model: what they move, that they learn, their files, and the ends of their strength."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import fit, loss_of, sdxl, tokenizers
from hydra.utils import get_class
from omegaconf import OmegaConf
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from perfusion.config import CONF
from perfusion.errors import UserError
from perfusion.learning.data import ConceptData
from perfusion.learning.methods import at_points, put_on, word_of
from perfusion.method.fingerprint import base_hash, hash_of
from perfusion.method.layers import cross_attentions
from perfusion.method.sampling import Sampling, draw
from perfusion.method.text_encoders import text_encoder_of

METHODS = ("textual_inversion", "dreambooth_lora", "custom_diffusion")
SAMPLING = Sampling(2, 2.0, 4, 16)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path / "cache"))


def data_of(pipe, folder):
    for i in range(2):
        noise = np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return ConceptData(sorted(folder.glob("*.png")), 16, "teddy", "", None, flip=True).encode(pipe.vae)


def method_of(name: str, **changes):
    method = OmegaConf.to_container(OmegaConf.load(CONF / f"method/{name}.yaml"), resolve=False)
    return method | {"learning_rate": 0.01, "prior_pictures": 0} | changes


def module_of(pipe, folder, name, **changes):
    method = method_of(name, **changes)
    cls = get_class(method["module"])
    return cls(pipe, data_of(pipe, folder), "teddy*", "teddy", method=method, batch_size=4, seed=0, sampling=SAMPLING)


def weights(pipe):
    parts = {"unet": pipe.unet, "vae": pipe.vae, "text": text_encoder_of(pipe)}
    return {f"{k}.{n}": p.detach().clone() for k, part in parts.items() for n, p in part.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def pictures(pipe, word):
    prompts = [f"a {word} on the beach", "a cat in the snow"]
    return np.stack([np.asarray(p, np.int16) for p in draw(pipe, prompts, [3, 4], SAMPLING)])


def learned_by(pipe, folder, name):
    """What eight steps at a high rate leave, the pipeline as it came."""
    hash, module = hash_of(pipe), module_of(pipe, folder, name)
    concept = fit(module, 8).concept(base_id="tiny", base_hash=hash)
    module.detach()
    return concept


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.slow
def test_only_its_own_numbers_move_and_the_loss_falls(pipe, tmp_path, name):
    before = weights(pipe)
    module = module_of(pipe, tmp_path, name)
    start = {n: p.detach().clone() for n, p in module.named_parameters()}
    first = loss_of(module)
    del module.log
    assert loss_of(fit(module, 40)) < 0.995 * first
    assert all(not torch.equal(p, start[n]) for n, p in module.named_parameters())
    module.detach()
    assert same(weights(pipe), before)
    layers = cross_attentions(pipe.unet).values()
    keys = sum(a.to_k.weight.numel() + a.to_v.weight.numel() for a in layers)
    wanted = {"textual_inversion": 32, "custom_diffusion": keys + 32}
    assert sum(p.numel() for p in module.parameters()) == wanted.get(name, sum(p.numel() for p in start.values()))
    if name == "dreambooth_lora":
        shapes = [
            m.weight.shape for n, m in pipe.unet.named_modules() if n.endswith(("to_q", "to_k", "to_v", "to_out.0"))
        ]
        assert sum(p.numel() for p in module.parameters()) == sum(4 * (out + into) for out, into in shapes)


@pytest.mark.parametrize("name", METHODS)
def test_the_file_round_trips_and_strength_0_is_the_base_model(pipe, tmp_path, name):
    concept = learned_by(pipe, tmp_path, name)
    before, base = weights(pipe), pictures(pipe, "teddy")
    concept.save(tmp_path / "concept.safetensors")
    loaded = get_class(method_of(name)["learned"]).load(tmp_path / "concept.safetensors")
    assert (loaded.word, loaded.steps, loaded.super_category) == (concept.word, 8, "teddy")
    assert all(torch.allclose(loaded.tensors[n], t, rtol=1e-3, atol=1e-5) for n, t in concept.tensors.items())

    handle = put_on(pipe, loaded)
    strong = pictures(pipe, word_of(loaded))
    with at_points(handle, [{"strength": 0.5}]):
        half = pictures(pipe, word_of(loaded))
    with at_points(handle, [{"strength": 0.0}]):
        none = pictures(pipe, word_of(loaded))
    assert np.array_equal(pictures(pipe, word_of(loaded)), strong)  # the with-block is over
    handle.unload()
    assert same(weights(pipe), before) and np.array_equal(pictures(pipe, "teddy"), base)
    assert not np.array_equal(strong, half) and not np.array_equal(strong, none)
    assert np.array_equal(none[1], base[1])  # without the word
    if name == "textual_inversion":  # its start is the super-category's word itself
        assert np.array_equal(none, base)
    if name == "dreambooth_lora":
        assert np.array_equal(none, pictures(pipe, loaded.word))

    loaded.base_hash = "0" * 32
    with pytest.raises(UserError, match="was learned on base tiny"):
        put_on(pipe, loaded)
    other = METHODS[METHODS.index(name) - 1]
    if name != "textual_inversion":
        with pytest.raises(UserError, match="was not written by method="):
            get_class(method_of(other)["learned"]).load(tmp_path / "concept.safetensors")
    with pytest.raises(UserError, match="is not a safetensors file"):
        (tmp_path / "pickle.bin").write_bytes(b"\x80\x04K\x01.")
        get_class(method_of(name)["learned"]).load(tmp_path / "pickle.bin")


def test_diffusers_reads_the_embedding_and_the_lora(pipe, folder, tmp_path):
    """The stock loaders draw what ours draws; and we read an embedding that diffusers' example wrote."""
    from diffusers import StableDiffusionPipeline

    for name in METHODS[:2]:
        (tmp_path / name).mkdir()
        concept = learned_by(pipe, tmp_path, name)
        file = tmp_path / name / "concept.safetensors"
        concept.save(file)
        handle = put_on(pipe, get_class(method_of(name)["learned"]).load(file))
        ours = pictures(pipe, concept.word)
        handle.unload()
        stock = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        stock.set_progress_bar_config(disable=True)
        if name == "textual_inversion":
            stock.load_textual_inversion(file)
            assert len(list(file.parent.glob("concept-steps-*.safetensors"))) == 7
        else:
            stock.load_lora_weights(file.parent, weight_name=file.name)
        assert np.abs(pictures(stock, concept.word) - ours).max() <= 2

    save_file({"<their-toy>": torch.ones(32)}, tmp_path / "learned_embeds.safetensors")
    theirs = get_class(method_of("textual_inversion")["learned"]).load(tmp_path / "learned_embeds.safetensors")
    theirs.super_category = "teddy"
    assert theirs.word == "their-toy" and put_on(pipe, theirs).unload() is None
    save_file({"a": torch.ones(32), "b": torch.ones(32)}, tmp_path / "two.safetensors")
    with pytest.raises(UserError, match="one embedding, or clip_l and clip_g"):
        type(theirs).load(tmp_path / "two.safetensors")


def test_textual_inversions_strength_is_its_checkpoints(pipe, tmp_path):
    concept = learned_by(pipe, tmp_path, "textual_inversion")
    assert sorted(concept.earlier) == [1, 2, 3, 4, 5, 6, 7]
    handle = put_on(pipe, concept)
    for strength, step in ((0.5, 4), (0.26, 2), (0.99, 8)):
        with at_points(handle, [{"strength": strength}]):
            now = handle.rows[handle.token_id]
        wanted = concept.tensors if step == 8 else concept.earlier[step]
        assert torch.equal(now, wanted["teddy*"][0])
    handle.unload()


def test_a_shorter_training_leaves_no_step_of_the_one_that_it_replaces(pipe, tmp_path):
    concept, file = learned_by(pipe, tmp_path, "textual_inversion"), tmp_path / "toy [v2].safetensors"
    concept.save(file)
    (other := file.with_name("toy [v2]-steps-best.safetensors")).touch()  # a user's own
    assert sorted(type(concept).load(file).earlier) == [1, 2, 3, 4, 5, 6, 7]
    replace(concept, steps=3, earlier={step: concept.earlier[step] for step in (1, 2)}).save(file)
    assert sorted(type(concept).load(file).earlier) == [1, 2] and other.exists()


@pytest.mark.parametrize("name", METHODS)
def test_a_damaged_file_and_values_that_no_file_holds_are_refused(pipe, tmp_path, name):
    concept, file = learned_by(pipe, tmp_path, name), tmp_path / "concept.safetensors"
    concept.save(file)
    with safe_open(file, "pt") as saved:
        metadata = saved.metadata()
    for damage in (lambda t: t * float("nan"), lambda t: t + 1):
        save_file({n: damage(t) for n, t in load_file(file).items()}, tmp_path / "damaged.safetensors", metadata)
        with pytest.raises(UserError, match="not as it was written"):
            type(concept).load(tmp_path / "damaged.safetensors")
    first = next(iter(concept.tensors))
    concept.tensors[first] = concept.tensors[first] * float("inf")
    with pytest.raises(UserError, match=r"with values that are not finite.*learning_rate"):
        concept.save(file)


@pytest.mark.parametrize("name", METHODS[1:])
def test_prior_preservation_is_drawn_once_and_counts(pipe, tmp_path, name):
    runs = []
    for count in (0, 3, 3):
        module = module_of(pipe, tmp_path, name, prior_pictures=count)
        module.log = lambda *args, **kwargs: None
        runs.append((module.prior, module.training_step(None, 0).item()))
        module.detach()
        assert (module.setup_seconds > 0) == (count > 0)
    (_, plain), (prior, with_prior), again = runs
    assert prior.shape == (3, 4, 8, 8) and with_prior > plain > 0
    assert torch.equal(prior, again[0]) and again[1] == with_prior
    assert len(list(Path(tmp_path / "cache/prior").glob("*"))) == 1


@pytest.mark.parametrize("name", METHODS)
def test_on_sdxl(tmp_path, name):
    pipe = sdxl(*tokenizers())
    before = weights(pipe)
    concept = learned_by(pipe, tmp_path, name)
    concept.save(tmp_path / "concept.safetensors")
    loaded = get_class(method_of(name)["learned"]).load(tmp_path / "concept.safetensors")
    base = pictures(pipe, "teddy")
    handle = put_on(pipe, loaded)
    assert not np.array_equal(pictures(pipe, loaded.word), base)
    handle.unload()
    assert np.array_equal(pictures(pipe, "teddy"), base) and same(weights(pipe), before)
    if name == "textual_inversion":
        assert {k: t.shape for k, t in loaded.tensors.items()} == {"clip_l": (1, 24), "clip_g": (1, 32)}


def test_the_hash_of_the_base_is_the_same_before_and_after(pipe, tmp_path):
    before = base_hash(pipe.text_encoder, pipe.unet)
    for name in METHODS:
        module_of(pipe, tmp_path, name).detach()
        assert base_hash(pipe.text_encoder, pipe.unet) == before
