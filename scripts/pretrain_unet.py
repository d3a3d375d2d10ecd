"""Train Emojiland's UNet2DConditionModel on the frozen VAE's latents and text encoder; writes the whole pipeline folder.

python scripts/pretrain_unet.py [minutes=60] [steps=5800] [start=FOLDER name=NAME]
"""

import copy
import itertools
import math
from collections.abc import Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import hydra
import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from perfusion.config import native_bfloat16
from perfusion.emojiland.cache import DRAWN, SceneCache
from perfusion.emojiland.pretraining import DEVICE, Pretraining, fit, pixels
from perfusion.emojiland.scenes import Facts, describe
from perfusion.method.attention import Recorder
from perfusion.method.layers import cross_attentions
from perfusion.method.text import single_token

CODED = 64  # drawings in a batch that their code alone is learned from


@torch.no_grad()
def latents_of(scenes: SceneCache, vae: AutoencoderKL, part: int = 128) -> np.ndarray:
    """Scaled mean latents of every scene, float16 [N, C, h, w], computed once for an encoder; goes on where it was stopped."""
    of_encoder = [*vae.encoder.parameters(), *vae.quant_conv.parameters()]
    weights = sum(p.double().abs().sum() for p in of_encoder).item()
    file = scenes.folder / f"latents-{weights:.6f}.npy"
    progress = file.with_suffix(".done")  # how many scenes are in the file
    side = scenes.images.shape[1] // 2 ** (len(vae.config.block_out_channels) - 1)
    if not progress.exists():
        shape = (len(scenes), vae.config.latent_channels, side, side)
        np.lib.format.open_memmap(file, "w+", np.float16, shape).flush()
        progress.write_text("0")
    done = int(progress.read_text())
    latents = np.load(file, mmap_mode="r+")
    vae.to(DEVICE)
    for start in tqdm(range(done, len(scenes), part), desc="encoding scenes", initial=done // part):
        with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda" or native_bfloat16()):
            x = pixels(torch.from_numpy(scenes.images[start : start + part]).to(DEVICE))
            mean = vae.encode(x).latent_dist.mean
        latents[start : start + part] = (mean.float() * vae.config.scaling_factor).half().cpu().numpy()
        if start // part % 50 == 49:
            latents.flush()
            progress.write_text(str(start + part))
    vae.cpu()
    latents.flush()
    progress.write_text(str(len(scenes)))
    return np.load(file, mmap_mode="r")


def build(cfg, latent_channels: int, side: int, width: int) -> UNet2DConditionModel:
    """The UNet of cfg's channels, cross, layers and heads, for latents [latent_channels, side, side], encodings `width` wide."""
    unet = UNet2DConditionModel(
        sample_size=side,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=["CrossAttnDownBlock2D" if cross else "DownBlock2D" for cross in cfg.cross],
        up_block_types=["CrossAttnUpBlock2D" if cross else "UpBlock2D" for cross in reversed(cfg.cross)],
        mid_block_type="UNetMidBlock2DCrossAttn" if cfg.cross[-1] else "UNetMidBlock2D",
        block_out_channels=list(cfg.channels),
        layers_per_block=cfg.layers,
        attention_head_dim=list(cfg.heads),  # diffusers' name for the number of heads
        cross_attention_dim=width,
        norm_num_groups=16,
    )
    return fastest(unet)


class Looks:
    """Keeps the attention probabilities [B x heads, h x w, T] of every cross-attention layer of each pass, with gradients."""

    def __init__(self, unet: UNet2DConditionModel):
        self.maps: list[torch.Tensor] = []
        for layer in cross_attentions(unet).values():
            layer.set_processor(Recorder(self))

    def add(self, probabilities: torch.Tensor, heads: int) -> None:
        self.maps.append(probabilities)

    def outside(self, words: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Share of the attention to the tokens at `words` [B, K] that falls outside `masks` [B, K, H, W]: [B, K].

        The mean over layers and heads. FastComposer's localization (Xiao et al. 2023), free of how strong attention is.
        """
        shares, maps = [], self.maps
        self.maps = []
        for probabilities in maps:
            heat = probabilities.float().unflatten(0, (len(words), -1))  # [B, heads, h x w, T]
            heat = heat.gather(3, words[:, None, None].expand(*heat.shape[:3], words.shape[1]))
            side = math.isqrt(heat.shape[2])
            inside = torch.nn.functional.adaptive_avg_pool2d(masks, side).flatten(2).mT[:, None]  # [B, 1, h x w, K]
            shares.append(1 - (heat * inside).sum(2) / heat.sum(2).clamp(min=1e-6))
        return torch.cat(shares, 1).mean(1)


class Names(torch.nn.Module):
    """A name for the look of every scene's object, as "Pikachu" is in captions of real pictures: values at the class's word.

    While names are given, every cross-attention layer's value of that word is moved by a linear map of the drawing's code; its
    keys stay the class's. Without names no single word's value ever carries a whole look, which is what a concept's o* has to
    do. The code is an autoencoder's of the drawing, so that what lies between two drawings has a name too, and a new drawing
    can be told; a table of the drawings would be a list. Needed for training alone.
    """

    GAIN = 5.0  # the linear map learns so many times faster than the UNet, whose rate is for weights

    def __init__(self, unet: UNet2DConditionModel, code: int = 256):
        super().__init__()
        self.layers = [layer.to_v for layer in cross_attentions(unet).values()]
        self.widths = [layer.out_features for layer in self.layers]
        channels, side = (4, 32, 64, 128), DRAWN // 8
        down, up = [], []
        for before, after in itertools.pairwise(channels):
            down += [torch.nn.Conv2d(before, after, 4, 2, 1), torch.nn.GroupNorm(8, after), torch.nn.SiLU()]
            up = [torch.nn.GroupNorm(8, after), torch.nn.SiLU(), torch.nn.ConvTranspose2d(after, before, 4, 2, 1), *up]
        self.coded = torch.nn.Sequential(*down, torch.nn.Flatten(), torch.nn.Linear(128 * side**2, code))
        self.decoded = torch.nn.Sequential(
            torch.nn.Linear(code, 128 * side**2), torch.nn.Unflatten(1, (128, side, side)), *up
        )
        self.said = torch.nn.Linear(code, sum(self.widths))
        torch.nn.init.normal_(self.said.weight, std=0.01)

    def forward(self, drawings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the names of drawings uint8 [B, DRAWN, DRAWN, 4] add to the values [B, sum of widths], and the code's error."""
        x = drawings.permute(0, 3, 1, 2).float() / 127.5 - 1
        code = torch.nn.functional.layer_norm(self.coded(x), (self.said.in_features,))
        noisy = code + 0.1 * torch.randn_like(code)  # near codes are of near drawings
        return self.GAIN * self.said(noisy), (self.decoded(noisy) - x).square().mean()

    def learn(self, batches: Iterable[torch.Tensor], steps: int, rate: float = 2e-3) -> None:
        """Learn the code alone, a step from each of `steps` batches of drawings, as `forward` takes them.

        A step costs a thirtieth of the UNet's, beside which few would be left for it: after 8,600 the error on drawings that it
        never saw was .027, against .053 of a code learned beside the UNet alone.
        """
        optimizer = torch.optim.AdamW([*self.coded.parameters(), *self.decoded.parameters()], rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.02)
        with torch.enable_grad():
            for drawings in tqdm(batches, total=steps, desc="coding drawings"):
                _, error = self(drawings)
                optimizer.zero_grad()
                error.backward()
                optimizer.step()
                schedule.step()

    @contextmanager
    def given(self, moved: torch.Tensor, at: torch.Tensor):
        """Inside, the values at the tokens `at` [B, K, T] (1 or 0) are moved by `moved` [B, K, sum of widths]."""
        with ExitStack() as hooks:
            for layer, part in zip(self.layers, moved.split(self.widths, 2)):
                added = at.mT.to(part.dtype) @ part
                hooks.enter_context(layer.register_forward_hook(lambda _, __, values, added=added: values + added))
            yield


def fastest(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """What trains fastest: channels last; on a CPU plain attention products (the fused kernel's backward is slow there)."""
    if DEVICE == "cpu":
        unet.set_attn_processor(AttnProcessor())
    return unet.to(memory_format=torch.channels_last)


def parted(fact: Facts) -> bool:
    """Whether the caption's colour does not say all of the main object's look."""
    return bool(fact.trim or fact.details or fact.mutant is not None or fact.artist.isdigit())


class UNetPretraining(Pretraining):
    def __init__(self, cfg, scenes: SceneCache, latents: np.ndarray, tokenizer, text_encoder: CLIPTextModel):
        super().__init__(cfg, scenes)
        self.latents, self.masks, self.drawings = latents, scenes.masks, scenes.drawings if cfg.named else None
        padded = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        tokens = lambda texts: tokenizer(texts, **padded).input_ids
        rng = lambda i: np.random.default_rng([cfg.seed, i])
        texts = (
            scenes.captions,
            # beside a name without the body's colour, and beside a whole one
            [describe(fact, rng(i), styled=0) for i, fact in enumerate(scenes.facts)],
            [describe(replace(fact, color=None), rng(i), styled=0) for i, fact in enumerate(scenes.facts)],
        )
        self.empty, self.ids = tokens([""]), torch.stack([tokens(text) for text in texts])  # [3, N, T]
        self.parted = torch.tensor([parted(fact) for fact in scenes.facts])
        said = [(fact.object, fact.second) for fact in scenes.facts]
        objects = torch.tensor([[single_token(tokenizer, word) if word else -1 for word in pair] for pair in said])
        # Where each caption names its objects, [3, N, 2]; a second one that is not there is nowhere.
        self.words = (self.ids[:, :, None] == objects[:, :, None]).int().argmax(3)
        self.there = objects >= 0
        # Masks are of objects: pictures of more than that count in full everywhere.
        self.more = np.array([bool(fact.accessory) for fact in scenes.facts])
        text_encoder.requires_grad_(False).eval().to(DEVICE)
        # Not a submodule: a checkpoint of another edition's words would bring its own text encoder back.
        self.encode = lambda ids: text_encoder(ids).last_hidden_state
        self.scheduler = DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            prediction_type="v_prediction",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        )
        if cfg.start:
            self.model = fastest(UNet2DConditionModel.from_pretrained(cfg.start, dtype=torch.float32).train())
        else:
            self.model = build(cfg, latents.shape[1], latents.shape[-1], text_encoder.config.hidden_size)
        self.looks = Looks(self.model) if cfg.local else None
        self.names = Names(self.model) if cfg.named else None
        if cfg.compile:
            self.model.compile()
        self.register_buffer("alphas", self.scheduler.alphas_cumprod, persistent=False)

    def often(self, fact: Facts) -> int:
        """cfg.colored times where the caption's colour is the only one."""
        only = fact.color and not (parted(fact) or fact.second)
        return self.cfg.colored if only else super().often(fact)

    def on_train_start(self):
        super().on_train_start()
        if self.names and self.cfg.codes and self.global_step == 0:
            rng, count = np.random.default_rng(self.cfg.seed), len(self.drawings)
            rows = (np.sort(rng.integers(0, count, CODED)) for _ in range(self.cfg.codes))
            self.names.learn((self.take(self.drawings, at)[:, 0] for at in rows), self.cfg.codes)

    def on_train_batch_start(self, batch, batch_index):
        self.model.requires_grad_(self.global_step >= self.cfg.settle)

    def on_save_checkpoint(self, checkpoint):
        if self.cfg.snapshots:  # with the averaged weights, where there is an average
            weights = {
                k.removeprefix("model."): v for k, v in checkpoint["state_dict"].items() if k.startswith("model.")
            }
            unet = copy.deepcopy(self.model)
            unet.load_state_dict(weights)
            unet.half().save_pretrained(Path(self.cfg.assets) / "pipeline/unet")

    def loss(self, rows):
        x = self.take(self.latents, rows).float()
        shares = torch.tensor([self.cfg.drop_caption, self.cfg.named, 0.5])
        dropped, named, said = torch.rand(3, len(rows)) < shares[:, None]
        named = named | self.parted[rows] if self.names else named
        wording = torch.where(named, torch.where(said, 1, 2), 0)
        ids = torch.where(dropped[:, None], self.empty, self.ids[wording, rows])
        words = self.here(self.words[wording, rows])
        encodings = self.encode(self.here(ids))
        steps, strata = (
            self.scheduler.config.num_train_timesteps,
            torch.randperm(len(x)).to(self.device),
        )  # rows are sorted
        # One timestep from each of B equal strata: the same expectation as independent ones with less variance.
        share = (strata + torch.rand(len(x), device=self.device)) / len(x)
        t = (share**self.cfg.early * steps).long().clamp(max=steps - 1)
        noise = torch.randn_like(x)
        noisy = self.scheduler.add_noise(x, noise, t)
        target = self.scheduler.get_velocity(x, noise, t)
        there = self.here(self.there[rows] & ~dropped[:, None])  # [B, 2]
        at = torch.nn.functional.one_hot(words, ids.shape[1]) * (there & self.here(named)[:, None])[:, :, None]
        losses = {}
        with ExitStack() as names:
            if self.names:
                # The main object as it is drawn, without its body's colour, and the second object.
                drawings = self.take(self.drawings, rows)
                whole = self.here(wording == 2)[:, None, None, None]
                main = torch.where(whole, drawings[:, 0], drawings[:, 1])
                moved, losses["code"] = self.names(torch.cat([main, drawings[:, 2]]))
                names.enter_context(self.names.given(torch.stack(moved.chunk(2), 1), at))
            drawn = self.model(noisy, t, encodings).sample
        error = (drawn.float() - target).square()
        error = (self.share(rows, x.shape[-1]) * error).mean((1, 2, 3))
        snr = self.alphas[t] / (1 - self.alphas[t])
        # The velocity's error weighs 1, as it comes, but the picture's, snr + 1 times it, at most snr_gamma. Min-SNR-gamma's own
        # weight, min(snr, gamma) / (snr + 1), is under .04 in the first three of ten steps, which decide colours.
        weight = (snr + 1).clamp(max=self.cfg.snr_gamma) / (snr + 1)
        losses |= {"loss": (weight * error).mean() + losses.get("code", 0), "error": error.mean().detach()}
        if self.looks:
            masks = self.take(self.masks, rows).float() / 255
            outside = (there * self.looks.outside(words, masks)).sum() / there.sum().clamp(min=1)
            losses["loss"] = losses["loss"] + self.cfg.local * outside
            losses["outside"] = outside.detach()
        return losses | ({"code": losses["code"].detach()} if self.names else {})

    def share(self, rows, side: int) -> torch.Tensor:
        """How much each place counts [B, 1, side, side]: 1 on objects, cfg.background beside them."""
        masks = self.take(self.masks, rows).float().amax(1, keepdim=True) / 255
        masks = torch.nn.functional.adaptive_max_pool2d(masks, side)
        masks.masked_fill_(self.here(torch.from_numpy(self.more[rows]))[:, None, None, None], 1)
        return self.cfg.background + (1 - self.cfg.background) * masks


@hydra.main("../conf/pretrain", "unet", version_base="1.3")
def main(cfg) -> None:
    folder = Path(cfg.assets) / "pipeline"
    scenes = SceneCache(cfg.scenes, 1, held_out=False, mutants=cfg.mutants, strangers=cfg.strangers)
    vae = AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32)
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    module = UNetPretraining(cfg, scenes, latents_of(scenes, vae), tokenizer, text_encoder)
    fit(module, cfg.name)
    StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        unet=module.model.half(),
        scheduler=module.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    print(f"written: {folder}")


if __name__ == "__main__":
    main()
