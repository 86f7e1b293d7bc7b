#!/usr/bin/env bash
# Trains a student from a cache on one machine, on all its GPUs. Run it again after a crash: it goes on.
#
#   DATA=imagenet CACHE=convnext.h5 STUDENT=resnet50 EPOCHS=300 AMP=bfloat16 OUTPUT=runs/r50 examples/imagenet/distill.sh
#
# What stands behind the command is passed on, e.g. --preset resnet50_a2_kl or --train.ema_decay 0.9999.
# Not run on a GPU yet; a test runs it on two CPU processes over a small folder with ImageNet's layout.
set -euo pipefail
: "${DATA:=imagenet}"                                 # holds train/ and val/
: "${CACHE:=teacher.h5}"                              # of cache_teacher.sh
: "${OUTPUT:=runs/student}"
: "${PROCESSES:=8}" "${DEVICE:=cuda}" "${WORKERS:=8}" # one process a GPU; WORKERS load images for each
# Only where they are set do these stand above a --preset, or above kdkit's own defaults:
# STUDENT (a timm name), EPOCHS, BATCH (images a step and process), AMP (autocast dtype)
: "${PYTHON:=python}"

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # the workers are the parallelism
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-240}" # seconds to write a checkpoint after SIGTERM
exec "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node="$PROCESSES" --max-restarts=3 -m kdkit distill \
    --data "$DATA/train" --validation "$DATA/val" --cache "$CACHE" --output "$OUTPUT" \
    --train.num_workers "$WORKERS" --device "$DEVICE" --resume \
    ${STUDENT:+--student "$STUDENT"} ${EPOCHS:+--train.epochs "$EPOCHS"} ${BATCH:+--train.batch_size "$BATCH"} \
    ${AMP:+--train.amp "$AMP"} "$@"
