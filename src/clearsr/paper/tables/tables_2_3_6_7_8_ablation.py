"""Tables 2, 3, 6, 7 and 8: one network trained and evaluated for each row, beside the published rows.

The rows are the overlays of a folder such as configs/ablations. As they are, they are the paper's runs on
Stable Diffusion; over another recipe only their switches count, so that a small model can be tried.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clearsr.atomic import write_text
from clearsr.config.base import build_config, merge, parse_yaml, read_yaml
from clearsr.config.sampling import SamplingConfig
from clearsr.config.training import TrainConfig
from clearsr.errors import ClearSRError
from clearsr.evaluation.evaluate import Evaluation, evaluate_method
from clearsr.evaluation.measures import Scorer
from clearsr.evaluation.methods import clearsr_method
from clearsr.evaluation.pairs import ImagePair
from clearsr.evaluation.results import as_document, read_results, to_json
from clearsr.evaluation.table import Table, TableRow, paired_notes, summary_row
from clearsr.paper.tables.published import published_table
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.training.engine import fit
from clearsr.training.run_folder import steps_done
from clearsr.training.setup import model_beside, write_start

logger = logging.getLogger(__name__)

TABLES = (2, 3, 6, 7, 8)
RESULT = "result.json"
_LABELS = ("values", "recipe")  # of a published row; the other keys are its cells


@dataclass(frozen=True)
class AblationRow:
    """One row of a table: the overlay that makes it, and its cells."""

    table: int
    overlay: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class AblationPlan:
    """What all rows share.

    Attributes:
        overlays: folder of the overlays.
        output: a folder per row goes here.
        recipe: the recipe that the overlays' switches are laid over; None: what they extend.
        source: model of our own that stands in for the base (see `write_start`); None: as the recipe says.
        changes: settings over those of every row, such as steps and data.
        sampling: of the evaluation.
    """

    overlays: Path
    output: Path
    recipe: Path | None
    source: str | None
    changes: Mapping[str, Any]
    sampling: SamplingConfig | None = None


def rows_of(tables: Sequence[int]) -> list[AblationRow]:
    """The rows of these tables, in the paper's order.

    Raises:
        ClearSRError: a table is none of the ablations.
    """
    rows = []
    for table in tables:
        if table not in TABLES:
            accepted = ", ".join(map(str, TABLES))
            raise ClearSRError(f"--tables {table}: accepted are {accepted} (Table 4 is clearsr sweep-lsa)")
        for row in published_table(table)["rows"]:
            cells = tuple(str(value) for key, value in row.items() if key not in _LABELS)
            rows.append(AblationRow(table, row["recipe"], cells))
    return rows


def row_config(row: AblationRow, plan: AblationPlan) -> TrainConfig:
    """The training run of a row.

    Raises:
        ClearSRError: an overlay is missing, or the settings do not fit together.
    """
    path = plan.overlays / f"{row.overlay}.yaml"
    if plan.recipe is None:
        values = read_yaml(path)
    else:
        switches = _switches(path)
        values = merge(read_yaml(plan.recipe), {"model": switches})
        if "lora_rank" in switches.get("lr_encoder", {}):
            # Tables 3 and 7 are about E' as a LoRA on E; an E' of its own gives way to it.
            values = merge(values, {"model": {"lr_encoder": {"kind": "lora"}}})
    values = merge(values, {**plan.changes, "output": str(plan.output / row.overlay / "run")})
    if plan.source is not None:
        model = model_beside(plan.source, values.get("model", {}))
        values = {**values, "model": model.model_dump(mode="json")}
        values["init_from"] = [str(plan.output / row.overlay / "start")]
    return build_config(TrainConfig, values)


def run_row(
    row: AblationRow,
    plan: AblationPlan,
    pairs: Sequence[ImagePair],
    scorer: Scorer,
    seeds: Sequence[int] = (0,),
) -> Evaluation:
    """Train (or go on training, or take what is there) and evaluate one row.

    A row whose result was written under the same settings and pictures is read, not run again.

    Raises:
        ClearSRError: the training or the evaluation cannot be done, or the training was stopped.
    """
    config = row_config(row, plan)
    folder = plan.output / row.overlay
    sampling = plan.sampling or config.validation.sampling
    settings = {
        "recipe": config.model_dump(mode="json"),
        "sampling": sampling.model_dump(mode="json"),
        "images": [pair.name for pair in pairs],
        "seeds": list(seeds),
    }
    settings = json.loads(json.dumps(settings))
    if (folder / RESULT).is_file():
        (known,) = read_results(folder / RESULT)
        if known.settings == settings and known.config == scorer.config:
            logger.info("%s: measured already", row.overlay)
            return known
    if plan.source is not None and not (folder / "start").is_dir():
        write_start(plan.source, config.model, folder / "start", config.seed)
    export = fit(config, resume="latest")
    done = steps_done(config.output)
    if done < config.steps:  # stopped by a signal: not the row's network yet, so nothing is measured
        raise ClearSRError(
            f"{row.overlay}: stopped after step {done} of {config.steps}; the same command goes on there"
        )
    pipeline = ClearSRPipeline.from_pretrained(export, precision=config.precision)
    method = clearsr_method(row.overlay, pipeline, sampling)
    evaluation = evaluate_method(method, pairs, scorer, seeds)
    evaluation.settings = settings
    write_text(folder / RESULT, to_json(as_document([evaluation], scorer)))
    return evaluation


def run_ablations(
    rows: Sequence[AblationRow],
    run: Callable[[AblationRow], Evaluation],
    config_of: Callable[[AblationRow], TrainConfig],
) -> dict[AblationRow, Evaluation]:
    """Every row's evaluation; rows that are one and the same network (the full model) are run once."""
    found: dict[str, Evaluation] = {}
    results = {}
    for row in rows:
        same = {"output": Path("."), "init_from": ()}
        key = config_of(row).model_copy(update=same).model_dump_json()
        if key not in found:
            found[key] = run(row)
        results[row] = found[key]
    return results


def ablation_table(number: int, measured: Mapping[AblationRow, Evaluation], note: str) -> Table:
    """A table in the paper's form: its rows, then ours; below it the last row less each of the others."""
    published = published_table(number)
    heads = tuple(key for key in published["rows"][0] if key not in _LABELS)
    rows = [
        TableRow(("paper", *row.cells), values["values"], group="paper")
        for row, values in zip(rows_of([number]), published["rows"], strict=True)
    ]
    own = [(row, evaluation) for row, evaluation in measured.items() if row.table == number]
    rows += [summary_row(evaluation, ("measured", *row.cells), "measured") for row, evaluation in own]
    names = {name for _, evaluation in own for name in evaluation.names}
    extra = [name for name in ("niqe",) if name in names and "niqe_pyiqa" not in names]
    measures = (*published["measures"], *extra)
    named = [
        replace(evaluation, method=", ".join(map(": ".join, zip(heads, row.cells, strict=True))))
        for row, evaluation in reversed(own)
    ]
    notes = (
        f"Published: {published['source']}, Table {number}, {published['dataset']}.",
        note,
        *paired_notes(named, [name for name in measures if name in names]),
    )
    return Table(f"Table {number}: {published['title']}", ("", *heads), measures, tuple(rows), notes)


def _switches(path: Path) -> dict[str, Any]:
    """What an overlay itself says of the model, without the files that it extends."""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ClearSRError(f"{path}: cannot be read as an overlay ({error})") from None
    model = values.get("model", {}) if isinstance(values, dict) else None
    if not isinstance(model, dict):
        raise ClearSRError(f"{path}: expected a mapping of settings")
    return model
