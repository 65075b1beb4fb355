"""docs/reproduce.md: no table, figure or method of the paper is left out."""

import re
from pathlib import Path

from clearsr.cli import COMMANDS
from clearsr.evaluation.measures import MEASURES
from clearsr.paper.tables.published import published_table

TEXT = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text(encoding="utf-8")


def test_every_table_and_figure_of_the_paper_has_a_command():
    rows = [line.split("|")[1:3] for line in TEXT.splitlines() if re.match(r"\| (Table|Figure)", line)]
    named = " ".join(name for name, _ in rows)
    assert {int(n) for n in re.findall(r"Tables? (\d)", named)} == set(range(1, 9))
    figures = {
        int(n) for group in re.findall(r"Figures? ([\d, ]+)", named) for n in group.replace(",", " ").split()
    }
    assert figures == {1, 2, 4, 5, 6, 7, 8, 9, 10}  # 3 is the drawing of the network
    for _, command in rows:
        verbs = re.findall(r"`clearsr ([\w-]+)", command)
        assert verbs and all(verb in COMMANDS for verb in verbs)


def test_every_method_of_table_1_has_a_way():
    for row in published_table(1)["rows"]:
        if row["reference"]:
            assert re.search(rf"^\| {row['method']} \| .*`--(sr|spandrel)", TEXT, flags=re.MULTILINE)


def test_every_measure_is_explained():
    for name, measure in MEASURES.items():
        assert name in TEXT or measure.label in TEXT or name == "sharpness"
