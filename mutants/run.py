"""Which mutants of the method's files the tests catch: `make mutants`. See docs/contributing.md.

Of every file the same mutants are drawn each time (`--sample` of them; more are the same and others), and
each is run against the tests that touch its line. What was run is kept and not run again.
"""

import argparse
import ast
import difflib
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from forks import ROOT, SOURCE, Ended, Fork, Tracer, load_libraries, run_tests
from operators import Mutant, check_examples, mutants_of

FILES = (
    *("sampling/*.py", "training/stages.py", "training/losses.py", "training/teacher.py"),
    *("degradation/*.py", "config/degradation.py", "models/*.py"),
)
TESTS = (
    *("models/*.py", "sampling/*.py", "degradation/*.py"),
    *("sd/test_one_token_attention.py", "sd/test_parameters.py", "sd/test_conversion.py"),
    *("sd/test_sd_base_model.py", "training/test_equation_1.py", "training/test_stages.py"),
    *("training/test_losses.py", "training/test_perceptual.py", "training/test_teacher.py"),
    *("training/test_prior.py", "training/test_fresh_control.py"),
    *("sd/test_sd_init.py", "test_doctor.py", "cli/test_cli_model.py"),
    *("test_hardware.py", "pipeline/test_conventions.py", "pipeline/test_budget.py"),
)
ROUND_SECONDS, MOST_ROUNDS = 20, 3  # of tests, until it is looked at whether a mutant lives
CAUGHT = ("caught", "timeout")
KEPT = ROOT / "runs" / "mutants"  # what is kept between runs


def main() -> None:
    """Run what has not been run, and print the score of every file and the survivors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", help="such as models/lora.py (default: all of the method)")
    parser.add_argument("--sample", type=int, default=30, help="mutants of each file; 0: all (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="another one draws other mutants (default: 0)")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="run the survivors again: there are new tests")
    parser.add_argument("--report", action="store_true", help="run nothing")
    args = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    files = _expand(SOURCE / "clearsr", tuple(args.files) or FILES)
    drawn = {path: _draw(path, args.sample, args.seed) for path in files}
    results = Results(KEPT / "results.jsonl")
    if not args.report:
        waiting = [
            (path, mutant)
            for path, (mutants, _) in drawn.items()
            for mutant in mutants
            if (known := results.get(path, mutant)) is None or (args.again and known["outcome"] not in CAUGHT)
        ]
        if waiting:
            check_examples()
            load_libraries()
            run(waiting, touched_by_tests(KEPT / "touched.json"), results, args.workers)
    report(drawn, results)


def _expand(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The files of some patterns, each once, in the order of the patterns."""
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    return list(dict.fromkeys(path for path in found if path.name not in ("__init__.py", "conftest.py")))


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _hash(*paths: Path) -> str:
    return _digest("".join(_text(path) for path in paths))


def _draw(path: Path, count: int, seed: int) -> tuple[list[Mutant], int]:
    """Mutants of a file, and how many there are; a larger count draws the same and others."""
    mutants = mutants_of(_text(path))
    drawn = sorted(mutants, key=lambda m: _digest(f"{seed} {path.name} {m.operator} {m.occurrence}"))
    valid = (mutant for mutant in drawn if mutant.code(_text(path)))
    return [mutant for mutant, _ in zip(valid, range(count or len(mutants)), strict=False)], len(mutants)


class Results:
    """What became of every mutant, a line of JSON each; a later line of the same mutant stands for it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._rows = {row["key"]: row for row in map(json.loads, lines)}

    def get(self, path: Path, mutant: Mutant) -> dict[str, Any] | None:
        """The row of a mutant of the file as it is now."""
        return self._rows.get(self._key(path, mutant))

    def put(self, path: Path, mutant: Mutant, **row: Any) -> None:
        """Keep what became of a mutant."""
        key = self._key(path, mutant)
        self._rows[key] = {"key": key, "line": mutant.line, **row}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self._rows[key]) + "\n")

    @staticmethod
    def _key(path: Path, mutant: Mutant) -> str:
        return f"{path.relative_to(SOURCE)}:{_hash(path)}:{mutant.operator}:{mutant.occurrence}"


def touched_by_tests(kept: Path) -> dict[str, Any]:
    """[seconds, {file: lines}] of every test; a file is traced again when it or the source has changed."""
    source = _hash(*sorted(SOURCE.rglob("*.py")), *sorted((ROOT / "tests").rglob("conftest.py")))
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    tests: dict[str, Any] = {}
    for path in _expand(ROOT / "tests", TESTS):
        key = f"{path.relative_to(ROOT)}:{_hash(path)}:{source}"
        if key not in known:
            print(f"which lines {path.name} touches", file=sys.stderr)
            known[key] = _trace(path, kept.with_suffix(".new"))
            kept.write_text(json.dumps(known), encoding="utf-8")
        tests |= known[key]
    return tests


def _trace(path: Path, answer: Path) -> dict[str, Any]:
    def traced() -> int:
        tracer = Tracer()
        code = run_tests([str(path.relative_to(ROOT))], plugins=(tracer,))
        answer.write_text(json.dumps(tracer.tests), encoding="utf-8")
        return code

    fork = Fork(traced, cpu_seconds=900)
    while (ended := fork.ended()) is None:
        time.sleep(0.1)
    if ended.code not in (0, 5):  # 5: every test of the file is slow
        sys.exit(f"{path}: its tests must pass without a mutant\n{ended.output[-3000:]}")
    return json.loads(answer.read_text(encoding="utf-8"))


class Trial(NamedTuple):
    """A mutant and the tests that it has yet to pass."""

    path: Path
    mutant: Mutant
    rounds: list[list[str]]


def run(waiting: list[tuple[Path, Mutant]], tests: dict[str, Any], results: Results, workers: int) -> None:
    """Keep what becomes of mutants, some run at a time; a survivor of one round goes on to the next."""
    running: dict[Fork, Trial] = {}
    left = [Trial(*one, _rounds(*one, tests)) for one in reversed(waiting)]
    try:
        while left or running:
            while left and len(running) < workers:
                trial = left.pop()
                if trial.rounds:
                    running[_started(trial, tests)] = trial
                else:
                    results.put(trial.path, trial.mutant, outcome="untouched", by="")
            time.sleep(0.02)
            for fork, trial in list(running.items()):
                if (ended := fork.ended()) is None:
                    continue
                del running[fork]
                if ended.code == 0 and trial.rounds[1:]:
                    left.append(trial._replace(rounds=trial.rounds[1:]))
                else:
                    _keep(results, trial, ended)
            print(f"\r{len(left) + len(running)} mutants left ", end="", file=sys.stderr)
    finally:
        for fork in running:
            fork.kill()
        print(file=sys.stderr)


def _started(trial: Trial, tests: dict[str, Any]) -> Fork:
    path, names, code = trial.path, trial.rounds[0], trial.mutant.code(_text(trial.path)) or ""
    return Fork(lambda: run_tests(names, path, code), 20 + 3 * sum(tests[name][0] for name in names))


def _keep(results: Results, trial: Trial, ended: Ended) -> None:
    outcome = "survived" if ended.code == 0 else "timeout" if ended.code < 0 else "caught"
    failed = [line for line in ended.output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    by = failed[0][:200] if failed else f"exit code {ended.code}"
    results.put(trial.path, trial.mutant, outcome=outcome, by=by)


def _rounds(path: Path, mutant: Mutant, tests: dict[str, Any]) -> list[list[str]]:
    """The tests that touch what a mutant changes: those of the file's name first, the quickest first.

    A constant is touched by no test; whatever test of a file that imports the module may read it.
    """
    lines = set(_reach(path, mutant.line))
    name = str(path.relative_to(SOURCE))
    touching = [test for test, (_, found) in tests.items() if lines & set(found.get(name, ()))]
    if len(lines) > _text(path).count("\n"):
        module = f"from {name.removesuffix('.py').replace('/', '.')} import"
        touching += [test for test in tests if test not in touching and module in _text(_file_of(test))]
    touching.sort(key=lambda test: (f"test_{path.stem}.py" not in test, tests[test][0]))
    rounds: list[list[str]] = []
    total = 0.0
    for test in touching:
        begin, total = total, total + tests[test][0]
        if not rounds or total // ROUND_SECONDS > begin // ROUND_SECONDS:
            rounds.append([])
        rounds[-1].append(test)
    return rounds[:MOST_ROUNDS]


def _file_of(test: str) -> Path:
    return ROOT / test.partition("::")[0]


def _reach(path: Path, line: int) -> Iterator[int]:
    """Lines of the statement on a line; of its function for a head; of the file for what an import runs."""
    inner: ast.AST = ast.parse(_text(path))
    within = False
    while True:
        below = [
            node
            for node in ast.walk(inner)
            if node is not inner
            and isinstance(node, ast.stmt)
            and _first(node) <= line <= (node.end_lineno or 0)
        ]
        if not below:
            break
        inner = max(below, key=lambda node: (node.end_lineno or 0) - _first(node))
        within = within or (isinstance(inner, ast.FunctionDef) and line >= inner.body[0].lineno)
    if isinstance(inner, ast.FunctionDef):
        return iter(range(inner.body[0].lineno, (inner.end_lineno or 0) + 1))
    if not within:
        return iter(range(1, _text(path).count("\n") + 2))
    body = getattr(inner, "body", None)
    return iter(range(inner.lineno, body[0].lineno if body else (inner.end_lineno or 0) + 1))


def _first(node: ast.stmt) -> int:
    return min([node.lineno, *(mark.lineno for mark in getattr(node, "decorator_list", ()))])


def report(drawn: dict[Path, tuple[list[Mutant], int]], results: Results) -> None:
    """Print the survivors with what was changed, and the score.

    Of a sample, which has as many of a small file as of a large one, there is a second: of all that there
    are, if those of a file that were not run are caught as often as those that were.
    """
    table, total = [], [0, 0, 0]
    for path, (mutants, number) in drawn.items():
        rows = [(mutant, row) for mutant in mutants if (row := results.get(path, mutant)) is not None]
        caught = sum(row["outcome"] in CAUGHT for _, row in rows)
        total = [a + b for a, b in zip(total, (caught, len(rows), number), strict=True)]
        table.append((str(path.relative_to(SOURCE / "clearsr")), caught, len(rows), number))
        for mutant, row in rows:
            if row["outcome"] not in CAUGHT:
                print(f"\n{path.relative_to(ROOT)}:{mutant.line} {mutant.operator} {row['outcome']}")
                changed = mutant.code(_text(path)) or ""
                lines = difflib.unified_diff(_text(path).splitlines(), changed.splitlines(), lineterm="", n=0)
                print("\n".join(line for line in list(lines)[2:] if not line.startswith("@@")))
    print(f"\n{'file':36}{'caught':>8}{'run':>6}{'of':>6}")
    for name, caught, ran, number in [*table, ("all", *total)]:
        print(f"{name:36}{caught:8}{ran:6}{number:6}  {caught / ran if ran else 0:7.1%}")
    expected = sum(number * caught / ran for _, caught, ran, number in table if ran)
    there = sum(number for _, _, ran, number in table if ran)
    print(f"{'by how many there are':50}{there:6}  {expected / there if there else 0:7.1%}")


if __name__ == "__main__":
    main()
