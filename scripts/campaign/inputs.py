"""Values that fit no key, and extremes that do, on the command line: python scripts/campaign/inputs.py --inputs 300

Drawn by hypothesis (tests/helpers_inputs.overrides: an app and its overrides). Each command must end well or in one
sentence: `tracebacks` counts the others.
"""

import time

from common import Child, arguments, keep, one_sentence, perfusion, small_world, workplace

from helpers_emojiland import QUICK


def main() -> None:
    asked, started = arguments(__doc__, inputs=300), time.perf_counter()
    try:
        from helpers_inputs import overrides
    except ImportError as error:
        raise SystemExit(f"inputs.py draws from tests/helpers_inputs.py, which is not here yet ({error}).") from error
    from hypothesis import HealthCheck, Phase, given, seed, settings

    outcomes: list[str] = []
    with workplace() as folder:
        small_world(folder / "world")

        @seed(asked.seed)
        @settings(max_examples=asked.inputs, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(overrides())
        def tried(drawn):
            app, given_ones = drawn
            here = folder / f"{len(outcomes)}"
            here.mkdir()
            small = QUICK if app == "train" else ()
            child = Child(perfusion(app, f"hydra.run.dir={here / 'run'}", *small, *given_ones), here, folder / "out.log")
            code = child.wait()
            good = code == 0 or (code == 2 and one_sentence(folder / "out.log"))
            outcomes.append("" if good else f"{app} {given_ones}: {(folder / 'out.log').read_text(errors='replace')[-300:]}")
            print(f"{len(outcomes)}: {app} {given_ones} -> {code}", flush=True)

        tried()
    bad = [o for o in outcomes if o]
    keep(asked.results, "inputs", {"bad_inputs": len(outcomes), "tracebacks": len(bad), "input_examples": bad[:20]}, started)


if __name__ == "__main__":
    main()
