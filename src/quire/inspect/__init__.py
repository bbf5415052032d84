"""`quire inspect`: a KV pool seen from outside, for people who must know what is in it and whether it can be trusted.

Nothing here writes a pool, locks it or maps it. Header and journal are read with pread(2) from a descriptor that is
open for reading alone: a mapping could raise SIGBUS where a file is cut off, and to touch a hole of shared memory
through one would allocate it. Keys and values are not read at all, and no token of a prompt is ever shown.

    target.py      what PATH or PID means: a descriptor, and the server that has it
    processes.py   who holds which pools, from /proc
    header.py      the first page, check by check
    journal.py     the records of the blocks, and the chains that they make
    live.py        what the scheduler says of the same blocks
    inspection.py  all of it together, looked at twice where somebody may be writing
    block_map.py, svg.py, png.py   the picture;   report.py, command.py   the terminal
"""
