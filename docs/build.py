"""The documentation site, strictly: `python docs/build.py [FOLDER]` writes it into site/, or into the folder.

Zensical builds docs/ and two pages that are written elsewhere because they are needed there: the model card
lies beside the weights (and on the hub), the changelog at the top of the project.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "model-card.md": "src/clearsr/weights/compact/README.md",
    "changelog.md": "CHANGELOG.md",
}
_UNTOLD = "griffe:"  # what --strict does not count: a docstring that explains a parameter which is not there


def stage(folder: Path) -> None:
    """Lay settings and pages into a folder, in which the site can be built."""
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for page in (folder / "docs").glob("*.md"):
        text = page.read_text("utf-8")
        for name, path in ELSEWHERE.items():
            text = text.replace(f"](../{path}", f"]({name}")
        page.write_text(text, "utf-8")
    for name, path in ELSEWHERE.items():
        text = (ROOT / path).read_text("utf-8")
        (folder / "docs" / name).write_text(text.replace("](docs/", "]("), "utf-8")  # from docs/ here
    settings = (ROOT / "mkdocs.yml").read_text("utf-8")
    sources = f"paths: [{(ROOT / 'src').as_posix()}]"
    (folder / "mkdocs.yml").write_text(settings.replace("paths: [src]", sources), "utf-8")


def build(target: Path) -> int:
    """The exit code; the site replaces what is at the target if it has no fault."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        stage(folder)
        command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        sys.stderr.write(said)
        if done.returncode or any(line.startswith(_UNTOLD) for line in said.splitlines()):
            return 1
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder / "site", target)
    return 0


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1] if len(sys.argv) > 1 else "site").resolve()))
