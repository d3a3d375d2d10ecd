"""One page for the whole session, with two concepts of the tiny world in its folder."""

import pytest
from helpers_web import OVERRIDES, free_port, model_at, served, with_segmenter

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'key-locked-perfusion[web]'")

from diffusers import StableDiffusionPipeline

from perfusion.web.command import configuration
from perfusion.web.library import Library
from perfusion.web.studio import Studio


@pytest.fixture(scope="session")
def web_assets(assets):
    return with_segmenter(assets)


@pytest.fixture(scope="session")
def cfg(web_assets):
    """conf/train.yaml on the tiny world, two steps long; its pictures are the stock pipeline's, so in float32."""
    return configuration([*OVERRIDES, *model_at(web_assets), "model.draw_precision=32-true"])


@pytest.fixture
def stock(web_assets):
    """The tiny world's pipeline as diffusers loads it."""
    pipe = StableDiffusionPipeline.from_pretrained(web_assets / "emojiland/pipeline", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def files(stock, make_concept, tmp_path):
    """Two concept files: teddy* and cat*."""
    paths = {}
    for seed, word in enumerate(("teddy", "cat")):
        paths[f"{word}*"] = tmp_path / f"{word}.safetensors"
        make_concept(stock, f"{word}*", word, seed).save(paths[f"{word}*"])
    return paths


@pytest.fixture
def studio(cfg, files, tmp_path):
    """A studio with both concepts in its library."""
    (tmp_path / "concepts").mkdir()
    studio = Studio(cfg.model, Library(tmp_path / "concepts"), "cpu")
    for path in files.values():
        studio.library.add(path)
    return studio


@pytest.fixture(scope="session")
def site(web_assets, tmp_path_factory):
    """(address, folder) of a page that runs in another process."""
    folder, port = tmp_path_factory.mktemp("site"), free_port()
    with served(["-m", "perfusion", "web", "--port", str(port), *OVERRIDES], folder, web_assets, port) as address:
        yield address, folder
