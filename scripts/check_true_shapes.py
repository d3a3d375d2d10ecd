"""One training step and a saved concept at Stable Diffusion 1.5's true shapes, with random weights: no download.

python scripts/check_true_shapes.py              # about 5 GB of memory; writes results/true_shapes.json
python scripts/check_true_shapes.py --shapes     # every model's numbers, without memory; writes results/true_shapes_models.json

What it shows: 16 cross-attentions, 13,248 trained numbers, the size of the file, and that loading it on a stock
StableDiffusionPipeline changes a denoising step and unloading restores it to the last bit. The pictures are 64 x 64, which
changes no weight and no count. With --shapes: trained numbers and file size of every configured model, by the published
configurations of its denoiser.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from diffusers import PixArtTransformer2DModel, SanaTransformer2DModel, UNet2DConditionModel
from PIL import Image
from random_sd15 import random_pipeline

from perfusion.atomic import write_json
from perfusion.learning.data import ConceptData
from perfusion.learning.module import PerfusionModule
from perfusion.method.concept import Concept
from perfusion.method.fingerprint import base_hash
from perfusion.method.layers import cross_attentions
from perfusion.method.pipeline import load_concepts

MODELS = {  # name: (class, what differs from its defaults, numbers of a word's embedding)
    "sd15": (UNet2DConditionModel, {"cross_attention_dim": 768, "attention_head_dim": 8}, 768),
    "sd21": (
        UNet2DConditionModel,
        {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
        1024,
    ),
    "sdxl": (
        UNet2DConditionModel,
        {
            "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 2048,
            "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        768 + 1280,
    ),
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


def main() -> None:
    torch.manual_seed(0)
    folder, seconds, started = Path(tempfile.mkdtemp()), {}, time.perf_counter()

    def took(name: str) -> None:
        nonlocal started
        seconds[name], started = round(time.perf_counter() - started, 2), time.perf_counter()

    pipe = random_pipeline()
    took("build")
    layers = cross_attentions(pipe.unet)
    Image.effect_noise((64, 64), 80).convert("RGB").save(folder / "0.png")
    data = ConceptData([folder / "0.png"], 64, "teddy", "", None, flip=False).encode(pipe.vae)
    module = PerfusionModule(
        pipe, data, "teddy*", "teddy", torch.eye(768), beta=0.75, tau=0.1, lock="local", batch_size=1, i_star_decay=0.99,
        seed=0, learning_rate={"o_star": 0.03, "embedding": 0.006, "relative": False},
    )  # fmt: skip
    took("attach")
    module.log = lambda *args, **kwargs: None
    module.training_step(None, 0).backward()
    trained = [p for p in module.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    module.configure_optimizers().step()
    took("training_step")
    hash = base_hash(pipe.text_encoder, pipe.unet)
    took("hash")
    module.concept(base_id="random sd-1.5", base_hash=hash).save(folder / "teddy.safetensors")
    module.widened.restore()
    x, prompt = torch.randn(1, 4, 8, 8), "a teddy* on a beach"

    @torch.no_grad()
    def step():
        e, _ = pipe.encode_prompt(prompt, "cpu", 1, False)
        return pipe.unet(x, torch.tensor(500), e).sample

    before = step()
    took("step")
    concept = Concept.load(folder / "teddy.safetensors")
    handle = load_concepts(pipe, {"teddy*": concept})
    took("load_concepts")
    changed = step()
    handle.unload()
    result = {
        "what": "Stable Diffusion 1.5's true shapes, random weights, float32, CPU; 64 x 64 pictures",
        "cross_attentions": len(layers),
        "trained_numbers": sum(p.numel() for p in trained),
        "file_bytes": (folder / "teddy.safetensors").stat().st_size,
        "load_changes_the_step_by": round((changed - before).abs().max().item(), 4),
        "unload_is_exact": torch.equal(step(), before),
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    assert (result["cross_attentions"], result["trained_numbers"]) == (16, 13_248), result
    assert result["unload_is_exact"] and result["load_changes_the_step_by"] > 0, result
    print(write_json("results/true_shapes.json", result))


if __name__ == "__main__":
    shapes() if "--shapes" in sys.argv[1:] else main()
