"""hf:// addresses from a cache on disk, the card, and push through the real client against a small local hub."""

import socket

import hydra
import pytest
import torch
from helpers_hub import COMMIT
from huggingface_hub import ModelCard
from omegaconf import OmegaConf
from PIL import Image

from perfusion.commands.cli import main
from perfusion.commands.concept_files import info
from perfusion.config import CONF
from perfusion.errors import UserError
from perfusion.learning.methods import module_of
from perfusion.method.concept import Concept
from perfusion.method.covariance import Covariance
from perfusion.method.fingerprint import hash_of
from perfusion.method.hub import FILE, card, fetch
from perfusion.method.pipeline import load_concepts


@pytest.fixture
def saved(pipe, make_concept, tmp_path):
    concept = make_concept(pipe)
    concept.licence, concept.base_id = "CC BY 4.0", "tiny"
    concept.config = {"seed": 3, "base_model": "someone/tiny"}
    concept.save(tmp_path / "teddy.safetensors")
    return tmp_path / "teddy.safetensors"


@pytest.fixture
def cache(saved, tmp_path, monkeypatch):
    """huggingface_hub's cache folder, as a download of user/teddy leaves it."""
    repo = tmp_path / "hub/models--user--teddy"
    for name in (FILE, "old/second.safetensors"):
        path = repo / "snapshots" / COMMIT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(saved.read_bytes())
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_concept_is_loaded_from_the_hub(pipe, saved, cache):
    expected = Concept.load(saved)
    addresses = [
        "hf://user/teddy",
        f"hf://user/teddy/{FILE}",
        "hf://user/teddy@main",
        "hf://user/teddy@main/old/second.safetensors",
    ]
    for address in addresses:
        assert torch.equal(Concept.load(address).i_star, expected.i_star), address
    load_concepts(pipe, {"teddy*": "hf://user/teddy"})
    assert torch.equal(pipe._perfusion.concepts["teddy*"].embedding, expected.embedding)
    assert fetch("a/b.safetensors").parts == ("a", "b.safetensors")


@pytest.mark.parametrize("address, sentence", [
    ("hf://user/gone", "hf://user/gone cannot be fetched"),
    ("hf://user/teddy/gone.safetensors", "gone.safetensors cannot be fetched"),
    ("hf://teddy", "not an address on the hub"),
    ("hf://us--er/teddy/x", "cannot be fetched"),
])  # fmt: skip
def test_bad_addresses(cache, address, sentence):
    with pytest.raises(UserError, match=sentence):
        Concept.load(address)


def test_card(saved):
    concept = Concept.load(saved)
    text = card(concept, "user/teddy")
    read = ModelCard(text).data
    assert read.license_name == "CC BY 4.0" and read.base_model == "someone/tiny" and "perfusion" in read.tags
    assert 'load_concepts(pipe, {"teddy*": "user/teddy"})' in text and concept.base_hash in text
    assert read.widget[0]["text"] == "a photo of a teddy*" and read.instance_prompt == "teddy*"
    assert all("output" not in w for w in read.widget) and "![" not in text
    shown = card(concept, "user/teddy", picture=True)
    assert ModelCard(shown).data.widget[0]["output"] == {"url": "picture.png"} and "](picture.png)" in shown
    assert "base model | tiny, hash" in text
    of = lambda: ModelCard(card(concept, "user/teddy")).data.base_model
    concept.config = {}  # a file of before
    assert of() is None
    concept.base_id = "someone/tiny"
    assert of() == "someone/tiny"
    concept.base_id = "/models/tiny"
    assert of() is None


@pytest.mark.parametrize("overrides, base_id, base_model", [
    (["model=sd15"], "sd-1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    (["model=sana"], "sana-1.6b", "Efficient-Large-Model/Sana_1600M_1024px_diffusers"),
    (["model=sd15", "method=textual_inversion"], "sd-1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    (["model=sd15", "model.path=models/tiny"], "sd-1.5", None),
    (["model=sd15", "model.path=models/tiny.safetensors"], "sd-1.5", None),
    ([], "emojiland", None),
])  # fmt: skip
def test_training_writes_the_card_s_base_model(pipe, tmp_path, monkeypatch, overrides, base_id, base_model):
    (tmp_path / "models/tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("perfusion.learning.methods.covariance", lambda *_, **__: Covariance(torch.eye(32), 1, "c"))
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", overrides)
    pipe._perfusion_base_hash = hash_of(pipe)
    module, metadata, _ = module_of(cfg, pipe, None, OmegaConf.create({"name": "teddy*", "super_category": "teddy"}))
    assert (metadata["base_id"], metadata["config"].get("base_model")) == (base_id, base_model)
    if cfg.method.module:  # a baseline, which is not pushed
        return
    module.concept(**metadata).save("teddy.safetensors")
    assert ModelCard(card(Concept.load("teddy.safetensors"), "user/teddy")).data.base_model == base_model
    assert f"base_id            {base_id}" in info("teddy.safetensors")


def test_info(saved, cache, pipe, make_concept):
    text = info(str(saved))
    for part in (
        "teddy*",
        "CC BY 4.0",
        "someone/tiny",
        "[32]",
        "config.seed",
        "W_K . super-category",
        f"{saved.stat().st_size} bytes",
    ):
        assert part in text, part
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn2" in text and "4 layers" in text
    assert info("hf://user/teddy").splitlines()[1:] == text.splitlines()[1:]
    trained = make_concept(pipe, lock="trained")
    trained.save(saved)
    assert "o_star_k           4 layers" in info(str(saved))


def perfusion(*words) -> int:
    """The command line, in this process; its exit code."""
    try:
        main([str(w) for w in words])
    except SystemExit as stopped:
        return stopped.code
    return 0


def test_push_uploads_the_file_and_the_card(saved, hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    assert perfusion("push", saved, "user/teddy", "--private") == 0
    assert "pushed: hf://user/teddy" in capsys.readouterr().out and hub.created["visibility"] == "private"
    assert set(hub.files) == {FILE, "README.md"} and "teddy*" in hub.files["README.md"].decode()
    (tmp_path / "back.safetensors").write_bytes(hub.files[FILE])
    assert torch.equal(Concept.load(tmp_path / "back.safetensors").i_star, Concept.load(saved).i_star)
    hub.files.clear()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert perfusion("push", saved, "user/teddy") == 2
    assert "user/teddy cannot be written" in capsys.readouterr().err and not hub.files
    with socket.create_server(("127.0.0.1", 0)) as nobody:  # closed below: a machine without network
        port = nobody.getsockname()[1]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
    assert perfusion("push", saved, "user/teddy") == 2
    assert "user/teddy cannot be written" in capsys.readouterr().err
    assert perfusion("info", "a" * 300) == 2
    assert "cannot be written or read (File name too long)" in capsys.readouterr().err


def test_a_picture_is_pushed_along(saved, hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    (tmp_path / "notes.png").write_text("no picture")
    for bad in ("gone.png", "notes.png"):
        assert perfusion("push", saved, "user/teddy", "--picture", tmp_path / bad) == 2
        assert "is not a PNG file" in capsys.readouterr().err and not hub.files
    Image.new("RGB", (8, 8)).save(tmp_path / "drawn.png")
    assert perfusion("push", saved, "user/teddy", "--picture", tmp_path / "drawn.png") == 0
    assert hub.files["picture.png"] == (tmp_path / "drawn.png").read_bytes()
    assert "url: picture.png" in hub.files["README.md"].decode()


def test_concepts_load_as_diffusers_loaders_do(pipe, saved, hub, tmp_path, monkeypatch):
    """A repository's name, revision, token, a file's name; and once fetched, from the cache without the hub."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    expected, old = saved.read_bytes(), Concept.load(saved)
    old.beta = 0.6
    old.save(tmp_path / "old.safetensors")
    hub.files |= {FILE: expected, "old.safetensors": (tmp_path / "old.safetensors").read_bytes()}
    given = {"token": "hf_test", "cache_dir": tmp_path / "kept"}
    with pytest.raises(UserError, match="user/teddy cannot be fetched"):
        load_concepts(pipe, "user/teddy", token="hf_wrong", cache_dir=tmp_path / "kept")
    with pytest.raises(UserError, match="cannot be fetched"):
        load_concepts(pipe, "user/teddy", revision="v7", **given)
    with pytest.raises(UserError, match=r"\['use_auth'\] cannot be given.*revision, token"):
        load_concepts(pipe, "user/teddy", use_auth="hf_test")
    with pytest.raises(UserError, match="cannot be fetched"):  # nothing is in the cache yet
        load_concepts(pipe, "user/teddy", local_files_only=True, cache_dir=tmp_path / "kept")

    def loaded(concepts, **more):
        handle = load_concepts(pipe, concepts, **more)
        by_trigger = handle.concepts
        handle.unload()
        return by_trigger

    assert list(loaded("user/teddy", **given)) == ["teddy*"]
    assert list(loaded({"bear*": "user/teddy"}, **given)) == ["bear*"]
    assert loaded(["user/teddy"], weight_name="old.safetensors", **given)["teddy*"].beta == 0.6
    hub.asked.clear()
    assert loaded("user/teddy", revision="v1", **given)["teddy*"].beta == 0.75
    assert all("/resolve/v1/" in path for path in hub.asked) and hub.asked
    hub.asked.clear()
    assert (
        list(loaded("user/teddy", local_files_only=True, cache_dir=tmp_path / "kept")) == ["teddy*"] and not hub.asked
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert list(loaded("user/teddy", cache_dir=tmp_path / "kept")) == ["teddy*"] and not hub.asked
    assert list(loaded(saved)) == list(loaded(Concept.load(saved))) == ["teddy*"]
    with pytest.raises(UserError, match="some of them twice"):
        load_concepts(pipe, [saved, saved])


def test_commands(saved, tmp_path, capsys):
    assert perfusion("info", saved) == 0 and capsys.readouterr().out.strip() == info(str(saved))
    assert perfusion("export", saved, "--textual-inversion", tmp_path / "ti.safetensors") == 0
    assert (tmp_path / "ti.safetensors").stat().st_size < 1000
    assert perfusion("info", tmp_path / "ti.safetensors") == 2
    assert "is no concept file of Perfusion" in capsys.readouterr().err
    assert perfusion("export", saved) == 2 and "--textual-inversion" in capsys.readouterr().err
    assert perfusion("export", saved, "--diffusers-lora", tmp_path / "lora.safetensors") == 2
    assert "a sigmoid of its energy" in capsys.readouterr().err and not (tmp_path / "lora.safetensors").exists()
