"""README, model card and docs/: command lines are parsed, cheap ones run, and the site builds strictly."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import clearsr
from clearsr.cli import COMMANDS, main
from clearsr.cli.flags import build, collect
from clearsr.cli.parser import Parser
from clearsr.cli.upscale import OUTPUT_FLAGS, collect_work
from clearsr.config.output import OutputConfig
from clearsr.config.sampling import SAMPLING_FLAGS, SamplingConfig
from clearsr.config.training import TrainConfig

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "src/clearsr/weights/compact/README.md",
    *sorted(DOCS.glob("*.md")),
]
# Pages whose command lines are run.
RUN = [pytest.param("commands", marks=pytest.mark.slow), "index", "security", "settings", "troubleshooting"]
# What is only parsed: it trains, measures for minutes, starts processes, or needs what is not here.
HEAVY_VERBS = {
    "ablate",
    "analyze",
    "batch",
    "bench",
    "calibrate",
    "convert",
    "demo",
    "fit-niqe",
    "init",
    "sweep-lsa",
}
HEAVY_VERBS |= {"train", "serve"}
NOT_HERE = ("s3://", "cuda", "models/")
OPERATORS = {"&&", "|", ";", "<(", "(", ")"}
# torchrun, zensical, benchmarks/
FLAGS_OF_OTHERS = {"--max-restarts", "--strict", "--check", "--prediction", "--controlnet", "--tiny"}
FLAGS_OF_OTHERS |= {"--backend"}  # hardware.md says that there is none
FLAGS_OF_OTHERS |= {"--no-deps"}  # pip


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(text, *languages):
    """The fenced blocks in these languages."""
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def shell_lines(text):
    """The lines of the text that a shell is to take, as lists of words and operators."""
    lines = []
    for block in blocks(text, "console", "sh"):
        lines += block.replace("\\\n", " ").splitlines()
    lines += re.findall(r"^ {4}(\S.*)$", text, flags=re.MULTILINE)  # Markdown's other kind of block
    for line in lines:
        if "clearsr" in line:
            without_files = re.sub(r" (?:>>?|<(?!\()) ?\S+", "", line.removeprefix("$ "))
            lexer = shlex.shlex(without_files, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            yield list(lexer)


def command_lines(text):
    """The arguments of each call of clearsr, as the shell would pass them on."""
    for line in shell_lines(text):
        words: list[str] = []
        for word in [*line, ";"]:
            if word not in OPERATORS:
                words.append(word)
                continue
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # a variable for this call
                del words[0]
            if words and Path(words[0]).name == "clearsr":
                yield words[1:]
            elif words[:1] in (["torchrun"], ["python"]) and "clearsr" in words:
                yield words[words.index("clearsr") + 1 :]
            words = []


@cache
def parser_of(verb):
    parser = Parser(f"clearsr {verb}", COMMANDS[verb].summary)
    import_module(COMMANDS[verb].target.partition(":")[0]).add_arguments(parser)
    return parser


def flags_of(verb):
    return {flag for action in parser_of(verb)._actions for flag in action.option_strings}


LINES = [
    pytest.param(words, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, words in enumerate(command_lines(text_of(page)))
]


@pytest.mark.parametrize("words", LINES)
def test_a_command_line_is_accepted(words, monkeypatch):
    """Its flags, and where the settings are all here, their values too."""
    monkeypatch.chdir(ROOT)
    assert words[0] in COMMANDS
    args = parser_of(words[0]).parse_args(words[1:])
    if words[0] in ("upscale", "batch") and not args.config:
        collect_work(args, ".jpg")
    if words[0] == "train" and all(file.is_file() for file in args.config):
        assert build(TrainConfig, collect(args, {})).data.train


@pytest.mark.parametrize("verb", COMMANDS)
def test_examples_in_the_help_are_accepted(verb):
    text = parser_of(verb).epilog.replace("\\\n", " ")
    examples = list(command_lines(re.sub(r"^  ", "    ", text, flags=re.MULTILINE)))
    assert examples
    for words in examples:
        parser_of(words[0]).parse_args(words[1:])


def test_command_lines_are_found():
    assert ["upscale", "photo.jpg"] in list(command_lines(text_of(PAGES[0])))  # fenced, with a prompt
    assert ["upscale", "photo.jpg", "--steps", "0"] in list(command_lines(text_of(PAGES[1])))  # indented
    lines = [" ".join(words) for words in command_lines(text_of(DOCS / "training.md"))]
    assert any(
        "init_from=" in line and "model.prediction=v_prediction" in line for line in lines
    )  # over two lines


def test_files_named_in_the_text_exist():
    for page in PAGES:
        for path in re.findall(r"`((?:[\w.]+/)*\w+\.py)`", text_of(page)):
            assert any((ROOT / top / path).is_file() for top in (".", "src/clearsr")), f"{page.name}: {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name + "/" + page.name)
def test_flags_named_in_the_text_exist(page):
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    known = {"--help", "--version"}.union(*map(flags_of, COMMANDS))
    for span in re.findall(r"`([^`\n]+)`", prose):
        if not span.startswith(("--", "clearsr ")):  # another program's
            continue
        flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", span)) - FLAGS_OF_OTHERS
        verb = re.match(r"clearsr ([a-z][\w-]*)", span)
        if verb is not None:
            assert verb[1] in COMMANDS, span
        assert flags <= (known if verb is None else flags_of(verb[1]) | {"--help"}), span


def test_every_command_has_its_section_and_examples():
    sections = re.split(r"^## ", text_of(DOCS / "commands.md"), flags=re.MULTILINE)[1:]
    assert {section.split()[0] for section in sections} == set(COMMANDS)
    for section in sections:
        verb = section.split()[0]
        assert any(words[0] == verb for words in command_lines(section)), verb


def test_every_extra_is_listed():
    text = (
        text_of(ROOT / "pyproject.toml").partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    )
    extras = set(re.findall(r"^(\w+) = ", text, flags=re.MULTILINE)) - {"dev"}
    rows = re.findall(r"^\| `(\w+)` \|", text_of(DOCS / "index.md"), flags=re.MULTILINE)
    assert len(extras) > 5 and sorted(rows) == sorted(extras)


def test_python_in_the_text_is_valid_and_names_what_is_there():
    found = 0
    for page in PAGES:
        for block in blocks(text_of(page), "python"):
            compile(block, page.name, "exec")
            for module, names in re.findall(r"^from (clearsr[\w.]*) import (.+)$", block, flags=re.MULTILINE):
                found += 1
                assert all(hasattr(import_module(module), name) for name in names.split(", ")), (
                    page.name,
                    names,
                )
    assert found >= 5


def test_every_setting_is_explained_and_its_flag_is_right(setting_names):
    rows = re.findall(
        r"^\| `([\w.]+)` \| (?:`([\w-]+)`)? ?\|", text_of(DOCS / "settings.md"), flags=re.MULTILINE
    )
    assert [name for name, _ in rows] == [
        *setting_names(SamplingConfig),
        *setting_names(OutputConfig, "output."),
    ]
    named = {flag: name for name, flag in rows if flag and flag != "--quality"}
    assert named == SAMPLING_FLAGS | OUTPUT_FLAGS


def test_every_setting_of_training_is_explained(setting_names):
    table = text_of(DOCS / "training.md").partition("## Every setting")[2]
    explained = re.findall(r"^\| `([\w.]+)` \|", table, flags=re.MULTILINE)
    assert sorted(explained) == sorted(setting_names(TrainConfig))


def test_every_public_name_is_in_the_reference():
    shown = set(re.findall(r"^::: clearsr\.(\w+)$", text_of(DOCS / "api.md"), flags=re.MULTILINE))
    assert shown == set(clearsr.__all__) - {"__version__"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name + "/" + page.name)
def test_a_link_leads_somewhere_in_the_repository(page):
    """As somebody reads it there; docs/build.py turns those that leave docs/ for the site."""
    targets = re.findall(
        r"\]\(([^)#\s]+)", re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    )
    dead = [to for to in targets if "://" not in to and not (page.parent / to).exists()]
    assert not dead


def test_every_command_is_named_in_the_readme():
    named = set(re.findall(r"`([a-z-]+)`", text_of(ROOT / "README.md").partition("## Use")[2]))
    assert set(COMMANDS) <= named


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """The folder that the examples are written for."""
    y, x = np.mgrid[0:1:48j, 0:1:64j]
    waves = np.stack([x, y, 0.5 + 0.5 * np.sin(40 * x * y)], axis=-1)
    picture = Image.fromarray((255 * waves).astype(np.uint8))
    picture.save(tmp_path / "photo.jpg")
    Image.fromarray((65535 * waves[..., 2]).astype(np.uint16)).save(tmp_path / "scan.tif")
    logo = picture.copy()
    logo.putalpha(128)
    logo.save(tmp_path / "logo.png")
    for folder in ("frames", "photos", "holidays", "photographs"):
        (tmp_path / folder).mkdir()
        picture.resize((16, 12)).save(tmp_path / folder / "small.png")
    grain = np.random.default_rng(0).random((520, 520, 3)) * 255
    Image.fromarray(grain.astype(np.uint8)).save(tmp_path / "photographs" / "large.png")
    (tmp_path / "photographs" / "small.png").unlink()
    (tmp_path / "results").mkdir()  # somebody's, of the test set that docs/commands.md makes
    picture.resize((512, 512)).save(tmp_path / "results" / "large.png")
    (tmp_path / "published.log").write_text("large.png | PSNR: 8.0; SSIM: 0.1\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", RUN)
def test_what_a_page_shows_runs(name, pictures):
    text = text_of(DOCS / f"{name}.md")
    for block in blocks(text, "yaml"):
        file = re.match(r"# (\S+\.yaml)\n", block)
        if file is not None:
            (pictures / file[1]).write_text(block, encoding="utf-8")
    lines = [
        words
        for words in command_lines(text)
        if words[0] not in HEAVY_VERBS and not any(mark in " ".join(words) for mark in NOT_HERE)
    ]
    assert lines
    for words in lines:
        assert main(words) == 0, words


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", DOCS / "index.md", DOCS / "api.md"], ids=lambda p: p.name
)
def test_python_examples_run(page, pictures):
    examples = blocks(text_of(page), "python")
    assert examples
    before = set(pictures.iterdir())
    for example in examples:
        exec(compile(example, page.name, "exec"), {})
    assert set(pictures.iterdir()) > before


@pytest.mark.skipif(importlib.util.find_spec("zensical") is None, reason='needs pip install "clearsr[docs]"')
def test_the_site_builds_strictly_and_needs_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, DOCS / "build.py", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in tmp_path.glob("*.html"):
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*", page.read_text(encoding="utf-8"))
        assert loaded and not [tag for tag in loaded if "//" in tag], page.name
    built = {page.stem for page in tmp_path.glob("*.html")}
    assert built >= {page.stem for page in DOCS.glob("*.md")} | {"model-card", "changelog"}


@pytest.mark.skipif(importlib.util.find_spec("zensical") is None, reason='needs pip install "clearsr[docs]"')
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("[dead](hardware.md#no-such-anchor)", "anchor does not exist"),
        ("::: clearsr.config.base.wrong", "griffe:"),
    ],
    ids=["link", "docstring"],
)
def test_a_fault_keeps_the_site_from_being_built(fault, message, tmp_path):
    project = tmp_path / "project"
    for name in ("docs", "src/clearsr"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("*.safetensors"))
    for name in ("mkdocs.yml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, project / name)
    module = project / "src/clearsr/config/base.py"
    wrong = 'def wrong() -> None:\n    """One.\n\n    Args:\n        b: not there.\n    """\n'
    module.write_text(f"{text_of(module)}\n\n{wrong}", "utf-8")
    page = project / "docs/security.md"
    page.write_text(f"{text_of(page)}\n{fault}\n", "utf-8")
    command = [sys.executable, project / "docs/build.py", tmp_path / "site"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and not (tmp_path / "site").exists()
    assert message in done.stderr


def test_every_page_is_in_the_navigation():
    config = re.sub(r"!!python\S*", "", text_of(ROOT / "mkdocs.yml"))
    named = [page for part in yaml.safe_load(config)["nav"] for page in next(iter(part.values()))]
    pages = {next(iter(page.values())) for page in named}
    assert pages == {page.name for page in DOCS.glob("*.md")} | {"model-card.md", "changelog.md"}
