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

  /** Adds what came. @param {import("./completion.js").Piece} piece */
  add(piece) {
    this.#show(this.#aligner.push(piece.kind, piece.text, piece.tokens));
  }

  /** The answer is whole, or as whole as it gets. */
  end() {
    this.#show(this.#aligner.end());
  }

  /** @param {import("./completion.js").Timing} timing @param {string} state */
  showStats(timing, state) {
    const { ttft, itl, numTokens } = timing;
    const parts = [counted(numTokens, "token")];
    if (ttft !== null) parts.push(`TTFT ${duration(ttft)}`);
    if (itl !== null) parts.push(`ITL ${duration(itl)}`, `${rate(1 / itl)} tokens/s`);
    setText(this.#stats, [...parts, state].join(" · "));
  }

  /** @param {import("./tokens.js").Span[]} spans */
  #show(spans) {
    for (const { kind, text, token } of spans) {
      if (kind === "reasoning") {
        this.#thoughts.hidden = false;
        this.#thoughts.append(text);
        continue;
      }
      this.content += text;
      this.#text.append(token ? tokenSpan(text, token, !this.#hasTokens) : text);
      this.#hasTokens ||= token !== null;
    }
  }
}
