"""The tables about the paper's claims, out of results/ablations and results/figures."""

from collections import defaultdict

from tables_cells import RESULTS, VERDICTS, difference, load, seconds, table

from perfusion.results import read_result

EXPERIMENTS = (  # in the paper's order; others follow by name
    "one_shot", "key_locking", "zero_shot_mask", "sigmoid_bias", "sigmoid_temperature", "lock_type",
)  # fmt: skip
MAIN = ("key_locking", "one_shot", "zero_shot_mask")  # of the README


MEASURES = {  # of a claim, as the table's head says it
    "hypervolume": "hypervolume",
    "matched_text": "text at equal image similarity",
    "read_hypervolume": "hypervolume, read",
    "matched_facts": "facts at an equal share of the drawing",
}


def _claims(names: tuple[str, ...]) -> list[tuple[dict, str, dict[str, str]]]:
    """Each claim, its arms, and {measure: its difference}; in bold the one that was fixed beforehand."""
    rows = []
    for name in names:
        for claim in read_result(RESULTS / f"ablations/{name}.json")["paired"]:
            measures = {claim["measure"]: claim, **claim["also"]}
            said = {m: difference(d["difference"], d["interval"], m == claim["measure"]) for m, d in measures.items()}
            arms = f"{claim['better']} over {claim['worse']}".replace("trained_k", "trained keys").replace("_", " ")
            rows.append((claim, arms, said))
    return rows


def claims() -> str:
    """Every experiment's claims."""
    known = {p.stem for p in (RESULTS / "ablations").glob("*.json") if not p.stem.endswith("quick")}
    names = (*(n for n in EXPERIMENTS if n in known), *sorted(known - {*EXPERIMENTS}))
    rows = _claims(names)
    shown = [m for m in MEASURES if any(m in said for *_, said in rows)]
    head = ("claim", "compared", *(MEASURES[m] for m in shown), "verdict")
    cells = [(c["claim"], arms, *(said.get(m, "") for m in shown), VERDICTS[c["holds"]]) for c, arms, said in rows]
    return table(" | ".join(head), cells)


def main_claims() -> str:
    """Three of them, by the measure that was fixed beforehand."""
    rows = [
        (claim["claim"], arms, said[claim["measure"]].strip("*"), VERDICTS[claim["holds"]])
        for claim, arms, said in _claims(MAIN)
    ]
    looked = read_result(RESULTS / "figures/attention/result.json")["compared"]
    rows.append(("paper, Figs. 2 and 11: locked, the concept's word looks at its object", "locked over trained keys",
                 difference(looked["difference"], looked["interval"]), VERDICTS[looked["holds"]]))  # fmt: skip
    return table("claim | compared | difference, 95 % interval | verdict", rows)


def committed() -> str:
    """What the ablations were run over, and how long that took."""
    rows = []
    for path in sorted((RESULTS / "ablations").glob("*.json")):
        result = read_result(path)
        jobs = len(result["arms"]) * result["units"]
        rows.append(
            (
                f"`{path.stem}`",
                len(result["concepts"]),
                len(result["seeds"]),
                len(result["prompts"]),
                jobs,
                seconds(result["seconds"]),
            )
        )
    return table("experiment | concepts | training seeds | prompts | jobs | all of them", rows)


def rates() -> str:
    """What each method reaches at each learning rate that was tried, its best in bold."""
    tried = defaultdict(dict)
    for arm, reached in load("ablations/rates")["arms"].items():
        method, rate = arm.rsplit("_", 1)
        tried[method][rate] = reached["read_hypervolume"]
    rows = []
    for method, areas in tried.items():
        said = [f"{rate}: {'**' * (area == max(areas.values()))}{area:.3f}" for rate, area in areas.items()]
        rows.append((f"`{method}`", "; ".join(text + "**" * ("**" in text) for text in said)))
    return table("method | area under the reader's front by learning rate", rows)


def equal_bias() -> str:
    """Locked less trained keys at each bias."""
    claim = read_result(RESULTS / "ablations/key_locking.json")["paired"][0]
    columns = {"text": "text", "image": "image", "read_place": "place read right", "facts": "facts read right"}
    rows = [
        (row["beta"], *(difference(row[c][0], row[c][1:]) if c in row else "" for c in columns))
        for row in claim["at_equal_beta"]
    ]
    return table(f"bias | {' | '.join(columns.values())}", rows)


def attention() -> str:
    looked = read_result(RESULTS / "figures/attention/result.json")["compared"]
    rows = [
        (label, f"{looked[lock]['share']:.0%}", f"{looked[lock]['area']:.0%}", f"{looked[lock]['ratio']:.2f}")
        for lock, label in (("local", "locked"), ("trained", "trained"))
    ]
    rows.append(("locked less trained", "", "", difference(looked["difference"], looked["interval"])))
    return table(
        "keys | of the word's attention inside the object | the object's share of the picture | ratio, picture by picture",
        rows,
    )


def locks() -> str:
    compared = read_result(RESULTS / "figures/locks/result.json")["compared"]
    rows = [
        (
            lock.replace("trained_k", "trained"),
            f"{compared[lock]['variability']:.3f}",
            f"{compared[lock]['image']:.3f}",
            "",
        )
        for lock in ("global", "local", "trained_k")
    ]
    for claim in ("global > local", "local > trained_k"):
        cells = (difference(compared[claim][m][0], compared[claim][m][1:]) for m in ("variability", "image"))
        name = claim.replace(" > ", " less ").replace("trained_k", "trained")
        rows.append((name, *cells, VERDICTS[compared[claim]["holds"]]))
    return table("lock | 1 - cosine between two noises | image similarity | more varied?", rows)
