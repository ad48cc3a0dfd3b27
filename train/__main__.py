"""`python -m malmoi.train ...`: the same as `malmoi train ...`, for accelerate, torchrun and srun.

From a checkout also `python -m train`: everything that it imports is `malmoi.*`, so no module exists twice.
"""

import sys

from malmoi.process_end import run_to_end


def main() -> int:
    """Run the command line; imported late, so that nothing is registered for the process's end before its last part."""
    from malmoi.launch.cli import main

    return main()


sys.argv.insert(1, "train")
run_to_end(main)
