"""Time the main job, after installation: `make demo` as a newcomer types it, and the learning inside it.

python scripts/measure_main_job.py     # writes results/main_job.json, or main_job_float32.json where bfloat16 is not native
"""

import json
import os
import subprocess
import time
from pathlib import Path

from perfusion.atomic import write_json
from perfusion.config import native_bfloat16
from perfusion.method.concept import Concept


def main() -> None:
    newest = lambda: {p for p in Path("outputs/train").glob("**/result.json")}
    before, started = newest(), time.perf_counter()
    subprocess.run(["make", "demo"], check=True)
    seconds = time.perf_counter() - started
    (written,) = newest() - before
    run = json.loads(written.read_text())
    concept = Concept.load("teddy.safetensors")
    kept = next(s for s in run["selection"] if s["step"] == concept.steps)
    result = {
        "demo_seconds": round(seconds, 1),
        "train_seconds": run["train_seconds"],
        "kept_step": concept.steps,
        "selection": {k: round(kept[k], 4) for k in ("image", "text", "score")},
        "file_bytes": os.path.getsize("teddy.safetensors"),
        "trainable": run["trainable"],
        "cores": os.cpu_count(),
        "bfloat16": native_bfloat16(),
    }
    print(write_json(f"results/main_job{'' if native_bfloat16() else '_float32'}.json", result))


if __name__ == "__main__":
    main()
