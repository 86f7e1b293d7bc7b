"""Runtime: utilities that all other packages share.

distributed.py   ranks and their collective operations
files.py         atomic, durable writes
output.py        output folders
progress.py      the progress display
compare.py       two documents, field by field
background.py    a single-thread executor
doctor.py        versions and devices
"""
