"""The house stays in order: layers, no circles, files of a size to read, the way from command to network."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
# A part uses itself and the rows above its own; what stands in `src/clearsr` itself is a part, too.
LAYERS = (
    ("errors", "seeds", "tiling", "quiet"),
    ("atomic", "hardware", "config"),
    ("image",),
    ("degradation", "models"),
    ("sampling",),
    ("pipeline",),
    ("doctor", "files", "data"),
    ("batch", "evaluation"),
    ("training",),
    ("paper",),
    ("web",),
    ("cli",),
    ("__main__",),
)
ROW = {part: row for row, parts in enumerate(LAYERS) for part in parts}
MOST_FILES, MOST_LINES, MOST_LINES_IN_A_FUNCTION = 190, 400, 60


def _name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


FILES = {_name(path): path for path in SOURCE.rglob("*.py")}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def _imports(name: str) -> set[str]:
    """The files that a file imports: when it is loaded, within functions, and for types."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {inner if inner in FILES else node.module for inner in inside}
    return found & FILES.keys() - {"clearsr"}


def _part(name: str) -> str:
    return name.split(".")[1]


def test_every_part_uses_only_the_layers_below_it():
    names = FILES.keys() - {"clearsr"}
    assert {_part(name) for name in names} == ROW.keys()
    pairs = [(name, other) for name in names for other in _imports(name) if _part(name) != _part(other)]
    assert not [pair for pair in pairs if ROW[_part(pair[1])] >= ROW[_part(pair[0])]]


def test_no_file_imports_itself_on_the_way_round():
    left = {name: _imports(name) for name in FILES}
    while free := {name for name, imports in left.items() if not imports & left.keys()}:
        left = {name: imports for name, imports in left.items() if name not in free}
    assert not left, "these import each other, or lead to those that do"


def test_files_and_functions_are_of_a_size_to_be_read():
    assert len(FILES) <= MOST_FILES
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items()}
    assert not {name: length for name, length in lengths.items() if length > MOST_LINES}
    functions = [
        (f"{name}.{node.name}", 1 + (node.end_lineno or 0) - node.body[0].lineno)
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert not [found for found in functions if found[1] > MOST_LINES_IN_A_FUNCTION]


def test_the_loop_fits_on_a_screen():
    (loop,) = [
        node
        for node in ast.walk(TREES["clearsr.sampling.denoise"])
        if isinstance(node, ast.FunctionDef) and node.name == "denoise"
    ]
    body = loop.body[1:]  # without the docstring
    assert 1 + body[-1].end_lineno - body[0].lineno <= 30


def test_five_files_lead_from_the_command_to_the_network():
    """As docs/contributing.md names them, each imports the next."""
    text = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    table = text[text.index("goes through these five files") : text.index("Everything else is a leaf")]
    paths = re.findall(r"^\| `([\w/.<>]+)` \|", table, re.MULTILINE)
    names = [f"clearsr.{path.removesuffix('.py').replace('/', '.')}" for path in paths]
    assert len(names) == 5 and names[0] == "clearsr.cli.upscale" and names[-1] == "clearsr.models.clearsr"
    assert [b for a, b in zip(names, names[1:], strict=False) if b not in _imports(a)] == []


@pytest.mark.parametrize("folder", sorted(p.name for p in (SOURCE / "clearsr").iterdir() if p.is_dir()))
def test_tests_lie_as_the_source_does(folder):
    """Every folder with code has a folder of tests; those on a Stable Diffusion base are in `tests/sd`."""
    if any((SOURCE / "clearsr" / folder).glob("*.py")):
        assert any((ROOT / "tests" / folder).rglob("test_*.py"))
