"""`python -m launch COMMAND ...`: the same as `malmoi COMMAND ...`, for accelerate, torchrun and srun."""

import sys

from launch.cli import main

sys.exit(main())
