// The states of the server, as they come; and what stands in their way.

import { ApiError, ask, events } from "./api.js";

/**
 * What `GET monitor/state` sends: quire.v1.ServerState of protos/quire/v1/monitor.proto.
 * @typedef {{bounds: number[], counts: number[], sum: number}} Histogram
 * @typedef {{request_id: string, sequence_index: number, status: string,
 *   num_tokens: number, num_computed_tokens: number,
 *   num_prompt_tokens: number, num_cached_tokens: number, tenant: string, executor: number, age_s: number,
 *   block_ids: number[]}} SequenceState
 * @typedef {{is_complete: boolean, block_ids: number[], states: string}} BlockMap
 * @typedef {{loads: Record<string, number> & {model: string}, num_prompt_tokens: number, num_generation_tokens: number,
 *   prefix_cache_queries: number, prefix_cache_hits: number, time_to_first_token: Histogram,
 *   inter_token_latency: Histogram, sequences: SequenceState[], blocks: BlockMap,
 *   scheduler_start_ns: number}} ServerState
 *
 * How it goes. `refused`: asking again would not help, before there is another key.
 * @typedef {{kind: "connecting"} | {kind: "live"} | {kind: "quiet"} | {kind: "away", message: string, retryS: number}
 *   | {kind: "refused", status: number, message: string}} FeedStatus
 */

const PATH = "monitor/state?interval=0.5&blocks=true";
/** Waits between attempts, in seconds: doubled from the first to the last. */
const FIRST_WAIT_S = 0.5;
const LAST_WAIT_S = 8;
/** So long without a state, something may be wrong (a busy server sends them less often than it is asked to); so long,
 * the connection counts as dead. A gateway whose scheduler is away sends none until there is another. */
const QUIET_MS = 3_000;
const SILENCE_MS = 30_000;

export class Feed {
  #onState;
  #onStatus;
  /** Ends the connection, or the wait for the next one. @type {AbortController} */
  #current = new AbortController();

  /** @param {(state: ServerState) => void} onState @param {(status: FeedStatus) => void} onStatus */
  constructor(onState, onStatus) {
    this.#onState = onState;
    this.#onStatus = onStatus;
  }

  /** Connects, now and whenever the connection is lost. Called again (another key), it begins anew. */
  async start() {
    this.#current.abort();
    const current = new AbortController();
    this.#current = current;
    let wait = FIRST_WAIT_S;
    this.#onStatus({ kind: "connecting" });
    while (!current.signal.aborted) {
      const error = await this.#follow(current.signal, () => (wait = FIRST_WAIT_S));
      if (current.signal.aborted) return;
      if ([401, 403, 404].includes(error.status)) {
        this.#onStatus({ kind: "refused", status: error.status, message: error.message });
        return;
      }
      this.#onStatus({ kind: "away", message: error.message, retryS: wait });
      // Pages that lost their server together do not come back together.
      await pause(wait * 1000 * (0.8 + 0.4 * Math.random()), current.signal);
      wait = Math.min(2 * wait, LAST_WAIT_S);
    }
  }

  /** Passes states on until the stream ends, and says why it did.
   * @param {AbortSignal} signal @param {() => void} onLife @returns {Promise<ApiError>} */
  async #follow(signal, onLife) {
    const attempt = new AbortController();
    const end = () => attempt.abort();
    let isLive = false;
    const quiet = new Timer(QUIET_MS, () => {
      isLive = false;
      this.#onStatus({ kind: "quiet" });
    });
    const silence = new Timer(SILENCE_MS, end);
    signal.addEventListener("abort", end);
    try {
      const response = await ask(PATH, { signal: attempt.signal });
      for await (const data of events(response.body)) {
        quiet.restart();
        silence.restart();
        const state = JSON.parse(data);
        if (state.error) throw new ApiError(0, state.error.message);
        if (!isLive) this.#onStatus({ kind: "live" });
        isLive = true;
        onLife();
        this.#onState(state);
      }
      return new ApiError(0, "The server ended the connection.");
    } catch (error) {
      if (error instanceof ApiError) return error;
      if (error.name === "AbortError") return new ApiError(0, "The server is silent.");
      throw error;
    } finally {
      quiet.stop();
      silence.stop();
      signal.removeEventListener("abort", end);
    }
  }
}

/** Calls back once it has not been restarted for some time. */
class Timer {
  #ms;
  #onTime;
  #id = 0;

  /** @param {number} ms @param {() => void} onTime */
  constructor(ms, onTime) {
    this.#ms = ms;
    this.#onTime = onTime;
    this.restart();
  }

  restart() {
    clearTimeout(this.#id);
    this.#id = setTimeout(this.#onTime, this.#ms);
  }

  stop() {
    clearTimeout(this.#id);
  }
}

/** Waits, but not beyond the signal. @param {number} ms @param {AbortSignal} signal */
function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve(undefined);
    });
  });
}
