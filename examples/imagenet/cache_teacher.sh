#!/usr/bin/env bash
# Caches a teacher over ImageNet's training images on one machine, on all its GPUs. Run it again after a crash: it goes on.
#
#   DATA=imagenet TEACHER=convnext_base.fb_in22k_ft_in1k VIEWS=10 CACHE=convnext.h5 examples/imagenet/cache_teacher.sh
#
# What stands behind the command is passed on, e.g. --preset resnet50_a2_kl, --teacher.checkpoint FILE or --build.codec int8.
# Not run on a GPU yet; a test runs it on two CPU processes over a small folder with ImageNet's layout.
set -euo pipefail
: "${DATA:=imagenet}"                                 # holds train/nXXXXXXXX/*.JPEG
: "${CACHE:=teacher.h5}"                              # the file to be
: "${PROCESSES:=8}" "${DEVICE:=cuda}" "${WORKERS:=8}" # one process a GPU; WORKERS load images for each
# Only where they are set do these stand above a --preset, or above kdkit's own defaults (a teacher has none):
# TEACHER (a timm name, or a card of your own), SIZE (pixels), VIEWS (of each image)
: "${PYTHON:=python}"

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # the workers are the parallelism
exec "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node="$PROCESSES" -m kdkit cache build \
    --data "$DATA/train" --output "$CACHE" --device "$DEVICE" --build.num_workers "$WORKERS" \
    ${TEACHER:+--teacher.model "$TEACHER"} ${SIZE:+--recipe.size "$SIZE"} ${VIEWS:+--recipe.num_views "$VIEWS"} "$@"
