"""A small part of the campaign (scripts/campaign), in seconds: every command's own machinery, a few of each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from perfusion.atomic import WriteError, alone, check_place, whole, write_tensors, write_text
from perfusion.commands.cli import main
from perfusion.commands.concept_files import export_textual_inversion
from perfusion.errors import UserError
from perfusion.experiments.report import page
from perfusion.method.concept import Concept
from perfusion.results import write_result

ROOT = Path(__file__).parents[1]


SMALL = {"fuzz": ["--files", "350"], "soak": ["--loads", "10"], "kills": ["--kills", "5"]}
CAMPAIGN = """
import runpy, sys
folder, results = sys.argv[1:3]
sys.path.insert(0, folder)
for command, counts in {small}.items():
    sys.argv = [command, *counts, f"--results={{results}}"]
    runpy.run_path(f"{{folder}}/{{command}}.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> dict:
    """The figures of small campaigns, each beside the others'; one process, which has to import all that they fork with."""
    results = tmp_path_factory.mktemp("campaign") / "reliability.json"
    asked = [sys.executable, "-c", CAMPAIGN.format(small=SMALL), ROOT / "scripts/campaign", results]
    done = subprocess.run(
        asked, check=False, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(results.read_text())


@pytest.mark.slow
def test_fuzzed_files_and_a_short_soak(kept):
    assert kept["fuzzed_files"] == 350 and kept["refused"] > 200
    assert (kept["silent_loads"], kept["tracebacks"], kept["over_memory"]) == (0, 0, 0), kept["fuzz_examples"]
    assert kept["soak_loads"] == 10 and kept["soak_wrong_pictures"] == 0 and kept["soak_base_equal"]
    assert kept["commands"]["fuzz"]["made_with"]["versions"]["torch"]


@pytest.mark.slow
def test_a_kill_of_each_command(kept):
    assert kept["kills"] == 5 and kept["results_lost"] == 0, kept["lost"]


def test_the_results_that_are_kept_hold_what_they_must():
    kept = json.loads((ROOT / "results/reliability.json").read_text())
    least = {
        "kills": 200,
        "resumes": 30,
        "fuzzed_files": 10_000,
        "bad_inputs": 300,
        "soak_loads": 10_000,
        "places_rounds": 1,
    }
    assert {key: kept[key] for key, count in least.items() if kept[key] < count} == {}
    wrong = (
        "results_lost", "resume_mismatches", "silent_loads", "tracebacks", "over_memory", "soak_wrong_pictures",
        "places_full_disk", "places_read_only", "places_clock_back", "places_two_runs",
    )  # fmt: skip
    assert {key: kept[key] for key in wrong if kept[key] != 0} == {}
    assert kept["soak_base_equal"] and abs(kept["soak_memory_growth"]) < 0.02
    assert all(part["made_with"]["versions"] and part["made_with"]["how"] for part in kept["commands"].values())


def test_the_same_tensors_are_the_same_bytes(tmp_path):
    import torch
    from safetensors.torch import load_file

    tensors, metadata = {"b": torch.ones(3), "a": torch.arange(5)}, {f"key {i}": f"é {i}" for i in range(20)}
    for i in range(4):
        write_tensors(tmp_path / f"{i}.safetensors", tensors, metadata)
    assert len({p.read_bytes() for p in tmp_path.iterdir()}) == 1
    assert all(torch.equal(load_file(tmp_path / "0.safetensors")[n], t) for n, t in tensors.items())


def test_files_are_shared_as_any_other_is(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "a")
        from safetensors.numpy import save_file

        with whole(tmp_path / "b.safetensors") as part:
            save_file({}, part)
    finally:
        os.umask(before)
    assert {oct(p.stat().st_mode)[-3:] for p in tmp_path.iterdir()} == {"640"}


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    (tmp_path / "a.txt").write_text("before")
    with pytest.raises(ZeroDivisionError), whole(tmp_path / "a.txt") as part:
        part.write_text("half")
        raise ZeroDivisionError
    said = r"a.txt cannot be written .No space left on device.; free some space"
    with pytest.raises(WriteError, match=said) as caught, whole(tmp_path / "a.txt"):
        raise OSError(28, "No space left on device")
    assert isinstance(caught.value, UserError) and isinstance(caught.value, OSError)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "before")]
    with pytest.raises(WriteError, match="cannot be written"):
        write_text(tmp_path / "a.txt" / "b.txt", "in a file that is no folder")


@pytest.mark.parametrize("name", ["pipe", "link"])
def test_a_device_is_not_replaced_by_a_file(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    with pytest.raises(UserError, match=f"concept_file=.*{name} is no regular file; give a file in a folder"):
        check_place("concept_file", tmp_path / name, "a concept file")
    with pytest.raises(WriteError, match=f"{name} cannot be written .it is no regular file."):
        write_text(tmp_path / name, "a")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink() and len(list(tmp_path.iterdir())) == 2


def test_a_file_of_another_kind_is_not_written_over(pipe, make_concept, tmp_path):
    concept, word = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    make_concept(pipe).save(concept)
    export_textual_inversion(Concept.load(concept), word)
    write_result(tmp_path / "r.json", {"points": []})
    write_text(tmp_path / "p.html", page("a", "b", []))
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    kinds = {
        "a concept file": concept, "a word's embedding": word, "a table of results": tmp_path / "r.json",
        "a page": tmp_path / "p.html", "a picture": tmp_path / "p.png",
    }  # fmt: skip
    for kind in kinds:
        for other, path in kinds.items():
            if other == kind:
                check_place("output", path, kind)
            else:
                with pytest.raises(
                    UserError, match=f"output=.*{path.name} is there already and is not {kind}: it would"
                ):
                    check_place("output", path, kind)
    (tmp_path / "empty").touch()
    check_place("output", tmp_path / "empty", "a page")
    with pytest.raises(SystemExit):
        main(["export", str(concept), "--textual-inversion", str(concept)])
    assert Concept.load(concept).trigger == "teddy*"


def test_one_run_in_a_folder(tmp_path):
    with alone(tmp_path, "hydra.run.dir"):
        code = (
            "from perfusion.atomic import alone; import sys\nwith alone(sys.argv[1], 'hydra.run.dir'): print('inside')"
        )
        run = lambda: subprocess.run(
            [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=ROOT, check=False
        )
        refused = run()
        assert "UserError: hydra.run.dir=" in refused.stderr and "is being written by another run" in refused.stderr
    assert run().stdout == "inside\n"
