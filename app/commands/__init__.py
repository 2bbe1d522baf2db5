"""The larger commands of `pricing`, a module each; and what all commands share."""

import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from app.settings import Settings


def load_settings(**given: Any) -> "Settings":
    """The settings, with what the command line gives in front; a wrong one ends the program."""
    from pydantic import ValidationError

    from app.settings import Settings

    try:
        return Settings(**given)
    except ValidationError as error:
        wrong = [f"PRICING_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors(include_input=False)]
        fail("; ".join(wrong))


def fail(message: str) -> NoReturn:
    sys.stderr.write(f"pricing: {message}\n")
    raise SystemExit(1)
