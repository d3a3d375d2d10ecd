"""What a command shows: its answer on standard output; what it is doing, and warnings, on standard error.

-q leaves the answer and warnings, -v adds what the libraries say. All of it is in the log file of the run's folder.
"""

import logging
import os
import sys
import warnings

VARIABLE = "PERFUSION_VERBOSITY"  # -1, 0 or 1, for the processes of a sweep or of DDP too
FLAGS = {"-q": "-1", "--quiet": "-1", "-v": "1", "--verbose": "1"}
UNDERSTOOD = (  # how warnings begin whose cause is known and harmless
    "Experiment logs directory .* exists and is not empty",  # Hydra makes the run's folder, before Lightning looks at it
    "Checkpoint directory .* exists and is not empty",  # likewise
    "You're resuming from a checkpoint that ended before the epoch ended",  # a step's pictures follow from its number
    "`isinstance.treespec, LeafSpec.` is deprecated",  # Lightning 2.6's own use of torch 2.14
)


def take_flags(argv: list[str]) -> list[str]:
    """The words of a command line without -q and -v, which are remembered for `start`."""
    given = [FLAGS[word] for word in argv if word in FLAGS]
    if given:
        os.environ[VARIABLE] = given[-1]
    return [word for word in argv if word not in FLAGS]


class _Line(logging.Formatter):
    def format(self, record) -> str:
        text = record.getMessage()
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def verbosity() -> int:
    """-1 for -q, 1 for -v, 0 for neither."""
    return int(os.environ.get(VARIABLE, "0"))


def start() -> None:
    """Once Hydra has set logging up: the console shows what is meant for the user, the log file all."""
    logging.getLogger("perfusion").setLevel(logging.WARNING if verbosity() < 0 else logging.INFO)
    warnings.showwarning = lambda message, *_, **__: logging.getLogger("py.warnings").warning(str(message))
    if verbosity() > 0:
        return
    for message in UNDERSTOOD:
        warnings.filterwarnings("ignore", message=message)
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    of_diffusers.disable_progress_bar()  # bars of a second each, a dozen a training
    of_transformers.disable_progress_bar()
    ours = lambda record: record.levelno >= logging.WARNING or record.name.split(".")[0] in ("perfusion", "hydra")
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:  # Hydra's console; files and pytest's own are of other kinds
            handler.setStream(sys.stderr)
            handler.addFilter(ours)
            handler.setFormatter(_Line())
