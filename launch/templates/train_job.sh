#!/bin/bash
# shellcheck disable=SC2329 # functions that traps and tasks call look unused
# Trains a run folder of Malmoi: saves ahead of the time limit and goes on in the next allocation by itself.
# Written by `malmoi slurm`. Edit what you like and hand it to sbatch; the folder of --output must be there before.
@@{sbatch}

# What to train. Every node must see these paths.
run=@@{run}
settings=@@{settings}
# Starts in a row that may end without a new checkpoint before the job gives up.
retries=@@{retries}
# Seconds between the warning and the time limit: --signal above says the same.
warning_seconds=@@{warning_seconds}
# true: a job of its own goes on, queued as soon as this one runs. false: this job is requeued.
until_done=@@{until_done}

# The software.
@@{environment}
command=(@@{command})

set -uo pipefail

# The field's settings. What is set when the job is submitted stays.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
# A rank whose peer is gone ends with an error instead of waiting for ever.
export TORCH_NCCL_ASYNC_ERROR_HANDLING="${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}"
# Tokenizers in each rank would otherwise start a thread a core.
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
@@{network}
task=${SLURM_ARRAY_TASK_ID:-}
# In an array, SLURM_JOB_ID may be the id of the whole array, and requeueing it would requeue every task.
id=${task:+${SLURM_ARRAY_JOB_ID}_$task}
id=${id:-$SLURM_JOB_ID}
again=$((${SLURM_RESTART_COUNT:-0} + ${MALMOI_CHAIN_LINK:-0}))
starts=$run/slurm/starts
logs=$run/slurm/$id-$again
successor=

say() { echo "malmoi: $*"; }

if ! mkdir -p "$logs"; then
  say "$logs cannot be made on $(hostname): put the run folder on a disk that every node sees"
  exit 2
fi

newest_step() {
  local folder step newest=0
  for folder in "$run"/checkpoints/step-*; do
    step=${folder##*/step-}
    if [[ $step =~ ^[0-9]+$ ]] && ((10#$step > newest)); then newest=$((10#$step)); fi
  done
  echo "$newest"
}

# Starts in a row without a new checkpoint, given the newest step at the start that ended and the number before it.
fruitless_after() {
  if (($(newest_step) > $1)); then echo 0; else echo $(($2 + 1)); fi
}

give_up() {
  say "$1 starts in a row brought no checkpoint after step $(newest_step); not started again." \
    "Mend what the logs in $run/slurm show, then submit again"
  end_chain
  exit 1
}

queue_successor() (
  # What Slurm tells this job would otherwise be taken for wishes of the next.
  for name in "${!SLURM_@}"; do
    if [ "$name" != SLURM_CONF ]; then unset "$name"; fi
  done
  export MALMOI_CHAIN_LINK=$((again + 1))
  sbatch --parsable --export=ALL --dependency="afterany:$id" ${task:+--array="$task"} "$0"
)

end_chain() {
  if [ -n "$successor" ]; then scancel "$successor"; fi
  successor=
}

# Go on in another allocation, unless too many brought nothing.
go_on() {
  local fruitless_now
  fruitless_now=$(fruitless_after "$began_at" "$fruitless")
  if ((fruitless_now > retries)); then give_up "$fruitless_now"; fi
  if [ -n "$successor" ]; then
    say "job $successor goes on from step $(newest_step)"
  else
    # Said before: Slurm may end this shell at once.
    say "asks to be requeued as $id, to go on from step $(newest_step)"
    scontrol requeue "$id" || say "this cluster requeues no jobs: submit again, or use --until_done"
  fi
  exit 75
}

# A line without its end, of a start that was killed at it, would swallow this one's.
if [ -n "$(tail -c 1 "$starts" 2> /dev/null)" ]; then sed -i '$d' "$starts"; fi
began_at=$(newest_step)
fruitless=0
if ((again > 0)) && [ -s "$starts" ]; then
  read -r _ _ step_before fruitless_before _ < <(tail -n 1 "$starts")
  fruitless=$(fruitless_after "$step_before" "$fruitless_before")
fi
if ((fruitless > retries)); then give_up "$fruitless"; fi
if $until_done; then
  successor=$(queue_successor) || say "no job could be queued to go on after this one"
fi
echo "$id $again $began_at $fruitless $(date +%s) ${successor:--}" >> "$starts"

# Rank 0 listens on the first node. Two jobs there need two ports: their ids differ, the lock keeps apart jobs whose
# ids give the same port, and a port that anything else listens on is passed over.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
choose_port() {
  local tries
  for ((tries = 0; tries < 200; tries++)); do
    MASTER_PORT=$((12000 + (SLURM_JOB_ID + tries) % 20000))
    # Appended to, since the name could be another user's link to a file of ours.
    if { exec {port_lock}>> "/tmp/malmoi-port-$MASTER_PORT.lock"; } 2> /dev/null; then
      if flock --nonblock "$port_lock" && ! is_listened_on "$MASTER_ADDR" && ! is_listened_on 127.0.0.1; then return; fi
      exec {port_lock}>&-
    fi
  done
  say "none of $tries ports up to $MASTER_PORT could be locked on $MASTER_ADDR: see that flock is installed there and that" \
    "/tmp can be written to, then submit again"
  end_chain
  exit 1
}
is_listened_on() { (: > "/dev/tcp/$1/$MASTER_PORT") 2> /dev/null; }
choose_port
export MASTER_ADDR MASTER_PORT

# What each task does: it becomes one rank, and says how the rank ended.
start_rank() {
  local logs=$1 cache code
  shift
  export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS
  export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=${SLURM_NTASKS_PER_NODE:-1}
  # Compiled code on this node's own disk: many nodes at one cache in the home folder are slow and meet half files.
  cache=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/malmoi-cache-$UID
  mkdir -m 700 "$cache" 2> /dev/null
  # Code that another user could have put there is not run.
  if [ ! -O "$cache" ]; then cache=$(mktemp -d); fi
  export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$cache/triton}
  export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$cache/torchinductor}
  export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$cache/torch_extensions}
  export NUMBA_CACHE_DIR=${NUMBA_CACHE_DIR:-$cache/numba}
  # Stop signals reach the rank too; this shell must live on to say how it ended.
  trap : TERM USR1 INT
  "$@"
  code=$?
  if ((code == 75)); then
    # Stopped with a checkpoint saved. A code other than 0 would have Slurm kill the ranks that are still at it.
    touch "$logs/stopped"
    code=0
  elif ((code != 0)); then
    echo "malmoi: rank $RANK on $(hostname) ended with code $code$( ((code > 128)) && echo ", signal $((code - 128))")"
    # The first to fail is the one to look at: the others fail because of it.
    (set -o noclobber && echo "$RANK $code $(hostname)" > "$logs/failed") 2> /dev/null
  fi
  exit "$code"
}

say "job $id, start $again, on $SLURM_JOB_NODELIST: $SLURM_NTASKS ranks, rendezvous $MASTER_ADDR:$MASTER_PORT," \
  "from step $began_at; each rank's log is in $logs"
if ((SLURM_JOB_NUM_NODES > 1)) &&
  ! srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 test -d "$logs"; then
  say "$run is not there on every node: put the run folder on a disk that all of them see"
  end_chain
  exit 2
fi
if [ -e "$run/.training.lock" ]; then
  # After a node is lost, the disk may take a while to know that whoever trained there is gone.
  flock --timeout 180 "$run/.training.lock" true || say "another process seems to train $run still"
fi

ranks=
asked_by=
timer=
ask_to_stop() {
  asked_by=$1
  say "SIG$1: the ranks are asked to save and stop"
  # Every rank takes SIGUSR1 as the wish to stop. srun would kill them for SIGTERM.
  if [ -n "$ranks" ]; then kill -USR1 "$ranks" 2> /dev/null; fi
}
out_of_time() {
  say "the ranks did not stop in time: what they did since their newest checkpoint is lost"
  go_on
}
time_is_nearly_up() {
  ask_to_stop USR1
  (sleep $((warning_seconds * 3 / 4)) && kill -ALRM $$) &
  timer=$!
}
# Whether somebody wants no more of this job. A pre-empted job is told to stop too, and is to go on: where it ends
# before its grace period does, Slurm itself would not requeue it.
was_cancelled() {
  local job
  # What ends the job may meet scontrol too, and a busy controller may not answer at first.
  for _ in 1 2 3; do
    job=$(scontrol --oneliner show job "$id")
    if [ -n "$job" ]; then break; fi
    sleep 1
  done
  [ -n "$job" ] || return
  [[ $job != *JobState=RUNNING* ]] || { [ "$asked_by" = TERM ] && [[ ! $job =~ \ PreemptTime=[0-9] ]]; }
}
cancelled_or_preempted() {
  local asked_before=$asked_by
  ask_to_stop TERM
  # Now, since Slurm may end this shell before the ranks are done.
  if [ -z "$asked_before" ] && was_cancelled; then end_chain; fi
}
trap time_is_nearly_up USR1
trap cancelled_or_preempted TERM
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
# By the time it rings, this shell's number may be another process's.
if [ -n "$timer" ]; then kill "$timer" 2> /dev/null; fi

if [ -e "$logs/failed" ]; then
  read -r rank code node < "$logs/failed"
  say "rank $rank on $node ended with code $code; the end of $logs/rank-$rank.log:"
  tail -n 20 "$logs/rank-$rank.log"
elif [ "$code" = 0 ] && [ -e "$logs/stopped" ]; then
  code=75
fi
if [ "$code" = 0 ]; then
  say "done: $run"
  end_chain
  exit 0
elif [ "$code" = 2 ]; then
  say "bad input: starting again would not help, so the job is not requeued"
  end_chain
  exit 2
elif was_cancelled; then
  say "cancelled: the newest checkpoint is of step $(newest_step); submit again to go on from it"
  end_chain
  exit 75
fi
go_on
