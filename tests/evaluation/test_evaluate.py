"""Scores, prompt files and `perfusion evaluate` on a small Emojiland."""

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_emojiland import pictures, timm_folder
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from perfusion.config import CONF, ROOT
from perfusion.emojiland.facts import FactReader
from perfusion.emojiland.reader import Reader
from perfusion.emojiland.scenes import scene
from perfusion.errors import UserError
from perfusion.evaluation.evaluate import Scores, drift, evaluate, front_of, points_of
from perfusion.evaluation.fronts import hypervolume, pareto
from perfusion.evaluation.prompts import Prompt, read_prompts, read_splits
from perfusion.learning.models import load_pipeline
from perfusion.results import FORMAT, read_result, write_result
from perfusion.scorers import open_scorer

DREAMBENCH = """Classes

subject_name,class
backpack,backpack
bear_plushie,stuffed animal
cat,cat

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token),
'a cube shaped {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token),
'a {0} {1} in a chef outfit'.format(unique_token, class_token)
]
"""
CUSTOM101 = "Photo of a {}.\n{} in grand canyon.\nGeorgia O'Keeffe style {} painting.\n\na screaming {}."


@pytest.fixture(scope="module")
def cfg(assets):
    import perfusion.config

    perfusion.config.ASSETS, before = assets, perfusion.config.ASSETS
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = ["evaluation.seeds=2", "evaluation.beta=[0.6,0.9]", "model.steps=2", "evaluation.lock=[null,global]"]
        cfg = compose("evaluate", settings)
        OmegaConf.resolve(cfg.evaluation), OmegaConf.resolve(cfg.model)
    perfusion.config.ASSETS = before
    return cfg


@pytest.fixture(scope="module")
def emojiland(cfg):
    return load_pipeline(cfg.model)


@pytest.fixture
def teddy(emojiland, make_concept):
    return make_concept(emojiland)


def test_prompt_files_of_every_format(tmp_path):
    ours = read_splits(ROOT / "data/prompts/emojiland.yaml")
    assert [len(p) for p in ours.values()] == [16, 32] and ours["dev"][1] == Prompt(
        "a {} on a beach", {"place": "beach"}
    )
    assert not {p.text for p in ours["dev"]} & {p.text for p in ours["final"]}
    bench = tmp_path / "prompts_and_classes.txt"
    bench.write_text(DREAMBENCH)
    assert [p.text for p in read_prompts(bench)] == ["a {} in the jungle", "a red {}", "a cube shaped {}"]
    assert [p.text for p in read_prompts(bench, "live")] == ["a {} wearing a red hat", "a {} in a chef outfit"]
    custom = tmp_path / "teddybear.txt"
    custom.write_text(CUSTOM101)
    assert [p.with_word("cat") for p in read_prompts(custom)][1:3] == [
        "cat in grand canyon.", "Georgia O'Keeffe style cat painting."
    ]  # fmt: skip
    assert Prompt("a photo of a {} on a beach").without_word() == "a photo of a on a beach"


@pytest.mark.parametrize(
    "name, text, split, sentence",
    [
        ("gone.txt", None, None, "does not exist"),
        ("a.yaml", 'dev: [{text: "a {} here", place: moon}]', None, "says place: moon"),
        ("b.yaml", "- just a list", None, "is not a prompt file"),
        ("dataset.json", '[{"class_prompt": "teddy bear"}]', None, "give the file of prompts"),
        ("c.txt", "{0} with {1}", None, "exactly one {}"),
        ("d.txt", "no word at all", None, "exactly one {}"),
        ("e.txt", "a {}", "live", "evaluation.split=live is not in"),
        ("f.txt", "prompt_list = nonsense", None, "no list of prompts"),
        ("g.txt", "", None, "has no prompts"),
        ("h.yaml", "", None, "has no prompts"),
        ("i.yaml", "dev: [{text: 3}]", None, "exactly one {}"),
        ("j.yaml", 'dev: [{text: "a {}", place: [beach]}]', None, "says place"),
        ("l.yaml", "5", None, "is not a prompt file"),
        ("m.yaml", 'dev: [{text: "a ${x {}"}]', None, "is not a prompt file"),
        ("n.yaml", "[" * 3000, None, "is not a prompt file"),
        ("o.txt", DREAMBENCH.replace("'a ", r"'\x "), None, "has a prompt that is no Python text"),
        ("k.txt", b"a \xe9 {}", None, "not a text in UTF-8"),
    ],
)
def test_bad_prompt_files(tmp_path, name, text, split, sentence):
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=sentence.replace("{}", r"\{\}")):
        read_prompts(tmp_path / name, split, facts={"place": ("beach", "snow")})


def test_scorers_by_one_interface(assets, tmp_path, monkeypatch):
    shown = pictures(3)
    clip = open_scorer(f"local-dir:{assets / 'emojiland/open_clip'}")
    dino = open_scorer(f"local-dir:{timm_folder(tmp_path / 'vit')}")
    for scorer in (clip, dino):
        e = scorer.images(shown)
        assert torch.allclose(e.norm(dim=-1), torch.ones(3)) and not torch.equal(e[0], e[1])
        assert torch.allclose(e[1:2], scorer.images(shown[1:2]), atol=1e-5)
    assert dino.images(shown).shape == (3, 16) and clip.texts(["a cat"]).shape == (1, 96)
    damaged = timm_folder(tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"torn")
    for source, sentence in [
        ("nonsense", "no known name"),
        (f"local-dir:{tmp_path}", "has neither"),
        ("timm:vit_enormous", "is no model of timm"),
        (f"local-dir:{damaged}", "cannot be loaded"),
    ]:
        with pytest.raises(UserError, match=sentence):
            open_scorer(source)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'key-locked-perfusion\[dino\]'"):
        open_scorer("timm:vit_small_patch16_224.dino")


def test_scores_are_what_their_definitions_say(cfg, assets, tmp_path):
    drawn = [scene(11, i).image for i in range(3)]
    prompts = [Prompt("a {} on a beach", {"place": "beach"}), Prompt("a {} next to a car", {"second": "car"})]
    settings = OmegaConf.merge(cfg.evaluation, {"dino": f"local-dir:{timm_folder(tmp_path / 'vit')}"})
    real = pictures(2)
    rows = Scores(prompts, "teddy", "noto", real, settings, cfg.model.scorer).of(drawn, [0, 1, 0])
    clip, dino = open_scorer(cfg.model.scorer), open_scorer(settings.dino)
    text, deleted = clip.texts(["a teddy next to a car"]), clip.texts(["a next to a car"])
    assert rows[1]["text"] == pytest.approx((clip.images(drawn)[1] @ text[0]).item(), abs=2e-5)
    assert rows[1]["text_deleted"] == pytest.approx((clip.images(drawn)[1] @ deleted[0]).item(), abs=2e-5)
    for name, scorer in (("image", clip), ("dino", dino)):
        pairs = scorer.images(drawn) @ scorer.images(real).T
        assert np.mean([r[name] for r in rows]) == pytest.approx(pairs.mean().item(), abs=2e-5)  # all pairs
    assert rows[1]["drawing"] is None and rows[0]["drawing"] in (0, 1) and rows[0]["read_color"] is None
    assert rows[0]["facts"] == rows[0]["read_place"] and rows[1]["facts"] == rows[1]["read_second"]
    assert rows[1]["read_place"] is None and rows[1]["read_object"] in (0, 1)  # a place that is not asked


@pytest.mark.slow
def test_numbers_do_not_depend_on_the_batch_size(cfg, emojiland, teddy, tmp_path):
    results, dino = [], f"local-dir:{timm_folder(tmp_path / 'vit')}"
    (tmp_path / "p.yaml").write_text(
        'dev: [{text: "a {}"}, {text: "a {} at night", place: night}, {text: "a red {}", color: red}]'
    )
    for size in (7, 3):
        small = OmegaConf.merge(
            cfg.evaluation, {"batch_size": size, "drift": False, "dino": dino, "prompts": str(tmp_path / "p.yaml")}
        )
        folder = tmp_path / str(size)
        folder.mkdir()
        results.append(evaluate(emojiland, teddy, pictures(2), "noto", small, cfg.model, folder))
        write_result(folder / "result.json", results[-1])
    a, b = (r["rows"] for r in results)
    assert len(a["text"]) == 3 * 2 * 4 and a["point"][:5] == [0, 1, 2, 3, 0]
    for name in a:
        assert [v is None for v in a[name]] == [v is None for v in b[name]]
        assert np.allclose(*([0 if v is None else v for v in r[name]] for r in (a, b)), atol=1e-4), name
    assert len({tuple(a["dino"][i::4]) for i in range(4)}) == 4  # the points differ
    assert np.std(a["dino"]) > 1e-3  # what a wrong picture would cost
    assert points_of(cfg.evaluation)[1] == {"lock": None, "tau": None, "beta": 0.9}
    written = read_result(tmp_path / "7/result.json")
    assert written["rows"] == a and "raw cosine" in written["definitions"]["text"]
    assert len(list(csv.DictReader((tmp_path / "7/scores.csv").open()))) == 24
    assert (tmp_path / "7/front.png").stat().st_size > 10_000
    means = [(p["text"], p["image"]) for p in written["summary"]]
    assert [p["pareto"] for p in written["summary"]] == pareto(np.array(means)).tolist()


def test_front_of_one_concept():
    """3 prompts x 2 noises x 2 points, in the order that they are drawn."""
    rng = np.random.default_rng(0)
    text, image = rng.uniform(0.2, 0.8, (2, 3, 2, 2))
    points = [{"beta": 0.6}, {"beta": 0.9}]
    front = front_of(points, {"text": text.ravel().tolist(), "image": image.ravel().tolist()}, 3)
    means = np.stack([text.mean((0, 1)), image.mean((0, 1))], -1)
    assert front["hypervolume"] == pytest.approx(hypervolume(means, (0, 0)), abs=1e-6)
    assert front["interval"][0] < front["hypervolume"] < front["interval"][1]
    assert front_of(points[:1], {}, 3) is None


def test_drift_is_zero_as_loaded_and_not_when_always_on(cfg, emojiland, teddy):
    settings = OmegaConf.merge(cfg.evaluation, {"reader": None})
    prompts = [Prompt("a {} on a beach"), Prompt("a {}")]
    moved = drift(
        emojiland, teddy, Scores(prompts, "teddy", None, pictures(2), settings, cfg.model.scorer), settings, cfg.model
    )
    for kind in ("without_word", "super_category"):
        assert moved[kind]["loaded"] == {"mse": 0.0, "cosine_distance": 0.0}
        assert moved[kind]["always_on"]["mse"] > 0


def test_results_of_another_format_are_refused(tmp_path):
    write_result(tmp_path / "result.json", {"rows": {}})
    assert read_result(tmp_path / "result.json") == {"format": FORMAT, "rows": {}}
    written = (tmp_path / "result.json").read_text()
    (tmp_path / "result.json").write_text(written.replace('"rows": {}', '"rows": {"text": [1]}'))
    with pytest.raises(UserError, match="is not as it was written"):
        read_result(tmp_path / "result.json")
    (tmp_path / "result.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(UserError, match="has result format 99, this program reads 1"):
        read_result(tmp_path / "result.json")
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(UserError, match="is not a result"):
        read_result(tmp_path / "result.json")


def test_a_reader_of_other_labels_is_refused(assets, tmp_path):
    assert Reader.load(assets / "emojiland/reader").width == 4
    shutil.copytree(assets / "emojiland/reader", tmp_path / "reader")
    config = json.loads((tmp_path / "reader/config.json").read_text())
    config["heads"]["object"] = config["heads"]["object"][::-1]
    (tmp_path / "reader/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="reader"):
        Reader.load(tmp_path / "reader")


@pytest.mark.parametrize(
    "file, content",
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", "{}"),
        ("config.json", None),
        ("reader.safetensors", "cut"),
    ],
)
def test_a_damaged_reader_is_one_sentence(assets, tmp_path, file, content):
    shutil.copytree(assets / "emojiland/reader", tmp_path / "reader")
    whole = json.loads((tmp_path / "reader/config.json").read_text())
    (tmp_path / "reader" / file).write_text(json.dumps(whole | {"width": "4"}) if content is None else content)
    with pytest.raises(UserError, match=r"reader in .* cannot be loaded \(.*\); fetch it again"):
        FactReader.check(tmp_path / "reader", 64)


def test_evaluate_command(perfusion_here, emojiland, teddy, tmp_path, capsys):
    teddy.save(tmp_path / "teddy.safetensors")
    few = ("evaluation.seeds=1", "evaluation.beta=[0.6,0.9]", "model.steps=2", "evaluation.drift=false")
    (tmp_path / "two.txt").write_text("a photo of a {}\na {} at night")
    mine = ("evaluate", f"concept_file={tmp_path / 'teddy.safetensors'}", f"evaluation.prompts={tmp_path / 'two.txt'}")
    perfusion_here(*mine, *few, "hydra.run.dir=out")
    result = read_result(tmp_path / "out/result.json")
    assert len(result["summary"]) == 2 and result["concept"] == "teddy*" and "facts" not in result["rows"]
    said = capsys.readouterr().out
    assert "raw cosine" in said and "hypervolume" in said and Path("out/front.png").exists()
    perfusion_here(*mine, *few, "evaluation.beta=[0.6]", "hydra.run.dir=single")
    assert "one operating point is no front" in capsys.readouterr().out and not Path("single/front.png").exists()
    for overrides, sentence in [
        ((*mine, "concept=cat"), "learned a teddy"),
        (("evaluate",), "concept_file is not given"),
        ((*mine, "evaluation.prompts=gone.yaml"), "evaluation.prompts=gone.yaml does not exist"),
        ((*mine, "evaluation.beta=[high]"), "evaluation.beta=[high] does not work"),
        ((*mine, "evaluation.beta=[]"), "a list of at least one number"),
        (
            (*mine, "evaluation.lock=[trained]"),
            "evaluation.lock holds trained; allowed are global, the concept's own local",
        ),
        ((*mine, "evaluation.seeds=two"), "evaluation.seeds=two does not work"),
        ((*mine, "evaluation.dino=timm:vit_enormous"), "is no model of timm"),
        (
            (*mine, "evaluation.reader=/gone", "evaluation.prompts=${root:data/prompts/emojiland.yaml}"),
            "no config.json",
        ),
    ]:
        with pytest.raises(SystemExit) as stop:
            perfusion_here(*overrides, "hydra.run.dir=none")
        assert stop.value.code == 2 and sentence in capsys.readouterr().err, sentence
