"""Train Emojiland's CLIPSeg: a picture and a class word -> the mask of that object. Never shown a held-out drawing.

python scripts/pretrain_segmenter.py [minutes=15] [steps=5000]
"""

import json
import math
from pathlib import Path

import hydra
import torch
from torch.nn.functional import adaptive_avg_pool2d, binary_cross_entropy_with_logits, cross_entropy
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPTokenizer

from perfusion.emojiland.cache import SceneCache
from perfusion.emojiland.pretraining import Pretraining, fit, pixels
from perfusion.emojiland.vocabulary import CLASSES

LENGTH = 8  # tokens of "a photo of a teddy" and a little more


def ends(tokenizer: CLIPTokenizer) -> dict[str, int]:
    """What a text config says of the vocabulary; by a wrong end of text every word would have the same features."""
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def build(cfg, tokenizer: CLIPTokenizer, side: int) -> CLIPSegForImageSegmentation:
    text = {
        "vocab_size": cfg.vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        **ends(tokenizer),
    }
    vision = {
        "hidden_size": cfg.width,
        "intermediate_size": 2 * cfg.width,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": 4,
        "image_size": side,
        "patch_size": cfg.patch,
    }
    config = CLIPSegConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=64,
        extract_layers=list(range(1, cfg.layers)),
        reduce_dim=64,
        conditional_layer=0,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=128,
    )
    return CLIPSegForImageSegmentation(config)


class SegmenterPretraining(Pretraining):
    def __init__(self, cfg, scenes: SceneCache, tokenizer: CLIPTokenizer):
        super().__init__(cfg, scenes)
        self.scenes = scenes
        self.words = list(CLASSES)
        self.ids = tokenizer(self.words, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
        if cfg.start:
            config = CLIPSegConfig.from_pretrained(cfg.start)
            config.text_config.update(ends(tokenizer))  # it may come from an edition of other words
            self.model = CLIPSegForImageSegmentation.from_pretrained(
                cfg.start, config=config, dtype=torch.float32
            ).train()
        else:
            self.model = build(cfg, tokenizer, scenes.images.shape[1])
        # Of an image patch: the class of its object, or (the last) nothing.
        self.kinds = torch.nn.Linear(self.model.config.vision_config.hidden_size, len(self.words) + 1)

    def kind_loss(self, patches: torch.Tensor, masks: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of each patch's class, from the image tower alone [B, 1 + h x w, d]; needed for training only.

        `masks` [B, 2, H, W] of the objects of `kinds` [B, 2]. Masks alone teach it to find any object, whatever word is asked
        for. Patches that show a little of an object are left out.
        """
        logits = self.kinds(patches[:, 1:]).float()
        shares = adaptive_avg_pool2d(masks, math.isqrt(logits.shape[1])).flatten(2)
        most, which = shares.max(1)  # [B, h x w]
        target = torch.where(most > 0.5, kinds.gather(1, which), torch.where(most < 0.05, len(self.words), -100))
        return cross_entropy(logits.flatten(0, 1), target.flatten())

    def drawn(self, ids: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [B, H, W] and the image tower's patches [B, 1 + h x w, d], with gradients.

        CLIPSeg's own forward gives its towers none, for they come trained; these have to learn.
        """
        seen = self.model.clip.get_image_features(pixel_values=x, output_hidden_states=True)
        words = self.model.clip.get_text_features(ids).pooler_output
        activations = [seen.hidden_states[i + 1] for i in self.model.extract_layers]
        return self.model.decoder(activations, words).logits.float(), seen.last_hidden_state

    def loss(self, rows):
        facts = [self.scenes.facts[row] for row in rows]
        # Of two objects either is asked for; one in five is asked of a class that is not there: the mask is then empty.
        second = torch.tensor([bool(fact.second) for fact in facts]) & (torch.rand(len(rows)) < 0.5)
        absent = torch.rand(len(rows)) < 0.2
        pairs = torch.tensor([[self.words.index(f.object), self.words.index(f.second or f.object)] for f in facts])
        asked = torch.where(second, pairs[:, 1], pairs[:, 0])
        for i in absent.nonzero().flatten().tolist():
            others = [kind for kind in range(len(self.words)) if kind not in pairs[i]]
            asked[i] = others[int(torch.randint(len(others), ()))]
        masks = self.take(self.scenes.masks, rows).float().div(255)
        ids = self.ids[asked].to(self.device)
        x = pixels(self.take(self.scenes.images, rows))
        if torch.rand(()) < 0.5:  # scenes are never mirrored, the views that masks.segment averages are
            x, masks = x.flip(-1), masks.flip(-1)
        own = torch.where(second[:, None, None].to(masks.device), masks[:, 1], masks[:, 0])
        own = own * ~absent[:, None, None].to(self.device)
        logits, patches = self.drawn(ids, x)
        p = logits.sigmoid()
        overlap = 2 * (p * own).sum((1, 2)) + 1
        dice = 1 - overlap / (p.sum((1, 2)) + own.sum((1, 2)) + 1)
        loss = binary_cross_entropy_with_logits(logits, own) + 2 * dice.mean()  # Dice: 0.5 is where to cut
        kinds = self.kind_loss(patches, masks, self.here(pairs))
        return {"loss": loss + kinds, "iou": iou(p, own)[~absent].mean(), "kinds": kinds.detach()}


def iou(p: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Intersection over union at threshold 0.5, one number a picture."""
    a, b = p > 0.5, masks > 0.5
    return (a & b).sum((1, 2)) / (a | b).sum((1, 2)).clamp(min=1)


@hydra.main("../conf/pretrain", "segmenter", version_base="1.3")
def main(cfg) -> None:
    folder = Path(cfg.assets) / "clipseg"
    tokenizer = CLIPTokenizer.from_pretrained(Path(cfg.assets) / "pipeline/tokenizer")
    module = SegmenterPretraining(cfg, SceneCache(cfg.scenes, 1, held_out=False, mutants=cfg.mutants), tokenizer)
    fit(module, "segmenter")
    module.model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": module.scenes.images.shape[1], "width": module.scenes.images.shape[1]}
    normal = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_rescale": True, "rescale_factor": 1 / 255}
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": 2,
        "do_normalize": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | normal, indent=1))
    print(f"written: {folder}")


if __name__ == "__main__":
    main()
