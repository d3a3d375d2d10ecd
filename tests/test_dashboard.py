"""The dashboard in offline mode: what is written is read back out of wandb's own file."""

import csv
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from small import QUICK, SCORE


def records(path: Path):
    """wandb's record file, a LevelDB log: blocks of 32 KiB of chunks [crc 4, length 2, kind 1, data], after 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last chunk
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            part = b""
            yield record


def logged(run: Path) -> tuple[set[str], list]:
    (file,) = run.glob("*.wandb")
    found = list(records(file))
    names = {(i.key or "/".join(i.nested_key[:1])) for r in found if r.HasField("history") for i in r.history.item}
    return names, found


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "p.yaml").write_text('dev: [{text: "a {}"}, {text: "a {} at night", place: night}]')
    return f"evaluation.prompts={tmp_path / 'p.yaml'}"


def test_training_offline(perfusion_here, tmp_path, capsys):
    import wandb

    perfusion_here("train", "logger=wandb", *QUICK, "max_steps=6", "hydra.run.dir=run")
    assert wandb.run is None
    (run,) = Path("run/wandb").glob("offline-run-*")
    names, found = logged(run)
    assert {"loss", "gate", "i_star_moved", "selection/score", "drawn", "picture", "attention"} <= names
    (artifact,) = [r.artifact for r in found if r.HasField("artifact") and r.artifact.type == "concept"]
    assert json.loads(artifact.metadata)["trigger"] == "teddy*" and artifact.name == "concept-teddy"
    assert len(list(run.glob("files/media/images/drawn_*.png"))) == 3  # steps 2, 4, 6, one prompt
    assert found[-1].HasField("exit") or any(r.HasField("exit") and r.exit.exit_code == 0 for r in found)
    rows = list(csv.DictReader(Path("run/metrics.csv").read_text().splitlines()))  # the CSV is kept beside it
    assert any(r["loss"] for r in rows) and any(r["gate"] for r in rows)
    assert len(list(Path("run/selection").glob("*.png"))) == 3 and Path("run/attention.png").exists()
    assert not Path("metrics.csv").exists()

    # a run that fails is finished too, as failed
    with pytest.raises(ValueError, match="loss is"):
        from hydra import compose, initialize_config_dir

        from perfusion.config import CONF
        from perfusion.train import train

        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", ["logger=wandb", *QUICK, "max_steps=6", "model.learning_rate.o_star=1e30"])
        Path("bad").mkdir()
        train(cfg, Path("bad"))
    assert wandb.run is None
    (run,) = Path("bad/wandb").glob("offline-run-*")
    assert [r.exit.exit_code for r in logged(run)[1] if r.HasField("exit")] == [1]


def test_sweeps_are_grouped_and_fronts_shown(perfusion_here, prompts, tmp_path):
    perfusion_here("train", "+experiment=key_locking", "arm=locked", "logger=wandb", *QUICK, *SCORE, prompts)
    groups, kinds = [], []
    for run in Path("multirun").glob("*/*/wandb/offline-run-*"):
        names, found = logged(run)
        groups += [r.run.run_group for r in found if r.HasField("run")][:1]
        kinds.append("front" in names)
        if kinds[-1]:
            (table,) = run.glob("files/media/table/front_*.json")
            table = json.loads(table.read_text())
            assert table["columns"][-1] == "pareto" and len(table["data"]) == 2
            assert list(run.glob("files/media/images/front_picture_*.png"))
    assert groups == ["key_locking"] * 2 and sorted(kinds) == [False, True]


def test_nothing_needs_wandb_unless_chosen(tmp_path):
    code = (
        "import sys; sys.modules['wandb'] = None; "  # as if it were not installed (timm itself imports it where it is)
        "import perfusion.train, perfusion.evaluation.evaluate, perfusion.report; "
        "from omegaconf import OmegaConf; from perfusion.config import CONF; from pathlib import Path; "
        "perfusion.train.loggers_of(OmegaConf.load(CONF / 'logger/csv.yaml'), Path('.')); "
        "print('perfusion.dashboard' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["False"], done.stderr


def test_page_without_a_server(tmp_path):
    script = Path(__file__).parents[1] / "scripts/wandb_page.py"
    import os

    env = os.environ | {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    done = subprocess.run(
        [sys.executable, script], check=False, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "is not reachable" in done.stderr and "perfusion report" in done.stderr and done.stderr.count("\n") == 1
