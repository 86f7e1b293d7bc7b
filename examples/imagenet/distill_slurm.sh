#!/usr/bin/env bash
# Caches a teacher and trains a student from the cache on a Slurm cluster. After a preemption or at the end of its time limit
# the job is requeued and continues. torchrun restarts a crashed process at most three times; then the job ends as failed:
# submit it again to continue. The nodes share a file system.
#
#   DATA=/data/imagenet AMP=bfloat16 BUILD_OPTIONS="--preset resnet50_a2_kl" DISTILL_OPTIONS="--preset resnet50_a2_kl" \
#       sbatch --nodes=2 examples/imagenet/distill_slurm.sh
#
# Not run on a cluster yet; a test runs it on one machine with an srun that only starts its command.
#SBATCH --job-name=kdkit
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300
set -euo pipefail
: "${DATA:=imagenet}" "${CACHE:=teacher.h5}" "${OUTPUT:=runs/student}"
# If set, these override a --preset in both OPTIONS and kdkit's defaults:
# TEACHER, SIZE, VIEWS of cache_teacher.sh and STUDENT, EPOCHS, BATCH, AMP of distill.sh
: "${PROCESSES:=8}" "${DEVICE:=cuda}" "${WORKERS:=8}" "${BUILD_OPTIONS:=}" "${DISTILL_OPTIONS:=}" "${PYTHON:=python}"

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-240}" # seconds to write a checkpoint after SIGTERM

on_all_nodes() {
    # Slurm signals this script, not its steps: forward the signal, and wait for the checkpoint.
    srun "$PYTHON" -m torch.distributed.run --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$PROCESSES" \
        --max-restarts=3 --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$head:29500" -m kdkit "$@" &
    step=$!
    trap 'kill -TERM $step; wait $step || true; scontrol requeue "$SLURM_JOB_ID"; exit 0' TERM
    wait "$step"
    trap - TERM
}

# shellcheck disable=SC2086 # the options are words
on_all_nodes cache build "$DATA/train" -o "$CACHE" --device "$DEVICE" --workers "$WORKERS" \
    ${TEACHER:+--teacher "$TEACHER"} ${SIZE:+--size "$SIZE"} ${VIEWS:+--views "$VIEWS"} \
    $BUILD_OPTIONS
# shellcheck disable=SC2086
on_all_nodes distill "$DATA/train" --cache "$CACHE" --val "$DATA/val" -o "$OUTPUT" \
    --workers "$WORKERS" --device "$DEVICE" --resume \
    ${STUDENT:+--student "$STUDENT"} ${EPOCHS:+--epochs "$EPOCHS"} ${BATCH:+--batch-size "$BATCH"} \
    ${AMP:+--train.amp "$AMP"} $DISTILL_OPTIONS
