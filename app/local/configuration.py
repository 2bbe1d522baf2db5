"""Every setting, shown: as a list with the values in force, or as the page docs/configuration.md."""

from typing import Any, get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from rich.text import Text

from app.settings import Settings

PAGE = """\
# Configuration

Every setting is an environment variable, or a line in a `.env` file in the folder that the
process starts in; the environment wins. `pricing config` prints the values in force, secrets
masked; `pricing doctor` checks them. `pricing up` has an option for the commonest.

This page is written by `pricing config --markdown > docs/configuration.md`.

| variable | default | what it is |
|---|---|---|
"""


def as_text(settings: Settings) -> Text:
    """Two lines per setting: variable, value now and default; then what it is."""
    text = Text()
    for name, field in Settings.model_fields.items():
        value, default = getattr(settings, name), field.default
        text.append(variable(name), "bold").append(f" = {shown(value)}")
        if value != default:
            text.append(f"  (default {shown(default)})", "dim")
        text.append(f"\n    {described(field)}\n")
    return text


def as_markdown() -> str:
    """The page, from the defaults alone, so that it is the same on every machine."""
    rows = (
        f"| `{variable(name)}` | {f'`{shown(field.default)}`' if field.default is not None else 'unset'} "
        f"| {described(field)} |\n"
        for name, field in Settings.model_fields.items()
    )
    return PAGE + "".join(rows)


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"{Settings.model_config['env_prefix']}{name}".upper()


def shown(value: Any) -> str:
    """A value for people; a secret is only said to be there."""
    if value is None:
        return "unset"
    return "********" if isinstance(value, SecretStr) else str(value)


def described(field: FieldInfo) -> str:
    """What a setting is, with its choices where it has some."""
    choices = [choice for choice in get_args(field.annotation) if isinstance(choice, str)]
    return f"{field.description or ''}{' One of ' + ', '.join(choices) + '.' if choices else ''}"
