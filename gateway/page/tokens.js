// Which piece of an answer's text each token is.
//
// A chunk of a stream has new text and new tokens, but the text may lag (a stop string may begin in it, a character may
// not be whole yet) and some tokens have none (those that end an answer, or frame a thought). The text is what was
// said: all of it is shown, in order, and tokens are laid over it as far as they fit.

/**
 * @typedef {{token: string, logprob: number, bytes: number[]}} Candidate
 * @typedef {Candidate & {top_logprobs: Candidate[]}} Token
 * @typedef {{kind: "content" | "reasoning", text: string, token: Token | null}} Span
 */

/** How far ahead in the text a token is looked for when it is not what comes next, in characters. */
const REACH = 32;

export class Aligner {
  #decoder = new TextDecoder();
  /** @type {{kind: Span["kind"], text: string}[]} */
  #texts = [];
  /** @type {{text: string, token: Token}[]} */
  #tokens = [];

  /**
   * Takes in a chunk, and gives what can be shown now.
   * @param {Span["kind"]} kind @param {string} text @param {Token[]} tokens
   * @returns {Span[]}
   */
  push(kind, text, tokens) {
    const last = this.#texts.at(-1);
    if (text && last?.kind === kind) last.text += text;
    else if (text) this.#texts.push({ kind, text });
    for (const token of tokens) {
      // A character may be spread over several tokens: the last of them gets it.
      const bytes = new Uint8Array(token.bytes ?? new TextEncoder().encode(token.token));
      this.#tokens.push({ text: this.#decoder.decode(bytes, { stream: true }), token });
    }
    return this.#match();
  }

  /** What is left when the answer has ended. @returns {Span[]} */
  end() {
    const rest = this.#texts.map(({ kind, text }) => ({ kind, text, token: null }));
    this.#texts = [];
    this.#tokens = [];
    return rest;
  }

  /** @returns {Span[]} */
  #match() {
    const spans = [];
    while (this.#texts.length) {
      const ahead = this.#texts[0].text;
      if (!this.#tokens.length) {
        spans.push(this.#take(ahead.length, null));
        continue;
      }
      const { text: whole, token } = this.#tokens[0];
      // Tokenisers that mark the begin of a word put a blank before the first one, which the text does not have.
      const text = find(ahead, whole) < 0 ? whole.trimStart() : whole;
      const at = text ? find(ahead, text) : -1;
      if (at > 0) spans.push(this.#take(at, null));
      if (at >= 0) spans.push(this.#take(text.length, token));
      // What comes next may be the begin of this token.
      else if (text.startsWith(ahead) && this.#texts.length === 1) break;
      this.#tokens.shift();
    }
    return spans;
  }

  /** Takes characters off the text. @param {number} length @param {Token | null} token @returns {Span} */
  #take(length, token) {
    const piece = this.#texts[0];
    const span = { kind: piece.kind, text: piece.text.slice(0, length), token };
    piece.text = piece.text.slice(length);
    if (!piece.text) this.#texts.shift();
    return span;
  }
}

/** Where a token begins in the text, if it is near; else -1. @param {string} ahead @param {string} text */
const find = (ahead, text) => ahead.slice(0, REACH + text.length).indexOf(text);
