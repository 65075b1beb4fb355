"""`clearsr train`: one stage of training from YAML recipes."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from clearsr.cli.flags import add_config_files, build, collect
from clearsr.cli.terminal import show_information, write_line
from clearsr.config.training import TrainConfig

_EPILOG = """\
The run goes to the recipe's `output` folder: config.yaml, metrics.jsonl, checkpoints, and `export`, the model
that `clearsr upscale --model` takes. Ctrl-C stops after the step in hand and saves; --resume latest goes on
(exit code 130, after SIGTERM 143).
Several processes: torchrun --nproc-per-node N -m clearsr train CONFIG.

examples:
  clearsr train configs/compact-1-autoencoder.yaml --set 'data.train=[photographs]'
  clearsr train recipe.yaml --dry-run
  clearsr train recipe.yaml --resume latest --set steps=20000 --set optimizer.learning_rate=1e-4
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "config", nargs="+", type=Path, metavar="CONFIG", help="YAML recipes; the values of later ones win"
    )
    parser.add_argument(
        "--resume", metavar="latest|FOLDER", help="go on from the newest or a given checkpoint"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what the run would train, hold in memory and read, and stop before the first step",
    )
    add_config_files(parser, "optimizer.learning_rate=1e-4", with_files=False)


def run(args: Namespace) -> int:
    """Train, and say where the model is."""
    config = build(TrainConfig, collect(args, {}))

    show_information()
    if args.dry_run:
        from clearsr.training.dry_run import plan_run

        for line in plan_run(config).lines():
            write_line(line)
        return 0
    from clearsr.training.engine import fit
    from clearsr.training.run_folder import steps_done

    signals: list[int] = []
    export = fit(config, args.resume, signals.append)
    if signals and steps_done(config.output) < config.steps:
        return 128 + signals[0]  # as the system says of what a signal ended: the stage is not done
    write_line(str(export))
    return 0
