"""A process that holds the KV pool's device memory while executors come and go: `quire device-pool`.

    executor                          PoolHolder (a thread of that process)
       │  FETCH epoch, size, device       │
       ├─────────────────────────────────▶│
       │  GIVEN size, descriptor          │     or NONE
       │◀─────────────────────────────────┤
       │  MAKE epoch, size, device        │     in place of what is held
       ├─────────────────────────────────▶│
       │  GIVEN size, descriptor          │     or REFUSED, UNSUPPORTED, NO_MEMORY and a reason
       │◀─────────────────────────────────┤
       │  KEEP epoch …                    │     once its memory is zeros
       ├─────────────────────────────────▶│
       │  DONE                            │
       │◀─────────────────────────────────┤

    protocol.py    these messages
    holder.py      what is held
    server.py      the process
    client.py      the executor's side of the socket
    memory.py      an allocation, mapped, as torch and other libraries take it

An allocation has no owner but its handles, descriptors and mappings, so an executor's death leaves it, and the
holder's death leaves it to the executor that has mapped it. The holder has no context on the device, which would take
some hundreds of megabytes of its memory: so it cannot clear what it allocates. Whoever had it made does, and says so
(KEEP); a pool whose maker died before is given to nobody.

No torch here. The executor imports client and memory; nothing else does.
"""
