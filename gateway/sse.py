"""Server-sent events with names, whose data are tagged structs."""

from __future__ import annotations

import msgspec
from msgspec import Struct

_encoder = msgspec.json.Encoder()
encode = _encoder.encode


def named_event(event: Struct) -> bytes:
    """The event of a struct, named by its tag."""
    return b"event: %b\ndata: %b\n\n" % (str(event.__struct_config__.tag).encode(), encode(event))
