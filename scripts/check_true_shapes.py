"""One training step and a saved concept at Stable Diffusion 1.5's true shapes, and of tiny PixArt and Sana, with random weights: no download.

python scripts/check_true_shapes.py              # about 5 GB of memory; writes results/true_shapes.json
python scripts/check_true_shapes.py --shapes     # every model's numbers, without memory; writes results/true_shapes_models.json

What it shows: 16 cross-attentions, 13,248 trained numbers, and that loading their file on a stock StableDiffusionPipeline
changes a denoising step and unloading restores it to the last bit; the same of tiny pipelines of PixArt's and Sana's true
classes, whose text encoders (4.8 and 2.6 billion numbers) would not fit. The pictures are 64 x 64, which changes no weight and
no count. With --shapes: trained numbers and file size of every configured model, by the published configurations of its
denoiser; these are the sizes that README and docs tell.
"""

import sys
import tempfile
import time
from pathlib import Path

import random_sd15
import random_sdxl
import torch
from diffusers import PixArtTransformer2DModel, SanaTransformer2DModel, UNet2DConditionModel
from PIL import Image
from random_denoisers import TINY

from perfusion.atomic import write_json
from perfusion.learning.data import ConceptData
from perfusion.learning.module import PerfusionModule
from perfusion.method.concept import Concept
from perfusion.method.denoiser import predict
from perfusion.method.layers import cross_attentions
from perfusion.method.pipeline import load_concepts
from perfusion.method.text_encoders import text_encoder_of

MODELS = {  # name: (class or function, what differs from its defaults, numbers of a word's embedding)
    "sd15": (random_sd15.random_unet, {}, 768),
    "sd21": (
        UNet2DConditionModel,
        {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
        1024,
    ),
    "sdxl": (random_sdxl.random_unet, {}, 768 + 1280),
    "pixart (alpha, Sigma)": (PixArtTransformer2DModel, {"sample_size": 128, "caption_channels": 4096}, 4096),
    "sana (1.6B)": (SanaTransformer2DModel, {}, 2304),
    "sana (0.6B)": (
        SanaTransformer2DModel,
        {"num_attention_heads": 36, "num_layers": 28, "num_cross_attention_heads": 16, "cross_attention_head_dim": 72,
         "cross_attention_dim": 1152},
        2304,
    ),
}  # fmt: skip


def shapes() -> None:
    """results/true_shapes_models.json: counts by the layers of a denoiser without memory, sizes of a file that is written."""
    models = {}
    for name, (kind, options, d_tok) in MODELS.items():
        with torch.device("meta"):
            layers = cross_attentions(kind(**options))
        d = next(iter(layers.values())).to_k.in_features
        o_star = {n: torch.randn(a.to_v.out_features) for n, a in layers.items()}
        concept = Concept(
            "teddy*", "teddy", torch.randn(d), torch.randn(d), torch.randn(d_tok), o_star, base_hash="0" * 32
        )
        with tempfile.TemporaryDirectory() as folder:
            concept.save(Path(folder) / "teddy.safetensors")
            size = (Path(folder) / "teddy.safetensors").stat().st_size
        models[name] = {
            "cross_attentions": len(layers), "encoding": d, "embedding": d_tok,
            "trained_numbers": d_tok + sum(len(o) for o in o_star.values()), "file_bytes": size,
        }  # fmt: skip
    assert (models["sd15"]["cross_attentions"], models["sd15"]["trained_numbers"]) == (16, 13_248), models
    print(write_json("results/true_shapes_models.json", models))


def check(pipe, resolution: int) -> dict:
    """A training step on the pipeline, its concept saved, loaded on it again, and unloaded; what was seen. Raises AssertionError
    where the step trains nothing, loading changes nothing, or unloading leaves anything changed."""
    seconds, started = {}, time.perf_counter()

    def took(name: str) -> None:
        nonlocal started
        seconds[name], started = round(time.perf_counter() - started, 2), time.perf_counter()

    text_encoder, prompt = text_encoder_of(pipe), "a teddy* on a beach"
    width = text_encoder.config.hidden_size
    with tempfile.TemporaryDirectory() as folder:
        picture, file = Path(folder) / "0.png", Path(folder) / "teddy.safetensors"
        Image.effect_noise((resolution, resolution), 80).convert("RGB").save(picture)
        data = ConceptData([picture], resolution, "teddy", "", None, flip=False).encode(pipe.vae)
        module = PerfusionModule(
            pipe, data, "teddy*", "teddy", torch.eye(width), beta=0.75, tau=0.1, lock="local", batch_size=1,
            i_star_decay=0.99, seed=0, learning_rate={"o_star": 0.03, "embedding": 0.006, "relative": False},
        )  # fmt: skip
        took("attach")
        module.log = lambda *args, **kwargs: None
        module.training_step(None, 0).backward()
        trained = [p for p in module.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
        module.configure_optimizers().step()
        took("training_step")
        module.concept(base_hash=module.base_hash).save(file)
        module.detach()
        concept = Concept.load(file)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, pipe.vae.config.latent_channels, *data.latents.shape[2:], generator=g)

    @torch.no_grad()
    def step() -> torch.Tensor:
        e, second, *_ = pipe.encode_prompt(
            prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        mask = second if hasattr(text_encoder, "project") else None  # of PixArt and Sana
        return predict(pipe, x, torch.tensor([500]), e, resolution, mask)

    before = step()
    took("step")
    handle = load_concepts(pipe, {"teddy*": concept})
    took("load_concepts")
    changed = step()
    handle.unload()
    result = {
        "cross_attentions": len(concept.o_star_v),
        "trained_numbers": sum(p.numel() for p in trained),
        "load_changes_the_step_by": round((changed - before).abs().max().item(), 4),
        "unload_is_exact": torch.equal(step(), before),
        "seconds": seconds,
    }
    numbers = len(concept.embedding) + sum(len(o) for o in concept.o_star_v.values())
    assert result["trained_numbers"] == numbers, (result, numbers)
    assert result["unload_is_exact"] and not torch.equal(changed, before), result
    return result


def main() -> None:
    started = time.perf_counter()
    pipe = random_sd15.random_pipeline()
    build = round(time.perf_counter() - started, 2)
    result = check(pipe, 64)
    assert (result["cross_attentions"], result["trained_numbers"]) == (16, 13_248), result
    tiny = {name: check(make(), 32) for name, make in TINY.items()}
    result = {
        "what": "Stable Diffusion 1.5's true shapes, random weights, float32, CPU; 64 x 64 pictures",
        **result,
        "seconds": {"build": build} | result["seconds"],
        "tiny": {name: {key: value for key, value in seen.items() if key != "seconds"} for name, seen in tiny.items()},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(write_json("results/true_shapes.json", result))


if __name__ == "__main__":
    shapes() if "--shapes" in sys.argv[1:] else main()
