"""mkdocs: README.md is the first page, figures out of results/ are pictures of the site, names of the code lead to the reference."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
LINKS = {"docs/": "", "../README.md": "index.md", "../results/figures/": "figures/", "results/figures/": "figures/", "CHANGELOG.md": "changelog.md",
         "CONTRIBUTING.md": "contributing.md"}  # fmt: skip
NAME = re.compile(r"`(perfusion\.(?:method|learning)\.\w+\.\w+)`")


def on_config(config):
    """Pages that the navigation does not name stand at its end."""
    named = re.findall(r"[\w/]+\.md", str(config.nav))
    more = [page.name for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in named]
    config.nav += [{"More": more}] * bool(more)


def on_files(files, config):
    """Files that lie outside docs/."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for figure in sorted((ROOT / "results/figures").glob("*.png")):
        files.append(File.generated(config, f"figures/{figure.name}", abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links as the site has them; those to files that it has not become their text."""
    for start, new in LINKS.items():
        markdown = markdown.replace(f"]({start}", f"]({new}")
    if page.file.src_uri in PAGES:
        markdown = re.sub(r"\[([^]]+)\]\((?:LICENSE|CITATION\.cff|perfusion/[^)]*)\)", r"\1", markdown)
    return NAME.sub(r"[`\1`][\1]", markdown)
