"""Other programs' files: an embedding for diffusers, and ChenDarYen's checkpoints against that program's formula."""

import os
from dataclasses import replace

import hydra
import pytest
import torch
import torch.nn.functional as F
from helpers import without_weights
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn

from perfusion.commands.concept_files import export_textual_inversion
from perfusion.commands.interchange import import_checkpoint, ldm_to_diffusers, run
from perfusion.config import CONF
from perfusion.errors import UserError
from perfusion.method.concept import Concept
from perfusion.method.edit import augment
from perfusion.method.layers import cross_attentions
from perfusion.method.pipeline import load_concepts
from perfusion.method.text import add_placeholders, encode, super_encoding, word_embedding

# CompVis names of the tiny UNet's cross-attentions (one layer a block), in its own order.
KEYS = ["input_blocks.1.1", "output_blocks.2.1", "output_blocks.3.1", "middle_block.1"]


def checkpoint(pipe, same_everywhere: bool) -> dict:
    """What ChenDarYen's on_save_checkpoint writes; i* is the super-category's own encoding."""
    g = torch.Generator().manual_seed(0)
    d, layers = 32, list(cross_attentions(pipe.unet).values())
    targets = {}
    for key, attention in zip(KEYS, layers, strict=True):
        for part in ("to_k", "to_v"):
            rows = torch.randn(1 if same_everywhere else 16, getattr(attention, part).out_features, generator=g)
            targets[f"{key}.transformer_blocks.0.attn2.{part}.target_output"] = rows.expand(16, -1).clone()
    e = torch.randn(500, d, generator=g)
    word = word_embedding(pipe.tokenizer, pipe.text_encoder, "teddy")
    return {
        "global_step": 400,
        "C_inv": torch.linalg.inv(e.T @ e / 500),
        "target_input": super_encoding(pipe.tokenizer, pipe.text_encoder, "teddy"),
        "embedding": {
            "string_to_token": {"*": 265},
            "string_to_param": nn.ParameterDict({"*": nn.Parameter(word[None] + 0.01)}),
        },
        "target_output": targets,
    }


def literal(e, W, target_output, target_input, C_inv, beta=0.75, tau=0.1):
    """ChenDarYen's layer, written from its formula: e [T, d], target_output [T, d_l]."""
    r = e @ (C_inv @ target_input) / (target_input @ C_inv @ target_input)
    return F.linear(e - r[:, None] * target_input, W) + torch.sigmoid((r - beta) / tau)[:, None] * target_output


def test_layer_names():
    """SD 1.5's sixteen cross-attentions, by the layout of its original checkpoint."""
    name = lambda where: ldm_to_diffusers(f"{where}.transformer_blocks.0.attn2.to_v.target_output", 2)
    there = lambda where: f"{where}.transformer_blocks.0.attn2"
    down = {f"input_blocks.{n}.1": f"down_blocks.{b}.attentions.{i}" for b, i, n in
            [(0, 0, 1), (0, 1, 2), (1, 0, 4), (1, 1, 5), (2, 0, 7), (2, 1, 8)]}  # fmt: skip
    up = {f"output_blocks.{n}.1": f"up_blocks.{n // 3}.attentions.{n % 3}" for n in range(3, 12)}
    for ldm, diffusers in (down | up | {"middle_block.1": "mid_block.attentions.0"}).items():
        assert name(ldm) == there(diffusers)
    assert ldm_to_diffusers("input_blocks.1.1.transformer_blocks.0.attn2.to_k.target_output", 2) is None


@torch.no_grad()
def test_targets_alike_everywhere_give_that_programs_layers(pipe, tmp_path):
    """Where all positions share one o*, nothing is lost in reducing: every layer and token must agree."""
    torch.save(stored := checkpoint(pipe, same_everywhere=True), tmp_path / "teddy.ckpt")
    with pytest.warns(UserWarning, match="an o\\* for each of 16 positions; they are reduced"):
        concept = import_checkpoint(tmp_path / "teddy.ckpt", pipe, "teddy", "teddy*", base_id="tiny")
    concept.save(tmp_path / "teddy.safetensors")
    concept = Concept.load(tmp_path / "teddy.safetensors")
    tokenizer, ids = add_placeholders(pipe.tokenizer, ["teddy*"])
    e, _ = encode(tokenizer, pipe.text_encoder, ["a photo of a teddy*"], {ids["teddy*"]: concept.embedding})
    wide = augment(e, concept.i_star[None], concept.c_inv_i_star[None], torch.tensor(0.75), torch.tensor(0.1))
    load_concepts(pipe, {"teddy*": concept})
    for key, (name, attention) in zip(KEYS, cross_attentions(pipe.unet).items(), strict=True):
        target = stored["target_output"][f"{key}.transformer_blocks.0.attn2.to_v.target_output"]
        expected = literal(e[0], attention.to_v.weight, target, stored["target_input"], stored["C_inv"])
        torch.testing.assert_close(attention.to_v(wide)[0], expected, rtol=5e-3, atol=5e-3, msg=name)  # float16 file
    assert pipe("a teddy*", num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)


def test_targets_are_weighted_by_the_open_gate(pipe, tmp_path):
    stored = checkpoint(pipe, same_everywhere=False)
    torch.save(stored, tmp_path / "teddy.ckpt")
    with pytest.warns(UserWarning, match="reduced"):
        concept = import_checkpoint(tmp_path / "teddy.ckpt", pipe, "teddy", "teddy*")
    target = stored["target_output"][f"{KEYS[0]}.transformer_blocks.0.attn2.to_v.target_output"]
    o_star = concept.o_star_v[next(iter(concept.o_star_v))]
    weights = torch.linalg.lstsq(target.T, o_star[:, None]).solution[:, 0]  # 16 rows of 16 numbers
    assert weights.sum() == pytest.approx(1, abs=1e-2) and weights.min() > -1e-2
    assert weights[0].abs() < 1e-2 and weights[7:].abs().max() < 1e-2  # neither BOS nor after the word
    assert weights[2:7].sum() > 0.9  # where the templates have the word: i* is near its encoding


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_refused(pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = checkpoint(pipe, same_everywhere=True)

    def refused(sentence, **changes):
        torch.save(good | changes, "bad.ckpt")
        with pytest.raises(UserError, match=sentence):
            import_checkpoint("bad.ckpt", pipe, "teddy", "teddy*")

    refused("checkpoint of tensors alone", extra=Evil())
    assert not os.path.exists("executed")
    refused("C_inv of \\(3, 3\\)", C_inv=torch.eye(3))
    refused(
        "i\\* of 8 and an embedding of 32, the model's text encoder 32 and 32",
        target_input=torch.ones(8),
        C_inv=torch.eye(8),
    )
    refused("has o\\* for {}", target_output={})
    refused("not a concept of ChenDarYen's", embedding={})
    (tmp_path / "text.ckpt").write_text("no")
    (tmp_path / "script.ckpt").write_text("export A=1\n")
    for name in ("text.ckpt", "script.ckpt", "gone.ckpt"):
        with pytest.raises(UserError, match=f"file={name}"):
            import_checkpoint(name, pipe, "teddy", "teddy*")


def test_command(folder, pipe, tmp_path):
    torch.save(checkpoint(pipe, same_everywhere=True), tmp_path / "teddy.ckpt")
    overrides = [f"model.path={folder}", "model.segmenter=not/used", "model.scorer=not/used", "model.id=tiny"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("import", [*overrides, f"output={tmp_path}/teddy.safetensors"])
    with pytest.raises(UserError, match="file is not given"):
        run(cfg)
    asked = OmegaConf.merge(cfg, {"file": str(tmp_path / "teddy.ckpt"), "super_category": "teddy"})
    asked.model.path = without_weights(folder, tmp_path / "bare")
    for change, sentence in [({"super_category": "teddy bear"}, "exactly 1 is"), ({"name": "cat"}, "already a word")]:
        with pytest.raises(UserError, match=sentence):  # and not by load_concepts, on the finished file
            run(OmegaConf.merge(asked, change))
    with pytest.warns(UserWarning, match="reduced"):
        run(OmegaConf.merge(cfg, {"file": str(tmp_path / "teddy.ckpt"), "super_category": "teddy"}))
    concept = Concept.load(tmp_path / "teddy.safetensors")
    assert (concept.trigger, concept.base_id, concept.lock, concept.licence) == ("teddy*", "tiny", "local", "unknown")
    load_concepts(pipe, {"teddy*": tmp_path / "teddy.safetensors"})


def test_sdxls_embedding_is_two_tensors(pipe, make_concept, tmp_path):
    word = torch.arange(768.0 + 1280)
    export_textual_inversion(replace(make_concept(pipe), embedding=word), tmp_path / "teddy.safetensors")
    saved = load_file(tmp_path / "teddy.safetensors")
    assert saved["clip_l"].shape == (1, 768) and saved["clip_g"].shape == (1, 1280)
    assert torch.equal(torch.cat([saved["clip_l"], saved["clip_g"]], -1), word[None])


def test_diffusers_loads_the_embedding(pipe, make_concept, tmp_path):
    concept = make_concept(pipe)
    export_textual_inversion(concept, tmp_path / "out/teddy.safetensors")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["teddy.safetensors"]
    pipe.load_textual_inversion(tmp_path / "out/teddy.safetensors")
    (token,) = pipe.tokenizer("<teddy*>", add_special_tokens=False).input_ids
    row = pipe.text_encoder.get_input_embeddings().weight[token]
    assert torch.equal(row.detach(), concept.embedding)
    # Its encoding is the one that our own placeholder has.
    theirs = pipe.encode_prompt("a <teddy*> on a beach", "cpu", 1, False)[0]
    tokenizer, ids = add_placeholders(pipe.tokenizer, ["teddy*"])
    ours, _ = encode(tokenizer, pipe.text_encoder, ["a teddy* on a beach"], {ids["teddy*"]: concept.embedding})
    torch.testing.assert_close(theirs, ours)
