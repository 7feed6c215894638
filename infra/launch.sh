#!/usr/bin/env bash
# Trains on this node: one call a node, with Slurm, a Kubernetes JobSet, SkyPilot or a hostfile; alone, on this machine.
#
#   launch.sh [train] --root ROOT [--deepspeed_config FILE]      the transformer; arguments are train.loop's
#   launch.sh train-tokenizer --root ROOT                        the tokenizer
#   launch.sh check                                              a short all-reduce over all ranks, and its speed
#   HOSTFILE=hosts NODE_RANK=1 launch.sh train --root ROOT       on the second host of the file
#
# Starts one rank for every GPU (one where there is none) and passes SIGTERM and SIGUSR1 on to them: they save, and all
# end with 75. Ends with 0: finished; 75: stopped and saved, start it again; 2: what no restart mends; else a rank died.
# (torchrun and deepspeed both end with 1 for all of these, and kill a rank 30 s after SIGTERM, in the middle of its
# checkpoint.)
#
# Taken from the environment where set, else from Slurm, the JobSet or the hostfile:
#   NUM_NODES  NODE_RANK  MASTER_ADDR  MASTER_PORT  RANKS_PER_NODE  OMP_NUM_THREADS  GRACE (seconds to end in)
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH}
GRACE=${GRACE:-60}

trap 'exit 75' TERM USR1  # no rank runs yet
die() { echo "launch.sh: $*" >&2; exit 2; }

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 501)) || die "needs bash 5.1 or newer, this is $BASH_VERSION"
stage=train
if [[ ${1:-} != -* && $# -gt 0 ]]; then stage=$1; shift; fi
case $stage in
  train) module=train.loop ;;
  train-tokenizer) module=tokenize_jobs.fit ;;
  check) module=infra.doctor.collective ;;
  *) die "$stage: give train, train-tokenizer or check" ;;
esac

# ---- which node this is ----------------------------------------------------------------------------------------------
node_rank=${NODE_RANK:-${SLURM_NODEID:-${JOB_COMPLETION_INDEX:-}}}
if [[ -n ${HOSTFILE:-} ]]; then  # lines of `host slots=N`
  mapfile -t hosts < <(sed -n 's/#.*//; s/^[[:space:]]*\([^[:space:]]\+\).*/\1/p' "$HOSTFILE")
  mapfile -t slots < <(sed -n 's/#.*//; s/^.*slots=\([0-9]\+\).*/\1/p' "$HOSTFILE")
  [[ ${#hosts[@]} -gt 0 && ${#hosts[@]} == "${#slots[@]}" ]] || die "$HOSTFILE: every line must be \`host slots=N\`"
  for i in "${!hosts[@]}"; do
    [[ ${slots[i]} == "${slots[0]}" ]] || die "$HOSTFILE: all hosts must have the same number of slots"
    [[ -n $node_rank || ${hosts[i]} != "$(hostname)" ]] || node_rank=$i
  done
  [[ -n $node_rank ]] || die "$HOSTFILE does not name $(hostname): set NODE_RANK to this host's line, counted from 0"
  NUM_NODES=${NUM_NODES:-${#hosts[@]}} RANKS_PER_NODE=${RANKS_PER_NODE:-${slots[0]}} MASTER_ADDR=${MASTER_ADDR:-${hosts[0]}}
fi
num_nodes=${NUM_NODES:-${SLURM_NNODES:-1}}
node_rank=${node_rank:-0}
export MASTER_ADDR=${MASTER_ADDR:-127.0.0.1} MASTER_PORT=${MASTER_PORT:-29500}
((node_rank < num_nodes)) || die "node rank $node_rank, but there are $num_nodes nodes"
[[ $num_nodes == 1 || $MASTER_ADDR != 127.0.0.1 || -n ${HOSTFILE:-} ]] || die "set MASTER_ADDR to the first node's address"

# ---- what it has -----------------------------------------------------------------------------------------------------
gpus=0
python -P -c 'import sys; from importlib.util import find_spec; sys.exit(not find_spec("torch"))' || die "activate the environment first: see above"
if compgen -G '/dev/nvidia[0-9]*' >/dev/null || [[ -e /dev/kfd || -e /dev/dxg ]]; then  # else torch need not count: it takes seconds
  gpus=$(python -P -c 'import torch; print(torch.cuda.device_count())') || die "torch cannot count the GPUs: see above"
fi
((gpus >= ${SLURM_GPUS_ON_NODE:-0})) || die "Slurm gave $SLURM_GPUS_ON_NODE GPUs, torch sees $gpus: \`dnd doctor\` says why"
num_ranks=${RANKS_PER_NODE:-$((gpus > 0 ? gpus : 1))}
cores=$(env -u OMP_NUM_THREADS nproc)
((cores <= ${SLURM_CPUS_ON_NODE:-$cores})) || cores=$SLURM_CPUS_ON_NODE  # where Slurm counts cores but binds nobody
((cores >= num_ranks)) || die "$cores cores for $num_ranks ranks on $(hostname): ask for whole nodes (sbatch --exclusive) or for cores with each GPU (--cpus-per-gpu)"
export WORLD_SIZE=$((num_nodes * num_ranks)) LOCAL_WORLD_SIZE=$num_ranks
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores / num_ranks))}  # more threads than cores: many times slower
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-10000}  # threads that wait soon sleep
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}  # fragments cost gigabytes else
((gpus)) || export DS_ACCELERATOR=cpu

# ---- its ranks -------------------------------------------------------------------------------------------------------
pids=() told=''
# shellcheck disable=SC2317  # called by traps
pass_on() { [[ -n $told ]] || remind >/dev/null 2>&1 & told=1; }
# shellcheck disable=SC2317
remind() { while kill -s USR1 "${pids[@]}"; do sleep 1; done; }  # a rank that is just being started may miss one
trap pass_on TERM USR1 INT
for ((local_rank = 0; local_rank < num_ranks; local_rank++)); do
  RANK=$((node_rank * num_ranks + local_rank)) LOCAL_RANK=$local_rank python -P -m "$module" "$@" &
  pids+=($!)
done
echo "launch.sh: $stage, node $node_rank of $num_nodes, $num_ranks of $WORLD_SIZE ranks on $cores cores, master $MASTER_ADDR:$MASTER_PORT"

end_others() {  # they hang in a collective, or end by themselves
  trap 'kill $!; exit' TERM
  sleep "$GRACE" &
  wait $!
  kill -s KILL "${pids[@]}" 2>/dev/null
}

code=0 watchdog=''
while ((${#pids[@]})); do
  rank_code=0
  wait -n -p ended "${pids[@]}" || rank_code=$?
  [[ -n ${ended:-} ]] || continue  # a signal came, no rank ended
  for i in "${!pids[@]}"; do [[ ${pids[i]} != "$ended" ]] || unset 'pids[i]'; done
  [[ -z $told ]] || ((rank_code <= 128)) || rank_code=75  # the signal came before the rank listened: nothing to save
  ((rank_code == 0 || code == 2)) || ((code && rank_code != 2)) || code=$rank_code
  if ((code && ${#pids[@]})) && [[ -z $watchdog ]]; then end_others >/dev/null 2>&1 & watchdog=$!; fi
done
[[ -z $watchdog ]] || kill "$watchdog" 2>/dev/null || true
exit "$code"
