"""Train Emojiland's AutoencoderKL (f = 4) on random crops of scenes.

python scripts/pretrain_vae.py [minutes=20] [steps=9000]
"""

from pathlib import Path

import hydra
import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn.functional import l1_loss, mse_loss

from perfusion.emojiland.cache import SceneCache
from perfusion.emojiland.pretraining import Pretraining, fit, pixels


def build(cfg, side: int) -> AutoencoderKL:
    """The autoencoder of cfg's channels and latents, for pictures [3, side, side]."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * len(cfg.channels),
        up_block_types=["UpDecoderBlock2D"] * len(cfg.channels),
        block_out_channels=list(cfg.channels),
        latent_channels=cfg.latents,
        norm_num_groups=16,
        layers_per_block=1,
        sample_size=side,
        force_upcast=False,
    )


class VAEPretraining(Pretraining):
    def __init__(self, cfg, scenes: SceneCache):
        super().__init__(cfg, scenes)
        self.scenes = scenes
        if cfg.start:
            self.model = AutoencoderKL.from_pretrained(cfg.start, dtype=torch.float32).train()
        else:
            self.model = build(cfg, scenes.images.shape[1])
        if cfg.decoder_only:
            self.model.encoder.requires_grad_(False), self.model.quant_conv.requires_grad_(False)

    def loss(self, rows):
        crop, side = self.cfg.crop, self.scenes.images.shape[1]
        rng = np.random.default_rng([self.cfg.seed, 1, self.global_step])
        images = self.scenes.images[rows]
        corners = rng.integers(0, (side - crop) // 4 + 1, (len(rows), 2)) * 4
        images = np.stack([im[y : y + crop, x : x + crop] for im, (y, x) in zip(images, corners)])
        x = pixels(images).to(self.device)
        posterior = self.model.encode(x).latent_dist
        drawn = self.model.decode(posterior.sample()).sample.float()
        squared, kl = mse_loss(drawn, x), posterior.kl().mean() / (crop * crop)
        psnr = 10 * torch.log10(4 / squared.detach())
        return {"loss": l1_loss(drawn, x) + squared + self.cfg.kl * kl, "psnr": psnr, "kl": kl}


@torch.no_grad()
def finish(vae: AutoencoderKL, scenes: SceneCache, target: Path, scale: bool) -> None:
    """Set the scaling factor so that latents have unit variance (`scale`), measure, and save."""
    vae.eval()
    x = pixels(scenes.images[:512])
    means = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(64)])
    if scale:
        vae.register_to_config(scaling_factor=round(1 / means.std().item(), 5))
    drawn = torch.cat([vae.decode(part).sample for part in means.split(64)]).clamp(-1, 1)
    psnr = 10 * torch.log10(4 / (drawn - x).square().mean((1, 2, 3))).mean()
    vae.half().save_pretrained(target)
    print(f"written: {target}; {psnr:.1f} dB over the first 512 scenes, latents scaled by {vae.config.scaling_factor}")


@hydra.main("../conf/pretrain", "vae", version_base="1.3")
def main(cfg) -> None:
    scenes = SceneCache(cfg.scenes, 1, held_out=False, mutants=cfg.mutants)
    module = VAEPretraining(cfg, scenes)
    fit(module, "vae")
    # The same encoder keeps its scale, whatever these scenes' variance: a UNet knows its latents.
    finish(module.model, scenes, Path(cfg.assets) / "pipeline/vae", scale=not cfg.decoder_only)


if __name__ == "__main__":
    main()
