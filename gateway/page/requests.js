// The table of requests that run or wait. One can be chosen.

import { byId, element, setText } from "./dom.js";
import { age, count, counted } from "./format.js";
import { keyOf, nameOf } from "./pool.js";

/**
 * @typedef {import("./feed.js").SequenceState} SequenceState
 * @typedef {{row: HTMLTableRowElement, button: HTMLButtonElement, cells: HTMLElement[]}} Row
 */

const NUM_COLUMNS = 8;
/** Of these, those that are not numbers: status and tenant. */
const WORDS = new Set([0, NUM_COLUMNS - 1]);

export class RequestTable {
  #body = byId("requests");
  /** By the key of the sequence. @type {Map<string, Row>} */
  #rows = new Map();
  /** @type {string | null} */
  #chosen = null;
  #onChoose;

  /** @param {(key: string | null) => void} onChoose */
  constructor(onChoose) {
    this.#onChoose = onChoose;
  }

  /** @param {SequenceState[]} sequences @param {number} numInAll that run or wait */
  show(sequences, numInAll) {
    const keys = new Set(sequences.map(keyOf));
    for (const [key, { row }] of this.#rows) {
      if (keys.has(key)) continue;
      // The focus does not fall off the page with the row that had it.
      if (row.contains(document.activeElement)) byId("requests-box").focus({ preventScroll: true });
      row.remove();
      this.#rows.delete(key);
    }
    for (const [at, sequence] of sequences.entries()) {
      const { row, cells } = this.#rows.get(keyOf(sequence)) ?? this.#add(sequence);
      for (const [column, text] of columns(sequence).entries()) setText(cells[column], text);
      cells[0].dataset.state = sequence.status;
      if (this.#body.children[at] !== row) this.#body.insertBefore(row, this.#body.children[at] ?? null);
    }
    byId("requests-hint").hidden = sequences.length > 0;
    byId("requests-box").classList.toggle("no-tenants", !sequences.some(({ tenant }) => tenant));
    const shown =
      sequences.length < numInAll
        ? `the first ${sequences.length} of ${count(numInAll)}`
        : counted(numInAll, "sequence");
    setText(byId("requests-count"), numInAll ? shown : "");
  }

  /** @param {SequenceState} sequence @returns {Row} */
  #add(sequence) {
    const key = keyOf(sequence);
    const button = element("button", {
      type: "button",
      textContent: nameOf(sequence),
      title: nameOf(sequence),
      ariaPressed: "false",
    });
    const cells = Array.from({ length: NUM_COLUMNS }, (_, column) =>
      element(column ? "td" : "span", { className: column === 0 ? "state" : WORDS.has(column) ? "" : "number" }),
    );
    const row = element("tr", {}, [element("td", {}, [button]), element("td", {}, [cells[0]]), ...cells.slice(1)]);
    row.addEventListener("click", () => this.#choose(this.#chosen === key ? null : key));
    const entry = { row, button, cells };
    this.#rows.set(key, entry);
    this.#mark(key, entry);
    return entry;
  }

  /** @param {string | null} chosen */
  #choose(chosen) {
    this.#chosen = chosen;
    for (const [key, row] of this.#rows) this.#mark(key, row);
    this.#onChoose(chosen);
  }

  /** @param {string} key @param {Row} entry */
  #mark(key, { row, button }) {
    row.classList.toggle("chosen", key === this.#chosen);
    button.ariaPressed = String(key === this.#chosen);
  }
}

/** What the columns say, but for the first. @param {SequenceState} sequence */
function columns(sequence) {
  return [
    sequence.status,
    age(sequence.age_s),
    count(sequence.num_prompt_tokens),
    count(sequence.num_cached_tokens),
    count(Math.max(0, sequence.num_tokens - sequence.num_prompt_tokens)),
    count((sequence.block_ids ?? []).length),
    sequence.status === "running" ? String(sequence.executor) : "–",
    sequence.tenant,
  ];
}
