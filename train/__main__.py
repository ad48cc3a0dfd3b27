"""`python -m train`: the same as `malmoi train`, for accelerate, torchrun and srun."""

import sys

from launch.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
