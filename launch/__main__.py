"""`python -m malmoi.launch COMMAND ...`: the same as `malmoi COMMAND ...`, for accelerate, torchrun and srun."""

import sys

from malmoi.launch.cli import main

sys.exit(main())
