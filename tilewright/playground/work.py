"""What a child does with a request: an answer as JSON, or the error as JSON."""

from __future__ import annotations

import importlib
import traceback
from typing import Any

from tilewright.ir.errors import TilewrightError
from tilewright.playground.children import as_json
from tilewright.playground.request import Request

# kind of a request -> the module under answers/ that knows
ANSWERS = {
    "forms": "forms",
    "tile": "tiles",
    "code": "code",
    "why": "why",
    "simulate": "simulated",
    "layout": "layouts",
    "run": "executed",
}


def work(text: str) -> bytes:
    """The answer to a request. Raises MemoryError only."""
    try:
        request = Request.from_json(text)
        module = importlib.import_module(f"tilewright.playground.answers.{ANSWERS[request.kind]}")
        return as_json(module.answer(request))
    except TilewrightError as error:
        return as_json({"error": error_facts(error)})
    except RecursionError:
        message = "the program is nested too deeply"
        return as_json({"error": {"code": "", "message": message}})
    except MemoryError:
        raise
    except Exception as error:  # else a bug of ours: the page shows where, and goes on
        if isinstance(error, RuntimeError) and "allocate" in str(error):  # torch's, of memory
            raise MemoryError from None
        return as_json({"error": bug_facts(error)})


def error_facts(error: TilewrightError) -> dict[str, Any]:
    """A user's mistake: what, and where in the program (lines and columns from 1; 0: nowhere)."""
    facts: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.location is not None and error.location.line:
        facts |= {"line": error.location.line, "column": error.location.column}
    return facts


def bug_facts(error: Exception) -> dict[str, Any]:
    """An exception that no user should see, with its last places."""
    places = traceback.format_tb(error.__traceback__)[-4:]
    message = f"a bug of the compiler, please report the program: {type(error).__name__}: {error}"
    return {"code": "bug", "message": message, "trace": "".join(places)}
