"""perfusion info, export and push: what is done with a concept file alone, no model and no configuration."""

import argparse

from perfusion.concept import NUMBERS, TEXTS, Concept
from perfusion.hub import fetch, push


def info(path: str) -> str:
    """Metadata and shapes of a concept file, local or hf://, a line each. Raises UserError for what is not one."""
    path = fetch(path)
    concept = Concept.load(path)
    lines = [("file", f"{path}, {path.stat().st_size} bytes")]
    lines += [(name, getattr(concept, name)) for name in (*TEXTS, *NUMBERS)]
    lines += [(name, list(getattr(concept, name).shape)) for name in ("i_star", "c_inv_i_star", "embedding")]
    for name in ("o_star_v", "o_star_k"):
        o = getattr(concept, name)
        kept = f"{len(o)} layers, {sum(map(len, o.values()))} numbers" if o else "not stored: W_K . super-category"
        lines.append((name, kept))
    lines += [(f"  {name}", [len(o)]) for name, o in concept.o_star_v.items()]
    lines += [(f"config.{name}", value) for name, value in concept.config.items()]
    return "\n".join(f"{name:18} {value}" for name, value in lines)


def main(app: str, argv: list[str]) -> None:
    """Run one of the three on the command line's words."""
    parser = argparse.ArgumentParser(prog=f"perfusion {app}")
    parser.add_argument("file", help="a concept file, or hf://user/repo[/file]")
    if app == "export":
        parser.add_argument("--textual-inversion", required=True, metavar="OUT", help="the .safetensors to write")
    if app == "push":
        parser.add_argument("repo", help="user/name on the Hugging Face hub")
        parser.add_argument("--private", action="store_true", help="seen by you alone")
    arguments = parser.parse_args(argv)
    if app == "info":
        print(info(arguments.file))
    elif app == "export":
        from perfusion.interchange import export_textual_inversion  # it imports every model library

        export_textual_inversion(Concept.load(arguments.file), arguments.textual_inversion)
        print(f"embedding: {arguments.textual_inversion}, for pipe.load_textual_inversion")
    else:
        print(f"pushed: {push(Concept.load(arguments.file), arguments.repo, arguments.private)}")
