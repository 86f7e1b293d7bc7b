"""Turn an array of logits [N, C], from wherever it comes, into a cache that `kdkit distill` trains from.

    python examples/array_to_cache.py logits.npy DATA teacher.h5
    kdkit distill DATA --cache teacher.h5 --student resnet18 -o runs/r18

Row i of the array is the teacher's output on the image `FolderSource(DATA).keys[i]`, in natural order (2.jpg before
10.jpg). The students see ten views of each image, and the same logits serve all of them. On one CPU core it takes a
second for 10,000 rows of 1,000 classes.
"""

import sys

import numpy as np

from kdkit import CacheSpec, CacheWriter
from kdkit.cache import create_codec
from kdkit.data import FolderSource

array, data, output = sys.argv[1:]
logits, source = np.load(array, mmap_mode="r"), FolderSource(data)
codecs = {"logits": create_codec("float16", num_classes=logits.shape[1])}
spec = CacheSpec(keys=source.keys, num_views=10, codecs=codecs, class_names=source.class_names)
with CacheWriter.create(output, spec) as writer:
    for shard in writer.missing():
        writer.write(shard, {"logits": logits[shard.start : shard.stop]})
    writer.finish()
