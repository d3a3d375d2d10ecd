"""A user's mistake as one sentence on the page; anything else as a sentence that says where to look.

Sentences stand at the foot of the window (style.CSS), out of the way of what is pressed. They go by themselves, by Escape, and
with the next try (DISMISS).
"""

import functools
import html
import inspect
import sys
import traceback

import gradio as gr

from perfusion.errors import UserError
from perfusion.web.studio import Broken

SECONDS = 40  # for which a sentence stands: the longest offer several words, to be read while one of them is typed
# The next try is a button, or Enter in a field. A sentence that joined an older one would go when that one does.
DISMISS = """() => {
  const close = () => document.querySelectorAll("[data-testid=toast-close]").forEach(button => button.click());
  addEventListener("keydown", e => {
    if (e.key === "Escape" || (e.key === "Enter" && e.target.matches("input, textarea"))) close();
  }, true);
  addEventListener("click", e => {
    if (e.isTrusted && e.target.closest("button") && !e.target.closest(".toast-wrap")) close();
  }, true);
}"""
UNEXPECTED = "Something went wrong that should not. The window that the page was started from says what; try again."


def _error(error: Exception) -> Exception:
    if isinstance(error, (gr.Error, Broken)):
        return error
    if not isinstance(error, UserError):
        traceback.print_exception(error, file=sys.stderr)
    said = str(error) if isinstance(error, UserError) else UNEXPECTED
    return gr.Error(_as_text(said), duration=SECONDS, print_exception=False)


def warn(sentence: str) -> None:
    """Say a sentence while the event goes on."""
    gr.Warning(_as_text(sentence), duration=SECONDS)


def _as_text(sentence: str) -> str:
    """The page takes a sentence for HTML, and it may name what a stranger's file holds."""
    return html.escape(sentence, quote=False)


def kindly(fn):
    """Wrap what an event calls. A drawing that was broken off for a newer one changes nothing and says nothing."""
    if inspect.isgeneratorfunction(fn):

        @functools.wraps(fn)
        def shown(*args, **kwargs):
            try:
                yield from fn(*args, **kwargs)
            except Broken:
                return
            except Exception as error:
                raise _error(error) from None

    else:

        @functools.wraps(fn)
        def shown(*args, **kwargs):
            try:
                return fn(*args, **kwargs)
            except Broken:
                return gr.skip()
            except Exception as error:
                raise _error(error) from None

    return shown
