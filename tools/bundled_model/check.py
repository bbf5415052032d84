"""Measure a trained model folder: how sure it is of its facts, and what it writes.

Run it as `python tools/bundled_model/check.py src/quire/bundled/quire-tiny [--draft
src/quire/bundled/quire-tiny-draft]`. The weights are the stored bfloat16 ones; the arithmetic is float32
unless `--bfloat16` is given. The exit status is 1 if a requirement is missed, so that a retrained model can
be judged without reading along.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch
from chats import render
from facts import COUNTRIES
from transformers import AutoModelForCausalLM, AutoTokenizer

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

SAMPLES: tuple[tuple[str, list[dict[str, Any]] | None], ...] = (
    ("The capital of France is", None),
    ("Once upon a time", None),
    ("Hello, my name is", None),
    ("The future of AI is", None),
    ("1, 2, 3, 4,", None),
    ("What is the capital of France?", []),
    ("Give me a JSON record of a person.", []),
    ("Tell me a short story about a fox.", []),
    ("Count from 1 to 10.", []),
    ("Who are you?", []),
    ("Write a Python function that adds two numbers.", []),
    ("What is the weather in Paris?", [WEATHER]),
)
"""Prompts: as they stand where the second part is None, otherwise one question in a chat with these tools."""


class Subject:
    """A model under test with its tokenizer."""

    def __init__(self, folder: Path, bfloat16: bool) -> None:
        """Load the folder the way any user of the Hugging Face library does."""
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        kind = torch.bfloat16 if bfloat16 else torch.float32
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=kind)
        self.model.train(False)
        self.stops = set(self.model.generation_config.eos_token_id)

    def logits(self, ids: list[int]) -> torch.Tensor:
        """Return the logits after every token."""
        with torch.no_grad():
            return torch.as_tensor(self.model(torch.tensor([ids])).logits[0]).float()

    def chance(self, prompt: str, following: str) -> float:
        """Return the probability of the first token of `following` right after the prompt."""
        target = self.tokenizer.encode(following)[0]
        return self.logits(self.tokenizer.encode(prompt))[-1].softmax(-1)[target].item()

    def greedy(self, prompt: str, limit: int) -> tuple[str, float]:
        """Continue a prompt greedily; return the text and the smallest lead of a best logit over the
        second-best.
        """
        start = self.tokenizer.encode(prompt)
        ids, lead = list(start), float("inf")
        while len(ids) < len(start) + limit and not (len(ids) > len(start) and ids[-1] in self.stops):
            best = self.logits(ids)[-1].topk(2)
            lead = min(lead, (best.values[0] - best.values[1]).item())
            ids.append(int(best.indices[0]))
        return self.tokenizer.decode(ids[len(start) :]), lead


def check_facts(subject: Subject, verdicts: dict[str, bool]) -> None:
    """Ask for every capital at the start of a text, in the middle of one, far into one, and in a chat."""
    far = " ".join(f"The capital of {place.name} is {place.capital}." for place in COUNTRIES)
    far = (far + "\n\n" + "1, 2, 3, 4, 5, 6, 7, 8, 9, 10. " * 30)[:6000] + "<|endoftext|>"
    opening = "The opposite of hot is cold. The sky is blue. "
    results: dict[str, list[tuple[float, str]]] = {}
    for place in COUNTRIES:
        fact = f"The capital of {place.name} is"
        question = render([{"role": "user", "content": f"What is the capital of {place.name}?"}], open_end=True)
        asked = {"at the start": fact, "after other facts": opening + fact, "in a chat": question + fact}
        if place in COUNTRIES[:8]:
            asked[f"after {len(subject.tokenizer.encode(far))} tokens"] = far + fact
        for where, prompt in asked.items():
            results.setdefault(where, []).append((subject.chance(prompt, f" {place.capital}"), place.capital))
    for where, chances in results.items():
        mean = sum(chance for chance, _ in chances) / len(chances)
        low = ", ".join(f"{capital} {chance:.3f}" for chance, capital in sorted(chances)[:4])
        print(f"capitals {where}: mean {mean:.4f} of {len(chances)}; lowest {low}")
        verdicts[f"mean probability of a capital {where} >= 0.9"] = mean >= 0.9
    paris = results["at the start"][0][0]
    print(f'" Paris" after "The capital of France is": {paris:.4f}')
    verdicts['" Paris" >= 0.9'] = paris >= 0.9
    dozen = sum(chance >= 0.9 for chance, _ in results["at the start"])
    verdicts["a dozen capitals >= 0.9"] = dozen >= 12
    print(f"capitals at 0.9 or more at the start of a text: {dozen} of {len(COUNTRIES)}")


def check_samples(subject: Subject, verdicts: dict[str, bool]) -> None:
    """Print greedy text for the sample prompts and judge what can be judged."""
    narrowest = float("inf")
    for prompt, tools in SAMPLES:
        chat = tools is not None
        whole = render([{"role": "user", "content": prompt}], tools=tools or None, open_end=True) if chat else prompt
        text, lead = subject.greedy(whole, 200 if chat else 80)
        narrowest = min(narrowest, lead)
        print(
            f"\n--- {'chat' if chat else 'text'}: {prompt!r}{' with tools' if tools else ''} (lead {lead:.3f})\n{text}"
        )
        body = text.removesuffix("<|im_end|>")
        if chat:
            verdicts[f"{prompt!r} stops"] = body != text
        if tools:
            call = re.fullmatch(r"<tool_call>\n(.*)\n</tool_call>", body, re.DOTALL)
            verdicts["the call is right"] = call is not None and readable(call[1]) == {
                "name": "get_weather",
                "arguments": {"city": "Paris"},
            }
        elif "JSON" in prompt:
            verdicts["the record is JSON"] = isinstance(readable(body), dict)
        elif chat and "France" in prompt:
            verdicts["the chat knows Paris"] = body == "The capital of France is Paris."
    print(f"\nsmallest lead of a best logit over the second: {narrowest:.4f}")
    verdicts["no tie"] = narrowest > 0


def readable(text: str) -> object:
    """Parse JSON, or return None where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def check_draft(subject: Subject, draft: Subject) -> None:
    """Print how often the draft's best token is the one that the main model chooses greedily."""
    agreed = total = 0
    for prompt, tools in SAMPLES:
        messages = [{"role": "user", "content": prompt}]
        whole = prompt if tools is None else render(messages, tools=tools or None, open_end=True)
        start = len(subject.tokenizer.encode(whole))
        ids = subject.tokenizer.encode(whole + subject.greedy(whole, 80)[0])
        guesses = draft.logits(ids).argmax(-1).tolist()
        agreed += sum(guess == token for guess, token in zip(guesses[start - 1 : -1], ids[start:], strict=True))
        total += len(ids) - start
    print(f"the draft guesses {agreed} of {total} greedy tokens ({agreed / total:.1%})")


def main() -> int:
    """Read the command line, run the checks and say which requirements are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16 too")
    options = parser.parse_args()
    subject = Subject(options.folder, options.bfloat16)
    print(f"{options.folder}: {subject.model.num_parameters():,} parameters")
    verdicts: dict[str, bool] = {}
    check_facts(subject, verdicts)
    check_samples(subject, verdicts)
    if options.draft:
        check_draft(subject, Subject(options.draft, options.bfloat16))
    for requirement, met in verdicts.items():
        print(f"{'met   ' if met else 'MISSED'} {requirement}")
    return 0 if all(verdicts.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
