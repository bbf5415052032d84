// The KV pool as a picture, with its legend, the block under the pointer or the keyboard, and a request's block table.

import { byId, element, setText } from "./dom.js";
import { count, counted } from "./format.js";
import { KINDS, keyOf, nameOf } from "./pool.js";
import { blocksOf, cellAt, layout } from "./pool_layout.js";
import { paintCursor, paintPixels, paintSquares, paintTable } from "./pool_painter.js";

/** A summary is read out at most so often, in milliseconds. */
const SUMMARY_MS = 20_000;
/** So many holders, and blocks of a table, are named. */
const MOST_HOLDERS = 3;
const MOST_BLOCKS = 200;

export class PoolMap {
  #pool;
  #canvas = /** @type {HTMLCanvasElement} */ (byId("pool"));
  #layout = layout(0, 1, 1);
  /** The cell that is asked about. @type {number | null} */
  #cursor = null;
  /** @type {string | null} */
  #chosen = null;
  #counts;
  #summaryAt = 0;

  /** @param {import("./pool.js").Pool} pool */
  constructor(pool) {
    this.#pool = pool;
    this.#counts = KINDS.map(() => element("b", { textContent: "–" }));
    for (const [index, { kind, label }] of KINDS.entries()) {
      const entry = element("li", {}, [element("i"), label, this.#counts[index]]);
      entry.dataset.kind = kind;
      byId("pool-legend").append(entry);
    }
    // A slider tells assistive technology of each block that one moves to.
    this.#canvas.role = "slider";
    this.#canvas.ariaLabel = "Block of the KV pool";
    this.#canvas.ariaOrientation = "horizontal";
    this.#canvas.ariaValueMin = this.#canvas.ariaValueNow = this.#canvas.ariaValueMax = "0";
    this.#canvas.addEventListener("pointermove", (event) => this.#point(event.offsetX, event.offsetY));
    this.#canvas.addEventListener("pointerdown", (event) => this.#point(event.offsetX, event.offsetY));
    this.#canvas.addEventListener("pointerleave", () => this.#canvas.matches(":focus") || this.#move(null));
    this.#canvas.addEventListener("focus", () => this.#cursor ?? this.#move(0));
    this.#canvas.addEventListener("blur", () => this.#move(null));
    this.#canvas.addEventListener("keydown", (event) => this.#step(event));
    new ResizeObserver(() => this.show()).observe(byId("pool-box"));
    document.addEventListener("quire-theme", () => this.show());
  }

  /** Shows a request's block table, or none. @param {string | null} key see keyOf */
  choose(key) {
    this.#chosen = key;
    this.show();
  }

  /** Shows the pool as it is now. */
  show() {
    const box = byId("pool-box");
    const [width, height] = [box.clientWidth, box.clientHeight];
    const { states } = this.#pool;
    this.#layout = layout(states.length, width, height);
    if (this.#cursor !== null && this.#cursor >= this.#layout.numCells) this.#cursor = null;
    this.#paint(width, height);
    this.#write();
  }

  /** @param {number} width @param {number} height */
  #paint(width, height) {
    const context = this.#canvas.getContext("2d");
    if (!context || !width) return;
    const scale = devicePixelRatio;
    this.#canvas.width = width * scale;
    this.#canvas.height = height * scale;
    context.scale(scale, scale);
    if (this.#layout.gap) paintSquares(context, this.#pool, this.#layout);
    else paintPixels(context, this.#pool, this.#layout);
    const chosen = this.#chosenSequence();
    if (chosen) paintTable(context, this.#pool, this.#layout, chosen.block_ids ?? []);
    if (this.#cursor !== null) paintCursor(context, this.#layout, this.#cursor);
  }

  #write() {
    const counts = this.#pool.counts();
    for (const [kind, value] of counts.entries()) setText(this.#counts[kind], count(value));
    const { numBlocks, perCell } = this.#layout;
    const cell = perCell > 1 ? `${perCell} to a cell, whose colour is their mean` : "one cell each";
    setText(
      byId("pool-scale"),
      numBlocks ? `${counted(numBlocks, "block")} of ${this.#pool.blockSize} tokens; ${cell}` : "",
    );
    setText(byId("pool-block"), this.#describeCursor());
    setText(byId("pool-table"), this.#describeTable());
    this.#canvas.ariaValueMax = String(Math.max(0, this.#layout.numCells - 1));
    this.#canvas.ariaValueNow = String(this.#cursor ?? 0);
    this.#canvas.ariaValueText = this.#describeCursor();
    if (numBlocks && performance.now() > this.#summaryAt) {
      this.#summaryAt = performance.now() + SUMMARY_MS;
      const parts = KINDS.map(({ label }, kind) => `${count(counts[kind])} ${label}`);
      setText(byId("pool-summary"), `KV pool of ${counted(numBlocks, "block")}: ${parts.join(", ")}.`);
    }
  }

  #describeCursor() {
    if (this.#cursor === null) return "Point at a block, or move over the map with the arrow keys.";
    const [first, end] = blocksOf(this.#layout, this.#cursor);
    if (end - first > 1) {
      const parts = this.#pool.counts(first, end).map((value, kind) => (value ? `${value} ${KINDS[kind].label}` : ""));
      return `Blocks ${first} to ${end - 1}: ${parts.filter(Boolean).join(", ")}`;
    }
    const holders = this.#pool.holders(first);
    const named = holders.slice(0, MOST_HOLDERS).map(({ sequence, at }) => `${nameOf(sequence)} as block ${at + 1}`);
    if (holders.length > MOST_HOLDERS) named.push(`${holders.length - MOST_HOLDERS} more`);
    return [`Block ${first}: ${this.#pool.describe(first)}`, ...named].join(" · ");
  }

  #describeTable() {
    if (this.#chosen === null) return "Choose a request in the table below to see its blocks here, in order.";
    const sequence = this.#chosenSequence();
    if (!sequence) return "The chosen request has ended.";
    const blocks = sequence.block_ids ?? [];
    const more = blocks.length > MOST_BLOCKS ? ", …" : "";
    return `${nameOf(sequence)}: ${counted(blocks.length, "block")}: ${blocks.slice(0, MOST_BLOCKS).join(", ")}${more}`;
  }

  #chosenSequence() {
    return this.#pool.sequences.find((sequence) => keyOf(sequence) === this.#chosen);
  }

  /** @param {number} x @param {number} y on the canvas */
  #point(x, y) {
    const cell = cellAt(this.#layout, x, y);
    if (cell !== this.#cursor) this.#move(cell);
  }

  /** @param {number | null} cell */
  #move(cell) {
    this.#cursor = cell !== null && cell < this.#layout.numCells ? cell : null;
    this.show();
  }

  /** @param {KeyboardEvent} event */
  #step(event) {
    const { columns, numCells } = this.#layout;
    const at = this.#cursor ?? 0;
    /** @type {Record<string, number>} */
    const to = {
      ArrowRight: at + 1,
      ArrowLeft: at - 1,
      ArrowDown: at + columns,
      ArrowUp: at - columns,
      PageDown: at + 10 * columns,
      PageUp: at - 10 * columns,
      Home: 0,
      End: numCells - 1,
    };
    if (!(event.key in to) || !numCells) return;
    event.preventDefault();
    this.#move(Math.max(0, Math.min(numCells - 1, to[event.key])));
  }
}
