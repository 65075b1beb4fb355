"""Pages of the site that are written elsewhere, because they are needed there: the model card lies beside the
weights (and on the hub), the changelog at the top of the project. mkdocs calls these functions by name.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ELSEWHERE = {
    "model-card.md": "src/clearsr/weights/compact/README.md",
    "changelog.md": "CHANGELOG.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to those of docs/."""
    project = Path(config.config_file_path).parent
    for name, path in ELSEWHERE.items():
        files.append(File.generated(config, name, abs_src_path=str(project / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Their links to docs/ start from docs/ here."""
    return markdown.replace("](docs/", "](") if page.file.src_uri in ELSEWHERE else markdown
