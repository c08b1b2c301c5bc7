"""The command line with the tiny recipes of `learning`, for tests that need processes of their own: killed, or two."""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch

from concordct.cli import main
from learning import offer, recipes

torch.set_num_threads(1)
STEPS = 12

offer(
    {
        name: dataclasses.replace(
            recipe,
            phases=tuple((key, dataclasses.replace(phase, steps=STEPS, every=5)) for key, phase in recipe.phases),
        )
        for name, recipe in recipes().items()
    }
)
if __name__ == "__main__":
    main()
