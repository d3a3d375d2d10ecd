"""Measure Emojiland's models on scenes and prompts never trained on: what `perfusion measure` writes."""

import json
import time
import timeit
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from perfusion.atomic import check_place, whole, write_json
from perfusion.emojiland.cache import SceneCache
from perfusion.emojiland.pretraining import pixels
from perfusion.emojiland.reader import Reader, read
from perfusion.emojiland.scenes import Facts, describe, sample_facts, scene
from perfusion.emojiland.scenes import draw as draw_scene
from perfusion.emojiland.sprites import artists_of
from perfusion.emojiland.vocabulary import CLASSES, PLACES
from perfusion.learning.masks import segment
from perfusion.learning.models import load_pipeline
from perfusion.method.attention import attention_maps
from perfusion.method.sampling import Sampling, draw
from perfusion.method.text import single_token, tokenize
from perfusion.scorers import ClipScorer

SCENES = 77_001  # seed of no pretraining stream


def rates(readings: list) -> dict[str, float]:
    """Share read right, by fact, over the pictures that the fact is asked of."""
    by_fact = defaultdict(list)
    for reading in readings:
        for name, value in vars(reading).items():
            if value is not None:
                by_fact[name].append(value)
    return {name: round(float(np.mean(values)), 4) for name, values in by_fact.items()}


def prompts_of(seed: int, count: int) -> list[tuple[Facts, str]]:
    """Facts and a caption of each: a stream apart from pretraining's."""
    prompts = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        facts = sample_facts(rng)
        prompts.append((facts, describe(facts, rng)))
    return prompts


@torch.no_grad()
def psnr(vae, scenes: SceneCache) -> float:
    """Mean PSNR in dB of what the VAE makes of its own mean latents."""
    x = pixels(scenes.images[:256])
    drawn = torch.cat([vae.decode(vae.encode(p).latent_dist.mean).sample for p in x.split(32)]).clamp(-1, 1)
    return round((10 * torch.log10(4 / (drawn - x).square().mean((1, 2, 3)))).mean().item(), 2)


def retrieval(scorer: ClipScorer, scenes: SceneCache, of: int = 100) -> float:
    """Share of pictures whose own caption is the nearest of `of`."""
    right = []
    for start in range(0, len(scenes) - of + 1, of):
        images = scorer.images([Image.fromarray(i) for i in scenes.images[start : start + of]])
        nearest = (images @ scorer.texts(scenes.captions[start : start + of]).T).argmax(1)
        right.append((nearest == torch.arange(of)).float().mean().item())
    return round(float(np.mean(right)), 4)


def same_drawing_auc(scorer: ClipScorer, seed: int = SCENES, each: int = 3) -> float:
    """How surely two pictures of one drawing in different places are more alike to the scorer than two drawings of one class.

    The area under the ROC curve over all such pairs, within each class: 0.5 is chance.
    """
    alike, apart = [], []
    for number, name in enumerate(CLASSES):
        rng = np.random.default_rng([seed, number])
        pictures, whose = [], []
        for artist in artists_of(name, held_out=True):
            for place in rng.permutation(list(PLACES))[:each]:
                pictures.append(draw_scene(Facts(name, artist, place=str(place)), rng)[0])
                whose.append(artist)
        features = scorer.images(pictures)
        similarity = features @ features.T
        same = torch.tensor([[a == b for b in whose] for a in whose])
        upper = torch.ones_like(same).triu(1)
        alike.append(similarity[same & upper])
        apart.append(similarity[~same & upper])
    alike, apart = torch.cat(alike), torch.cat(apart)
    return round((alike[:, None] > apart[None]).float().mean().item(), 4)


def sharpness(images: list[Image.Image], objects: list[str], folder: str) -> np.ndarray:
    """Mean length of the grey gradient inside the object [len(images)], in grey levels a pixel; the object as segmented."""
    grey = np.stack([np.asarray(image.convert("L"), np.float32) for image in images])
    dy, dx = np.gradient(grey, axis=(1, 2))
    masks = np.stack(segment(images, objects, folder)) > 127
    return (np.hypot(dx, dy) * masks).sum((1, 2)) / masks.sum((1, 2)).clip(1)


@torch.no_grad()
def sharpness_ratio(pipe, asked: list, drawn: list[Image.Image], seed: int, folder: str) -> float:
    """How sharp drawn objects are: their mean gradient over that of real scenes of the same facts, as the VAE gives them back.

    Lone objects in photos; 1 is as sharp as the VAE allows, a blurred picture is below.
    """
    kept = [i for i, (facts, _) in enumerate(asked) if not facts.art and not facts.second]
    real = [np.asarray(draw_scene(asked[i][0], np.random.default_rng([seed, i]))[0]) for i in kept]
    x = pixels(np.stack(real))
    again = torch.cat([pipe.vae.decode(pipe.vae.encode(p).latent_dist.mean).sample for p in x.split(32)])
    again = ((again.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    objects = [asked[i][0].object for i in kept]
    of_real = sharpness([Image.fromarray(a) for a in again], objects, folder)
    of_drawn = sharpness([drawn[i] for i in kept], objects, folder)
    return round(float(of_drawn.mean() / of_real.mean()), 4)


def mask_iou(folder: str, scenes: SceneCache, count: int = 300) -> float:
    """Mean IoU at threshold 0.5 of CLIPSeg's max-normalised masks with the objects' own."""
    images = [Image.fromarray(image) for image in scenes.images[:count]]
    masks = np.stack(segment(images, [fact.object for fact in scenes.facts[:count]], folder)) > 127
    real = scenes.masks[:count, 0] > 127
    return round(float(((masks & real).sum((1, 2)) / (masks | real).sum((1, 2)).clip(1)).mean()), 4)


@torch.no_grad()
def attention_lift(pipe, count: int = 64, side: int = 16) -> float:
    """Share of the class word's attention inside the object's mask, over the mask's share of the area; mean over scenes.

    Real single-object scenes are noised to several steps and denoised once each, so that the mask is known.
    """
    noising = DDPMScheduler.from_config(pipe.scheduler.config)  # other schedulers add noise by other clocks
    lifts, ladder = [], torch.tensor([800, 600, 400, 200])
    index = 0
    while len(lifts) < count:
        s = scene(SCENES + 1, index)
        index += 1
        if s.facts.second or s.facts.art:
            continue
        mask = torch.from_numpy(np.asarray(s.mask.resize((side, side), Image.Resampling.BOX))).float() / 255
        x = pipe.vae.encode(pixels(np.asarray(s.image)[None])).latent_dist.mean * pipe.vae.config.scaling_factor
        ids = tokenize(pipe.tokenizer, [s.caption])
        e = pipe.text_encoder(ids)[0].expand(len(ladder), -1, -1)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(index))
        noisy = torch.cat([noising.add_noise(x, noise, t[None]) for t in ladder])
        with attention_maps(pipe.unet, side) as recorded:
            pipe.unet(noisy, ladder, e)
        word = (ids[0] == single_token(pipe.tokenizer, s.facts.object)).nonzero()[0, 0]
        heat = recorded.maps[:, word]
        inside = (heat * mask).sum((1, 2)) / heat.sum((1, 2))
        lifts.append((inside.mean() / mask.mean()).item())
    return round(float(np.mean(lifts)), 3)


def judged(cfg: DictConfig, pipe, reader: Reader) -> dict:
    """What the other models reach on scenes never trained on: VAE, scorer, segmenter, attention, reader."""
    scorer = ClipScorer(cfg.model.scorer)
    scenes, every = SceneCache(cfg.scenes, SCENES, held_out=False), SceneCache(cfg.scenes, SCENES, held_out=True)
    return {
        "vae_psnr_db": psnr(pipe.vae, scenes),
        "clip_retrieval_100": retrieval(scorer, every),
        "clip_same_drawing_auc": same_drawing_auc(scorer),
        "clipseg_iou": mask_iou(cfg.model.segmenter, scenes),
        "attention_in_mask_lift": attention_lift(pipe, min(64, cfg.scenes // 4)),
        "reader": rates(read(reader, pixels(every.images[:]), every.facts)),
    }


def measure(cfg: DictConfig) -> dict:
    """Everything, into cfg.results; a contact sheet of drawn pictures beside real scenes of the same facts, into cfg.sheet."""
    check_place("results", cfg.results, "a table of results")
    check_place("sheet", cfg.sheet, "a picture")
    reader = Reader.load(Path(cfg.reader))
    pipe = load_pipeline(cfg.model)
    asked = prompts_of(cfg.seed, cfg.prompts)
    started, drawn = time.perf_counter(), []
    for start in range(0, len(asked), 50):
        part = [caption for _, caption in asked[start : start + 50]]
        seeds = list(range(start, start + len(part)))
        drawn += draw(pipe, part, seeds, Sampling(cfg.model.steps, cfg.model.guidance))
        print(f"drawn {len(drawn)} of {len(asked)}", flush=True)
    seconds = (time.perf_counter() - started) / len(drawn)
    readings = read(reader, pixels(np.stack([np.asarray(d) for d in drawn])), [f for f, _ in asked])
    one = lambda: draw(pipe, [asked[0][1]], [0], Sampling(cfg.model.steps, cfg.model.guidance))
    singles = timeit.repeat(one, number=1, repeat=5)
    result = {
        "drawn": {k: v for k, v in rates(readings).items() if k != "drawing"},
        "drawn_sharpness_ratio": sharpness_ratio(pipe, asked, drawn, cfg.seed, cfg.model.segmenter),
        "prompts": len(asked),
        "scheduler": type(pipe.scheduler).__name__,
        "steps": cfg.model.steps,
        "guidance": cfg.model.guidance,
        "seconds_per_image": round(float(np.median(singles)), 3),
        "seconds_per_image_in_batches": round(seconds, 3),
    }
    if cfg.models:
        result |= judged(cfg, pipe, reader)
    result["config"] = OmegaConf.to_container(cfg, resolve=False)
    write_json(cfg.results, result)
    sheet(asked[:64], drawn[:64], cfg.seed, Path(cfg.sheet))
    print(json.dumps({k: v for k, v in result.items() if k != "config"}, indent=1))
    print(f"written: {cfg.results}, {cfg.sheet}")
    return result


def sheet(asked: list[tuple[Facts, str]], drawn: list[Image.Image], seed: int, path: Path, columns: int = 8) -> None:
    """Pairs of a real scene (left) and what the model drew from its caption (right), enlarged twice."""
    side = drawn[0].width
    rows = -(-len(drawn) // columns)
    picture = Image.new("RGB", (columns * (2 * side + 10), rows * (side + 6)), "white")
    for i, ((facts, _), image) in enumerate(zip(asked, drawn)):
        x, y = i % columns * (2 * side + 10), i // columns * (side + 6)
        picture.paste(draw_scene(facts, np.random.default_rng([seed, i]))[0], (x, y))
        picture.paste(image, (x + side + 2, y))
    with whole(path) as part:
        picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(part, "PNG")


def run(cfg: DictConfig) -> None:
    measure(cfg)
