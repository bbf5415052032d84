"""The training text as one endless, reproducible stream of documents.

Run it to read some: `python tools/bundled_model/corpus.py 20`.
"""

import sys
from collections.abc import Iterator

from chats import chat, tool_chat
from dice import Dice
from prose import document

END_OF_TEXT = "<|endoftext|>"


def documents(seed: int, long_share: float = 0.0) -> Iterator[str]:
    """Yield documents for ever, each with its closing token.

    Somewhat more than half are chats, since that is what a server is mostly asked for. `long_share` is the
    share drawn in the long form; the phase with long sequences wants many of these, or it would only ever see
    far positions filled by strings of short documents.
    """
    dice = Dice(seed)
    while True:
        long = dice.chance(long_share)
        write = dice.by_weight((document, chat, tool_chat), (0.46, 0.36, 0.18))
        yield write(dice, long) + END_OF_TEXT


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    for _, text in zip(range(wanted), documents(seed=1, long_share=0.1), strict=False):
        print(text, end="\n\n")
