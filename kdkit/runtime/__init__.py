"""Runtime: utilities that all other packages share.

Where to look:
    distributed.py  ranks and their collective operations; agreement.py compares their settings
    reading.py      opens files of any origin: regular ones only, bounded; documents.py bounds JSON and YAML
    files.py        atomic, durable writes; output.py, output folders; lock.py, one writer at a time
    progress.py     the progress display; layout.py wraps text output
    install.py      the command that installs an optional package
    compare.py      two documents, field by field
    pixels.py       hashes of pixels
    background.py   a single-thread executor
    memory.py       out of memory: how it shows, and work in parts; model_errors.py, what models raise and return
    hardware.py     what `auto` means: device and number of workers; doctor.py lists versions and devices
"""
