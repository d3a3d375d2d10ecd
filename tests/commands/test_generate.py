"""perfusion generate on pipelines other than Stable Diffusion's: tiny models of the true classes."""

from pathlib import Path

import pytest
from helpers_denoisers import TINY
from PIL import Image

from perfusion.commands import generate


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


def test_what_was_drawn_is_kept_where_the_command_is_stopped(perfusion_here, monkeypatch):
    """Ctrl-C amid the third of four pictures, drawn one at a time; each is what a command that ends draws."""
    given = ("generate", "prompts=[a, b]", "images=2", "model.steps=1", "model.draw_batch=1")
    perfusion_here(*given, "hydra.run.dir=whole")
    ask, calls = generate.draw, []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return ask(*arguments)

    monkeypatch.setattr(generate, "draw", stopped)
    with pytest.raises(SystemExit) as stop:
        perfusion_here(*given, "hydra.run.dir=half")
    kept = sorted(path.name for path in Path("half").glob("*.png"))
    assert stop.value.code == 130 and kept == ["000-00.png", "000-01.png"]
    assert all(Path("half", name).read_bytes() == Path("whole", name).read_bytes() for name in kept)
