"""Building: run a teacher over every view of every image and write a cache.

Where to look:
    build.py        `kdkit cache build` from plan to file; extend.py adds views, images.py images;
                 config.py, change_config.py have the settings
    plan.py         what is built, compared with an existing cache; like.py takes the views of another cache
    unreadable.py   images that cannot be read: all are listed, or left out and recorded
    scan.py         reads every image once, before a build or to verify
    shards.py       the loop over missing shards; groups.py, those of several views that share a decode
    teacher.py      runs the teacher, in the precision of kdkit/precision.py; encoder.py encodes in parallel
    fit.py          fits the codecs and measures their fidelity
    estimate.py     the cost before a build; speed.py, what each part of it takes
    verify.py       checksums, and rows on which the teacher runs again; agreement.py judges those rows
    label_agreement.py  whether outputs fit the labels; diagnosis.py, why they are not the teacher's
    cause.py        likely causes; other_views.py, the crops and normalisations that the teacher may have seen
    ray.py          the same on a Ray cluster
    rewrite.py      rows of finished caches (piece.py) as a new one, ordered by arrange.py: merge.py merges and prunes,
                 recode.py changes codecs and views, in_place.py replaces the old file, parts.py tells old images from
                 new, copies.py finds renamed ones
"""
