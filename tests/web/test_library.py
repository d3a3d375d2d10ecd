"""Concept files that come from strangers: taken, renamed, or refused in one sentence."""

import pickle
from dataclasses import replace

import pytest

from perfusion.errors import UserError
from perfusion.method.concept import Concept
from perfusion.web.library import LARGEST, Library


def test_the_same_file_twice_is_one_concept_and_another_of_its_word_gets_its_own(
    studio, files, make_concept, stock, tmp_path
):
    library = studio.library
    assert library.words() == ["teddy*", "cat*"]
    assert library.add(files["teddy*"]) == "teddy*" and len(library.words()) == 2
    make_concept(stock, "teddy*", "teddy", seed=7).save(tmp_path / "another.safetensors")
    assert library.add(tmp_path / "another.safetensors") == "teddy2*"
    assert library["teddy2*"].trigger == "teddy2*" and library.file("teddy2*").parent == library.folder
    again = Library(library.folder)  # as after a restart
    again.open(studio.tokenizer, "tiny", library["teddy*"].base_hash)
    assert sorted(again.words()) == ["cat*", "teddy*", "teddy2*"] and again.skipped == []


def test_a_word_never_becomes_a_path_outside_the_folder(studio, files):
    evil = replace(Concept.load(files["teddy*"]), trigger="../../evil*")
    word = studio.library.take(evil)
    assert (
        studio.library.file(word).parent == studio.library.folder
        and studio.library.file(word).name == "evil.safetensors"
    )


def test_what_is_no_concept_of_this_model_is_refused(studio, files, tmp_path):
    library = studio.library
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "huge.safetensors").write_bytes(bytes(LARGEST + 1))
    replace(Concept.load(files["teddy*"]), base_hash="0" * 32).save(tmp_path / "foreign.safetensors")
    for name, said in (("pickle", "never pickles"), ("huge", "at most"), ("foreign", "was learned on base")):
        with pytest.raises(UserError, match=said):
            library.add(tmp_path / f"{name}.safetensors")
    for address in (str(files["teddy*"]), "/etc/passwd", "https://example.org/x", ""):
        with pytest.raises(UserError, match="not an address on the hub"):
            library.fetch(address)
    with pytest.raises(UserError, match="cannot be fetched|not an address"):
        library.fetch("hf://user/../../etc")
    with pytest.raises(UserError, match='no concept "dog\\*" here; there are: teddy\\*, cat\\*'):
        library["dog*"]


def test_a_folder_s_unfit_files_are_left_out_with_a_sentence(studio, files, tmp_path):
    replace(Concept.load(files["cat*"]), base_hash="0" * 32).save(studio.library.folder / "foreign.safetensors")
    (studio.library.folder / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    again = Library(studio.library.folder)
    again.open(studio.tokenizer, "tiny", studio.library["teddy*"].base_hash)
    assert (
        again.words() == ["cat*", "teddy*"]
        and len(again.skipped) == 2
        and "foreign.safetensors is left out" in again.skipped[0]
        and "gone.safetensors does not exist" in again.skipped[1]
    )


def test_a_concept_of_the_hub_is_as_small_as_a_dropped_one(studio, files, hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    hub.files |= {"concept.safetensors": files["teddy*"].read_bytes(), "huge.safetensors": bytes(LARGEST + 1)}
    assert studio.library.fetch("hf://user/teddy") == "teddy*"
    with pytest.raises(
        UserError, match=f"huge.safetensors has {LARGEST + 1} bytes; a concept file has at most {LARGEST}"
    ):
        studio.library.fetch("hf://user/teddy/huge.safetensors")
    assert not any(p.stat().st_size > LARGEST for p in (tmp_path / "hub").rglob("*"))  # nor is it downloaded
