"""The reader: says which facts a picture shows and whose drawing it is, so that prompts can be checked and not only scored."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from perfusion.atomic import write_json, write_tensors
from perfusion.emojiland.scenes import Facts
from perfusion.emojiland.sprites import drawings
from perfusion.emojiland.vocabulary import ACCESSORIES, ARTS, CLASSES, COLORS, PLACES
from perfusion.errors import UserError, loading

# Every head's labels; None is a label where a scene may lack the fact. `object` and `drawing` may hold two at a time.
HEADS: dict[str, tuple] = {
    "object": tuple(CLASSES),
    "drawing": drawings(),
    "color": tuple(COLORS),
    "place": (None, *PLACES),
    "accessory": (None, *ACCESSORIES),
    "art": (None, *ARTS),
}
SEVERAL = ("object", "drawing")


class Reader(nn.Module):
    """Pictures [B, 3, 64, 64] in [-1, 1] -> logits by head, [B, len(HEADS[head])] each."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.width = width
        # Unshuffled first: a convolution of three channels at full size takes longer than all the rest.
        layers, channels = [nn.PixelUnshuffle(2)], 12
        for stage in range(4):
            wider = width * 2 ** min(stage, 2)
            layers += [nn.Conv2d(channels, wider, 3, 2 if stage else 1, 1), nn.BatchNorm2d(wider), nn.ReLU()]
            layers += [nn.Conv2d(wider, wider, 3, 1, 1), nn.BatchNorm2d(wider), nn.ReLU()]
            channels = wider
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.1))
        self.heads = nn.ModuleDict({name: nn.Linear(channels * 16, len(labels)) for name, labels in HEADS.items()})
        self.to(memory_format=torch.channels_last)

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.features(pictures)
        return {name: head(features) for name, head in self.heads.items()}

    def save(self, folder: Path) -> None:
        weights = {k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        write_tensors(folder / "reader.safetensors", weights, {})
        write_json(folder / "config.json", {"width": self.width, "heads": HEADS})

    @classmethod
    def load(cls, folder: Path) -> "Reader":
        """Raises UserError for a damaged one, and for one of other labels."""
        with loading(f"the reader in {folder} cannot be loaded", "fetch it again, or make it with `make emojiland`"):
            config = json.loads((folder / "config.json").read_text())
            if json.loads(json.dumps(HEADS)) != config["heads"]:
                raise UserError(
                    f"the reader in {folder} was trained on other labels than this Emojiland's; train it again."
                )
            reader = cls(config["width"])
            weights = load_file(folder / "reader.safetensors")
            reader.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
        return reader.eval()


@dataclass(frozen=True)
class Reading:
    """Whether each fact of one picture was read right; None where the facts do not say (a place unsaid is a plain background)."""

    object: bool
    place: bool
    color: bool | None
    accessory: bool | None
    second: bool | None
    art: bool | None
    drawing: bool | None


@torch.no_grad()
def read(reader: Reader, pictures: torch.Tensor, facts: list[Facts]) -> list[Reading]:
    """Check pictures [B, 3, 64, 64] in [-1, 1] against their facts.

    With two objects named, each is right when it is among the two likeliest. `drawing` (identity) is asked of lone objects only.
    """
    logits = reader(pictures)
    readings = []
    for i, fact in enumerate(facts):
        top = {h: [HEADS[h][j] for j in logits[h][i].topk(2).indices.tolist()] for h in HEADS}
        objects = top["object"] if fact.second else top["object"][:1]
        readings.append(
            Reading(
                object=fact.object in objects,
                place=top["place"][0] == fact.place,
                color=None if fact.color is None else top["color"][0] == fact.color,
                accessory=None if fact.accessory is None else top["accessory"][0] == fact.accessory,
                second=None if fact.second is None else fact.second in objects,
                art=None if fact.art is None else top["art"][0] == fact.art,
                drawing=None if fact.second or not fact.artist else top["drawing"][0] == (fact.object, fact.artist),
            )
        )
    return readings
