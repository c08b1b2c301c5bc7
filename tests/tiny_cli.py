"""The command line with the tiny recipes of `learning`, for tests that need processes of their own: killed, or two."""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch

from concordct.cli import main
from concordct.pipelines import train as pipeline
from learning import recipes

torch.set_num_threads(1)
STEPS = 12

for name, recipe in recipes().items():
    phases = tuple((key, dataclasses.replace(phase, steps=STEPS, every=5)) for key, phase in recipe.phases)
    pipeline.RECIPES[name] = {"small": dataclasses.replace(recipe, phases=phases)}
if __name__ == "__main__":
    main()
