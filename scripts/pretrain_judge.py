"""Train the open_clip model that scores: another seed, shape and image tower than the text encoder that conditions.

python scripts/pretrain_judge.py [minutes=15] [steps=4000]
python scripts/pretrain_judge.py start=FOLDER texts_only=true steps=400: the text tower alone goes on, pictures' features stay
"""

import json
from pathlib import Path

import hydra
import numpy as np
import open_clip
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from perfusion.emojiland.cache import SceneCache
from perfusion.emojiland.pretraining import Pretraining, fit, pixels
from perfusion.emojiland.scenes import describe

HALF = (0.5, 0.5, 0.5)  # open_clip's mean and std: pixels in [-1, 1]


def model_config(tokenizer: CLIPTokenizer, side: int) -> dict:
    """A small ResNet CLIP in open_clip's own terms; EOS is the largest id, which open_clip's default pooling looks for."""
    return {
        "embed_dim": 96,
        "vision_cfg": {"image_size": side, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32},
        "text_cfg": {
            "context_length": 28,
            "vocab_size": tokenizer.eos_token_id + 1,
            "width": 96,
            "heads": 4,
            "layers": 3,
            "hf_tokenizer_name": "local",  # the tokenizer lies in the same folder
        },
    }


def save(model: open_clip.CLIP, model_cfg: dict, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the folder that open_clip opens as local-dir:FOLDER, weights in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "open_clip_model.safetensors")
    config = {"model_cfg": model_cfg, "preprocess_cfg": {"mean": HALF, "std": HALF}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1))
    tokenizer.save_pretrained(folder)


class JudgePretraining(Pretraining):
    def __init__(self, cfg, scenes: SceneCache, tokenizer: CLIPTokenizer):
        super().__init__(cfg, scenes)
        self.scenes = scenes
        self.model_cfg = model_config(tokenizer, scenes.images.shape[1])
        length = self.model_cfg["text_cfg"]["context_length"]
        text = {k: v for k, v in self.model_cfg["text_cfg"].items()}
        self.model = open_clip.CLIP(self.model_cfg["embed_dim"], self.model_cfg["vision_cfg"], text)
        padded = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        if cfg.start:
            self.model.load_state_dict(load_file(Path(cfg.start) / "open_clip_model.safetensors"))
        self.tokens = lambda texts: tokenizer(texts, **padded).input_ids
        self.contrast = open_clip.ClipLoss()
        looks = [(fact.object, fact.artist, fact.color, fact.trim, fact.details) for fact in scenes.facts]
        number = {look: i for i, look in enumerate(dict.fromkeys(looks))}
        self.drawing = torch.tensor([number[look] for look in looks])  # in other colours it is another drawing
        objects = np.array([fact.object for fact in scenes.facts])
        self.of_class = [np.flatnonzero(objects == name) for name in np.unique(objects)]

    def rows(self, rng):
        """Every second step is of cfg.kin classes only: the drawings of one class must be told apart, not only classes."""
        if rng.random() < 0.5:
            return super().rows(rng)
        classes = min(self.cfg.kin, self.cfg.batch // 2, len(self.of_class))
        kin = rng.choice(len(self.of_class), classes, replace=False)
        return np.concatenate([rng.choice(self.of_class[number], self.cfg.batch // classes) for number in kin])

    def alike(self, images: torch.Tensor, drawing: torch.Tensor) -> torch.Tensor:
        """Pictures of one drawing nearer than others (supervised contrast; Khosla et al. 2020): captions alone tell places, not hands.

        images [B, d] of length 1; drawing [B]. Pictures whose drawing nobody else in the batch shows are left out.
        """
        itself = torch.eye(len(images), dtype=torch.bool, device=images.device)
        logits = (images @ images.T / self.cfg.temperature).masked_fill(itself, -torch.inf)
        same = (drawing[:, None] == drawing[None]) & ~itself
        shares = logits.log_softmax(1).masked_fill(~same, 0).sum(1)
        return -(shares / same.sum(1).clamp(min=1))[same.any(1)].mean()

    def on_train_batch_start(self, batch, batch_index):
        if self.cfg.texts_only:
            self.model.visual.requires_grad_(False).eval()

    def captions(self, rows: np.ndarray, rng: np.random.Generator) -> list[str]:
        """New words at each sight. Half of them name whose drawing it is, so that the scorer sees the drawing and not only its class."""
        return [describe(self.scenes.facts[row], rng, styled=float(rng.random() < 0.5)) for row in rows]

    def loss(self, rows):
        rng = np.random.default_rng([self.cfg.seed, self.global_step, 1])
        ids = self.tokens(self.captions(rows, rng)).to(self.device)
        x = pixels(self.take(self.scenes.images, rows))
        grain = 0.06 * torch.rand(len(x), 1, 1, 1, device=x.device)  # drawn pictures are not clean
        x = x + grain * torch.randn_like(x)
        images, texts, scale = self.model(x, ids)
        right = (images @ texts.T).argmax(1) == torch.arange(len(rows), device=self.device)
        contrast = self.contrast(images.float(), texts.float(), scale.float())
        alike = self.alike(images.float(), self.drawing[rows].to(x.device))
        return {"loss": contrast + self.cfg.alike * alike, "retrieved": right.float().mean(), "alike": alike.detach()}


@hydra.main("../conf/pretrain", "judge", version_base="1.3")
def main(cfg) -> None:
    folder = Path(cfg.assets) / "open_clip"
    tokenizer = CLIPTokenizer.from_pretrained(Path(cfg.assets) / "pipeline/tokenizer")
    module = JudgePretraining(cfg, SceneCache(cfg.scenes, 2, held_out=True), tokenizer)
    fit(module, "judge")
    save(module.model, module.model_cfg, tokenizer, folder)
    print(f"written: {folder}")


if __name__ == "__main__":
    main()
