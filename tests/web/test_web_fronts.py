"""What there is to compare, and the pictures behind its points."""

import xml.etree.ElementTree as xml
from pathlib import Path

import pytest
from helpers_emojiland import QUICK, ROOT, SCORE

from perfusion.errors import UserError
from perfusion.results import read_result
from perfusion.web.chart import Point, Series, chart
from perfusion.web.fronts import fronts, sources


def test_every_committed_experiment_can_be_compared(monkeypatch):
    monkeypatch.chdir(ROOT)
    experiments = [name for name in sources() if name.startswith("experiment ")]
    assert len(experiments) >= 10
    for name in experiments:
        series, said = fronts(name)
        svg = xml.fromstring(chart(series, "text", "image"))
        points = [g for g in svg.iter("g") if g.get("tabindex") == "0"]
        assert len(points) == sum(len(s.points) for s in series) and "concepts x" in said
    for name in ("../../etc/passwd", "experiment ../x", ""):
        with pytest.raises(UserError, match="is not here"):
            fronts(name)


def test_a_run_s_points_have_their_pictures(perfusion_here, tmp_path):
    perfusion_here("train", *QUICK, "concept_file=teddy.safetensors")
    perfusion_here("evaluate", *(q for q in QUICK if q.startswith("model.")), "concept_file=teddy.safetensors", *SCORE)
    (name,) = sources()
    (series,), _ = fronts(name)
    summary = read_result(next(Path("outputs").rglob("evaluate/**/result.json")))["summary"]
    assert [(p.x, p.y) for p in series.points] == [(row["text"], row["image"]) for row in summary]
    assert all(p.picture.size == (128, 128) for p in series.points)  # the first four prompts', two by two
    assert series.points[0].picture.tobytes() != series.points[1].picture.tobytes()
    assert chart([series], "text", "image").count("data:image/png;base64,") == 2


def test_a_baseline_s_points_go_by_their_strength(perfusion_here):
    how = ("method=textual_inversion", *(q for q in QUICK if q.startswith("model.")))
    perfusion_here("train", "method=textual_inversion", *QUICK, "concept_file=t.bin")
    few = ("evaluation.seeds=1", "evaluation.drift=false", "evaluation.strength=[1.0,0.25,0.5]")
    perfusion_here("evaluate", *how, *few, "concept_file=t.bin", "hydra.run.dir=outputs/scores")
    (series,), said = fronts("run scores")
    assert [p.label.split(":")[0] for p in series.points] == ["s 0.25", "s 0.5", "s 1"] and said.startswith("teddy*: ")
    by_strength = {
        f"s {row['strength']:g}": row["text"] for row in read_result("outputs/scores/result.json")["summary"]
    }
    assert [p.x for p in series.points] == [by_strength[p.label.split(":")[0]] for p in series.points]
    perfusion_here("report", "run=outputs/scores")
    assert "by strength s" in Path("outputs/scores/report.html").read_text()


def test_a_chart_escapes_what_it_is_told():
    svg = chart([Series("<script>", [Point(0, 0, '"><b>'), Point(1, 1, "x")])], "<x>", "&")
    xml.fromstring(svg)
    assert "<script>" not in svg and "<b>" not in svg
    assert (
        chart([], "x", "y") == ""
        and xml.fromstring(chart([Series("one", [Point(1, 2, "alone")])], "x", "y")) is not None
    )
