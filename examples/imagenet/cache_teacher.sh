#!/usr/bin/env bash
# Caches a teacher's outputs on ImageNet's training images on one machine, on all its GPUs. After an interruption, run it again to continue.
#
#   DATA=imagenet TEACHER=convnext_base.fb_in22k_ft_in1k VIEWS=10 CACHE=convnext.h5 examples/imagenet/cache_teacher.sh
#
# Further arguments are passed to the command, e.g. --preset resnet50_a2_kl, --teacher.checkpoint FILE or --codec int8.
# Not run on a GPU yet; a test runs it on two CPU processes over a small folder with ImageNet's layout.
set -euo pipefail
: "${DATA:=imagenet}"                                 # holds train/nXXXXXXXX/*.JPEG
: "${CACHE:=teacher.h5}"                              # the output file
: "${PROCESSES:=8}" "${DEVICE:=cuda}" "${WORKERS:=8}" # one process per GPU, with WORKERS loader workers each
# If set, these override a --preset and kdkit's defaults (a teacher has none):
# TEACHER (a timm name, or a card), SIZE (pixels), VIEWS (per image)
: "${PYTHON:=python}"

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # the workers are the parallelism
exec "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node="$PROCESSES" -m kdkit cache build \
    "$DATA/train" -o "$CACHE" --device "$DEVICE" --workers "$WORKERS" \
    ${TEACHER:+--teacher "$TEACHER"} ${SIZE:+--size "$SIZE"} ${VIEWS:+--views "$VIEWS"} "$@"
