"""The tour, executed with a reduced budget on Emojiland's models; skipped where they are not there."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
EMOJILAND = ROOT / "perfusion/assets/emojiland"
NEEDED = [EMOJILAND / p for p in ("pipeline/unet", "clipseg", "open_clip", "reader")]
MISSING = [str(p.relative_to(ROOT)) for p in NEEDED if not list(p.glob("*.safetensors"))]


@pytest.mark.skipif(bool(MISSING), reason=f"Emojiland's weights are not here ({', '.join(MISSING)}); make emojiland")
def test_tour(tmp_path, monkeypatch):
    monkeypatch.setenv("PERFUSION_TOUR", "quick")
    monkeypatch.setenv("PERFUSION_TOUR_OUT", str(tmp_path / "out"))
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    (tmp_path / "out").mkdir()
    notebook = nbformat.read(ROOT / "notebooks/tour.ipynb", as_version=4)
    nbformat.validate(notebook)
    NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    made = {p.name for p in (tmp_path / "out").iterdir()} | {p.name for p in (tmp_path / "out/front").iterdir()}
    assert {"concept.safetensors", "masks.png", "words.png", "front.png", "scores.csv"} <= made
    text = "".join(o.get("text", "") for c in notebook.cells if c.cell_type == "code" for o in c.outputs)
    assert "raw cosine" in text and "'concept':" in text
    pictures = [
        o for c in notebook.cells if c.cell_type == "code" for o in c.outputs if "image/png" in o.get("data", {})
    ]
    assert len(pictures) == 4
