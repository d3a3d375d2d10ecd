"""DINO scores: pictures embedded by any timm model, and the one way to open a scorer by its name."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from perfusion.errors import UserError
from perfusion.evaluation.clip import ClipScorer


class TimmScorer:
    """Embeds pictures by a timm model without its classifier. It has no text side.

    source: a timm name such as "vit_small_patch16_224.dino", or "local-dir:FOLDER" with config.json and weights.
    """

    def __init__(self, source: str, device: str | torch.device = "cpu"):
        try:
            import timm
        except ImportError as error:
            raise UserError(
                f"evaluation.dino={source} needs timm; install it with pip install 'perfusion[dino]'."
            ) from error
        self.model = timm.create_model(source, pretrained=True, num_classes=0).eval().to(device)
        config = timm.data.resolve_data_config({}, model=self.model)
        self.preprocess, self.device = timm.data.create_transform(**config), device

    @torch.no_grad()
    def images(self, images: list[Image.Image]) -> Tensor:
        """[n, D], unit length."""
        x = torch.stack([self.preprocess(i.convert("RGB")) for i in images]).to(self.device)
        return normalize(self.model(x).float(), dim=-1)


def open_scorer(source: str, device: str | torch.device = "cpu") -> ClipScorer | TimmScorer:
    """What embeds pictures (and texts, for CLIP), by one kind of name.

    "ViT-B-32/openai" is open_clip's NAME/PRETRAINED; "timm:vit_small_patch16_224.dino" a timm name; "local-dir:FOLDER"
    is open_clip's where the folder has open_clip_config.json, timm's where it has config.json.
    Raises UserError for any other.
    """
    if source.startswith("local-dir:"):
        folder = Path(source.removeprefix("local-dir:"))
        if (folder / "open_clip_config.json").is_file():
            return ClipScorer(source, device)
        if (folder / "config.json").is_file():
            return TimmScorer(source, device)
        raise UserError(
            f"scorer {source} has neither open_clip_config.json nor timm's config.json; give a folder that has one."
        )
    if source.startswith("timm:"):
        return TimmScorer(source.removeprefix("timm:"), device)
    if "/" not in source:
        raise UserError(
            f"scorer {source} is no known name; give open_clip's NAME/PRETRAINED, timm:NAME or local-dir:FOLDER."
        )
    try:
        return ClipScorer(source, device)
    except (OSError, ValueError, RuntimeError) as error:  # the hub cannot be reached, an unknown tag
        raise UserError(
            f"scorer {source} cannot be loaded ({' '.join(str(error).split())}); give local-dir:FOLDER, or download it "
            "once where there is a network (HF_HOME says where the cache is)."
        ) from error
