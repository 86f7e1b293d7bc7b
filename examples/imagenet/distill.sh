#!/usr/bin/env bash
# Trains a student from a cache on one machine, on all its GPUs. After an interruption, run it again to continue.
#
#   DATA=imagenet CACHE=convnext.h5 STUDENT=resnet50 EPOCHS=300 AMP=bfloat16 OUTPUT=runs/r50 examples/imagenet/distill.sh
#
# Further arguments are passed to the command, e.g. --preset resnet50_a2_kl or --train.ema_decay 0.9999.
# Not run on a GPU yet; a test runs it on two CPU processes over a small folder with ImageNet's layout.
set -euo pipefail
: "${DATA:=imagenet}"                                 # holds train/ and val/
: "${CACHE:=teacher.h5}"                              # output of cache_teacher.sh
: "${OUTPUT:=runs/student}"
: "${PROCESSES:=8}" "${DEVICE:=cuda}" "${WORKERS:=8}" # one process per GPU, with WORKERS loader workers each
# If set, these override a --preset and kdkit's defaults:
# STUDENT (a timm name), EPOCHS, BATCH (images per step and process), AMP (autocast dtype)
: "${PYTHON:=python}"

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # the workers are the parallelism
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-240}" # seconds to write a checkpoint after SIGTERM
exec "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node="$PROCESSES" --max-restarts=3 -m kdkit distill \
    "$DATA/train" --cache "$CACHE" --val "$DATA/val" -o "$OUTPUT" \
    --workers "$WORKERS" --device "$DEVICE" --resume \
    ${STUDENT:+--student "$STUDENT"} ${EPOCHS:+--epochs "$EPOCHS"} ${BATCH:+--batch-size "$BATCH"} \
    ${AMP:+--train.amp "$AMP"} "$@"
