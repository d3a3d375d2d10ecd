"""One bar for a whole training: its step, the time left, the loss, and what the last selection scored."""

import logging
import sys

from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm

log = logging.getLogger(__name__)
BAR = "{desc} {percentage:3.0f}%|{bar:20}| step {n_fmt}/{total_fmt}, {remaining} left{postfix}"


class Progress(ProgressBar):
    """Shown where this program's INFO lines are, and under DDP by the first process; a bar of its own in place of Lightning's,
    which counts epochs, of which a training has none."""

    def __init__(self):
        super().__init__()
        self.shown = log.isEnabledFor(logging.INFO)
        self.bar = tqdm(disable=True)

    def disable(self) -> None:
        self.shown = False

    def enable(self) -> None:
        self.shown = True

    def on_train_start(self, trainer, module) -> None:
        seconds = 0.2 if sys.stderr.isatty() else 30  # a log file is not redrawn
        self.bar = tqdm(
            total=trainer.max_steps, initial=trainer.global_step, desc="learning  ", bar_format=BAR, mininterval=seconds,
            disable=not self.shown,
        )  # fmt: skip

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self._show(trainer)

    def on_train_end(self, trainer, module) -> None:
        self._show(trainer)  # with the last selection, which came after the last batch

    def _show(self, trainer) -> None:
        metrics = trainer.callback_metrics
        known = {name: metrics[key] for name, key in (("loss", "loss"), ("score", "selection/score")) if key in metrics}
        self.bar.set_postfix_str(", ".join(f"{name} {value:.3f}" for name, value in known.items()), refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def teardown(self, trainer, module, stage) -> None:
        self.bar.close()
