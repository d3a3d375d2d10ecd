"""Train the reader on scenes of every sprite, held-out ones too (it judges; it never draws).

python scripts/pretrain_reader.py [minutes=10] [steps=5000]
"""

import json
from collections import defaultdict
from pathlib import Path

import hydra
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from perfusion.emojiland.cache import SceneCache
from perfusion.emojiland.pretraining import Pretraining, fit, pixels
from perfusion.emojiland.reader import HEADS, SEVERAL, Reader, read
from perfusion.emojiland.scenes import Facts


def targets(facts: list[Facts]) -> dict[str, torch.Tensor]:
    """Labels by head: multi-hot for `object` and `drawing`, an index otherwise, -100 where a colour is not named."""
    by_head: dict[str, torch.Tensor] = {}
    for head, labels in HEADS.items():
        index = {label: i for i, label in enumerate(labels)}
        if head in SEVERAL:
            hot = torch.zeros(len(facts), len(labels))
            for row, f in enumerate(facts):
                shown = [(f.object, f.artist)] + ([(f.second, f.second_artist)] if f.second else [])
                for name, artist in shown:
                    hot[row, index[name if head == "object" else (name, artist)]] = 1
            by_head[head] = hot
        else:
            by_head[head] = torch.tensor([index.get(getattr(f, head), -100) for f in facts])
    return by_head


class ReaderPretraining(Pretraining):
    def __init__(self, cfg, scenes: SceneCache):
        super().__init__(cfg, scenes)
        self.scenes, self.targets, self.model = scenes, targets(scenes.facts), Reader()

    def loss(self, rows):
        x = pixels(self.take(self.scenes.images, rows))
        grain = 0.06 * torch.randn(len(x), 1, 1, 1, device=x.device)  # drawn pictures are not clean
        x = x + grain * torch.randn_like(x)
        losses = {}
        for head, logits in self.model(x).items():
            target, logits = self.targets[head][rows].to(self.device), logits.float()
            if head in SEVERAL:
                losses[head] = binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1).mean()
            else:
                losses[head] = cross_entropy(logits, target)
        return {"loss": sum(losses.values()), "drawing": losses["drawing"].detach()}


def measure(reader: Reader, count: int, seed: int = 90_001) -> dict[str, float]:
    """Accuracy per fact on fresh renders; `drawing` also on plain photographs, where colour and art hide nothing."""
    scenes, right = SceneCache(count, seed, held_out=True), defaultdict(list)
    for start in range(0, count, 250):
        part = slice(start, start + 250)
        for fact, reading in zip(scenes.facts[part], read(reader, pixels(scenes.images[part]), scenes.facts[part])):
            for name, value in vars(reading).items():
                right[name].append(value)
            right["drawing_photo"].append(None if fact.color or fact.art else reading.drawing)
    return {k: round(sum(filter(None, v)) / sum(x is not None for x in v), 4) for k, v in right.items()}


@hydra.main("../conf/pretrain", "reader", version_base="1.3")
def main(cfg) -> None:
    module = ReaderPretraining(cfg, SceneCache(cfg.scenes, 2, held_out=True))
    fit(module, "reader")
    module.model.eval().save(Path(cfg.assets) / "reader")
    print("accuracy on fresh renders:", json.dumps(measure(module.model, cfg.fresh)))


if __name__ == "__main__":
    main()
