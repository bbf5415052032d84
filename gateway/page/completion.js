// One answer of the model: asked for, read as it comes, and timed as the user sees it.

import { ApiError, ask, events } from "./api.js";

/**
 * @typedef {{role: "system" | "user" | "assistant", content: string}} Message
 * @typedef {{model: string, messages: Message[], temperature?: number, max_tokens?: number}} Question
 * @typedef {{kind: "content" | "reasoning", text: string, tokens: import("./tokens.js").Token[]}} Piece
 */

/** How many alternatives each token has; no server gives more than its --max-logprobs. */
const NUM_ALTERNATIVES = 5;

/**
 * Streams the answer to a question. Fills `timing` on the way.
 * @param {Question} question @param {Timing} timing @param {AbortSignal} signal
 * @returns {AsyncGenerator<Piece>}
 * @throws {ApiError} and AbortError
 */
export async function* complete(question, timing, signal) {
  const body = {
    ...question,
    stream: true,
    stream_options: { include_usage: true },
    logprobs: true,
    top_logprobs: NUM_ALTERNATIVES,
  };
  timing.begin();
  const response = await ask("v1/chat/completions", { body, signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(response.status, chunk.error.message);
    if (chunk.usage) timing.numTokens = chunk.usage.completion_tokens;
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    timing.finishReason = choice.finish_reason ?? timing.finishReason;
    const tokens = choice.logprobs?.content ?? [];
    timing.count(tokens.length);
    yield* pieces(choice.delta, tokens);
  }
  throw new ApiError(0, "The answer broke off.");
}

/** What a chunk says, thoughts first. @param {object} delta @param {import("./tokens.js").Token[]} tokens */
function* pieces(delta, tokens) {
  if (delta.reasoning_content) yield { kind: "reasoning", text: delta.reasoning_content, tokens };
  if (delta.content || !delta.reasoning_content) {
    yield { kind: "content", text: delta.content ?? "", tokens: delta.reasoning_content ? [] : tokens };
  }
}

/** When the tokens of an answer came, in milliseconds on the browser's clock. */
export class Timing {
  numTokens = 0;
  /** @type {string | null} */
  finishReason = null;
  #begun = 0;
  /** @type {number | null} */
  #first = null;
  #last = 0;

  /** The question is sent. */
  begin() {
    this.#begun = performance.now();
  }

  /** Tokens came. @param {number} tokens */
  count(tokens) {
    if (!tokens) return;
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.numTokens += tokens;
  }

  /** Time to first token, in seconds. */
  get ttft() {
    return this.#first === null ? null : (this.#first - this.#begun) / 1000;
  }

  /** Mean time between tokens, in seconds. */
  get itl() {
    const span = this.#first === null ? 0 : this.#last - this.#first;
    return this.numTokens > 1 && span > 0 ? span / 1000 / (this.numTokens - 1) : null;
  }
}
