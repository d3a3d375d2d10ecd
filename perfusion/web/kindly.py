"""A user's mistake as one sentence on the page; anything else as a sentence that says where to look."""

import functools
import inspect
import sys
import traceback

import gradio as gr

from perfusion.errors import UserError
from perfusion.web.studio import Broken

UNEXPECTED = "Something went wrong that should not. The window that the page was started from says what; try again."


def _shown(error: Exception) -> Exception:
    if isinstance(error, (gr.Error, Broken)):
        return error
    if isinstance(error, UserError):
        return gr.Error(str(error), title="That does not work", duration=None, print_exception=False)
    traceback.print_exception(error, file=sys.stderr)
    return gr.Error(UNEXPECTED, title="Sorry", duration=None, print_exception=False)


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
                raise _shown(error) from None

    else:

        @functools.wraps(fn)
        def shown(*args, **kwargs):
            try:
                return fn(*args, **kwargs)
            except Broken:
                return gr.skip()
            except Exception as error:
                raise _shown(error) from None

    return shown
