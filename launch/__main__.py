"""`python -m malmoi.launch COMMAND ...`: the same as `malmoi COMMAND ...`, for accelerate, torchrun and srun."""

from malmoi.process_end import run_to_end


def main() -> int:
    """Run the command line; imported late, so that nothing is registered for the process's end before its last part."""
    from malmoi.launch.cli import main

    return main()


run_to_end(main)
