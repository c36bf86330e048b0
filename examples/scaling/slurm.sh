#!/usr/bin/env bash
# Trains on several nodes of a SLURM cluster:
#
#     sbatch slurm.sh humanoid.yaml /shared/runs/humanoid [OPTIONS OF es-train]
#     RANKS_PER_NODE=gpu sbatch --gpus-per-node=8 slurm.sh humanoid_gpu.yaml /shared/runs/humanoid_gpu
#
# Put the configuration and the run directory on storage that all nodes share. Rank 0 alone uses them, but it may be on
# any node, and on another one after a requeue.

#SBATCH --job-name=es-train
#SBATCH --output=es-train-%j.log
#SBATCH --time=24:00:00
#SBATCH --nodes=4

# One task per node: torchrun, which starts the ranks of its node. A rank uses its share of these cores.
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32

# SIGTERM 60 seconds before the time limit, which torchrun passes on: the run is saved. Without "B:" it goes to torchrun
# and not to this script; sent to srun, it would kill the run.
#SBATCH --signal=TERM@60

# After a preemption or the failure of a node, SLURM starts this script again, and "--resume auto" continues the run.
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail

usage="usage: sbatch slurm.sh CONFIG DIR [OPTIONS OF es-train]"
config=${1:?$usage}
out=${2:?$usage}
shift 2

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + SLURM_JOB_ID % 10000)) # of its own for each job, in case two jobs share a node

# SLURM may signal this shell, too (scancel --full). It waits for the run to be saved.
trap : TERM

# --cpus-per-task: since SLURM 22.05, srun does not take it from the job.
# --kill-on-bad-exit=0: the first torchrun that ends must not kill rank 0 while it saves.
status=0
srun --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 \
    torchrun --nnodes "${#nodes[@]}" --nproc-per-node "${RANKS_PER_NODE:-1}" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "${nodes[0]}:$port" \
    --no-python es-train --config "$config" --out "$out" --resume auto "$@" || status=$?

# Ended by the time limit: back into the queue. SLURM sends the signal up to a minute early.
if ((status != 0)) && ((${SLURM_JOB_END_TIME:-9999999999} - $(date +%s) < 180)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
