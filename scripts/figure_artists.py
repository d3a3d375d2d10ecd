"""Are two artists' drawings of a class told apart in what the VAE reconstructs and in what the model draws?

python scripts/figure_artists.py   # docs/artists.png

Columns are the drawings that pretraining saw: the drawing in a scene, the VAE's reconstruction of it, and, of COUNT
pictures drawn from "a photo of a CLASS", the one that the reader takes for that drawing most surely (its probability above).
"""

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from perfusion.config import ASSETS, CONF, ROOT
from perfusion.emojiland.pretraining import pixels
from perfusion.emojiland.reader import HEADS, Reader
from perfusion.emojiland.scenes import Facts
from perfusion.emojiland.scenes import draw as draw_scene
from perfusion.emojiland.sprites import artists_of
from perfusion.learning.models import load_pipeline
from perfusion.method.sampling import draw
from perfusion.plots import grid

NAMES, COUNT = ("teddy", "cat", "teapot", "robot"), 64


@torch.no_grad()
def main() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train").model
    pipe, reader = load_pipeline(cfg), Reader.load(ASSETS / "emojiland/reader")
    rows = []
    for name in NAMES:
        artists = artists_of(name, held_out=False)
        scenes = [draw_scene(Facts(name, a), np.random.default_rng([1, i]))[0] for i, a in enumerate(artists)]
        latents = pipe.vae.encode(pixels(np.stack([np.asarray(s) for s in scenes]))).latent_dist.mean
        decoded = pipe.image_processor.postprocess(pipe.vae.decode(latents).sample)
        drawn = draw(pipe, [f"a photo of a {name}"] * COUNT, list(range(COUNT)), cfg.steps, cfg.guidance)
        logits = reader(pixels(np.stack([np.asarray(d) for d in drawn])))["drawing"]
        # Among this class's drawings alone, held-out ones too: is it one of those that were seen?
        own = [i for i, (c, _) in enumerate(HEADS["drawing"]) if c == name]
        sure = logits[:, own].softmax(-1)
        columns = [[HEADS["drawing"][i][1] for i in own].index(a) for a in artists]
        best = [sure[:, c].argmax().item() for c in columns]
        rows += [
            (f"{name}\nscene", list(zip(artists, scenes))),
            ("VAE", [("", d) for d in decoded]),
            ("drawn", [(f"{sure[b, c]:.2f}", drawn[b]) for b, c in zip(best, columns)]),
        ]
        taken = sure.argmax(1)
        print(name, {a: round((taken == c).float().mean().item(), 2) for a, c in zip(artists, columns)}, flush=True)
    grid(rows, ROOT / "docs/artists.png", cell=1.0)
    print(f"written: {ROOT / 'docs/artists.png'}")


if __name__ == "__main__":
    main()
