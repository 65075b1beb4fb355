"""`clearsr completion`: a script by which a shell completes commands, flags and their values."""

from argparse import ArgumentParser, Namespace

from clearsr.cli.completion_scripts import SHELLS, Verb, describe, script

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


def describe_commands() -> list[Verb]:
    """Every command of the table, as its own parser has it."""
    from clearsr.cli import COMMANDS, parser_of

    return [describe(name, command.summary, parser_of(name)) for name, command in COMMANDS.items()]
