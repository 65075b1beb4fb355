"""`--json FILE`: a report of a command, for programs."""

import json
from pathlib import Path
from typing import Any

from clearsr.atomic import write_text
from clearsr.cli.parser import UsageError, refuse_folder


def check_json(path: Path) -> None:
    """Refuse a file that could not be written, before the work.

    Raises:
        UsageError: it is a folder, or in one that is not there.
    """
    refuse_folder("--json", path)
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--json {path}: lies in a folder that does not exist; expected the name of a file")


def write_json(report: dict[str, Any], path: Path) -> None:
    """Write the report.

    Raises:
        ClearSRError: it cannot be written.
    """
    write_text(path, json.dumps(report, indent=2) + "\n")
