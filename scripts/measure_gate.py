"""Why the gate works, or does not: the energy r of a class word, and of the words around it, in many contexts.

python scripts/measure_gate.py [model=sd15]     # writes results/gate.json and docs/gate.png

Every class word's i* is its encoding over the training templates (the start of training; method.md 4), C is over captions,
shrunk as training shrinks it. A concept shows in every prompt where r of its class word is near 1 in every context, and
shows nowhere else where r of every other word is small. No training, no drawing.
"""

import hydra
import matplotlib.pyplot as plt
import torch
from omegaconf import DictConfig, OmegaConf

from perfusion.atomic import whole, write_json
from perfusion.config import CONF
from perfusion.learning.models import covariance, load_pipeline
from perfusion.method.edit import energy, gate, inverse_metric, target_key
from perfusion.method.text import at_word, encode, pieces, super_encoding
from perfusion.method.text_encoders import text_encoder_of

FIGURE_WORDS = 4  # class words in the heat map


@torch.no_grad()
def energies(cfg: DictConfig) -> dict[str, list[tuple[list[str], list[float], int]]]:
    """By class word, a context each: its tokens from BOS to the last of the padding, r of each, where the class word is."""
    pipe = load_pipeline(cfg.model)
    encoder, tokenizer = text_encoder_of(pipe), pipe.tokenizer
    C = covariance(pipe, cfg.model, **OmegaConf.to_container(cfg.covariance)).C
    C_inv = inverse_metric(C, cfg.model.shrinkage)
    rows = {}
    for word in cfg.words:
        own_pieces = pieces(tokenizer, word)
        i_star = super_encoding(tokenizer, encoder, word)[None]
        e, ids = encode(tokenizer, encoder, [context.format(word) for context in cfg.contexts])
        r = energy(e.float(), i_star, target_key(C_inv, i_star))[..., 0]
        own = [int(row.nonzero()[-1]) for row in at_word(ids, own_pieces)]
        names = [[_name(t) for t in tokenizer.convert_ids_to_tokens(row)] for row in ids.tolist()]
        for row, at in zip(names, own):  # a word of several pieces is no other word to itself
            row[at - len(own_pieces) + 1 : at] = [row[at]] * (len(own_pieces) - 1)
        rows[word] = list(zip(names, r.tolist(), own))
    return rows


def _name(token: str) -> str:
    return token.removesuffix("</w>").removeprefix("▁") or token


def span(names: list[str], special: tuple[str | None, ...]) -> tuple[int, int]:
    """Where words begin and end; T5 has no BOS, Gemma writes no EOS before the padding."""
    end = next((i for i, name in enumerate(names) if i and name in special[1:]), len(names))
    return int(names[0] == special[0]), end


def summary(cfg: DictConfig, rows: dict, special: tuple[str | None, ...]) -> dict:
    """The numbers of results/gate.json: extremes over classes and contexts, and where they are found.

    special: how BOS, EOS and padding are written. "Other" words leave out the class word itself, BOS, EOS and padding, which are
    reported apart, and the class word's own second mention ("a teapot and a teapot").
    """
    own, other, ends = [], [], {"bos": [], "eos": [], "padding": []}
    for word, contexts in rows.items():
        for context, (names, r, at) in zip(cfg.contexts, contexts):
            prompt, (start, end) = context.format(word), span(names, special)
            own.append((r[at], f"{word}: {prompt}"))
            other += [(r[i], f"{names[i]}: {prompt}") for i in range(start, end) if names[i] != names[at]]
            ends["bos"] += r[:start]
            ends["eos"] += r[end : end + 1]
            ends["padding"] += r[end + 1 :]
    by_context = {
        context: round(sum(rows[word][k][1][rows[word][k][2]] for word in rows) / len(rows), 3)
        for k, context in enumerate(cfg.contexts)
    }
    opened = gate(torch.tensor([[[min(own)[0]]]]), torch.tensor([[cfg.beta]]), torch.tensor([[cfg.tau]])).item()
    return {
        "what": "energy r (Eq. 3) of class words and of the words around them, by context; 1 at i*",
        "classes": len(rows),
        "contexts": len(cfg.contexts),
        "class_word_min": round(min(own)[0], 3),
        "class_word_min_at": min(own)[1],
        "class_word_mean": round(sum(r for r, _ in own) / len(own), 3),
        "gate_at_class_word_min": round(opened, 3),
        "other_word_max": round(max(other)[0], 3),
        "other_word_max_at": max(other)[1],
        "class_word_by_context": by_context,
        "apart": {name: {"min": round(min(v), 3), "max": round(max(v), 3)} for name, v in ends.items() if v},
    }


def draw(cfg: DictConfig, rows: dict, special: tuple[str | None, ...]) -> None:
    """A heat map a class word: contexts down, words across, r as colour and number; the class word framed."""
    words = list(rows)[:FIGURE_WORDS]
    width = max(span(names, special)[1] for word in words for names, _, _ in rows[word])
    figure, axes = plt.subplots(2, -(-len(words) // 2), figsize=(7 * -(-len(words) // 2), 13), layout="constrained")
    for axis, word in zip(axes.flat, words):
        heat = torch.full((len(rows[word]), width), torch.nan)
        for y, (names, r, at) in enumerate(rows[word]):
            _, end = span(names, special)
            heat[y, : end - 1] = torch.tensor(r[1:end])
            for x in range(1, end):
                dark = r[x] < 0.6
                axis.text(
                    x - 1,
                    y,
                    f"{names[x]}\n{r[x]:.2f}",
                    ha="center",
                    va="center",
                    fontsize=6,
                    color="white" if dark else "black",
                )
            axis.add_patch(plt.Rectangle((at - 1.5, y - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=1.2))
        shown = axis.imshow(heat, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        axis.set_title(word, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(shown, ax=axes, label="r, the share of the class's i* in a word's encoding", shrink=0.5)
    with whole(cfg.figure) as part:
        figure.savefig(part, format="png", dpi=130)
    plt.close(figure)


@hydra.main(str(CONF), "gate", version_base="1.3")
def main(cfg: DictConfig) -> None:
    from perfusion.learning.models import load_tokenizer

    tokenizer = load_tokenizer(cfg.model)
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    rows = energies(cfg)
    result = summary(cfg, rows, special)
    write_json(cfg.results, result | {"config": OmegaConf.to_container(cfg, resolve=False)})
    draw(cfg, rows, special)
    for name, value in result.items():
        print(f"{name}: {value}")
    print(f"written: {cfg.results}, {cfg.figure}")


if __name__ == "__main__":
    main()
