"""What is recorded of one request."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Timeline:
    """Times, in seconds of one monotonic clock, at which a request was sent and its tokens came.

    A message may hold several tokens (or, where a tokeniser holds bytes back, none), so tokens are counted by what
    the server says it generated and never by messages.
    """

    sent: float
    prompt_len: int
    arrived: list[float] = field(default_factory=list)  # of each message with new output
    output_len: int = 0
    cached_len: int = 0
    ended: float = 0.0
    error: str = ""
    pieces: list[str] = field(default_factory=list)  # the text of each message, where it is kept

    @property
    def succeeded(self) -> bool:
        """Whether the whole answer came."""
        return not self.error

    @property
    def text(self) -> str:
        """The answer as far as it is kept."""
        return "".join(self.pieces)

    @property
    def ttft(self) -> float:
        """Time to first token: from sending the request to the first message with output, in seconds."""
        return self.arrived[0] - self.sent

    @property
    def e2el(self) -> float:
        """End-to-end latency: from sending the request to the end of the answer, in seconds."""
        return self.ended - self.sent

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first, in seconds; None for an answer of one token."""
        return (self.arrived[-1] - self.arrived[0]) / (self.output_len - 1) if self.output_len > 1 else None

    @property
    def itls(self) -> list[float]:
        """Inter-token latencies: the gaps between messages, in seconds."""
        return [later - earlier for earlier, later in zip(self.arrived, self.arrived[1:], strict=False)]
