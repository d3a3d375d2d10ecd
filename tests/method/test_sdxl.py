"""Two text encoders, and SD 2.1's: training, files, covariance, loading, on tiny models of the true class layout."""

import copy

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from helpers import close, fit, frozen, latents, loss_of, module_of, sd21, sdxl, tokenizers
from PIL import Image
from tiny_tokenizers import tiny_tokenizer

from perfusion.errors import UserError
from perfusion.learning.data import ConceptData
from perfusion.method.concept import Concept
from perfusion.method.covariance import second_moment
from perfusion.method.fingerprint import base_hash
from perfusion.method.layers import cross_attentions
from perfusion.method.pipeline import load_concepts
from perfusion.method.text import TEMPLATES, add_placeholders, encode, encoded, word_embedding
from perfusion.method.text_encoders import text_encoder_of


@pytest.fixture
def xl():
    return sdxl(*tokenizers())


@pytest.fixture
def v2():
    return sd21(tokenizers()[1])


def data(pipe, tmp_path):
    for i in range(2):
        noise = np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
    return ConceptData(sorted(tmp_path.glob("*.png")), 16, "teddy", "", None, flip=True).encode(pipe.vae)


def test_layers_and_numbers_of_sdxl():
    """SDXL base's UNet as its published config has it, without memory."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=[1, 2, 10],
            attention_head_dim=[5, 10, 20],
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            use_linear_projection=True,
        )
    layers = cross_attentions(unet)
    assert len(layers) == 70
    # 2 x 2 + 3 x 2 layers of 640; 2 x 10 + 10 + 3 x 10 of 1280; embeddings of 768 and 1280.
    assert sum(a.to_v.out_features for a in layers.values()) == 10 * 640 + 60 * 1280
    assert {a.to_v.in_features for a in layers.values()} == {768 + 1280}


def test_encodings_are_the_pipelines_own(xl):
    prompts = ["a teddy on a beach", "cat"]
    text = encoded(xl.tokenizer, text_encoder_of(xl), prompts)
    e, pooled = text.e, text.pooled
    own, _, own_pooled, _ = xl.encode_prompt(prompts, do_classifier_free_guidance=False)
    assert e.shape == (2, 16, 56) and torch.equal(e, own) and torch.equal(pooled, own_pooled)


def test_pooled_embedding_is_the_ends_and_not_the_placeholders(xl):
    """A placeholder's id is the largest of the prompt, and the second encoder pools at the largest: it must not see it."""
    encoder = text_encoder_of(xl)
    tokenizer, ids = add_placeholders(xl.tokenizer, ["teddy*"])
    rows = {ids["teddy*"]: word_embedding(xl.tokenizer, encoder, "teapot")}
    text = encoded(tokenizer, encoder, ["a teddy* on a beach"], rows)
    e, pooled = text.e, text.pooled
    text = encoded(xl.tokenizer, encoder, ["a teapot on a beach"])
    twin, twin_pooled = text.e, text.pooled
    assert torch.equal(e, twin) and torch.equal(pooled, twin_pooled)


def test_each_encoder_gets_its_own_embedding(xl):
    encoder = text_encoder_of(xl)
    tokenizer, ids = add_placeholders(xl.tokenizer, ["teddy*"])
    row = word_embedding(xl.tokenizer, encoder, "teddy")
    assert row.shape == (24 + 32,)
    halves = [row.clone(), row.clone()]
    halves[0][:24] += 3 * row[:24].std()
    halves[1][24:] += 3 * row[24:].std()
    plain, first, second = (encode(tokenizer, encoder, ["a teddy*"], {ids["teddy*"]: r})[0] for r in (row, *halves))
    assert torch.equal(first[..., 24:], plain[..., 24:]) and not torch.allclose(first[..., :24], plain[..., :24])
    assert torch.equal(second[..., :24], plain[..., :24]) and not torch.allclose(second[..., 24:], plain[..., 24:])


def test_covariance_is_over_the_concatenation(xl):
    captions = [t.format("teddy") for t in TEMPLATES]
    C = second_moment(captions, xl.tokenizer, text_encoder_of(xl), progress=False)
    e, ids = encode(xl.tokenizer, text_encoder_of(xl), captions)
    valid = (ids == xl.tokenizer.eos_token_id).cumsum(1) - (ids == xl.tokenizer.eos_token_id).long() == 0
    e = e[valid].double()
    torch.testing.assert_close(C.C, e.T @ e / len(e), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("layout", ["xl", "v2"])
@pytest.mark.slow
def test_training(request, layout, tmp_path):
    pipe = request.getfixturevalue(layout)
    encoder = text_encoder_of(pipe)
    torch.manual_seed(0)
    e = torch.randn(500, encoder.config.hidden_size)
    before = frozen(pipe)
    module = module_of(pipe, data(pipe, tmp_path), C_inv=torch.linalg.inv(e.T @ e / 500 + 0.01 * torch.eye(e.shape[1])))
    start = {n: p.detach().clone() for n, p in module.named_parameters()}
    loss = loss_of(module)
    del module.log
    fit(module, 40)
    assert all(not torch.equal(p, start[n]) for n, p in module.named_parameters())
    assert {n.split(".")[0] for n in start} == {"embedding", "o_star_v"}
    assert all(torch.equal(before[n], value) for n, value in frozen(pipe).items())
    assert loss_of(module) < 0.99 * loss
    concept = module.concept(base_hash=base_hash(encoder, pipe.unet))
    concept.save(tmp_path / "teddy.safetensors")
    assert Concept.load(tmp_path / "teddy.safetensors").embedding.shape == module.embedding.shape
    module.widened.restore()
    image = latents(pipe, "a teddy* on a beach")
    handle = load_concepts(pipe, {"teddy*": tmp_path / "teddy.safetensors"})
    assert not close(latents(pipe, "a teddy* on a beach"), image)
    handle.unload()
    assert np.array_equal(latents(pipe, "a teddy* on a beach"), image)


def test_sdxl_is_told_the_pooled_embedding_and_the_size(xl, tmp_path):
    """The very conditions that the pipeline gives for a square picture of the training resolution."""
    module = module_of(xl, data(xl, tmp_path), C_inv=torch.eye(56))
    seen = []
    hook = xl.unet.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(kwargs["added_cond_kwargs"]), with_kwargs=True
    )
    text = module.encode(["a teddy*"], {module.token_id: module.embedding})
    gated = torch.nn.functional.pad(text.e, (0, 2))
    module.predict(torch.zeros(1, 4, 8, 8), torch.tensor([5]), text, gated)
    hook.remove()
    (conditions,), pooled = seen, text.pooled
    ids = xl._get_add_time_ids((16, 16), (0, 0), (16, 16), pooled.dtype, text_encoder_projection_dim=20)
    assert torch.equal(conditions["time_ids"], ids) and conditions["text_embeds"] is pooled
    pooled.sum().backward()  # what the pooled embedding says of the concept is learned too, by the second half
    assert module.embedding.grad[:24].abs().sum() == 0 and module.embedding.grad[24:].abs().sum() > 0


def test_noise_is_on_the_scale_of_training_whatever_the_folders_scheduler(xl, tmp_path):
    """SDXL's folder has an Euler scheduler, whose own add_noise leaves the picture at full size."""
    module = module_of(xl, data(xl, tmp_path), C_inv=torch.eye(56))
    x, noise = torch.ones(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)
    last, _ = module.noising.noisy(x, noise, torch.tensor([999]))
    assert last.max() < 0.1 and module.noising.scheduler.config.beta_schedule == "scaled_linear"


def test_second_prompts_locks_and_batches(xl, make_concept):
    handle = load_concepts(xl, {"teddy*": make_concept(xl), "teapot*": make_concept(xl, "teapot*", "teapot", 1)})
    prompts = ["a teddy* on a beach", "a teapot* in snow", "a cat"]
    with handle.gate(lock=["global", None, "global"], beta=[0.6, 0.7, 0.8]):
        together = latents(xl, prompts, negative_prompt=["red", "a teddy*", ""])
    for i, (lock, beta, negative) in enumerate(
        zip(["global", None, "global"], [0.6, 0.7, 0.8], ["red", "a teddy*", ""])
    ):
        with handle.gate(lock=lock, beta=beta):
            assert close(latents(xl, prompts[i], negative_prompt=negative)[0], together[i])
    # A concept named in the second encoder's prompt alone acts, too.
    image = latents(xl, "a cat", prompt_2="a teddy*")
    with handle.gate(beta=-0.5):
        assert not close(latents(xl, "a cat", prompt_2="a teddy*"), image)
    e, negative, pooled, negative_pooled = xl.encode_prompt(prompts[0], do_classifier_free_guidance=True)
    given = {"prompt_embeds": e, "negative_prompt_embeds": negative, "pooled_prompt_embeds": pooled,
                 "negative_pooled_prompt_embeds": negative_pooled}  # fmt: skip
    assert close(latents(xl, None, **given), latents(xl, prompts[0]))


def test_different_vocabularies_are_refused(xl, make_concept):
    concept = make_concept(xl)
    own = xl.tokenizer_2
    xl.tokenizer_2 = copy.deepcopy(own)
    xl.tokenizer_2.add_tokens(["zqzqz"])  # added, as a textual inversion's: the vocabulary is the same
    load_concepts(xl, {"teddy*": concept}).unload()
    xl.tokenizer_2 = tiny_tokenizer()
    with pytest.raises(UserError, match="different vocabularies"):
        load_concepts(xl, {"teddy*": concept})
