"""Key-locked rank-one editing of text-to-image models: `load_concepts` puts learned concepts on a diffusers pipeline."""

from importlib import import_module

__version__ = "0.1.0"
__all__ = ["Concept", "__version__", "load_concepts"]
LAZY = {
    "Concept": "perfusion.method.concept",
    "load_concepts": "perfusion.method.pipeline",
}  # torch takes seconds to import


def __getattr__(name: str):
    if name not in LAZY:
        raise AttributeError(f"module perfusion has no attribute {name}")
    return getattr(import_module(LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *LAZY})
