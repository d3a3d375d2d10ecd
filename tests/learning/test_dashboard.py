"""The dashboard in offline mode: what is written is read back out of wandb's own file."""

import csv
import json
import os
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from helpers_emojiland import DRAWN, QUICK, ROOT, SCORE, command
from PIL import Image

from perfusion.learning.module import PerfusionModule

pytestmark = pytest.mark.slow


def records(path: Path):
    """wandb's record file, a LevelDB log: blocks of 32 KiB of chunks [crc 4, length 2, kind 1, data], after 7 bytes.

    wandb 0.31 reads it in its Go program alone, to send it; its Python package cannot.
    """
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
    """What a finished run has logged, and all its records; wandb's own process may still be writing the last one."""
    (file,) = run.glob("*.wandb")
    until, kept = time.monotonic() + 60, []
    while not any(r.HasField("exit") for r in kept) and time.monotonic() < until:
        time.sleep(0.1)
        kept = list(records(file))
    names = {(i.key or "/".join(i.nested_key[:1])) for r in kept if r.HasField("history") for i in r.history.item}
    return names, kept


def _broken(module: PerfusionModule) -> float:
    """Leaves o*_V not finite, as too high a rate does."""
    with torch.no_grad():
        module.o_star_v[0].fill_(float("nan"))
    return 1.0


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "p.yaml").write_text('dev: [{text: "a {}"}, {text: "a {} at night", place: night}]')
    return f"evaluation.prompts={tmp_path / 'p.yaml'}"


def test_training_offline(perfusion_here, tmp_path, capsys, monkeypatch):
    import wandb

    Path("run").mkdir()
    Image.new("RGB", (8, 8)).save("run/masks.png")  # as training with masks leaves it before its first step
    perfusion_here("train", "logger=wandb", *QUICK, *DRAWN, "max_steps=6", "hydra.run.dir=run")
    assert wandb.run is None
    (run,) = Path("run/wandb").glob("offline-run-*")
    names, kept = logged(run)
    assert {"loss", "gate", "i_star_moved", "selection/score", "masks", "drawn", "picture", "attention"} <= names
    (artifact,) = [r.artifact for r in kept if r.HasField("artifact") and r.artifact.type == "concept"]
    assert json.loads(artifact.metadata)["trigger"] == "teddy*" and artifact.name == "concept-teddy"
    assert len(list(run.glob("files/media/images/drawn_*.png"))) == 3  # steps 2, 4, 6, one prompt
    assert [r.exit.exit_code for r in kept if r.HasField("exit")] == [0]
    rows = list(csv.DictReader(Path("run/metrics.csv").read_text().splitlines()))  # the CSV is kept beside it
    assert any(r["loss"] for r in rows) and any(r["gate"] for r in rows)
    assert len(list(Path("run/selection").glob("*.png"))) == 3 and Path("run/attention.png").exists()
    assert not Path("metrics.csv").exists()

    # a run that fails is finished too, as failed
    with pytest.raises(ValueError, match="loss is"):
        from hydra import compose, initialize_config_dir

        from perfusion.config import CONF
        from perfusion.learning.train import train

        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", ["logger=wandb", *QUICK, "max_steps=6"])
        Path("bad").mkdir()
        step = PerfusionModule.training_step
        monkeypatch.setattr(
            PerfusionModule, "training_step", lambda self, batch, index: step(self, batch, index) * _broken(self)
        )
        train(cfg, Path("bad"))
    assert wandb.run is None
    (run,) = Path("bad/wandb").glob("offline-run-*")
    assert [r.exit.exit_code for r in logged(run)[1] if r.HasField("exit")] == [1]


def test_sweeps_are_grouped_and_fronts_shown(perfusion_here, prompts, tmp_path):
    perfusion_here("train", "+experiment=key_locking", "arm=locked", "logger=wandb", *QUICK, *SCORE, prompts)
    groups, kinds = [], []
    for run in Path("multirun").glob("*/*/wandb/offline-run-*"):
        names, kept = logged(run)
        groups += [r.run.run_group for r in kept if r.HasField("run")][:1]
        kinds.append("front" in names)
        if kinds[-1]:
            (table,) = run.glob("files/media/table/front_*.json")
            table = json.loads(table.read_text())
            assert table["columns"][-1] == "pareto" and len(table["data"]) == 2
            assert list(run.glob("files/media/images/front_picture_*.png"))
    assert groups == ["key_locking"] * 2 and sorted(kinds) == [False, True]
    perfusion_here("train", "+experiment=lock_type", "arm=local", "logger=wandb", *QUICK, *SCORE, prompts)  # a twin
    (run,) = Path("multirun/lock_type").glob("*/wandb/offline-run-*")
    names, kept = logged(run)
    assert "front" in names and [r.run.run_group for r in kept if r.HasField("run")][:1] == ["lock_type"]


def test_an_online_run_needs_a_login_before_anything_else(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_") and k != "NETRC"}
    env |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}  # a home without a login
    asked = command(
        "train", "-m", "+experiment=key_locking", "logger=wandb", "logger.wandb.offline=false", "max_steps=1"
    )
    done = subprocess.run(
        asked, check=False, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 2 and "logger.wandb.offline=false needs a login" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_a_plain_sweep_is_a_group_too(perfusion_here):
    perfusion_here(
        "train",
        "-m",
        "logger=wandb",
        "seed=0,1",
        *QUICK,
        "hydra.sweep.dir=two_seeds",
    )
    kept = [logged(run)[1] for run in Path("two_seeds").glob("*/wandb/offline-run-*")]
    assert [next(r.run.run_group for r in f if r.HasField("run")) for f in kept] == ["two_seeds"] * 2


def test_nothing_needs_wandb_unless_chosen(tmp_path):
    code = (
        "import sys; sys.modules['wandb'] = None; "  # as if it were not installed (timm itself imports it where it is)
        "import perfusion.learning.train, perfusion.evaluation.evaluate, perfusion.experiments.report; "
        "from omegaconf import OmegaConf; from perfusion.config import CONF; from pathlib import Path; "
        "perfusion.learning.trainer.loggers_of(OmegaConf.load(CONF / 'logger/csv.yaml'), Path('.')); "
        "print('perfusion.learning.dashboard' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["False"], done.stderr


def wandb_page(folder: Path, url: str) -> subprocess.CompletedProcess:
    env = os.environ | {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40, "WANDB_ERROR_REPORTING": "false"}
    command = [sys.executable, Path(__file__).parents[2] / "scripts/wandb_page.py"]
    return subprocess.run(command, check=False, cwd=folder, env=env, capture_output=True, text=True, timeout=240)


def test_page_without_a_server(tmp_path):
    done = wandb_page(tmp_path, "http://127.0.0.1:9")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "is not reachable" in done.stderr and "perfusion report" in done.stderr and done.stderr.count("\n") == 1


class Server(BaseHTTPRequestHandler):
    """As much of wandb's GraphQL as its report needs; the report that it is sent is kept."""

    spec, refuse = None, False

    def answer(self, body: dict) -> dict:
        query, me = body.get("query", ""), {"id": "u", "entity": "me", "username": "me", "flags": "{}"}
        page = {"endCursor": None, "hasNextPage": False, "__typename": "PageInfo"}
        if "upsertView" in query:
            Server.spec = json.loads(body["variables"]["spec"])
            return {"upsertView": {"view": {"id": "view", "spec": "{}"}, "inserted": True}}
        if "upsertModel" in query:
            return {"upsertModel": {"model": {"id": "p", "name": "perfusion", "entityName": "me"}, "inserted": True}}
        return {
            "viewer": me | {"email": None, "teams": {"edges": []}},
            "project": {"id": "cA==", "internalId": "cA=="},
            "models": {"pageInfo": page, "edges": []},
        }

    def do_GET(self):
        self.send_error(404)

    def do_POST(self):
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        if self.refuse or not self.path.endswith("graphql"):
            return self.send_error(403)
        answer = json.dumps({"data": self.answer(json.loads(sent))}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


def test_page_on_a_server(tmp_path, monkeypatch):
    pytest.importorskip("wandb_workspaces", reason="the extra wandb is not installed")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        done = wandb_page(tmp_path, url)
        assert done.returncode == 0 and done.stdout.startswith(f"written: {url}"), done.stderr
        text = json.dumps(Server.spec)  # every key that a run logs and the page shows
        curves = ("loss", "gate", "i_star_moved", "selection/score")
        shown = (*curves, "drawn", "masks", "attention", "picture", "front_picture", "front")
        assert not [key for key in shown if f'"{key}"' not in text] and "group" in text
        monkeypatch.setattr(Server, "refuse", True)
        done = wandb_page(tmp_path, url)
        assert done.returncode == 2 and "refused" in done.stderr and done.stderr.count("\n") == 1
    finally:
        server.shutdown()
