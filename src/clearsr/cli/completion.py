"""`clearsr completion`: a script by which a shell completes commands, flags and their values."""

import argparse
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

EPILOG = """\
where it goes:
  bash  clearsr completion bash > ~/.local/share/bash-completion/completions/clearsr
  zsh   clearsr completion zsh > ~/.zfunc/_clearsr      (with ~/.zfunc in fpath, before compinit)
  fish  clearsr completion fish > ~/.config/fish/completions/clearsr.fish

examples:
  clearsr completion bash
  source <(clearsr completion bash)
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.epilog = EPILOG
    parser.add_argument("shell", choices=SHELLS, help="the shell to write for")


def run(args: Namespace) -> int:
    """Print the script."""
    print(script(args.shell, describe_commands()), end="")
    return 0


# Completion scripts for bash, zsh and fish, written from a description of the commands; no shell is run.
# What a flag's value may be follows from the parser: its choices, a file, or anything.
SHELLS = ("bash", "zsh", "fish")


class Flag(NamedTuple):
    """A flag or an argument of a command.

    Attributes:
        names: `-o`, `--output`; empty for an argument without a flag.
        help: one line.
        takes_value: it is followed by something.
        choices: that may follow; empty: a file, or anything.
        is_file: what follows may be a file.
    """

    names: tuple[str, ...]
    help: str
    takes_value: bool
    choices: tuple[str, ...] = ()
    is_file: bool = False


class Verb(NamedTuple):
    """A command as completion sees it."""

    name: str
    summary: str
    flags: tuple[Flag, ...]

    @property
    def positional(self) -> tuple[str, ...]:
        """The choices of its arguments, such as `check` of `data`."""
        return tuple(choice for flag in self.flags if not flag.names for choice in flag.choices)

    @property
    def takes_files(self) -> bool:
        """Whether an argument may be a file."""
        return any(flag.is_file for flag in self.flags if not flag.names)


def describe(name: str, summary: str, parser: argparse.ArgumentParser) -> Verb:
    """What completion needs to know of a command's parser."""
    return Verb(name, summary, tuple(_flag(action) for action in parser._actions))


def _flag(action: argparse.Action) -> Flag:
    text = "" if action.help in (None, argparse.SUPPRESS) else str(action.help)
    return Flag(
        tuple(action.option_strings),
        " ".join(text.replace("%%", "%").split()),
        action.nargs != 0,
        tuple(map(str, action.choices or ())),
        action.type is Path,
    )


def script(shell: str, verbs: Sequence[Verb]) -> str:
    """The text to load into a shell; see `SHELLS`."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](verbs)


def _bash(verbs: Sequence[Verb]) -> str:
    values, words = [], []
    for verb in verbs:
        for flag in verb.flags:
            if flag.names and flag.takes_value:
                pattern = "|".join(f"{verb.name}:{name}" for name in flag.names)
                words_after = _quoted(" ".join(flag.choices)) if flag.choices else ""
                is_file = flag.is_file and not flag.choices
                values.append(f"    {pattern}) words={words_after}; files={'1' if is_file else ''} ;;")
        flags = [name for flag in verb.flags for name in flag.names]
        offered = _quoted(" ".join([*verb.positional, *flags]))
        words.append(f"    {verb.name}) words={offered}; files={'1' if verb.takes_files else ''} ;;")
    names = _quoted(" ".join([*(verb.name for verb in verbs), "--help", "--version"]))
    return _BASH.format(names=names, values="\n".join(values), words="\n".join(words))


def _zsh(verbs: Sequence[Verb]) -> str:
    lines = ["#compdef clearsr", "", "_clearsr() {", "  local -a commands", "  commands=("]
    lines += [f"    {_quoted(f'{verb.name}:{verb.summary}')}" for verb in verbs]
    lines += ["  )", "  if (( CURRENT == 2 )); then", "    _describe command commands", "    return", "  fi"]
    lines += ["  local verb=$words[2]", "  shift words", "  (( CURRENT-- ))", "  case $verb in"]
    for verb in verbs:
        lines += [f"    {verb.name})", "      _arguments -s -S \\"]
        lines += [f"        {_quoted(spec)} \\" for flag in verb.flags for spec in _zsh_specs(flag)]
        lines[-1] = lines[-1].removesuffix(" \\")
        lines.append("      ;;")
    # As a file in fpath it is run as the function itself; sourced, it registers the function.
    lines += ["  esac", "}", "", "if [[ $funcstack[1] == _clearsr ]]; then", '  _clearsr "$@"']
    lines += ["else", "  compdef _clearsr clearsr", "fi", ""]
    return "\n".join(lines)


def _zsh_specs(flag: Flag) -> list[str]:
    """`_arguments`' words for a flag, one per spelling; `*` lets it be given again."""
    value = f"({' '.join(flag.choices)})" if flag.choices else "_files" if flag.is_file else ""
    if not flag.names:
        return [f"*:argument:{value}"]
    text = re.sub(r"([\[\]:\\])", r"\\\1", flag.help)
    return [f"*{name}[{text}]" + (f":value:{value}" if flag.takes_value else "") for name in flag.names]


def _fish(verbs: Sequence[Verb]) -> str:
    lines = [_FISH_VERB, "complete -c clearsr -f"]
    lines += [
        f"complete -c clearsr -n __clearsr_runs -a {verb.name} -d {_fish_quoted(verb.summary)}"
        for verb in verbs
    ]
    for verb in verbs:
        for flag in verb.flags:
            parts = [f"complete -c clearsr -n '__clearsr_runs {verb.name}'"]
            parts += [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names]
            if flag.choices:
                parts.append(f"{'-x ' if flag.names else ''}-a {_fish_quoted(' '.join(flag.choices))}")
            elif flag.is_file:
                parts.append("-r -F" if flag.names else "-F")
            elif flag.takes_value and flag.names:
                parts.append("-x")
            elif not flag.names:
                continue
            lines.append(" ".join([*parts, f"-d {_fish_quoted(flag.help)}"]))
    return "\n".join([*lines, ""])


def _quoted(text: str) -> str:
    """One word of bash and zsh."""
    return "'" + text.replace("'", "'\\''") + "'"


def _fish_quoted(text: str) -> str:
    """One word of fish, in whose single quotes a backslash escapes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


# Whether the first word of the line is that verb, or without one whether there is none yet. (A later word may
# be a file that is called as a verb is.)
_FISH_VERB = """\
function __clearsr_runs
  set -l words (commandline -opc)
  test "$words[2]" = "$argv[1]"
end"""

_BASH = """\
_clearsr() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} verb=${{COMP_WORDS[1]}}
  local words= files=
  COMPREPLY=()
  if (( COMP_CWORD == 1 )); then
    COMPREPLY=($(compgen -W {names} -- "$word"))
    return
  fi
  case $verb:$before in
{values}
    *) case $verb in
{words}
    esac ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  if [[ -n $files ]]; then
    local IFS=$'\\n'
    COMPREPLY+=($(compgen -f -- "$word"))
    compopt -o filenames 2>/dev/null
  fi
}}
complete -F _clearsr clearsr
"""


def describe_commands() -> list[Verb]:
    """Every command of the table, as its own parser has it."""
    from clearsr.cli import COMMANDS, parser_of

    return [describe(name, command.summary, parser_of(name)) for name, command in COMMANDS.items()]
