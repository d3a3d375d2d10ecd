"""The shapes at which scripts measure a cost, SD 1.5's and SDXL's, and what these scripts are told."""

import argparse
import os
from pathlib import Path

import random_sd15
import random_sdxl

NAMES = {"sd15": "SD 1.5's", "sdxl": "SDXL's"}
UNETS = {"sd15": random_sd15.random_unet, "sdxl": random_sdxl.random_unet}
PIPELINES = {"sd15": random_sd15.random_pipeline, "sdxl": random_sdxl.random_sdxl}


def options_of(description: str, rounds: int = 5) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(NAMES), default="sd15")
    parser.add_argument("--tiny", action="store_true", help="a tiny model of the same layout, to try the script")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--results", type=Path, help="by default results/NAME.json, of SDXL's shape results/NAME_sdxl.json"
    )
    return parser


def results_of(name: str, options) -> Path:
    """Where the figures go. A tiny model's never replace those of a true shape."""
    shape = "" if options.shape == "sd15" else f"_{options.shape}"
    return options.results or Path(f"results/{name}{shape}{'_tiny' * options.tiny}.json")


def shape_of(options) -> str:
    return f"a tiny model of {NAMES[options.shape]} layout" if options.tiny else f"{NAMES[options.shape]} true shape"
