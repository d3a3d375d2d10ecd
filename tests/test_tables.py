"""Tables in README and docs are what the result files say now."""

import re

import pytest
import tables


@pytest.mark.parametrize("page", tables.pages(), ids=lambda p: p.name)
def test_tables_are_not_stale(page):
    text = page.read_text()
    assert tables.rendered(text) == text, f"{page.name}: run python scripts/tables.py"
    assert text.count("<!-- table: ") == len(tables.MARK.findall(text)) == text.count("<!-- end -->")


def test_every_table_is_shown_somewhere():
    shown = {name for page in tables.pages() for _, name, _ in tables.MARK.findall(page.read_text())}
    assert shown == tables.TABLES.keys()


def test_a_changed_result_makes_a_page_stale(monkeypatch):
    page = "before\n<!-- table: unet_cost -->\nold\n<!-- end -->\nafter\n"
    fresh = tables.rendered(page)
    assert fresh.startswith("before\n") and fresh.endswith("<!-- end -->\nafter\n") and tables.rendered(fresh) == fresh
    measured = tables.load("unet_cost")
    next(iter(measured["shapes"].values()))["ms_per_image"] = 999
    monkeypatch.setattr(tables, "load", lambda name: measured)
    assert "| 999 |" in tables.rendered(fresh) != fresh


@pytest.mark.parametrize("page", tables.pages(), ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()):
        assert (page.parent / link).exists(), link
