"""How much C is to be shrunk: how well the gate then tells a class's own word from every other token, with no training.

python scripts/measure_shrinkage.py     # writes results/shrinkage.json

Every class word's i* is its encoding over the training templates; r and the gate are measured on captions of another
stream than C's. A good shrinkage opens the gate at the class's own word, whatever its caption, and nowhere else.
"""

import torch
from omegaconf import OmegaConf

from perfusion.atomic import write_json
from perfusion.emojiland.captions import captions
from perfusion.emojiland.vocabulary import CLASSES
from perfusion.experiments.figures import composed
from perfusion.learning.models import covariance, load_pipeline
from perfusion.method.edit import energy, inverse_metric, target_key
from perfusion.method.text import encode, super_encoding

SHRINKAGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
CAPTIONS, SEED = 2000, 12


@torch.no_grad()
def main() -> None:
    cfg = composed()
    pipe = load_pipeline(cfg.model)
    C = covariance(pipe, cfg.model, **OmegaConf.to_container(cfg.covariance)).C
    e, ids = encode(pipe.tokenizer, pipe.text_encoder, captions(CAPTIONS, SEED))
    words = list(CLASSES)
    word_ids = torch.tensor(pipe.tokenizer.convert_tokens_to_ids([f"{word}</w>" for word in words]))
    valid = (ids == pipe.tokenizer.eos_token_id).cumsum(1) - (ids == pipe.tokenizer.eos_token_id).int() == 0
    own = (ids[..., None] == word_ids) & valid[..., None]  # [B, T, classes]
    present = own.any(1, keepdim=True)  # the caption names the class
    near = present & ~own & valid[..., None]  # the caption's other tokens
    far = ~present & valid[..., None]  # captions without the class
    i_stars = torch.stack([super_encoding(pipe.tokenizer, pipe.text_encoder, word) for word in words])
    rows = []
    for shrinkage in SHRINKAGES:
        keys = target_key(inverse_metric(C, shrinkage), i_stars)
        r = energy(e, i_stars, keys)
        opened = torch.sigmoid((r - cfg.beta) / cfg.tau)
        row = {"shrinkage": shrinkage, "r_own": r[own].mean().item(), "r_own_std": r[own].std().item()}
        row |= {"gate_own": opened[own].mean().item(), "gate_near": opened[near].mean().item()}
        row |= {"gate_far": opened[far].mean().item()}
        row["margin"] = row["gate_own"] - row["gate_near"] - row["gate_far"]
        rows.append({k: float(f"{v:.4g}") for k, v in row.items()})
        print(rows[-1])
    best = max(rows, key=lambda row: row["margin"])["shrinkage"]
    result = {
        "what": f"mean energies r and gates (beta {cfg.beta}, tau {cfg.tau}) over {CAPTIONS} captions and {len(words)} classes: "
        "at the class's own word, at the caption's other tokens (near), in captions without it (far)",
        "rows": rows,
        "best": best,
    }
    write_json("results/shrinkage.json", result)
    print(f"best {best}; written: results/shrinkage.json")


if __name__ == "__main__":
    main()
