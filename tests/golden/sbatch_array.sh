#!/bin/bash
# 16 GPUs on 2 nodes. Submit it with sbatch; it may be sent again at any time and resumes from the last checkpoint.
#SBATCH --job-name=imagenet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --partition=gpu,long
#SBATCH --time=1-12:00:00
#SBATCH --account=vision
#SBATCH --qos=high
#SBATCH --array=0-5%2
#SBATCH --output=/data/runs/digits/%a/logs/slurm-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300

export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
export WIDEBATCH_DEVICE=gpu
export GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0
run=/data/runs/digits/$SLURM_ARRAY_TASK_ID
# Slurm tells this script when time is short. It tells the ranks, until they have saved, and queues the job again.
again=no
trap 'again=yes' USR1

for attempt in 0 1; do
    srun --kill-on-bad-exit=0 --wait=120 --cpus-per-task=12 \
        /opt/env/bin/python -m harness "$run/run.yaml" --no-plan --ranks 16 &
    ranks=$! told=0
    while kill -0 $ranks 2>/dev/null; do
        if [ "$again" = no ]; then wait $ranks; continue; fi
        case $((told++)) in
        0) scancel --signal=USR1 "$SLURM_JOB_ID" ;;
        *0) scancel --signal=HUP "$SLURM_JOB_ID" ;;  # a rank that was not up yet has not heard; this one may come twice
        esac
        sleep 1
    done
    wait $ranks; status=$?
    case $status in
    0 | 2 | 3 | 4) exit $status ;;  # complete, a mistake of the user, the guard, out of memory: not again
    esac
    if [ "$again" = yes ]; then
        for _ in 1 2 3 4 5; do  # the controller may be busy
            case "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" in
            RUNNING) scontrol requeue "$SLURM_JOB_ID" && exit $status ;;
            ?*) exit $status ;;  # cancelled meanwhile
            esac
            sleep 2
        done
        exit $status
    fi
    [ $status = 75 ] && exit $status  # stopped on request, with a checkpoint
    echo "attempt $attempt ended with status $status"
done
exit $status
