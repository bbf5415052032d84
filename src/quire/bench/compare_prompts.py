"""The prompts of `quire bench compare`: short questions, instructions, and beginnings of texts of several lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from quire.errors import InvalidRequestError

BUILT_IN: Final = (
    "The capital of France is",
    "Count to five:",
    "Write a short story about a fox and a hen.",
    "What is the difference between a lake and a sea?",
    "Explain to a child why the sky is blue and why the evening sky is red.",
    "The old clock in the hall had stopped years ago, and yet, every evening at nine,",
    "List three fruits, three colours and three animals.",
    "Translate into French: the bread is on the table and the milk is in the kitchen.",
    "A recipe for pancakes for four people, with the amounts of flour, milk and eggs:",
    "Dear Sir or Madam, I am writing to you because the lamp that I bought in your shop last week",
    "Why do leaves fall in autumn?",
    "Summarise in one sentence: The ship left the harbour in the morning. At noon the wind turned, the sea grew rough, "
    "and the captain decided to wait behind the island. In the night the storm passed, and the ship went on.",
    "How does a refrigerator keep food cold although the room around it is warm?",
    "Once upon a time there was a king who had three daughters, and each of them could do something that nobody else "
    "in the whole country could do. The eldest could speak with birds, the second could find water under the driest "
    "field, and the youngest",
    "Name the largest ocean.",
    "The three most important rules of chess for somebody who has never played it are",
    "Write a polite answer to a friend who asks whether you can help with moving to a new flat on Saturday.",
    "Two trains leave the same station at the same time, one to the north with eighty and one to the south with sixty "
    "kilometres an hour. How far apart are they after two hours?",
    "In the year 1900 the city was still small;",
    "Give me advice for a first day at a new job.",
    "What should one take along on a hike of two days in the mountains in early summer, when the days are warm and the "
    "nights are cold, and it may rain?",
    "The function reads a file line by line and returns",
    "Describe the taste of an apple to somebody who has never eaten one.",
    "The meeting began at ten. First the treasurer spoke about the past year, in which the club had gained eleven "
    "members and lost four, and then about the roof, which has to be repaired before the winter. The members asked "
    "how much this would cost, and",
)


def load_prompts(path: Path | None) -> list[str]:
    """The lines of a UTF-8 text file that are not blank, or the built-in prompts. Raises InvalidRequestError."""
    if path is None:
        return list(BUILT_IN)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InvalidRequestError(f"--prompts: cannot read {path}: {error.strerror}", field="prompts") from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"--prompts: {path} is no UTF-8 text: {error.reason}", field="prompts") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InvalidRequestError(f"--prompts: {path} has no prompt", field="prompts")
    return prompts
