"""perfusion generate on pipelines other than Stable Diffusion's: tiny models of the true classes."""

import pytest
from helpers_denoisers import TINY
from PIL import Image


@pytest.mark.parametrize("kind, model, limit", [
    ("pixart", "pixart", 300), ("pixart alpha", "pixart", 120), ("sana", "sana", 300),
])  # fmt: skip
def test_generate_draws_and_names_the_prompts_without_a_concept(
    kind, model, limit, make_concept, perfusion_on, tmp_path, capfd
):
    """By the pipeline's own limit of tokens, whatever its tokenizer's is."""
    pipe = TINY[kind]()
    pipe.save_pretrained(tmp_path / "tiny")
    make_concept(pipe).save(tmp_path / "teddy.safetensors")
    run = perfusion_on(tmp_path / "assets", tmp_path / "cache")
    within, cut, other = "cat " * (limit - 10) + "teddy*", "cat " * (limit + 10) + "teddy*", "a cat"
    run(
        "generate", "hydra.run.dir=run", f"model={model}", "model.path=tiny", "model.resolution=32", "model.steps=2",
        "concepts={teddy*: teddy.safetensors}", f"prompts={[within, cut, other]}", "images=1", "device=cpu",
    )  # fmt: skip
    said = capfd.readouterr().err
    assert [f'prompt "{p}" holds none of' in said for p in (within, cut, other)] == [False, True, True]
    assert Image.open("run/000-00.png").size == (32, 32) and (tmp_path / "run/picture.png").exists()
