"""Which concept a configuration means: its pictures, the concept.yaml beside them, the run's folder."""

import pytest
from helpers_inputs import configured
from omegaconf import OmegaConf
from PIL import Image

from perfusion.config import check, concept_of, run_name
from perfusion.errors import UserError


def test_a_concept_yaml_beside_ones_own_pictures_is_read(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    own = lambda *more: concept_of(
        check("train", configured("train", "concept=custom", f"concept.images={tmp_path}", *more))
    )
    with pytest.raises(UserError, match="concept.super_category is not given, and .* has no concept.yaml that says it"):
        own()
    assert own("concept.super_category=cat").name == "cat*"
    (tmp_path / "concept.yaml").write_text("super_category: teddy\n")
    assert own().name == "teddy*" and own("concept.name=sks").super_category == "teddy"
    assert own("concept.super_category=cat").name == "cat*"  # what is given counts


@pytest.mark.parametrize("content, words", [
    (b"super_category: teddy\n\tname: x", "cannot be read as YAML in UTF-8"),
    (b"- teddy", "holds [teddy]"),
    (b"teddy", "holds teddy"),
    ("name: thé".encode("latin-1"), "cannot be read as YAML in UTF-8"),
    (bytes(range(256)), "cannot be read as YAML in UTF-8"),
    (b"super_category: 5", "super_category=5 does not work"),
    (b"super_category: on", "super_category=true does not work"),
    (b"name: ${oc.env:HOME}", "it refers to another value"),
    (b"split: test", "split=test is unknown; allowed are: dev, final or null"),
    (b"", "concept.super_category is not given"),
    (b"{" * 1200, "cannot be read as YAML in UTF-8"),
])  # fmt: skip
def test_a_concept_yaml_beside_the_pictures_may_be_anything(tmp_path, content, words):
    (tmp_path / "concept.yaml").write_bytes(content)
    with pytest.raises(UserError) as error:
        concept_of(OmegaConf.create({"concept": {"images": str(tmp_path), "name": None, "super_category": None}}))
    assert words in str(error.value) and "\n" not in str(error.value), str(error.value)


def test_one_picture_and_a_list_of_pictures(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "concept.yaml").write_text("super_category: Teddy\nnote: 5\n")
    of = lambda images: concept_of(
        OmegaConf.create({"concept": {"images": images, "name": None, "super_category": None}})
    )
    one, both = str(tmp_path / "a.png"), [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert of(one).images == one and of(both).images == both
    assert of(one).super_category == "teddy" and of(both).name == "teddy*"  # as tokenizers read it
    for wrong in ("/nowhere", [*both, str(tmp_path)], [one, "c.png"]):
        with pytest.raises(UserError, match="is not a folder or a picture that is there"):
            of(wrong)


@pytest.mark.parametrize("concept, name", [
    ({"images": "data/concepts/teddy", "super_category": None}, "teddy"),
    ({"images": "photos/", "super_category": "cat"}, "cat"),
    ({"images": ["a b.png", "c.png"], "super_category": "???"}, "a_b"),
    ({"images": 5, "super_category": True}, "concept"),
    ({"images": "/" + "x" * 300, "super_category": None}, "x" * 40),
])  # fmt: skip
def test_a_runs_folder_is_named_after_its_concept(concept, name):
    assert run_name(_root_=OmegaConf.create({"concept": concept})) == name
