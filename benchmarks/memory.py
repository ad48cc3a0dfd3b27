"""Memory that a step takes above weights, gradients and optimiser state: Malmoi against HF's Trainer.

    python benchmarks/memory.py [--shape 124M] [--batch 8] [--device cuda --precision bf16] [--quick]

A side at a time, a process each: two steps, so that the optimiser has its moments, and then the peak of a third: of
the GPU's memory, or of resident memory above what Python and its libraries took before the model was made. From it 16
bytes a parameter are taken off: fp32 weights, gradients and AdamW's two moments. The last line is one JSON object.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from sides.data import add_shape_options, asked_shape, prepared, set_threads
from sides.turns import Side

from configs.schema import ModelSettings
from train.size import parameter_count

BYTES_A_PARAMETER = 16
SIDES = {"malmoi": "malmoi.py", "trainer": "hf_trainer.py"}


@dataclass(frozen=True)
class Figures:
    """MiB of each side, and Malmoi's share of the Trainer's."""

    shape: dict[str, int]
    device: str
    precision: str
    state_mib: float
    above_mib: dict[str, float]
    share: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_options(parser, "124M")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    shape = asked_shape(options)
    set_threads(None)
    model = ModelSettings(shape.layers, max(1, shape.width // 64), shape.width, shape.block)
    state = BYTES_A_PARAMETER * parameter_count(model, shape.vocab) / 2**20
    above = {}
    with tempfile.TemporaryDirectory() as name:
        work = prepared(Path(name), shape, options.device, options.precision)
        for side, script in SIDES.items():
            with Side(script, work, Path(name) / f"{side}.log") as running:
                running.steps(2)
                turn = running.steps(1)
            above[side] = round(turn.peak_mib - turn.at_rest_mib - state, 1)
    share = round(above["malmoi"] / above["trainer"], 3)
    figures = Figures(asdict(shape), options.device, options.precision, round(state, 1), above, share)
    for side, mib in above.items():
        print(f"{side:8} {mib:10,.0f} MiB above {state:,.0f} MiB of weights, gradients and moments")
    print(f"malmoi takes {share:.0%} of the Trainer's")
    print(json.dumps(asdict(figures)))


if __name__ == "__main__":
    main()
