"""Completion scripts: shells accept them, and every command, flag and choice is offered where it belongs."""

import re
import shlex
import shutil
import subprocess

import pytest

from clearsr.cli import COMMANDS, parser_of
from clearsr.cli.completion import SHELLS, describe_commands
from clearsr.config.output import FORMATS, FRAME_FORMATS


def _folder_for(shell, tmp_path_factory):
    """A folder with a picture and the script for a shell, which must be here."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    from clearsr.cli.completion import script

    folder = tmp_path_factory.mktemp("completion")
    (folder / "photo file.jpg").write_bytes(b"")
    (folder / f"clearsr.{shell}").write_text(script(shell, describe_commands()))
    return folder


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    """`bash(words)`: what is offered for the last word in a folder with the file `photo file.jpg`."""
    folder = _folder_for("bash", tmp_path_factory)

    def complete(*words):
        line = " ".join(shlex.quote(word) for word in ("clearsr", *words))
        code = f"source clearsr.bash; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _clearsr; "
        code += "printf '%s\\n' \"${COMPREPLY[@]}\""
        done = subprocess.run(
            ["bash", "--norc", "-c", code], cwd=folder, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        return set(done.stdout.splitlines()) - {""}

    return complete


def test_the_table_and_the_parsers_are_what_is_described():
    verbs = {verb.name: verb for verb in describe_commands()}
    assert list(verbs) == list(COMMANDS)
    for name, verb in verbs.items():
        known = {flag for action in parser_of(name)._actions for flag in action.option_strings}
        assert {flag for item in verb.flags for flag in item.names} == known
        assert "--help" in known and "--quiet" in known


def test_bash_offers_commands_flags_choices_and_files(bash):
    assert bash("") == {*COMMANDS, "--help", "--version"}
    assert bash("up") == {"upscale"}
    assert bash("upscale", "--form") == {"--format"}
    assert bash("upscale", "--format", "") == {*FORMATS, *FRAME_FORMATS, "jpeg", "same"}
    assert bash("upscale", "a.jpg", "--precision", "b") == {"bf16"}
    assert bash("upscale", "photo") == {"photo file.jpg"}
    assert bash("upscale", "-o", "photo") == {"photo file.jpg"}
    assert bash("upscale", "--steps", "") == set()  # a number: nothing to offer
    assert bash("data", "") >= {"check", "make-testset", "photo file.jpg"}
    assert bash("completion", "") >= set(SHELLS)
    assert bash("info", "--json", "photo") == {"photo file.jpg"}
    assert bash("nonsense", "") == set()


@pytest.fixture(scope="module")
def fish(tmp_path_factory):
    """`fish(line)`: what is offered for the end of the line, as for `bash`."""
    folder = _folder_for("fish", tmp_path_factory)

    def complete(line):
        code = f"source clearsr.fish; complete -C {shlex.quote(line)}"
        done = subprocess.run(
            ["fish", "--no-config", "-c", code], cwd=folder, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        return {offer.partition("\t")[0] for offer in done.stdout.splitlines()}

    return complete


def test_fish_offers_commands_flags_choices_and_files(fish):
    assert fish("clearsr ") >= set(COMMANDS)
    assert fish("clearsr up") == {"upscale"}
    assert fish("clearsr upscale --form") == {"--format"}
    assert fish("clearsr upscale --format ") == {*FORMATS, *FRAME_FORMATS, "jpeg", "same"}
    assert fish("clearsr upscale a.jpg --precision b") == {"bf16"}
    assert fish("clearsr upscale photo") == {"photo file.jpg"}
    assert fish("clearsr upscale -o photo") == {"photo file.jpg"}
    assert "photo file.jpg" not in fish("clearsr upscale --steps ")
    assert fish("clearsr data ") >= {"check", "make-testset"}
    assert fish("clearsr upscale serve --po") == set()  # a file that is called as another verb


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_and_flag_is_in_each_script(run, shell):
    outcome = run("completion", shell)
    assert outcome.code == 0 and outcome.err == ""
    for verb in describe_commands():
        for flag in verb.flags:
            for name in flag.names:
                spelled = f"-l {name[2:]} " if name.startswith("--") else f"-s {name[1:]} "
                assert (spelled if shell == "fish" else name) in outcome.out
        assert re.search(rf"\b{verb.name}\b", outcome.out)


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_can_parse_their_script(run, shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    path = tmp_path / "script"
    path.write_text(run("completion", shell).out)
    done = subprocess.run([shell, "-n", path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_quotes_are_closed_in_every_line(run, shell):
    """Help holds apostrophes and brackets; each line must still be whole words."""
    lines = run("completion", shell).out.replace("\\\n", " ").splitlines()
    told = [line for line in lines if line.startswith("complete ") or "_arguments" in line]
    assert len(told) >= len(COMMANDS)
    for line in told:
        words = shlex.split(line.replace("\\'", "'\\''") if shell == "fish" else line)
        assert "--" not in words  # a flag would have fallen out of its quotes


def test_the_parsers_summaries_reach_fish_and_zsh(run):
    fish, zsh = run("completion", "fish").out, run("completion", "zsh").out
    assert (
        "_runs upscale' -l format -x -a 'png jpg webp tiff avif gif jpeg same' -d 'format of the results"
        in fish
    )
    help = "format of the results; same\\: of each input; gif\\: with --frames all (default\\: png)"
    assert f"'*--format[{help}]:value:(png jpg webp tiff avif gif jpeg same)'" in zsh
    assert zsh.startswith("#compdef clearsr\n")


def test_an_unknown_shell_is_refused(run):
    outcome = run("completion", "tcsh")
    assert outcome.code == 2 and "invalid choice: 'tcsh'" in outcome.err
