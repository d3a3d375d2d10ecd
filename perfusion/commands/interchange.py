"""perfusion import: a checkpoint of ChenDarYen's Perfusion becomes a concept file.

perfusion import model=sd15 file=teddy.ckpt super_category=teddy
"""

import os
import re
import warnings
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from perfusion.atomic import check_place
from perfusion.config import check
from perfusion.errors import UserError
from perfusion.learning.checkpoints import tensors
from perfusion.learning.models import base_model, check_model, load_pipeline, load_tokenizer
from perfusion.method.concept import Concept
from perfusion.method.edit import energy, gate, target_key
from perfusion.method.fingerprint import hash_of
from perfusion.method.layers import cross_attentions
from perfusion.method.text import TEMPLATES, add_placeholders, encode, single_token

LDM_LAYER = re.compile(
    r"(input_blocks|middle_block|output_blocks)\.(\d+)\.(?:1\.)?transformer_blocks\.(\d+)\.attn2\.to_v\.target_output"
)


def ldm_to_diffusers(key: str, layers_per_block: int) -> str | None:
    """The diffusers name of the cross-attention whose o*_V a CompVis key is; None for any other key."""
    match = LDM_LAYER.fullmatch(key)
    if not match:
        return None
    part, index, transformer = match[1], int(match[2]), match[3]
    if part == "middle_block":
        where = "mid_block.attentions.0"
    else:
        # input_blocks.0 is conv_in, then L residual layers and a down-sampler a block; output blocks have L + 1.
        side, index = ("down", index - 1) if part == "input_blocks" else ("up", index)
        block, layer = divmod(index, layers_per_block + 1)
        where = f"{side}_blocks.{block}.attentions.{layer}"
    return f"{where}.transformer_blocks.{transformer}.attn2"


def read_checkpoint(path: str | os.PathLike) -> dict:
    """{"target_input" [d], "C_inv" [d, d], "embedding" [d_tok], "target_output" {CompVis key: [T, d_l]}} of a .ckpt.

    Raises UserError for anything else; nothing in it is executed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"file={path} does not exist; give a .ckpt of ChenDarYen's Perfusion.")
    try:
        # The one class among its tensors; a torch container, rebuilt from tensors alone.
        with torch.serialization.safe_globals([nn.ParameterDict]):
            checkpoint = tensors(path)
    except Exception as error:  # on bytes that are no checkpoint the unpickler raises what it happens to meet
        raise UserError(
            f"file={path} is not a checkpoint of tensors alone ({' '.join(str(error).split())[:100]}); only these are read, "
            "since any other could run a program."
        ) from error
    try:
        words = checkpoint["embedding"]["string_to_param"]
        ((_, embedding),) = words.items()
        parts = {name: checkpoint[name].detach().float() for name in ("target_input", "C_inv")}
        parts["target_output"] = {name: o.detach().float() for name, o in checkpoint["target_output"].items()}
        (parts["embedding"],) = embedding.detach().float()
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"file={path} is not a concept of ChenDarYen's Perfusion ({error}); it needs target_input, C_inv, one "
            "embedding vector of one word, and target_output."
        ) from error
    everything = [parts["target_input"], parts["C_inv"], parts["embedding"], *parts["target_output"].values()]
    if not all(t.isfinite().all() for t in everything):
        raise UserError(f"file={path} holds numbers that are not finite; it is damaged, or its training failed.")
    d = parts["target_input"].numel()
    if parts["C_inv"].shape != (d, d):
        raise UserError(
            f"file={path} has C_inv of {tuple(parts['C_inv'].shape)} for a target_input of {d}; it is damaged."
        )
    return parts


@torch.no_grad()
def import_checkpoint(
    path: str | os.PathLike,
    pipe,
    super_category: str,
    trigger: str,
    *,
    beta: float = 0.75,
    tau: float = 0.1,
    **metadata,
) -> Concept:
    """A concept from ChenDarYen's format, for the base model `pipe` (the file does not say on which it was trained).

    There every position of the prompt has an o* of its own, 77 x d a layer; a concept here has one. Their mean is
    taken, weighted by how far the gate is open at each position up to the word's own, over TEMPLATES: where the gate is
    shut an o* was neither trained nor used. (Taking the word's own position alone would lose it: that program measures
    i* one token too early, so the gate opens before the word.) o*_K follows from the super-category, as for any locked
    concept.

    Raises UserError for a bad file, or one whose shapes are not the model's; warns of what is reduced.
    """
    parts = read_checkpoint(path)
    i_star, embedding = parts["target_input"], parts["embedding"]
    d, d_tok = pipe.text_encoder.config.hidden_size, pipe.text_encoder.get_input_embeddings().weight.shape[1]
    if (i_star.numel(), embedding.numel()) != (d, d_tok):
        raise UserError(
            f"file={path} has an i* of {i_star.numel()} and an embedding of {embedding.numel()}, the model's text "
            f"encoder {d} and {d_tok}; give the model it was trained on."
        )
    layers = pipe.unet.config.layers_per_block
    targets = {ldm_to_diffusers(key, layers): o for key, o in parts["target_output"].items()}
    widths = {name: a.to_v.out_features for name, a in cross_attentions(pipe.unet).items()}
    in_file = {name: o.shape[-1] for name, o in targets.items() if name}
    if in_file != widths:
        raise UserError(
            f"file={path} has o* for {in_file}, the model's layers are {widths}; give the model it was trained on."
        )

    tokenizer, ids = add_placeholders(pipe.tokenizer, [trigger])
    e, tokens = encode(tokenizer, pipe.text_encoder, [t.format(trigger) for t in TEMPLATES], {ids[trigger]: embedding})
    key = target_key(parts["C_inv"], i_star)
    r = energy(e.float(), i_star[None], key[None])
    open_ = gate(r, torch.tensor([[beta]]), torch.tensor([[tau]]))[..., 0]
    is_word = tokens == ids[trigger]
    up_to_word = is_word.flip(1).cumsum(1).flip(1) > 0
    up_to_word[:, 0] = False  # BOS
    weights = (open_ * up_to_word).sum(0)
    weights = weights / weights.sum()
    rows = min(len(weights), *(len(o) for o in targets.values()))
    warnings.warn(
        f"{path} has an o* for each of {rows} positions; they are reduced to one a layer, mostly position "
        f"{int(weights.argmax())} ({weights.max():.0%}), so pictures will differ from that program's.",
        stacklevel=2,
    )
    o_star_v: dict[str, Tensor] = {name: weights[:rows] @ targets[name][:rows] for name in widths}
    metadata = {"base_hash": hash_of(pipe)} | metadata
    return Concept(trigger, super_category, i_star, key, embedding, o_star_v, beta=beta, tau=tau, **metadata)


def run(cfg: DictConfig) -> None:
    """The command: checks everything before the model loads, writes cfg.output whole or not at all."""
    cfg = check("import", cfg)
    check_place("output", cfg.output, "a concept file")
    check_model(cfg.model, ("path",))
    read_checkpoint(cfg.file)
    trigger = cfg.name or f"{cfg.super_category}*"
    tokenizer = load_tokenizer(cfg.model)
    single_token(tokenizer, cfg.super_category)
    add_placeholders(tokenizer, [trigger])
    concept = import_checkpoint(
        cfg.file,
        load_pipeline(cfg.model),
        cfg.super_category,
        trigger,
        base_id=cfg.model.id,
        licence=cfg.licence,
        config={"imported": Path(cfg.file).name} | base_model(cfg.model),
    )
    concept.save(cfg.output)
    print(f"concept: {cfg.output}, to be written as {trigger} in prompts")
