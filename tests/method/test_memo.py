"""What is remembered of weights is forgotten as soon as they change."""

import copy
from types import SimpleNamespace

import torch
from peft import LoraConfig
from tokenizers import AddedToken

from perfusion.method.fingerprint import Base, base_hash, hash_of
from perfusion.method.layers import cross_attentions, lock_o_star_k
from perfusion.method.memo import remembered
from perfusion.method.pipeline import load_concepts
from perfusion.method.text import add_placeholders


def test_computed_once_until_the_tensors_change(pipe):
    calls, weight = [], torch.randn(5, 7)
    ask = lambda: remembered(pipe, "what", [weight], lambda: calls.append(1) or len(calls))
    assert (ask(), ask()) == (1, 1)
    weight.mul_(2)
    assert ask() == 2
    weight = weight.clone()
    assert ask() == 3


def test_tensors_made_in_inference_mode():
    with torch.inference_mode():
        weight = torch.ones(3)
    memory = SimpleNamespace()
    assert remembered(memory, "what", [weight], lambda: 1) == remembered(memory, "what", [weight], lambda: 2) == 1


def test_a_lora_on_the_text_encoder_is_switched_without_its_weights_changing(pipe, make_concept):
    """The lock's keys are W_K . the super-category's encoding, with the LoRA or without it."""
    concept = make_concept(pipe)
    keys = lambda: [o.clone() for o in pipe._perfusion._widened.o_star_k.values()]
    load_concepts(pipe, {"teddy*": concept}).unload()
    for part in (pipe.text_encoder, pipe.unet):
        names = ["q_proj", "v_proj"] if part is pipe.text_encoder else ["to_q"]
        part.add_adapter(LoraConfig(r=4, target_modules=names, init_lora_weights=False))
    load_concepts(pipe, {"teddy*": concept})
    with_lora = keys()
    pipe.disable_lora()
    without = keys()
    pipe.enable_lora()
    assert all(torch.equal(a, b) for a, b in zip(keys(), with_lora))
    assert not any(torch.allclose(a, b, rtol=1e-3) for a, b in zip(without, with_lora))


def test_the_locks_keys_are_computed_once_until_a_weight_changes(pipe, make_concept, monkeypatch):
    concept, asked = make_concept(pipe), []
    lock = lambda *args: asked.append(1) or lock_o_star_k(*args)
    monkeypatch.setattr("perfusion.method.pipeline.lock_o_star_k", lock)

    def keys():
        handle = load_concepts(pipe, {"teddy*": concept})
        handle.unload()
        return handle, {n: o.clone() for n, o in handle._locked_keys(["teddy", "cat", "teddy"], Base(pipe)).items()}

    one, two = keys()[1], keys()[1]
    assert len(asked) == 2  # teddy's, then cat's
    assert all(torch.equal(one[n], two[n]) and torch.equal(one[n][0], one[n][2]) for n in one)
    name, attention = next(iter(cross_attentions(pipe.unet).items()))
    with torch.no_grad():
        attention.to_k.weight.mul_(2)
    concept.base_hash = hash_of(pipe)
    three = keys()[1]
    assert torch.allclose(three[name], 2 * one[name], rtol=1e-4) and len(asked) == 4


def test_a_pipeline_whose_weights_change_has_another_hash(pipe):
    one = hash_of(pipe)
    assert hash_of(pipe) == one == base_hash(pipe.text_encoder, pipe.unet)
    to_v = next(iter(cross_attentions(pipe.unet).values())).to_v
    to_v.weight.data += 1e-2  # as LoRAs are fused: no version counter sees it
    two = hash_of(pipe)
    assert two != one and two == base_hash(pipe.text_encoder, pipe.unet)
    to_v.weight = torch.nn.Parameter(torch.zeros_like(to_v.weight))
    assert hash_of(pipe) == base_hash(pipe.text_encoder, pipe.unet) != two


def test_a_light_copy_of_a_tokenizer_is_a_copy(pipe):
    tokenizer = copy.deepcopy(pipe.tokenizer)
    tokenizer.add_tokens(["<inverted>", AddedToken("owl*", single_word=True)])  # as load_textual_inversion adds them
    prompts = ["a <inverted> and an OWL* on a beach", "teddy* teddy", ""]
    before = tokenizer(prompts).input_ids
    copied, ids = add_placeholders(tokenizer, ["cat*"])
    assert copied(prompts).input_ids == before == tokenizer(prompts).input_ids
    assert ids["cat*"] == len(tokenizer) == len(copied) - 1
    assert ids["cat*"] in copied("a cat*").input_ids and ids["cat*"] not in tokenizer("a cat*").input_ids
    assert copied.decode(before[0]) == tokenizer.decode(before[0])
