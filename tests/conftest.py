"""Tiny real models, built from configurations once per test session: no mocks, no network."""

import logging
import os
import shutil
import threading

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in the commands that tests run too: two workers fill two cores

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from filelock import FileLock
from helpers import louder, text_encoder, unet, vae
from helpers_hub import hub_server
from tiny_tokenizers import tiny_tokenizer

from perfusion.method.concept import Concept
from perfusion.method.denoiser import denoiser_of
from perfusion.method.edit import inverse_metric, target_key
from perfusion.method.fingerprint import hash_of
from perfusion.method.layers import cross_attentions
from perfusion.method.text import super_encoding, word_embedding
from perfusion.method.text_encoders import text_encoder_of

torch.set_num_threads(1)
COMMANDS = {"world", "perfusion_on", "perfusion_here", "main_job", "site"}  # fixtures that run whole commands


LONGEST = (  # files, which pytest-xdist hands out whole: those that take minutes begin first, so that none ends alone
    "test_figures.py", "test_sweep.py", "test_reliability.py", "test_train.py", "test_bench.py", "test_launchers.py",
    "test_browser.py", "test_report.py", "test_ends.py", "test_models.py", "test_dashboard.py", "test_notebook.py", "test_server.py",
    "test_shipped.py", "test_evaluate.py", "test_costs.py", "test_measure_gpu.py",
)  # fmt: skip


def pytest_configure(config):
    """pytest-xdist would begin with the files of the most tests, which are short ones here."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """The longest files first. What runs whole commands is slow: `make check` leaves it out."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
    for item in items:
        if COMMANDS & {*item.fixturenames}:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A saved StableDiffusionPipeline: 8 x 8 latents, encodings 32 wide, cross-attentions of two widths."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    encoder = text_encoder(tokenizer, 32, num_hidden_layers=2)
    denoiser, autoencoder = unet(32), vae()
    louder(denoiser, encoder)
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipe = StableDiffusionPipeline(
        autoencoder,
        encoder,
        tokenizer,
        denoiser,
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    path = tmp_path_factory.mktemp("tiny") / "pipeline"
    pipe.save_pretrained(path)
    return path


@pytest.fixture
def pipe(folder):
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def make_concept():
    """A concept for a pipeline, o*_V and embedding moved off their start as training would."""

    def make(pipe, trigger="teddy*", super_category="teddy", seed=0, lock="local") -> Concept:
        g = torch.Generator().manual_seed(seed)
        noisy = lambda x: x + 0.5 * x.std() * torch.randn(x.shape, generator=g)
        text_encoder = text_encoder_of(pipe)
        d = text_encoder.config.hidden_size
        e = torch.randn(500, d, generator=g)
        i_star = noisy(super_encoding(pipe.tokenizer, text_encoder, super_category))
        c_inv_i_star = target_key(inverse_metric(e.T @ e, 1e-2), i_star)
        o_star = lambda part: {
            name: noisy(getattr(a, part).weight.detach() @ i_star)
            for name, a in cross_attentions(denoiser_of(pipe)).items()
        }
        return Concept(
            trigger,
            super_category,
            i_star,
            c_inv_i_star,
            noisy(word_embedding(pipe.tokenizer, text_encoder, super_category)),
            o_star("to_v"),
            o_star("to_k") if lock == "trained" else None,
            lock,
            base_id="tiny",
            base_hash=hash_of(pipe),
        )

    return make


@pytest.fixture
def hub(monkeypatch):
    """A small hub that the real client talks to; its files go to the token hf_test."""
    server = hub_server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def segmenter(tmp_path_factory):
    """A CLIPSeg folder, tiny, with random weights."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, ViTImageProcessor

    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("clipseg"), tiny_tokenizer(8)
    common = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    config = CLIPSegConfig(
        text_config=common | ids | {"vocab_size": len(tokenizer), "max_position_embeddings": 8},
        vision_config=common | {"image_size": 32, "patch_size": 8},
        projection_dim=16, extract_layers=[0, 1], reduce_dim=16, conditional_layer=0, decoder_num_attention_heads=2,
    )  # fmt: skip
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def assets(tmp_path_factory):
    """A small Emojiland (helpers_emojiland.build), built once, in seconds."""
    from helpers_emojiland import build

    return build(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Real checkpoints in the shipped layout, of three steps each, drawing noise; the environment that finds them.

    Pretrained once for all of pytest-xdist's workers; each has a copy of its own to write to.
    """
    from helpers_emojiland import environment, pretrain

    base = tmp_path_factory.getbasetemp()
    once = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "pretrained"
    with FileLock(f"{once}.lock"):
        if not once.exists():
            pretrain(once.with_suffix(".part"))
            once.with_suffix(".part").rename(once)
    own = tmp_path_factory.mktemp("world")
    shutil.copytree(once, own, dirs_exist_ok=True)
    return os.environ | environment(own)


@pytest.fixture
def perfusion_on(tmp_path, monkeypatch):
    """perfusion_on(assets, cache)("train", ...) is the command line, run in this process in an empty folder."""
    from helpers_emojiland import command_line

    yield lambda assets, cache: command_line(monkeypatch, assets, cache, tmp_path)
    logging.getLogger("perfusion").setLevel(logging.NOTSET)  # -q lowers it for the whole process


@pytest.fixture
def perfusion_here(assets, perfusion_on):
    """The same on the small Emojiland: perfusion_here("train", ...)."""
    return perfusion_on(assets, assets / "cache")
