// An answer on the page: its thoughts, its tokens, and a line of what it took.

import { element, setText } from "./dom.js";
import { counted, duration, rate } from "./format.js";
import { Aligner } from "./tokens.js";
import { tokenSpan } from "./tooltip.js";

export class Answer {
  #aligner = new Aligner();
  #thoughts = element("div", { className: "thoughts", hidden: true });
  #text = element("div", { className: "text" });
  #stats = element("p", { className: "stats" });
  // What came and is not shown yet.
  #newThoughts = document.createDocumentFragment();
  #newText = document.createDocumentFragment();
  #hasTokens = false;
  element = element("article", { className: "message assistant", ariaLabel: "Answer" }, [
    this.#thoughts,
    this.#text,
    this.#stats,
  ]);
  /** What the model is told that it said. */
  content = "";

  constructor() {
    this.#text.role = "group";
    this.#text.ariaLabel = "Text of the answer, by tokens";
  }

  /** Takes in what came; `show` shows it. @param {import("./completion.js").Piece} piece */
  add(piece) {
    this.#keep(this.#aligner.push(piece.kind, piece.text, piece.tokens));
  }

  /** The answer is whole, or as whole as it gets. */
  end() {
    this.#keep(this.#aligner.end());
  }

  /** Shows all that came so far. @param {import("./completion.js").Timing} timing @param {string} state */
  show(timing, state) {
    this.#thoughts.append(this.#newThoughts);
    this.#thoughts.hidden = !this.#thoughts.hasChildNodes();
    this.#text.append(this.#newText);
    const { ttft, itl, numTokens } = timing;
    const parts = [counted(numTokens, "token")];
    if (ttft !== null) parts.push(`TTFT ${duration(ttft)}`);
    if (itl !== null) parts.push(`ITL ${duration(itl)}`, `${rate(1 / itl)} tokens/s`);
    setText(this.#stats, [...parts, state].join(" · "));
  }

  /** @param {import("./tokens.js").Span[]} spans */
  #keep(spans) {
    for (const { kind, text, token } of spans) {
      if (kind === "reasoning") {
        this.#newThoughts.append(text);
        continue;
      }
      this.content += text;
      this.#newText.append(token ? tokenSpan(text, token, !this.#hasTokens) : text);
      this.#hasTokens ||= token !== null;
    }
  }
}
