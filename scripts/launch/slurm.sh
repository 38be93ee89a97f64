#!/usr/bin/env bash
# Slurm: one process on each node drives all GPUs of that node; the job requeues itself when it is
# preempted, runs out of time, or loses a node.
#
#     sbatch --nodes=4 --gpus-per-node=8 --time=24:00:00 scripts/launch/slurm.sh \
#         --config=configs/x3d.py --workdir=/shared/runs/x3d
#
# The work dir must be on a file system that all nodes share. With `sbatch --array=0-2` every element
# is a run of its own: its work dir ends in the number, which is its seed.
# PYTHON: the interpreter on the nodes (default python).
#
#SBATCH --job-name=jaxact
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@180
set -euo pipefail

if [ $# -eq 0 ] || [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "usage: sbatch --nodes=N --gpus-per-node=G $0 --config=RECIPE --workdir=DIR [...]" >&2
    exit 2
fi

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export COORDINATOR="$first:$((20000 + SLURM_JOB_ID % 20000))"
export PYTHON="${PYTHON:-python}"

arguments=("$@")
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    for index in "${!arguments[@]}"; do
        case "${arguments[index]}" in
            --workdir=*) arguments[index]="${arguments[index]}-$SLURM_ARRAY_TASK_ID" ;;
        esac
    done
    arguments+=("--config.seed=$SLURM_ARRAY_TASK_ID")
fi

# The steps get SIGTERM too, save and exit with 143; this script waits for them.
trap : TERM
code=0
# The variables of a task exist only on its node.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=0 --label bash -c 'exec "$PYTHON" -m jaxact.main "$@" \
    --config.mesh.hosts=given --config.mesh.coordinator="$COORDINATOR" \
    --config.mesh.processes="$SLURM_NTASKS" --config.mesh.process="$SLURM_PROCID"' \
    jaxact "${arguments[@]}" || code=$?

case $code in
    0 | 2 | 3) exit "$code" ;; # done, a mistake, diverged: the same again would end the same
esac
# 143: told to go; 4: a node was lost; 137 and the like: Slurm was quicker.
restarts=${SLURM_RESTART_COUNT:-0}
if [ "$restarts" -ge "${MAX_RESTARTS:-20}" ]; then
    echo "exit code $code after $restarts restarts (MAX_RESTARTS): not requeued" >&2
    exit "$code"
fi
echo "exit code $code: requeued" >&2
scontrol requeue "$SLURM_JOB_ID"
