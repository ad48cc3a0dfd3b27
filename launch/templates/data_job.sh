#!/bin/bash
# Prepares the tokenizer and the shards of a run folder of Malmoi, without a GPU. A restart resumes what is there.
# Written by `malmoi slurm`. Edit what you like and pass it to sbatch; the folder of --output must exist before.
@@{sbatch}

run=@@{run}
settings=@@{settings}

# Environment.
@@{environment}
command=(@@{command})

set -uo pipefail
export OMP_NUM_THREADS=1
echo "malmoi: preparing $run with ${SLURM_CPUS_PER_TASK:-1} processes"
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" @@{srun_options}"${command[@]}"
