"""scripts/measure_gpu.py at tiny shapes, on whatever device is here."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from helpers_emojiland import ROOT


def measure(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["measure_gpu.py", "--tiny", *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "scripts/measure_gpu.py"), run_name="__main__")
    return stop.value.code


def test_sections_are_written_as_they_come_and_a_failed_one_says_so(perfusion_here, monkeypatch):
    path = Path("gpu.json")
    assert measure(monkeypatch, "edit_precision", "unload_sd15", "--results", str(path)) == 0
    result = json.loads(path.read_text())
    for dtype, most in (("float16", 0.002), ("bfloat16", 0.02)):
        assert 0 < result["edit_precision"][dtype]["largest_difference"] < most
        assert all(result["unload_sd15"][dtype].values()) and len(result["unload_sd15"][dtype]) == 5

    # the small Emojiland's scorer is away: learning cannot start, what was measured stays, and a later section is skipped
    import perfusion.config

    monkeypatch.setattr(perfusion.config, "ASSETS", Path("nowhere").absolute())
    assert measure(monkeypatch, "learning", "--results", str(path)) == 1
    again = json.loads(path.read_text())
    assert "no model_index.json" in again["learning"]["error"] and again["unload_sd15"] == result["unload_sd15"]
    assert measure(monkeypatch, "drawing_sdxl", "--minutes", "0", "--results", str(path)) == 0
    assert "were over" in json.loads(path.read_text())["drawing_sdxl"]["skipped"]
    assert measure(monkeypatch, "drawings", "--results", str(path)) == 2
