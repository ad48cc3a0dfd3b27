#!/bin/bash
# Prepares the tokenizer and the shards of a run folder of Malmoi, without a GPU. A start goes on from what is there.
# Written by `malmoi slurm`. Edit what you like and hand it to sbatch; the folder of --output must be there before.
@@{sbatch}

run=@@{run}
settings=@@{settings}

# The software.
@@{environment}
command=(@@{command})

set -uo pipefail
export OMP_NUM_THREADS=1
echo "malmoi: preparing $run with ${SLURM_CPUS_PER_TASK:-1} processes"
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" @@{srun_options}"${command[@]}"
