"""Train Emojiland's tokenizer and contrastive CLIPTextModel (as Stable Diffusion's is), then frozen for the UNet.

python scripts/pretrain_text.py [minutes=15] [steps=1500]
"""

from pathlib import Path

import hydra
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from perfusion.emojiland.cache import SceneCache
from perfusion.emojiland.captions import captions
from perfusion.emojiland.pretraining import Pretraining, fit, pixels
from perfusion.emojiland.tokenizer import train_tokenizer


def image_tower(width: int) -> nn.Sequential:
    """A small convolutional encoder [B, 3, 64, 64] -> [B, width]; needed only to train the text encoder."""
    # Unshuffled first: a convolution of three channels at full size would take ten times as long as all the rest.
    layers, channels = [nn.PixelUnshuffle(2)], 12
    for wider in (64, 128, 256):
        layers += [nn.Conv2d(channels, wider, 3, 2, 1), nn.GroupNorm(8, wider), nn.SiLU()]
        channels = wider
    tower = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256 * 16, width))
    return tower.to(memory_format=torch.channels_last)


class TextPretraining(Pretraining):
    def __init__(self, cfg, scenes: SceneCache, tokenizer):
        super().__init__(cfg, scenes)
        self.scenes = scenes
        self.ids = tokenizer(
            scenes.captions, padding="max_length", truncation=True, max_length=cfg.length, return_tensors="pt"
        ).input_ids
        self.model = CLIPTextModel._from_config(
            CLIPTextConfig(
                vocab_size=cfg.vocabulary,
                hidden_size=cfg.width,
                intermediate_size=4 * cfg.width,
                projection_dim=cfg.width,
                num_hidden_layers=cfg.layers,
                num_attention_heads=cfg.heads,
                max_position_embeddings=cfg.length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            ),
            attn_implementation="eager",  # the fused kernel's backward is slow on a CPU
        )
        self.start(cfg.token_std, cfg.position_std)
        self.images = image_tower(cfg.width)
        self.text_projection = nn.Linear(cfg.width, cfg.width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.66))  # CLIP's 1 / 0.07

    def start(self, token_std: float, position_std: float) -> None:
        """Large token embeddings: a word's own identity then outweighs, in the residual stream, what attention and
        positions add, so that its encoding is much the same in every context and a concept's gate opens in all of them.
        """
        with torch.no_grad():
            self.model.get_input_embeddings().weight.normal_(0, token_std)
            self.model.embeddings.position_embedding.weight.normal_(0, position_std)

    def go_on_from(self, file: Path, words: dict[str, int], now: dict[str, int]) -> None:
        """Take the weights of a checkpoint of this script's, token by token where the vocabulary has changed from `words`."""
        weights = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
        name = "model.embeddings.token_embedding.weight"
        rows = self.state_dict()[name].clone()
        for token in now.keys() & words.keys():
            rows[now[token]] = weights[name][words[token]]
        self.load_state_dict(weights | {name: rows})

    def loss(self, rows):
        pictures = self.images(pixels(self.take(self.scenes.images, rows)))
        texts = self.text_projection(self.model(self.ids[rows].to(self.device)).pooler_output)
        similarity = self.log_scale.exp().clamp(max=100) * normalize(pictures.float()) @ normalize(texts.float()).T
        target = torch.arange(len(rows), device=self.device)
        right = (similarity.argmax(1) == target).float().mean()
        loss = (cross_entropy(similarity, target) + cross_entropy(similarity.T, target)) / 2
        return {"loss": loss, "retrieved": right}


@hydra.main("../conf/pretrain", "text", version_base="1.3")
def main(cfg) -> None:
    folder = Path(cfg.assets) / "pipeline"
    scenes = SceneCache(cfg.scenes, 1, held_out=False, mutants=cfg.mutants)
    words = CLIPTokenizer.from_pretrained(folder / "tokenizer").get_vocab() if cfg.start else {}
    tokenizer = train_tokenizer(captions(20_000, seed=1), cfg.vocabulary - 64, cfg.length, folder / "tokenizer")
    module = TextPretraining(cfg, scenes, tokenizer)
    if cfg.start:
        module.go_on_from(Path(cfg.start), words, tokenizer.get_vocab())
    fit(module, "text")
    module.model.half().save_pretrained(folder / "text_encoder")
    print(f"written: {folder / 'text_encoder'}")


if __name__ == "__main__":
    main()
