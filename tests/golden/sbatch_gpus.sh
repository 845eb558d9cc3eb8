#!/bin/bash
# 32 GPUs on 4 nodes. Submit it with sbatch; it may be sent again at any time and goes on from the last checkpoint.
#SBATCH --job-name=digits
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --output=/data/runs/digits/logs/slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@120

export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
run=/data/runs/digits

for attempt in 0 1 2 3; do
    srun --kill-on-bad-exit=0 --wait=120 \
        /opt/env/bin/python -m harness "$run/run.yaml" --no-plan --ranks 32
    status=$?
    case $status in
    0 | 2 | 3) exit $status ;;  # complete, a mistake of the user, stopped by the guard: not to be tried again
    75 | 138)  # told to stop by the signal, with a checkpoint (138: before there was one to write)
        [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ] && scontrol requeue "$SLURM_JOB_ID"
        exit $status ;;
    esac
    echo "attempt $attempt ended with status $status"
done
exit $status
