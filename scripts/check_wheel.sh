#!/usr/bin/env bash
# Build the sdist and the wheel, and run the wheel in an empty folder outside the checkout, with the packages of $PYTHON; and once with its
# own dependencies alone.
#   PYTHON=.venv/bin/python scripts/check_wheel.sh
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=$(realpath -s "${PYTHON:-.venv/bin/python}")
constraints=$PWD/constraints.txt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONDONTWRITEBYTECODE=1

"$PYTHON" -m pip install -qq --disable-pip-version-check --target "$work/tools" hatchling
PYTHONPATH=$work/tools "$PYTHON" -m hatchling build -d "$work/dist" >/dev/null
mkdir "$work/source" && tar -xzf "$work"/dist/*.tar.gz -C "$work/source" --strip-components 1
(cd "$work/source" && PYTHONPATH=$work/tools "$PYTHON" -m hatchling build -t wheel -d "$work/again" >/dev/null)
names() { "$PYTHON" -m zipfile -l "$1" | awk 'NR > 1 { print $1 }' | grep -v RECORD | sort; }
diff <(names "$work"/dist/*.whl) <(names "$work"/again/*.whl) # the sdist makes the same wheel
(cd "$work/source" && "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_tables.py tests/test_rooms.py) # and holds what tests read
if names "$work"/dist/*.whl | grep '\.mask\.png'; then echo "the wheel holds masks that a training left in data/"; exit 1; fi

"$PYTHON" -m pip install -qq --disable-pip-version-check --no-deps --target "$work/site" "$work"/dist/*.whl
before=$(cd "$work/site" && find . -type f | sort)
export PYTHONPATH=$work/site PERFUSION_CACHE=$work/cache
perfusion=$work/site/bin/perfusion
mkdir "$work/empty" && cd "$work/empty"
[ "$("$PYTHON" -c 'import perfusion; print(perfusion.__file__)')" = "$work/site/perfusion/__init__.py" ]
"$perfusion" --help >/dev/null
"$perfusion" train concept=teddy max_steps=2 batch_size=2 selection.every=2 selection.start=0 model.steps=2 \
  'selection.prompts=["a {} at night"]' concept_file=teddy.safetensors
"$perfusion" info teddy.safetensors >info.txt && head -3 info.txt # not piped: head closes it early
"$perfusion" generate 'concepts={teddy*: teddy.safetensors}' 'prompts=["a teddy* on a beach"]' images=1 model.steps=2
"$perfusion" evaluate concept_file=teddy.safetensors 'evaluation.beta=[0.6]' evaluation.seeds=1 evaluation.drift=false model.steps=2 >/dev/null
ls outputs/train outputs/generate outputs/evaluate >/dev/null # written here,
after=$(cd "$work/site" && find . -type f | sort)
diff <(echo "$before") <(echo "$after") # and nothing beside the package

# With its own dependencies alone, those of no extra: a concept on a stock pipeline.
cd "$work/empty"
"$PYTHON" -m venv "$work/core"
env -u PYTHONPATH "$work/core/bin/python" -m pip install -qq --disable-pip-version-check -c "$constraints" "$work"/dist/*.whl
env -u PYTHONPATH "$work/core/bin/python" -W ignore - <<'SCRIPT'
from importlib.util import find_spec
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

import perfusion

assert not [name for name in ("hydra", "omegaconf", "pytorch_lightning", "open_clip", "matplotlib") if find_spec(name)]
world = Path(perfusion.__file__).parent / "assets/emojiland/pipeline"
pipe = StableDiffusionPipeline.from_pretrained(world, dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
handle = perfusion.load_concepts(pipe, {"teddy*": "teddy.safetensors"})
assert pipe("a teddy* on a beach", height=64, width=64, num_inference_steps=2).images[0].size == (64, 64)
handle.unload()
SCRIPT
ls -lh "$work"/dist
echo "the wheel and the sdist work"
