"""Runs `clearsr train` in one of torchrun's processes and writes down what this process ends with.

python -m torch.distributed.run ... torchrun_driver.py FOLDER CONFIG [FLAGS]

With COMPILE_BACKEND in the environment, torch.compile takes that one in place of inductor.
"""

import os
import sys
from functools import partialmethod
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from clearsr.cli import main
from clearsr.training import engine
from clearsr.training.state import TrainingState

if __name__ == "__main__":
    folder, arguments = Path(sys.argv[1]), sys.argv[2:]
    if backend := os.environ.get("COMPILE_BACKEND"):
        nn.Module.compile = partialmethod(nn.Module.compile, backend=backend)
        engine.try_compiler = lambda device, name: None
    states = []
    make = TrainingState.of
    TrainingState.of = classmethod(
        lambda cls, stage, config: states.append(make(stage, config)) or states[-1]
    )
    code = main(["train", *arguments])
    rank, world = os.environ["RANK"], os.environ["WORLD_SIZE"]
    tensors = {f"{group}/{n}": t for group, ts in states[0].tensors().items() for n, t in ts.items()}
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, folder / f"rank-{rank}-of-{world}.safetensors"
    )
    sys.exit(code)
