"""The tables about the paper's claims, out of results/ablations and results/figures."""

from collections import defaultdict

from tables_cells import RESULTS, VERDICTS, difference, load, seconds, table

from perfusion.results import read_result

EXPERIMENTS = (  # in the paper's order; others follow by name
    "baselines", "one_shot", "key_locking", "zero_shot_mask", "sigmoid_bias", "sigmoid_temperature", "lock_type",
)  # fmt: skip
MAIN = ("baselines", "key_locking")  # of the README

MEASURES = {  # of a claim, as the table's head says it
    "hypervolume": "hypervolume",
    "matched_text": "text at equal image similarity",
    "read_hypervolume": "hypervolume, read",
    "matched_facts": "facts at an equal share of the drawing",
}


def _claims(names: tuple[str, ...]) -> list[tuple[dict, str, dict[str, str], str]]:
    """Each claim, its arms, {measure: its difference}, in bold the one that was fixed beforehand, and the verdict."""
    rows = []
    for name in names:
        result = read_result(RESULTS / f"ablations/{name}.json")
        for claim in result["paired"]:
            measures = {claim["measure"]: claim, **claim["also"]}
            said = {m: difference(d["difference"], d["interval"], m == claim["measure"]) for m, d in measures.items()}
            arms = f"{claim['better']} over {claim['worse']}".replace("trained_k", "trained keys").replace("_", " ")
            rows.append((claim, arms, said, VERDICTS[claim["holds"]]))
    return rows


def claims() -> str:
    """Every experiment's claims."""
    known = {p.stem for p in (RESULTS / "ablations").glob("*.json") if not p.stem.endswith("quick")}
    names = (*(n for n in EXPERIMENTS if n in known), *sorted(known - {*EXPERIMENTS}))
    rows = _claims(names)
    shown = [m for m in MEASURES if any(m in said for _, _, said, _ in rows)]
    head = ("claim", "compared", *(MEASURES[m] for m in shown), "verdict")
    cells = [(c["claim"], arms, *(said.get(m, "") for m in shown), verdict) for c, arms, said, verdict in rows]
    return table(" | ".join(head), cells)


def main_claims() -> str:
    """The README's, by the measure that was fixed beforehand."""
    rows = [
        (claim["claim"], arms, MEASURES[claim["measure"]], said[claim["measure"]].strip("*"), verdict)
        for claim, arms, said, verdict in _claims(MAIN)
    ]
    return table("claim | compared | measure | difference, 95 % interval | verdict", rows)


def baselines() -> str:
    """What each method reaches, and what it costs."""
    rows = []
    for name, method in load("baselines")["methods"].items():
        area, bounds = method["read_hypervolume"], method["read_hypervolume_interval"]
        file = method["file_bytes"]
        rows.append((
            f"`{name}`", f"{area:.3f} [{bounds[0]:.3f}, {bounds[1]:.3f}]", f"{method['hypervolume']:.3f}", f"{method['trainable']:,.0f}",
            f"{file / 1e6:.1f} MB" if file > 1e6 else f"{file / 1e3:.0f} KB", f"{method['train_seconds']:.0f} s",
        ))  # fmt: skip
    return table("method | area under the reader's front | under CLIP's | trained numbers | file | training", rows)


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


def gates() -> str:
    """The reader's area by the gate's bias and temperature in training, with its interval."""
    areas = {}
    for arm, reached in load("ablations/gates")["arms"].items():
        _, bias, _, tau = arm.split("_")
        low, high = reached["read_hypervolume_interval"]
        areas.setdefault(bias, {})[tau] = f"{reached['read_hypervolume']:.2f} [{low:.2f}, {high:.2f}]"
    taus = next(iter(areas.values()))
    return table(
        " | ".join(["bias", *(f"temperature {t}" for t in taus)]), [(b, *row.values()) for b, row in areas.items()]
    )


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
