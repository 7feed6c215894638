#!/usr/bin/env bash
# Trains on this node: one call a node, with Slurm, a Kubernetes JobSet or a hostfile; alone, on this machine.
#
#   launch.sh --root ROOT [--deepspeed_config FILE]              arguments are train.loop's
#   HOSTFILE=hosts NODE_RANK=1 launch.sh --root ROOT             on the second host of the file
#
# Starts one rank for every GPU (one where there is none) and passes SIGTERM and SIGUSR1 on to them: they save, and all
# end with 75. Ends with 0: finished; 75: stopped and saved, start it again; 2: what no restart mends; else a rank died. (torchrun and deepspeed both end with 1 for all of these, and kill
# a rank 30 s after SIGTERM, in the middle of its checkpoint.)
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

# ---- who is here -----------------------------------------------------------------------------------------------------
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

gpus=$(python -c 'import torch; print(torch.cuda.device_count())') || die "activate the environment first: see above"
num_ranks=${RANKS_PER_NODE:-$((gpus > 0 ? gpus : 1))}
export WORLD_SIZE=$((num_nodes * num_ranks))
cores=${SLURM_CPUS_ON_NODE:-$(env -u OMP_NUM_THREADS nproc)}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > num_ranks ? cores / num_ranks : 1))}  # more: many times slower
((gpus)) || export DS_ACCELERATOR=cpu

# ---- its ranks -------------------------------------------------------------------------------------------------------
pids=()
# shellcheck disable=SC2317  # called by traps
tell() { kill -s USR1 "${pids[@]}" 2>/dev/null || true; }
trap tell TERM USR1 INT
for ((local = 0; local < num_ranks; local++)); do
  RANK=$((node_rank * num_ranks + local)) LOCAL_RANK=$local python -m train.loop "$@" &
  pids+=($!)
done
echo "launch.sh: node $node_rank of $num_nodes, $num_ranks of $WORLD_SIZE ranks, master $MASTER_ADDR:$MASTER_PORT"

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
  ((rank_code == 0 || code == 2)) || ((code && rank_code != 2)) || code=$rank_code
  if ((code && ${#pids[@]})) && [[ -z $watchdog ]]; then end_others >/dev/null 2>&1 & watchdog=$!; fi
done
[[ -z $watchdog ]] || kill "$watchdog" 2>/dev/null || true
exit "$code"
