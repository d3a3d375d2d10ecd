"""Build the dashboard's page, a wandb report over a project's runs, where a server is reachable.

python scripts/wandb_page.py [--project perfusion] [--entity NAME]     # offline: perfusion report draws the same page
"""

import argparse
import os
import sys
import urllib.error
import urllib.request


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", default="perfusion")
    parser.add_argument("--entity", help="whose project; by default the one that is logged in")
    given = parser.parse_args()
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    other = "perfusion report draws the same page as a local file."
    try:
        import wandb
        import wandb_workspaces.reports.v2 as wr
    except ImportError as error:
        sys.exit(_say(f"{error.name} is not installed; pip install 'key-locked-perfusion[wandb]', or: {other}"))
    try:
        urllib.request.urlopen(url, timeout=5)
    except urllib.error.HTTPError:
        pass  # it answers
    except OSError as error:
        sys.exit(_say(f"the wandb server {url} is not reachable ({error}); {other}"))
    try:
        entity = given.entity or wandb.Api(timeout=15).default_entity
        page = report(wr, given.project, entity)
        page.save()
    except Exception as error:
        sys.exit(
            _say(f"the wandb server {url} refused ({' '.join(str(error).split())[:200]}); wandb login, or: {other}")
        )
    print(f"written: {page.url}")


def report(wr, project: str, entity: str | None):
    """Curves, pictures of every selection step, masks, attention maps and fronts of a project's runs, by group."""
    runs = wr.Runset(project=project, entity=entity, groupby=["group"])
    line = lambda title, name: wr.LinePlot(title=title, x="trainer/global_step", y=[name])
    curves = [
        line("loss", "loss"),
        line("gate at the concept's token", "gate"),
        line("i*: distance from its start, of its norm", "i_star_moved"),
        line("selection: score", "selection/score"),
    ]
    pictures = [
        wr.MediaBrowser(media_keys=[key]) for key in ("drawn", "masks", "attention", "picture", "front_picture")
    ]
    front = [wr.WeavePanelSummaryTable(table_name="front")]
    return wr.Report(
        project=project,
        entity=entity or "",
        title="Perfusion",
        description="Training, pictures, attention and Pareto fronts",
        blocks=[
            wr.H1("Training"),
            wr.PanelGrid(runsets=[runs], panels=curves),
            wr.H1("Pictures"),
            wr.PanelGrid(runsets=[runs], panels=pictures),
            wr.H1("Fronts"),
            wr.PanelGrid(runsets=[runs], panels=front),
        ],
    )


def _say(sentence: str) -> int:
    print(f"wandb_page: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
