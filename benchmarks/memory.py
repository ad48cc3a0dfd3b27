"""Memory that a step takes above weights, gradients and optimizer state: Malmoi against HF's Trainer.

    python benchmarks/memory.py [--shape 124M] [--batch 8] [--device cuda --precision bf16] [--quick]

A side at a time, a process each: two steps, so that the optimizer has its moments, and then the peak of a third: of
the GPU's memory, or of resident memory above what Python and its libraries took before the model was made. From it 16
bytes a parameter are taken off: fp32 weights, gradients and AdamW's two moments. The last line is one JSON object.
"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from harness import new_parser, parse_options, prepare_work, print_figures
from sides.turns import Side

import malmoi
from malmoi.configs.model import ModelSettings

BYTES_A_PARAMETER = 16
SIDES = {"malmoi": "malmoi_trainer", "trainer": "hf_trainer"}


@dataclass(frozen=True)
class Figures:
    """MiB of each side, and Malmoi's fraction of the Trainer's."""

    shape: dict[str, int]
    device: str
    precision: str
    state_mib: float
    above_mib: dict[str, float]
    share: float


def main() -> None:
    options = parse_options(new_parser(__doc__, "124M", has_device=True))
    shape = options.shape
    state = BYTES_A_PARAMETER * malmoi.MODELS["gpt2"].num_params(ModelSettings(**shape.model), shape.vocab) / 2**20
    above = {}
    with tempfile.TemporaryDirectory() as name:
        work = prepare_work(Path(name), shape, options.device, options.precision)
        for side, script in SIDES.items():
            with Side(script, work, Path(name) / f"{side}.log") as running:
                running.steps(2)
                turn = running.steps(1)
            above[side] = round(turn.peak_mib - turn.at_rest_mib - state, 1)
    share = round(above["malmoi"] / above["trainer"], 3)
    print_figures(Figures(asdict(shape), options.device, options.precision, round(state, 1), above, share))


if __name__ == "__main__":
    main()
