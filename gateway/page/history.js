// What the charts show: rates and quantiles of the last minutes, from counters that only grow.

/**
 * One moment; null where there is nothing to tell.
 * @typedef {{time: number, promptRate: number | null, generationRate: number | null, ttft50: number | null,
 *   ttft95: number | null, itl50: number | null, itl95: number | null, running: number | null,
 *   waiting: number | null, kvUsage: number | null, hitRate: number | null}} Point
 * @typedef {import("./feed.js").ServerState} ServerState
 * @typedef {import("./feed.js").Histogram} Histogram
 */

/** How far back the charts go, in seconds. */
export const SHOWN_S = 120;
/** Quantiles and the hit rate are of so many seconds, rates of so many. */
const WINDOW_S = 60;
const RATE_S = 2;
/** A pause of so many seconds is a gap in the lines. */
const GAP_S = 10;

export class History {
  /** @type {Point[]} */
  points = [];
  /** @type {{time: number, state: ServerState}[]} */
  #states = [];

  /** @param {ServerState} state */
  add(state) {
    const time = state.loads.time_ns / 1e9;
    const last = this.#states.at(-1);
    if (last && last.state.scheduler_start_ns !== state.scheduler_start_ns) this.#states = [];
    if (last && (this.#states.length === 0 || time - last.time > GAP_S)) this.points.push(nothing(last.time + 0.001));
    // Blocks and sequences are not kept.
    this.#states.push({ time, state: { ...state, sequences: [], blocks: EMPTY } });
    this.points.push(this.#point(time, state));
    drop(this.#states, time - WINDOW_S - 1);
    drop(this.points, time - SHOWN_S - 1);
  }

  /** @param {number} time @param {ServerState} state @returns {Point} */
  #point(time, state) {
    const recent = this.#before(time - RATE_S);
    const early = this.#before(time - WINDOW_S).state;
    const passed = time - recent.time;
    const queries = state.prefix_cache_queries - early.prefix_cache_queries;
    const hits = state.prefix_cache_hits - early.prefix_cache_hits;
    const since = (/** @type {"num_prompt_tokens" | "num_generation_tokens"} */ name) =>
      passed > 0 ? (state[name] - recent.state[name]) / passed : null;
    const ttft = difference(state.time_to_first_token, early.time_to_first_token);
    const itl = difference(state.inter_token_latency, early.inter_token_latency);
    return {
      time,
      promptRate: since("num_prompt_tokens"),
      generationRate: since("num_generation_tokens"),
      ttft50: quantile(ttft, 0.5),
      ttft95: quantile(ttft, 0.95),
      itl50: quantile(itl, 0.5),
      itl95: quantile(itl, 0.95),
      running: state.loads.num_requests_running,
      waiting: state.loads.num_requests_waiting,
      kvUsage: state.loads.kv_cache_usage,
      hitRate: queries > 0 ? hits / queries : null,
    };
  }

  /** The last state at or before a time, or else the first. @param {number} time */
  #before(time) {
    return this.#states.findLast((entry) => entry.time <= time) ?? this.#states[0];
  }
}

/** What was counted between two moments.
 * @param {Histogram | undefined} now @param {Histogram | undefined} then @returns {Histogram} */
export const difference = (now = NO_HISTOGRAM, then = NO_HISTOGRAM) => ({
  bounds: now.bounds,
  sum: now.sum - then.sum,
  counts: now.counts.map((count, bucket) => count - (then.counts[bucket] ?? 0)),
});

/** Of a server that has counted nothing yet. */
const NO_HISTOGRAM = { bounds: [], counts: [], sum: 0 };

/**
 * As Prometheus' histogram_quantile: evenly spread within a bucket; what lies above all bounds is at the last. But the
 * first bucket is wide (0 to 10 ms of what takes 1), and there the mean tells more: evenly spread from 0 to twice it.
 * @param {Histogram} histogram @param {number} share from 0 to 1
 * @returns {number | null} null if nothing was counted
 */
export function quantile({ bounds, counts, sum }, share) {
  const total = counts.reduce((all, count) => all + count, 0);
  if (total <= 0) return null;
  let below = 0;
  for (const [bucket, upper] of bounds.entries()) {
    const count = counts[bucket];
    if (count > 0 && below + count >= share * total) {
      const lower = bucket ? bounds[bucket - 1] : 0;
      const spread = lower + (upper - lower) * ((share * total - below) / count);
      return bucket ? spread : Math.min(spread, share * 2 * (sum / total));
    }
    below += count;
  }
  return bounds.at(-1) ?? null;
}

const EMPTY = { is_complete: false, block_ids: [], states: "" };

/** A gap. @param {number} time @returns {Point} */
const nothing = (time) => ({
  time,
  promptRate: null,
  generationRate: null,
  ttft50: null,
  ttft95: null,
  itl50: null,
  itl95: null,
  running: null,
  waiting: null,
  kvUsage: null,
  hitRate: null,
});

/** Removes what is older than a time. @param {{time: number}[]} entries @param {number} time */
function drop(entries, time) {
  const kept = entries.findIndex((entry) => entry.time >= time);
  if (kept > 0) entries.splice(0, kept);
}
