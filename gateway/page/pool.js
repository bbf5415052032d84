// What each block of the KV pool is.

/**
 * @typedef {import("./feed.js").ServerState} ServerState
 * @typedef {import("./feed.js").SequenceState} SequenceState
 */

/** What a block can be, as it is named, and its colour in theme.css. */
export const KINDS = [
  { kind: "free", label: "free", colour: "--kv-free" },
  { kind: "cached", label: "cached", colour: "--kv-cached" },
  { kind: "held", label: "held by one", colour: "--kv-held" },
  { kind: "shared2", label: "shared by 2", colour: "--kv-shared-2" },
  { kind: "shared4", label: "by 3 or 4", colour: "--kv-shared-4" },
  { kind: "sharedMany", label: "by 5 or more", colour: "--kv-shared-many" },
];

/** The index in KINDS of each state of quire.v1.BlockMap: 0 free, 1 cached, 1 + n held by n. */
export const KIND_OF_STATE = Uint8Array.from({ length: 256 }, (_, state) => (state <= 3 ? state : state <= 5 ? 4 : 5));

/** States from here on stand for so many holders or more. */
const MOST_HOLDERS = 254;

export class Pool {
  /** By block. */
  states = new Uint8Array(0);
  blockSize = 0;
  /** Those that run or wait. @type {SequenceState[]} */
  sequences = [];

  /** @param {ServerState} state */
  apply({ loads, blocks, sequences }) {
    this.blockSize = loads.block_size;
    this.sequences = sequences ?? [];
    if (!blocks) return;
    const states = bytes(blocks.states);
    if (blocks.is_complete) this.states = states;
    else for (const [at, block] of blocks.block_ids.entries()) this.states[block] = states[at];
  }

  /** How many blocks are of each of KINDS, among those from `first` up to `end`. */
  counts(first = 0, end = this.states.length) {
    const counts = KINDS.map(() => 0);
    for (let block = first; block < end; block++) counts[KIND_OF_STATE[this.states[block]]]++;
    return counts;
  }

  /** "held by one", "shared by 3". @param {number} block */
  describe(block) {
    const state = this.states[block];
    if (state < 3) return KINDS[state].label;
    const holders = state - 1;
    return `shared by ${holders}${holders >= MOST_HOLDERS ? " or more" : ""}`;
  }

  /** Whose tables a block is in, and where. @param {number} block @returns {{sequence: SequenceState, at: number}[]} */
  holders(block) {
    return this.sequences
      .map((sequence) => ({ sequence, at: (sequence.block_ids ?? []).indexOf(block) }))
      .filter(({ at }) => at >= 0);
  }
}

/** Names a sequence among all. @param {SequenceState} sequence */
export const keyOf = ({ request_id, sequence_index }) => `${request_id}/${sequence_index}`;

/** How a sequence is called. @param {SequenceState} sequence */
export const nameOf = ({ request_id, sequence_index }) =>
  sequence_index ? `${request_id} (${sequence_index + 1})` : request_id;

/** @param {string} base64 */
function bytes(base64) {
  const text = atob(base64);
  return Uint8Array.from({ length: text.length }, (_, at) => text.charCodeAt(at));
}
