"""PixArt (alpha and Sigma) and Sana as whole pipelines: text, noise, training, drawing, files. Tiny models of the true classes."""

import hydra
import measure_gate
import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from helpers import fit, loss_of, module_of
from helpers_denoisers import TINY, draw, sana
from PIL import Image
from safetensors.torch import load_file

from perfusion.commands.concept_files import export_textual_inversion
from perfusion.config import CONF
from perfusion.errors import UserError
from perfusion.learning.data import ConceptData
from perfusion.learning.noising import Flow, noising_of
from perfusion.method.attention import look
from perfusion.method.concept import Concept
from perfusion.method.covariance import second_moment
from perfusion.method.denoiser import denoiser_of, predict
from perfusion.method.fingerprint import hash_of
from perfusion.method.layers import cross_attentions
from perfusion.method.pipeline import load_concepts
from perfusion.method.sampling import Sampling
from perfusion.method.text import (
    add_placeholders,
    aligned,
    drops_spaces,
    encode,
    encoded,
    pieces,
    spellings,
    super_encoding,
    twin_prompts,
    word_embedding,
)
from perfusion.method.text_encoders import text_encoder_of

KINDS = list(TINY)


@pytest.fixture(params=KINDS)
def pipe(request):
    return TINY[request.param]()


def data(pipe, folder):
    for i in range(2):
        noise = np.random.default_rng(i).integers(0, 255, (32, 32, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return ConceptData(sorted(folder.glob("*.png")), 32, "teddy", "", None, flip=True).encode(pipe.vae)


def trained(pipe, folder, **changes):
    width = text_encoder_of(pipe).config.hidden_size
    return module_of(pipe, data(pipe, folder), C_inv=torch.eye(width), batch_size=2, **changes)


# -- text -------------------------------------------------------------------------------------------------------------
def test_prompts_are_encoded_as_the_pipeline_encodes_them(pipe):
    """Length, mask, lower case, and Sana's preamble."""
    seen = []
    hook = pipe.transformer.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs), with_kwargs=True)
    draw(pipe, "A photo of a Teddy ", guidance_scale=1.0)
    hook.remove()
    with torch.no_grad():
        text = encoded(pipe.tokenizer, text_encoder_of(pipe), ["A photo of a Teddy "])
    assert torch.equal(text.given, seen[0]["encoder_hidden_states"])
    assert torch.equal(text.mask, seen[0]["encoder_attention_mask"])
    assert text.e.shape[-1] == next(iter(cross_attentions(pipe.transformer).values())).to_k.in_features
    assert text.ids.shape == text.mask.shape == (1, text_encoder_of(pipe).limit)


def test_a_placeholder_with_the_words_embedding_is_the_word(pipe):
    """In its place, and for what stands around it; Gemma scales the embeddings that it looks up."""
    tokenizer, ids = add_placeholders(pipe.tokenizer, ["teddy*"])
    encoder = text_encoder_of(pipe)
    rows = {ids["teddy*"]: word_embedding(pipe.tokenizer, encoder, "teddy")}
    ours, tokens = encode(tokenizer, encoder, ["a photo of a teddy* on a beach"], rows)
    theirs, _ = encode(pipe.tokenizer, encoder, ["a photo of a teddy on a beach"])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (tokens == ids["teddy*"]).sum() == 1


@pytest.mark.parametrize(
    "prompt", ["a teddy* on a beach", "teddy*, in snow", "a (teddy*) at night", "a Teddy* and a teddy*", "a cat"]
)
def test_a_twin_of_several_pieces_is_aligned(pipe, prompt):
    """Every other token keeps its own, the concept has the last piece."""
    tokenizer, ids = add_placeholders(pipe.tokenizer, ["teddy*"])
    encoder = text_encoder_of(pipe)
    assert len(pieces(tokenizer, "teapot")) == 2
    read = lambda tokenizer, text: encoder.kept(encoder.tokenize(tokenizer, [text]))
    tokens = read(tokenizer, prompt)
    (twin,) = twin_prompts([prompt], {"teddy*": "teapot"}, drops_spaces(tokenizer))
    to = aligned(tokens, read(pipe.tokenizer, twin), {ids["teddy*"]: spellings(tokenizer, "teapot")})
    theirs = read(pipe.tokenizer, twin).gather(1, to)
    here = tokens == ids["teddy*"]
    assert torch.equal(theirs[~here], tokens[~here]) and (theirs[here] == pieces(tokenizer, "teapot")[-1]).all()
    assert here.sum() == prompt.lower().count("teddy*")


def test_super_categories(pipe):
    """One word that can be spelled; of several pieces the last one carries the lock."""
    for bad in ("teddy bear", "", "テディ" if pipe.tokenizer.unk_token_id == 2 else " "):
        with pytest.raises(UserError, match="must be one word"):
            pieces(pipe.tokenizer, bad)
    encoder = text_encoder_of(pipe)
    e, ids = encode(pipe.tokenizer, encoder, ["a photo of a teapot"])
    assert super_encoding(pipe.tokenizer, encoder, "teapot").shape == e.shape[-1:]
    last = (ids[0] == pieces(pipe.tokenizer, "teapot")[-1]).nonzero()[0, 0]
    assert (ids[0, last - 1] == pieces(pipe.tokenizer, "teapot")[0]).all()
    assert torch.allclose(word_embedding(pipe.tokenizer, encoder, "teapot"),
                          pipe.text_encoder.get_input_embeddings().weight[pieces(pipe.tokenizer, "teapot")].mean(0))  # fmt: skip


def test_covariance_is_over_what_the_cross_attentions_see(pipe):
    encoder = text_encoder_of(pipe)
    captions = ["a teddy on a beach", "the cat"]
    for tokens in ("valid", "content", "all"):
        vectors = []
        for caption in captions:
            text = encoded(pipe.tokenizer, encoder, [caption])
            ends = torch.isin(text.ids, torch.tensor([i for i in (pipe.tokenizer.bos_token_id, 1) if i is not None]))
            keep = {"valid": text.mask.bool(), "content": text.mask.bool() & ~ends, "all": text.mask > -1}[tokens]
            vectors.append(text.e[keep])
        e = torch.cat(vectors).double()
        covariance = second_moment(captions, pipe.tokenizer, encoder, tokens, progress=False)
        assert covariance.count == len(e), tokens
        torch.testing.assert_close(covariance.C, e.T @ e / len(e), rtol=1e-4, atol=1e-4)


# -- noise ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_is_diffusers(shift):
    """Its shares of noise, its noisy pictures; and a solver that is told the target finds the picture."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    ours, steps = noising_of(scheduler), torch.arange(1000)
    torch.testing.assert_close(ours.share(steps).flip(0), scheduler.sigmas[:1000], rtol=1e-4, atol=1e-6)
    x, noise, k = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999])
    noisy, t = ours.noisy(x, noise, k)
    torch.testing.assert_close(
        noisy, scheduler.scale_noise(x, scheduler.timesteps[999 - k], noise), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(t, scheduler.timesteps[999 - k], rtol=1e-4, atol=1e-3)
    solver = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    assert isinstance(noising_of(solver), Flow) and noising_of(solver).shift == shift
    solver.set_timesteps(5)
    drawn = noise
    for t in solver.timesteps:
        drawn = solver.step(ours.target(x, noise, k), t, drawn).prev_sample
    torch.testing.assert_close(drawn, x, rtol=1e-2, atol=1e-2)


def test_kinds_of_noise_that_are_refused():
    with pytest.raises(UserError, match="use_dynamic_shifting"):
        noising_of(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))


# -- the denoiser -----------------------------------------------------------------------------------------------------
def test_predicting_is_what_the_pipeline_does(pipe):
    """Everything beside the encodings: mask, size, the scale of time, variances left out."""
    seen = []
    hook = pipe.transformer.register_forward_hook(
        lambda m, args, kwargs, out: seen.append((args, kwargs, out[0])), with_kwargs=True
    )
    draw(pipe, "a teddy", guidance_scale=1.0)
    hook.remove()
    (args, kwargs, out) = seen[0]
    x, t = (args[0] if args else kwargs["hidden_states"]), kwargs["timestep"]
    with torch.no_grad():
        text = encoded(pipe.tokenizer, text_encoder_of(pipe), ["a teddy"])
        ours = predict(pipe, x, t, text.given, 32, text.mask)
    assert ours.shape == x.shape and torch.equal(ours, out[:, : x.shape[1]])


def test_distilled_guidance_is_refused(pipe, tmp_path):
    pictures = data(pipe, tmp_path)
    denoiser_of(pipe).register_to_config(guidance_embeds=True)
    with pytest.raises(UserError, match="told the guidance scale"):
        module_of(pipe, pictures, C_inv=torch.eye(text_encoder_of(pipe).config.hidden_size))


@pytest.mark.parametrize("kind", ["pixart", "sana"])
def test_gradient_checkpointing_gives_the_same_gradients(kind, tmp_path):
    gradients = []
    for checkpointing in (False, True):
        pipe = TINY[kind]()
        module = trained(pipe, tmp_path)
        module.log = lambda *args, **kwargs: None
        if checkpointing:
            pipe.transformer.enable_gradient_checkpointing()
            pipe.transformer.train()
        module.training_step(None, 0).backward()
        gradients.append([p.grad for p in module.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert a.abs().sum() > 0


# -- the whole way ----------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_train_load_draw_combine_export_unload(pipe, tmp_path):
    names = ("transformer", "vae", "text_encoder")
    before = {n: {k: v.clone() for k, v in getattr(pipe, n).state_dict().items()} for n in names}
    base = [draw(pipe), draw(pipe, "a cat", negative_prompt="red")]
    module = trained(pipe, tmp_path)
    first = loss_of(module)
    fit(module, 12)
    assert loss_of(module) < first
    module.widened.restore()
    concept = module.concept(base_id="tiny", base_hash=hash_of(pipe))
    concept.save(tmp_path / "teddy.safetensors")
    for name in names:  # nothing else moved, nothing is left behind
        after = getattr(pipe, name).state_dict()
        assert after.keys() == before[name].keys() and all(torch.equal(v, before[name][k]) for k, v in after.items())

    handle = load_concepts(pipe, {"teddy*": tmp_path / "teddy.safetensors"})
    one = draw(pipe)
    assert not np.allclose(one, base[0], atol=1e-3)
    assert np.array_equal(draw(pipe, "a cat", negative_prompt="red"), base[1])
    with handle.gate(lock="global", beta=0.3):
        assert not np.allclose(draw(pipe), one, atol=1e-3)
        assert np.array_equal(draw(pipe, "a cat", negative_prompt="red"), base[1])
    batch = draw(pipe, ["a cat", "a teddy* on a beach"], negative_prompt=["red", ""])
    assert np.allclose(batch[1], one[0], atol=1e-3) and np.allclose(batch[0], base[1][0], atol=1e-3)
    handle.unload()

    other = Concept.load(tmp_path / "teddy.safetensors")
    other.super_category = "teapot"
    other.i_star = super_encoding(pipe.tokenizer, text_encoder_of(pipe), "teapot")
    other.c_inv_i_star = other.i_star
    handle = load_concepts(pipe, {"teddy*": concept, "pot*": other})
    both = draw(pipe, "a teddy* and a pot*")
    with handle.gate(beta={"pot*": 5.0}):
        assert not np.allclose(draw(pipe, "a teddy* and a pot*"), both, atol=1e-3)
    with handle.gate(lock="global"):
        assert np.isfinite(draw(pipe, "a pot*, with a teddy*")).all()
    handle.unload()
    assert np.array_equal(draw(pipe), base[0]) and np.array_equal(draw(pipe, "a cat", negative_prompt="red"), base[1])

    export_textual_inversion(concept, tmp_path / "ti.safetensors")
    assert load_file(tmp_path / "ti.safetensors")["<teddy*>"].shape == (1, 40)


def test_energies_are_measured_on_each(pipe, tmp_path, monkeypatch):
    """scripts/measure_gate.py. On random weights the numbers say nothing; r of a word at its own i* is a share all the same."""
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path / "cache"))
    pipe.save_pretrained(tmp_path / "pipeline")
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        kind = "sana" if "Sana" in type(pipe).__name__ else "pixart"
        given = [
            f"model={kind}",
            f"model.path={tmp_path / 'pipeline'}",
            "covariance.captions=40",
            "model.shrinkage=0.1",
        ]
        cfg = hydra.compose("gate", [*given, "words=[teddy,teapot]", f"figure={tmp_path / 'gate.png'}"])
    cfg.contexts = ["a photo of a {}", "a red {} on a beach"]
    special = (pipe.tokenizer.bos_token, pipe.tokenizer.eos_token, pipe.tokenizer.pad_token)
    rows = measure_gate.energies(cfg)
    energies = measure_gate.summary(cfg, rows, special)
    assert energies["classes"] == energies["contexts"] == 2 and np.isfinite(energies["other_word_max"])
    assert 0.5 < energies["class_word_by_context"]["a photo of a {}"] < 1.5  # among the templates that i* is a mean of
    assert {"padding"} <= energies["apart"].keys()
    assert (
        not energies["other_word_max_at"].startswith(("tea:", "pot:")) or "teapot" not in energies["other_word_max_at"]
    )
    measure_gate.draw(cfg, rows, special)
    assert (tmp_path / "gate.png").stat().st_size > 1000


def test_cleaned_captions_keep_the_concepts_word(tmp_path):
    """PixArt's cleaning, on by default, takes asterisks out: not of a call with a concept's word."""
    pipe = TINY["pixart"]()
    cleaned = draw(pipe, "a cat*", clean_caption=True)
    assert np.array_equal(cleaned, draw(pipe, "a cat", clean_caption=True))
    module = trained(pipe, tmp_path)
    module.widened.restore()
    handle = load_concepts(pipe, {"teddy*": module.concept(base_hash=hash_of(pipe))})
    assert np.array_equal(draw(pipe, clean_caption=True), draw(pipe))
    assert np.array_equal(draw(pipe, "a cat*", clean_caption=True), cleaned)
    handle.unload()


@pytest.mark.parametrize("changes", [{"masked_prior": True}, {"i_star_gradient": True}, {"lock": "trained"}])
def test_ablations_train_too(changes, tmp_path):
    module = trained(sana(), tmp_path, **changes)
    fit(module, 2)
    assert all(torch.isfinite(p).all() for p in module.parameters()) and loss_of(module, 2) > 0


def test_where_words_are_looked_at(pipe):
    """Of every kind of tokens: words, whole, without a preamble."""
    (looked,) = look(pipe, ["a teapot on a beach"], [0], Sampling(2, 2.0, 1, 32))
    assert list(looked.maps) == ["a", "teapot", "on", "beach"]
    assert all(torch.isfinite(m).all() and m.min() >= 0 for m in looked.maps.values())


def test_joint_attention_is_refused_with_the_reason(tmp_path):
    """Stable Diffusion 3's transformer: no layer reads the text alone."""
    from diffusers import SD3Transformer2DModel

    pipe = sana()
    pipe.transformer = SD3Transformer2DModel(
        sample_size=8, num_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16,
        caption_projection_dim=16, pooled_projection_dim=16, pos_embed_max_size=8,
    )  # fmt: skip
    with pytest.raises(UserError, match="attend to text and picture jointly"):
        load_concepts(pipe, {"teddy*": tmp_path / "teddy.safetensors"})
