"""What embeds pictures and texts for scores: any open_clip model, or a timm model for pictures alone; opened by name."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from perfusion.errors import UserError, install, loading


class ClipScorer:
    """Embeds pictures and texts; similarities are raw cosines (never x 2.5).

    source: "local-dir:FOLDER", or "NAME/PRETRAINED" such as "ViT-B-32/openai".
    """

    def __init__(self, source: str, device: str | torch.device = "cpu"):
        import open_clip

        name, pretrained = (source, None) if ":" in source else source.split("/", 1)
        self.model, self.preprocess = open_clip.create_model_from_pretrained(name, pretrained, device=device)
        self.model.eval()
        self.tokenizer, self.device = open_clip.get_tokenizer(name), device

    @torch.no_grad()
    def images(self, images: list[Image.Image]) -> Tensor:
        """[n, D], unit length."""
        x = torch.stack([self.preprocess(i) for i in images]).to(self.device)
        return normalize(self.model.encode_image(x).float(), dim=-1)

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """[n, D], unit length."""
        return normalize(self.model.encode_text(self.tokenizer(texts).to(self.device)).float(), dim=-1)


class TimmScorer:
    """Embeds pictures by a timm model without its classifier. It has no text side.

    source: a timm name such as "vit_small_patch16_224.dino", or "local-dir:FOLDER" with config.json and weights.
    """

    def __init__(self, source: str, device: str | torch.device = "cpu"):
        import timm

        self.model = timm.create_model(source, pretrained=True, num_classes=0).eval().to(device)
        config = timm.data.resolve_data_config({}, model=self.model)
        self.preprocess, self.device = timm.data.create_transform(**config), device

    @torch.no_grad()
    def images(self, images: list[Image.Image]) -> Tensor:
        """[n, D], unit length."""
        x = torch.stack([self.preprocess(i.convert("RGB")) for i in images]).to(self.device)
        return normalize(self.model(x).float(), dim=-1)


def check_scorer(source: str) -> None:
    """Raises UserError for a name that `open_scorer` cannot open, as far as that shows before any weights load."""
    local = source.startswith("local-dir:")
    folder = Path(source.removeprefix("local-dir:"))
    if local and not any((folder / name).is_file() for name in ("open_clip_config.json", "config.json")):
        raise UserError(
            f"scorer {source} has neither open_clip_config.json nor timm's config.json; give a folder that has one."
        )
    if source.startswith("timm:"):
        try:
            import timm
        except ImportError as error:
            raise UserError(f"scorer {source} needs timm; install it with {install('dino')}.") from error
        name = source.removeprefix("timm:")
        if ":" not in name and not timm.is_model(name):  # hf_hub:user/model is looked up on the hub
            near = timm.list_models(f"*{name.split('_')[0]}*")[:3]
            raise UserError(
                f"scorer {source} is no model of timm {timm.__version__}; its names are listed by timm.list_models()"
                f"{': ' + ', '.join(near) + ', ...' if near else ''}."
            )
    elif not local and "/" not in source:
        raise UserError(
            f"scorer {source} is no known name; give open_clip's NAME/PRETRAINED, timm:NAME or local-dir:FOLDER."
        )


def open_scorer(source: str, device: str | torch.device = "cpu") -> ClipScorer | TimmScorer:
    """What embeds pictures (and texts, for CLIP), by one kind of name.

    "ViT-B-32/openai" is open_clip's NAME/PRETRAINED; "timm:vit_small_patch16_224.dino" a timm name; "local-dir:FOLDER"
    is open_clip's where the folder has open_clip_config.json, timm's where it has config.json.
    Raises UserError for any other.
    """
    check_scorer(source)
    local = source.startswith("local-dir:")
    of_clip = local and (Path(source.removeprefix("local-dir:")) / "open_clip_config.json").is_file()
    with loading(  # no network, unknown tag, damaged
        f"scorer {source} cannot be loaded",
        "give local-dir:FOLDER, or download it once where there is a network (HF_HOME says where the cache is)",
    ):
        if source.startswith("timm:") or local and not of_clip:
            return TimmScorer(source.removeprefix("timm:"), device)
        return ClipScorer(source, device)
