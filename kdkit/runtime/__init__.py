"""Runtime: utilities that all other packages share.

Where to look:
    distributed.py  ranks and their collective operations
    files.py        atomic, durable writes; output.py, output folders
    progress.py     the progress display; layout.py wraps text output
    compare.py      two documents, field by field
    pixels.py       hashes of pixels
    background.py   a single-thread executor
    hardware.py     what `auto` means: device and number of workers; doctor.py lists versions and devices
"""
