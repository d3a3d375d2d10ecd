"""Rooms import themselves, the top-level modules and the rooms before them; each has its own business."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import perfusion

PACKAGE = Path(perfusion.__file__).parent
ROOMS = ["method", "learning", "baselines", "evaluation", "experiments", "commands", "web"]


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or within functions."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    return names | {f"{n.module}.{a.name}" for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names}


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_a_room_imports_only_what_comes_before_it(room):
    before = ROOMS[: ROOMS.index(room) + 1] if room else []
    forbidden = {*ROOMS, "emojiland"} - {*before}
    for path in [*(PACKAGE / room).glob("*.py"), *(PACKAGE.glob("config/*.py") if not room else [])]:
        if path.name != "__main__.py":
            rooms = {n.split(".")[1] for n in imported(path) if n.startswith("perfusion.")}
            assert not rooms & forbidden, f"{path} imports {rooms & forbidden}"


def test_the_method_knows_no_trainer_and_no_configuration():
    for path in (PACKAGE / "method").glob("*.py"):
        tops = {name.split(".")[0] for name in imported(path)}
        assert not tops & {"hydra", "omegaconf", "pytorch_lightning", "lightning"}, path


def test_few_modules_lie_flat():
    assert len(list(PACKAGE.glob("*.py"))) + 1 <= 8  # and the folder config
    assert {p.parent.name for p in PACKAGE.glob("*/__init__.py")} == {*ROOMS, "emojiland", "config"}


def test_tests_import_no_test():
    for path in Path(__file__).parent.rglob("*.py"):
        assert not [name for name in imported(path) if name.startswith("test_")], path


@pytest.mark.slow
def test_the_method_needs_the_core_dependencies_alone():
    modules = [f"perfusion.method.{p.stem}" for p in (PACKAGE / "method").glob("[a-z]*.py")]
    extra = {"hydra", "omegaconf", "pytorch_lightning", "open_clip", "matplotlib", "torchmetrics", "timm"}
    code = f"import sys, {', '.join(modules)}; print(*sorted({extra} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"


def test_the_package_and_a_concept_file_are_quick_to_open():
    code = "import sys, perfusion.commands.concept_files; print(*sorted({'torch', 'diffusers', 'hydra'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"
