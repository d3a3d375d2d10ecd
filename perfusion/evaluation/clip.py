"""CLIP scores as raw cosines, from any open_clip model: a name with its pretrained tag, or a local-dir: folder."""

import open_clip
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize


class ClipScorer:
    """Embeds pictures and texts; similarities are raw cosines (never x 2.5).

    source: "local-dir:FOLDER", or "NAME/PRETRAINED" such as "ViT-B-32/openai".
    """

    def __init__(self, source: str, device: str | torch.device = "cpu"):
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

    def text_similarity(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
        """Cosine of each picture with its own prompt [n]; the concept's word replaced by its super-category's before."""
        return (self.images(images) * self.texts(prompts)).sum(-1)

    def image_similarity(self, images: list[Image.Image], real: list[Image.Image]) -> Tensor:
        """Mean cosine of each picture with all the real ones [n]: the mean over them is that over all pairs."""
        return (self.images(images) @ self.images(real).T).mean(-1)
