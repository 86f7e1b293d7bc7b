#!/usr/bin/env bash
# Trains a student from a cache on one machine, on all its GPUs. Run it again after a crash: it goes on, exactly.
#
#   DATA=imagenet CACHE=convnext.h5 STUDENT=resnet50 OUTPUT=runs/r50 examples/imagenet/distill.sh
#
# What stands behind the command is passed on, e.g. --preset resnet50_a2_kl or --train.ema_decay 0.9999.
# Not run on a GPU yet; a test runs it on two CPU processes over a small folder with ImageNet's layout.
set -euo pipefail
: "${DATA:=imagenet}"                                 # holds train/ and val/
: "${CACHE:=teacher.h5}"                              # of cache_teacher.sh
: "${STUDENT:=resnet50}" "${OUTPUT:=runs/student}"
: "${EPOCHS:=300}" "${BATCH:=256}"                    # images a step and process
: "${PROCESSES:=8}" "${DEVICE:=cuda}" "${WORKERS:=8}" # one process a GPU; WORKERS load images for each
: "${AMP:=bfloat16}"                                  # autocast dtype, or null
: "${PYTHON:=python}"

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # the workers are the parallelism
exec "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node="$PROCESSES" --max-restarts=3 -m kdkit distill \
    --data "$DATA/train" --validation "$DATA/val" --cache "$CACHE" --student "$STUDENT" --output "$OUTPUT" \
    --train.epochs "$EPOCHS" --train.batch_size "$BATCH" --train.amp "$AMP" --train.num_workers "$WORKERS" \
    --device "$DEVICE" --resume true "$@"
