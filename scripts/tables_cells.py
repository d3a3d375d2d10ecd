"""How the tables say numbers, and where the result files lie."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
VERDICTS = {True: "holds", False: "does not hold", "undecided": "undecided"}


def load(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(heading: str, rows: list[tuple]) -> str:
    columns = heading.split(" | ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def signed(value: float | None) -> str:
    if value is None:
        return "not defined"
    return "0.000" if round(value, 3) == 0 else f"{value:+.3f}"


def difference(value: float | None, bounds: list, bold: bool = False) -> str:
    text = f"{signed(value)} [{signed(bounds[0])}, {signed(bounds[1])}]"
    return f"**{text}**" if bold else text


def seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 600 else f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
