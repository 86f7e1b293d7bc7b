#!/usr/bin/env bash
# Caches a teacher over ImageNet's training images on one machine, on all its GPUs. Run it again after a crash: it goes on.
#
#   DATA=imagenet TEACHER=convnext_base.fb_in22k_ft_in1k CACHE=convnext.h5 examples/imagenet/cache_teacher.sh
#
# What stands behind the command is passed on, e.g. --teacher.checkpoint FILE or --build.codec int8.
# Not run on a GPU yet; a test runs it on two CPU processes over a small folder with ImageNet's layout.
set -euo pipefail
: "${DATA:=imagenet}"                                 # holds train/nXXXXXXXX/*.JPEG
: "${TEACHER:=convnext_base.fb_in22k_ft_in1k}"        # a timm name, or a card of your own
: "${CACHE:=teacher.h5}"                              # the file to be
: "${SIZE:=224}" "${VIEWS:=10}"                       # pixels, and views of each image
: "${PROCESSES:=8}" "${DEVICE:=cuda}" "${WORKERS:=8}" # one process a GPU; WORKERS load images for each
: "${PYTHON:=python}"

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # the workers are the parallelism
exec "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node="$PROCESSES" -m kdkit cache build \
    --data "$DATA/train" --teacher.model "$TEACHER" --output "$CACHE" \
    --recipe.size "$SIZE" --recipe.num_views "$VIEWS" \
    --device "$DEVICE" --build.num_workers "$WORKERS" "$@"
