"""Help, version, and command lines that are wrong before anything is done."""

import shlex
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

from clearsr.cli import COMMANDS
from clearsr.cli.parser import Parser

ROOT = Path(__file__).parents[2]


def run_fresh(code):
    """stdout of Python code in a process of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("arguments", [["--help"], *([verb, "--help"] for verb in COMMANDS)])
def test_help_answers_without_heavy_imports(arguments):
    code = (
        "import sys; from clearsr.cli import main; "
        f"code = main({arguments!r}); "
        "heavy = {'torch', 'numpy', 'PIL', 'diffusers', 'transformers'} & set(sys.modules); "
        "print('exit', code, 'heavy', sorted(heavy))"
    )
    out = run_fresh(code)
    assert out.startswith("usage: clearsr")
    assert out.endswith("exit 0 heavy []\n")


def test_overview_needs_the_standard_library_alone():
    code = (
        "import sys; from clearsr.cli import main; main([]); "
        "print({n.partition('.')[0] for n in sys.modules} & {'pydantic', 'rich', 'yaml', 'torch'})"
    )
    out = run_fresh(code)
    assert all(f"  {verb} " in out for verb in COMMANDS)
    assert out.endswith("set()\n")


def test_package_is_light_and_its_names_are_lazy():
    code = (
        "import sys, clearsr; light = 'torch' not in sys.modules and 'pydantic' not in sys.modules; "
        "from clearsr import ClearSRPipeline, SamplingConfig; "
        "print(light, ClearSRPipeline.__module__, SamplingConfig().upscale, clearsr.__version__, "
        "'ClearSRPipeline' in dir(clearsr))"
    )
    assert run_fresh(code).split() == ["True", "clearsr.pipeline.pipeline", "4.0", version("clearsr"), "True"]


def test_unknown_public_name_is_an_attribute_error():
    import clearsr

    with pytest.raises(AttributeError, match="no_such_name"):
        _ = clearsr.no_such_name


def test_every_command_has_its_module_and_examples():
    for verb, command in COMMANDS.items():
        module_name, _, function = command.target.partition(":")
        module = import_module(module_name)
        parser = Parser(f"clearsr {verb}", command.summary)
        module.add_arguments(parser)
        assert callable(getattr(module, function))
        assert parser.epilog is not None and parser.epilog.count(f"clearsr {verb}") >= 2


def test_version(run):
    assert run("--version").out == f"clearsr {version('clearsr')}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["upscal", "a.png"], "upscal: no such command; did you mean upscale?"),
        (["--frobnicate"], "--frobnicate: no such command; known: upscale, "),
        (["upscale"], "the following arguments are required: INPUT"),
        (["upscale", "a.png", "--stpes", "3"], "--stpes: no such flag; did you mean --steps?"),
        (["upscale", "a.png", "--step", "3"], "--step: no such flag; did you mean --steps?"),
        (["upscale", "a.png", "--steps"], "--steps: expected one argument"),
        (["degrade", "a.png"], "the following arguments are required: -o/--output"),
        (["train"], "the following arguments are required: CONFIG"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_two(run, arguments, says):
    outcome = run(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith(f"clearsr: error: {says}")
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("others", [[], ["other.png"]])
def test_a_file_that_looks_like_a_flag_is_explained(run, tmp_path, monkeypatch, others):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-dash.png").touch()
    outcome = run("upscale", "-dash.png", *others)
    assert outcome.code == 2 and len(outcome.errors) == 1
    assert "-dash.png: looks like a flag; for the file of that name write ./-dash.png" in outcome.err


def test_interrupt_is_exit_code_130(run, monkeypatch):
    def stop(_args):
        raise KeyboardInterrupt

    monkeypatch.setattr("clearsr.cli.train.run", stop)
    outcome = run("train", "recipe.yaml")
    assert (outcome.code, outcome.err) == (130, "clearsr: error: interrupted\n")


def test_a_bug_keeps_its_traceback(run, monkeypatch):
    def break_down(_args):
        raise ZeroDivisionError

    monkeypatch.setattr("clearsr.cli.train.run", break_down)
    with pytest.raises(ZeroDivisionError):
        run("train", "recipe.yaml")


def test_closed_pipe_is_quiet():
    code = "import sys; from clearsr.cli import main; sys.exit(main(['--help']))"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode in (0, 141)  # 0 if all was written before the reader left


def test_python_dash_m():
    done = subprocess.run([sys.executable, "-m", "clearsr", "nonsense"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("clearsr: error: nonsense: no such command")
