"""`python -m malmoi.train ...`: the same as `malmoi train ...`, for accelerate, torchrun and srun.

From a checkout also `python -m train`: everything that it imports is `malmoi.*`, so no module exists twice.
"""

import sys

from malmoi.launch.cli import main

sys.argv.insert(1, "train")
sys.exit(main())
