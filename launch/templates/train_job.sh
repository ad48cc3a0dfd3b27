#!/bin/bash
# shellcheck disable=SC2329 # functions that traps and tasks call look unused
# Trains a run folder of Malmoi: saves a checkpoint ahead of the time limit and resumes in the next allocation.
# Written by `malmoi slurm`. Edit what you like and pass it to sbatch; the folder of --output must exist before.
@@{sbatch}

# What to train. Every node must see these paths.
run=@@{run}
settings=@@{settings}
checkpoints=@@{checkpoints}
# Consecutive restarts without a new checkpoint before the job gives up.
retries=@@{retries}
# Seconds between the signal to stop and the time limit: --signal above says the same.
signal_lead_seconds=@@{signal_lead_seconds}
# true: each job queues a job of its own that resumes after it. false: this job is requeued.
chain=@@{chain}

# Environment.
@@{environment}
command=(@@{command})

set -uo pipefail

# The usual settings. What is set when the job is submitted stays.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
# The tokenizers in each rank would otherwise start a thread a core.
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
@@{network}
task=${SLURM_ARRAY_TASK_ID:-}
# In an array, SLURM_JOB_ID may be the id of the array itself, and requeueing it would requeue every task.
id=${task:+${SLURM_ARRAY_JOB_ID}_$task}
id=${id:-$SLURM_JOB_ID}
restart=$((${SLURM_RESTART_COUNT:-0} + ${MALMOI_CHAIN_LINK:-0}))
starts=$run/slurm/starts
logs=$run/slurm/$id-$restart
next_job=

say() { echo "malmoi: $*"; }

if ! mkdir -p "$logs"; then
  say "$logs cannot be created on $(hostname): put the run folder on a shared file system"
  exit 2
fi

# Step of the newest checkpoint. A remote store cannot be listed here: its last logged step shows progress as well.
newest_step() {
  local folder step newest=0
  if is_remote; then
    newest=$(tail -n 1 "$run/metrics.jsonl" 2> /dev/null | sed -n 's/^{"step": \([0-9]*\).*/\1/p')
    echo "${newest:-0}"
    return
  fi
  for folder in "$checkpoints"/step-*; do
    step=${folder##*/step-}
    if [[ $step =~ ^[0-9]+$ ]] && ((10#$step > newest)); then newest=$((10#$step)); fi
  done
  echo "$newest"
}

is_remote() { [[ $checkpoints == *://* ]]; }
newest_checkpoint() { if is_remote; then echo "the newest checkpoint"; else echo "step $(newest_step)"; fi; }

# Consecutive starts without a new checkpoint, after a start that began at step $1 with $2 of them before it.
starts_without_progress() {
  if (($(newest_step) > $1)); then echo 0; else echo $(($2 + 1)); fi
}

give_up() {
  say "$1 consecutive starts made no progress after step $(newest_step), so the job is not restarted." \
    "Fix what the logs in $run/slurm show, then submit again"
  cancel_next_job
  exit 1
}

queue_next_job() (
  # sbatch would take this job's own SLURM_ variables for options of the next job.
  for name in "${!SLURM_@}"; do
    if [ "$name" != SLURM_CONF ]; then unset "$name"; fi
  done
  export MALMOI_CHAIN_LINK=$((restart + 1))
  sbatch --parsable --export=ALL --dependency="afterany:$id" ${task:+--array="$task"} "$0"
)

cancel_next_job() {
  if [ -n "$next_job" ]; then scancel "$next_job"; fi
  next_job=
}

# Resume in another allocation, unless too many starts in a row wrote no checkpoint.
resume_later() {
  local now_without_progress
  now_without_progress=$(starts_without_progress "$began_at" "$without_progress")
  if ((now_without_progress > retries)); then give_up "$now_without_progress"; fi
  if [ -n "$next_job" ]; then
    say "job $next_job resumes from $(newest_checkpoint)"
  else
    # Printed before the request: Slurm may end this shell at once.
    say "requeueing job $id, to resume from $(newest_checkpoint)"
    scontrol requeue "$id" || say "this cluster does not requeue jobs: submit again, or use --chain"
  fi
  exit 75
}

# A line without its end, of a start that was killed while writing it, would be joined with this one's.
if [ -n "$(tail -c 1 "$starts" 2> /dev/null)" ]; then sed -i '$d' "$starts"; fi
began_at=$(newest_step)
without_progress=0
if ((restart > 0)) && [ -s "$starts" ]; then
  read -r _ _ step_before without_progress_before _ < <(tail -n 1 "$starts")
  without_progress=$(starts_without_progress "$step_before" "$without_progress_before")
fi
if ((without_progress > retries)); then give_up "$without_progress"; fi
if $chain; then
  next_job=$(queue_next_job) || say "could not queue the next job of the chain"
fi
echo "$id $restart $began_at $without_progress $(date +%s) ${next_job:--}" >> "$starts"

# Rank 0 listens on the first node. Two jobs there need two ports: their ids differ, the lock separates jobs whose ids
# give the same port, and a port that anything else listens on is skipped.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
choose_port() {
  local tries
  for ((tries = 0; tries < 200; tries++)); do
    MASTER_PORT=$((12000 + (SLURM_JOB_ID + tries) % 20000))
    # Opened for appending, since the name could be another user's link to a file of ours.
    if { exec {port_lock}>> "/tmp/malmoi-port-$MASTER_PORT.lock"; } 2> /dev/null; then
      if flock --nonblock "$port_lock" && ! is_listened_on "$MASTER_ADDR" && ! is_listened_on 127.0.0.1; then return; fi
      exec {port_lock}>&-
    fi
  done
  say "could not lock any of $tries ports up to $MASTER_PORT on $MASTER_ADDR: check that flock is installed and /tmp" \
    "is writable there, then submit again"
  cancel_next_job
  exit 1
}
is_listened_on() { (: > "/dev/tcp/$1/$MASTER_PORT") 2> /dev/null; }
choose_port
export MASTER_ADDR MASTER_PORT

# Runs in each task: starts one rank and reports how it exited.
start_rank() {
  local logs=$1 cache code
  shift
  export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS
  export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=${SLURM_NTASKS_PER_NODE:-1}
  # Compiled code goes to this node's own disk: many nodes sharing a cache in the home folder are slow and read
  # half-written files.
  cache=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/malmoi-cache-$UID
  mkdir -m 700 "$cache" 2> /dev/null
  # Never run code that another user could have put there.
  if [ ! -O "$cache" ]; then cache=$(mktemp -d); fi
  export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$cache/triton}
  export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$cache/torchinductor}
  export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$cache/torch_extensions}
  export NUMBA_CACHE_DIR=${NUMBA_CACHE_DIR:-$cache/numba}
  # Stop signals reach the rank too; this shell must survive them to report how the rank exited.
  trap : TERM USR1 INT
  "$@"
  code=$?
  # Slurm and the job script may each send one: the second would kill what writes the report.
  trap '' TERM USR1 INT
  if ((code == 75)); then
    # Stopped with a checkpoint saved. With a code other than 0, Slurm would kill the ranks that are still saving.
    : > "$logs/stopped"
    code=0
  elif ((code != 0)); then
    echo "malmoi: rank $RANK on $(hostname) exited with code $code$( ((code > 128)) && echo ", signal $((code - 128))")"
    # The first rank to fail is the cause: the others fail because of it.
    (set -o noclobber && echo "$RANK $code $(hostname)" > "$logs/failed") 2> /dev/null
  fi
  exit "$code"
}

say "job $id, restart $restart, on $SLURM_JOB_NODELIST: $SLURM_NTASKS ranks, rendezvous $MASTER_ADDR:$MASTER_PORT," \
  "from $(newest_checkpoint); rank logs are in $logs"
if ((SLURM_JOB_NUM_NODES > 1)) &&
  ! srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 test -d "$logs"; then
  say "$run is not visible on every node: put the run folder on a shared file system"
  cancel_next_job
  exit 2
fi
if [ -e "$run/.training.lock" ]; then
  # After a node failure, the file system may take a while to release the lock of the process that trained there.
  flock --timeout 180 "$run/.training.lock" true || say "another process still seems to train $run"
fi

ranks=
asked_by=
timer=
ask_to_stop() {
  asked_by=$1
  say "received SIG$1: asking the ranks to save and stop"
  # Every rank takes SIGUSR1 as the request to stop. srun would kill them on SIGTERM.
  if [ -n "$ranks" ]; then kill -USR1 "$ranks" 2> /dev/null; fi
}
out_of_time() {
  say "the ranks did not stop in time: steps after the newest checkpoint are lost"
  resume_later
}
time_limit_is_near() {
  ask_to_stop USR1
  (sleep $((signal_lead_seconds * 3 / 4)) && kill -ALRM $$) &
  timer=$!
}
# Whether a user canceled the job. A preempted job gets SIGTERM too and must resume: if it ends before its grace period
# does, Slurm itself would not requeue it.
was_canceled() {
  local job
  # What ends the job may end scontrol too, and a busy controller may not answer at first.
  for _ in 1 2 3; do
    job=$(scontrol --oneliner show job "$id")
    if [ -n "$job" ]; then break; fi
    sleep 1
  done
  [ -n "$job" ] || return
  [[ $job != *JobState=RUNNING* ]] || { [ "$asked_by" = TERM ] && [[ ! $job =~ \ PreemptTime=[0-9] ]]; }
}
canceled_or_preempted() {
  local asked_before=$asked_by
  ask_to_stop TERM
  # Now, since Slurm may end this shell before the ranks are done.
  if [ -z "$asked_before" ] && was_canceled; then cancel_next_job; fi
}
trap time_limit_is_near USR1
trap canceled_or_preempted TERM
trap out_of_time ALRM

# A trap runs only while this shell waits, so the ranks run in the background.
srun --kill-on-bad-exit=1 --wait=600 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --output="$logs/rank-%t.log" \
  @@{srun_options}bash -c "$(declare -f start_rank); start_rank \"\$@\"" start_rank "$logs" "${command[@]}" &
ranks=$!
if [ -n "$asked_by" ]; then kill -USR1 "$ranks"; fi
while kill -0 "$ranks" 2> /dev/null; do wait "$ranks"; done
wait "$ranks"
code=$?
trap '' USR1 ALRM
# When it fires, this shell's process id may belong to another process.
if [ -n "$timer" ]; then kill "$timer" 2> /dev/null; fi

if [ -e "$logs/failed" ]; then
  read -r rank code node < "$logs/failed"
  say "rank $rank on $node exited with code $code; the end of $logs/rank-$rank.log:"
  tail -n 20 "$logs/rank-$rank.log"
elif [ "$code" = 0 ] && [ -e "$logs/stopped" ]; then
  code=75
fi
if [ "$code" = 0 ]; then
  say "done: $run"
  cancel_next_job
  exit 0
elif [ "$code" = 2 ]; then
  say "bad input: a restart would not help, so the job is not requeued"
  cancel_next_job
  exit 2
elif was_canceled; then
  say "canceled: submit again to resume from $(newest_checkpoint)"
  cancel_next_job
  exit 75
fi
resume_later
