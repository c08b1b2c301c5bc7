"""The command line's reference, written from the application itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer

from concordct import cli


def write_cli(path: Path) -> None:
    """One section for each verb: what it does, how it is called, every option."""
    root: Any = typer.main.get_command(cli.common.app)
    lines = [
        "# Command line",
        "",
        "Written from the program itself. Exit codes: 0 all done; 1 some scans failed; 2 nothing could be done; 3 all "
        "done, and some scans failed their self-check; 130 interrupted.",
        "",
    ]
    context = typer.Context(root, info_name="concordct")
    lines += _section("concordct", root, context, skip=("--help",))
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        if hasattr(command, "list_commands"):
            inner = typer.Context(command, info_name=name, parent=context)
            for sub in command.list_commands(inner):
                lines += _section(f"concordct {name} {sub}", command.get_command(inner, sub), inner)
        else:
            lines += _section(f"concordct {name}", command, context)
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _section(title: str, command: Any, parent: Any, skip: tuple[str, ...] = ("--help",)) -> list[str]:
    context = typer.Context(command, info_name=title.split()[-1], parent=parent)
    options, arguments = [], []
    for parameter in command.get_params(context):
        if getattr(parameter, "hidden", False) or set(skip) & set(parameter.opts):
            continue
        text = re.sub(r"\s+", " ", str(getattr(parameter, "help", "") or "")).replace("|", "\\|")
        if parameter.param_type_name == "argument":
            arguments.append(f"| `{(parameter.metavar or parameter.name).upper()}` | {text} |")
        else:
            names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
            flag = getattr(parameter, "is_flag", False)
            default = parameter.default
            plain = isinstance(default, str | int | float) and not flag and default not in ("", None)
            shown = f"`{getattr(default, 'value', default)}`" if plain else "required" if parameter.required else ""
            options.append(f"| {names} | {text} | {shown} |")
    about = re.sub(r"\n +", "\n", command.help or "").strip()
    lines = [f"## {title}", "", about, ""]
    if arguments:
        lines += ["| argument | |", "|---|---|", *arguments, ""]
    if options:
        lines += ["| option | | default |", "|---|---|---|", *options, ""]
    return lines
