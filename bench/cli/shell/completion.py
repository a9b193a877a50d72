"""Carry out `bench completion`: print what a shell needs to complete commands, flags and names.

A script holds every word, so completing starts no Python. It is printed anew when plug-ins come.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from bench.cli.parser import OK, Command

SHELLS = ("bash", "zsh", "fish")


class Words(NamedTuple):
    """What may follow a command: its flags, those of them that take one of few words, and files."""

    help: str
    flags: tuple[str, ...]
    values: Mapping[str, tuple[str, ...]]  # by flag; the empty one is for what has no flag


def words(commands: Iterable[Command]) -> dict[str, Words]:
    """Return the words of every command, by its name."""
    return {command.name: _words(command) for command in commands}


def _words(command: Command) -> Words:
    from bench.registry import ATTACKS, METHODS

    parser = argparse.ArgumentParser(add_help=False)
    command.arguments(parser)
    flags, values = ["--help"], dict[str, tuple[str, ...]]()
    for action in parser._actions:
        flags += action.option_strings
        for name in action.option_strings or [""]:
            if action.choices is not None:
                values[name] = (*values.get(name, ()), *map(str, action.choices))
    if "--method" in flags:
        values["--method"] = tuple(METHODS.names())
    if command.name == "explain":
        values[""] = (*METHODS.names(), *ATTACKS.names())
    return Words(command.help, tuple(flags), values)


def bash(known: Mapping[str, Words]) -> str:
    """Return the script for bash."""
    cases = []
    for name, each in known.items():
        plain = " ".join((*each.values.get("", ()), *each.flags))
        inner = [
            f'{flag}) words="{" ".join(values)}" ;;' for flag, values in each.values.items() if flag
        ]
        inner.append(f'*) words="{plain}" ;;')
        cases.append(f'    {name}) case "$last" in {" ".join(inner)} esac ;;')
    return "\n".join(
        [
            "_bench() {",
            '  local now="${COMP_WORDS[COMP_CWORD]}" last="${COMP_WORDS[COMP_CWORD-1]}" words=""',
            f'  if [ "$COMP_CWORD" -eq 1 ]; then words="{" ".join(known)} --help --version"',
            '  else case "${COMP_WORDS[1]}" in',
            *cases,
            "  esac; fi",
            '  COMPREPLY=($(compgen -W "$words" -- "$now"))',
            "}",
            "complete -o default -F _bench bench",
            "",
        ]
    )


def zsh(known: Mapping[str, Words]) -> str:
    """Return the script for zsh, which reads that of bash."""
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash(known)}"


def fish(known: Mapping[str, Words]) -> str:
    """Return the script for fish."""
    lines = [
        "complete -c bench -n __fish_use_subcommand -l version",
        *(
            f"complete -c bench -n __fish_use_subcommand -f -a {name} -d '{_quoted(each.help)}'"
            for name, each in known.items()
        ),
    ]
    for name, each in known.items():
        begins = f"complete -c bench -n '__fish_seen_subcommand_from {name}'"
        for flag in each.flags:
            named = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            values = each.values.get(flag)
            lines.append(f"{begins} {named}" + (f" -x -a '{' '.join(values)}'" if values else ""))
        if each.values.get(""):
            lines.append(f"{begins} -a '{' '.join(each.values[''])}'")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


def _arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("shell", choices=SHELLS)
    command.epilog = (
        'bash: eval "$(bench completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc; '
        "fish: bench completion fish > ~/.config/fish/completions/bench.fish"
    )


def print_script(arguments: argparse.Namespace) -> int:
    """Print the script of a shell."""
    script = {"bash": bash, "zsh": zsh, "fish": fish}[arguments.shell]
    print(script(words(arguments.commands)), end="")
    return OK


COMPLETION = Command(
    "completion", "print what completes commands in bash, zsh or fish", _arguments, print_script
)
