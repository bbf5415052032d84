// Paints the cells of the KV pool, and over them the block table of a chosen request.

import { channels, colour, font } from "./colours.js";
import { KIND_OF_STATE, KINDS } from "./pool.js";
import { blocksOf, corner } from "./pool_layout.js";

/**
 * @typedef {import("./pool.js").Pool} Pool
 * @typedef {import("./pool_layout.js").Layout} Layout
 */

/** How much of the other blocks' colour is left while one request is shown. */
const DIMMED = 0.3;
/** Cells of so many pixels have room for the position in a block table. */
const NUMBERS_FROM_PX = 20;
/** A line through more blocks than these would be a tangle. */
const MOST_JOINED = 24;
/** How strong the last block of a table is; the first is 1, and those between lie between. */
const LAST_ALPHA = 0.45;

/**
 * Cells with gaps, where there is room for them; each is one block.
 * @param {CanvasRenderingContext2D} context @param {Pool} pool @param {Layout} layout
 */
export function paintSquares(context, pool, layout) {
  const paths = KINDS.map(() => new Path2D());
  for (let block = 0; block < layout.numCells; block++) {
    paths[KIND_OF_STATE[pool.states[block]]].roundRect(...square(layout, block), layout.cell / 8);
  }
  for (const [kind, path] of paths.entries()) {
    context.fillStyle = colour(KINDS[kind].colour);
    context.fill(path);
  }
}

/**
 * Small cells, which may stand for several blocks: the mean of their colours. One pixel each, then made larger.
 * @param {CanvasRenderingContext2D} context @param {Pool} pool @param {Layout} layout
 */
export function paintPixels(context, pool, layout) {
  const colours = KINDS.map((kind) => channels(kind.colour));
  const rows = Math.ceil(layout.numCells / layout.columns);
  const image = new ImageData(layout.columns, rows);
  for (let cell = 0; cell < layout.numCells; cell++) {
    const [first, end] = blocksOf(layout, cell);
    let [red, green, blue] = [0, 0, 0];
    for (let block = first; block < end; block++) {
      const of = colours[KIND_OF_STATE[pool.states[block]]];
      red += of[0];
      green += of[1];
      blue += of[2];
    }
    const blocks = end - first;
    image.data.set([red / blocks, green / blocks, blue / blocks, 255], 4 * cell);
  }
  const small = new OffscreenCanvas(layout.columns, rows);
  small.getContext("2d")?.putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, layout.columns * layout.cell, rows * layout.cell);
}

/**
 * Dims all blocks but those of a table, of which the first is the strongest, and shows their order.
 * @param {CanvasRenderingContext2D} context @param {Pool} pool @param {Layout} layout @param {number[]} table
 */
export function paintTable(context, pool, layout, table) {
  const { cell, perCell } = layout;
  const cells = table.map((block) => Math.floor(block / perCell));
  context.fillStyle = colour("--card");
  context.globalAlpha = 1 - DIMMED;
  context.fillRect(0, 0, context.canvas.width, context.canvas.height);
  context.globalAlpha = 1;
  for (const [at, index] of cells.entries()) {
    context.globalAlpha = cell < NUMBERS_FROM_PX ? 1 - (1 - LAST_ALPHA) * (at / cells.length) : 1;
    context.fillStyle = colour(KINDS[KIND_OF_STATE[pool.states[table[at]]]].colour);
    context.beginPath();
    context.roundRect(...square(layout, index), layout.gap ? cell / 8 : 0);
    context.fill();
  }
  context.globalAlpha = 1;
  paintOrder(
    context,
    cells.map((index) => corner(layout, index).map((edge) => edge + (cell - layout.gap) / 2)),
    cell,
  );
}

/** Numbers where there is room, otherwise a line that begins with a dot, if there are few.
 * @param {CanvasRenderingContext2D} context @param {number[][]} centres @param {number} cell */
function paintOrder(context, centres, cell) {
  if (cell >= NUMBERS_FROM_PX) {
    context.fillStyle = "#ffffff";
    context.font = font(Math.min(13, cell / 2), 600);
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const [at, [x, y]] of centres.entries()) context.fillText(String(at + 1), x, y + 0.5);
    return;
  }
  if (!centres.length || centres.length > MOST_JOINED) return;
  context.strokeStyle = colour("--chosen");
  context.fillStyle = colour("--chosen");
  context.globalAlpha = 0.6;
  context.lineWidth = 1;
  context.lineJoin = "round";
  context.beginPath();
  for (const [x, y] of centres) context.lineTo(x, y);
  context.stroke();
  context.globalAlpha = 1;
  context.beginPath();
  context.arc(centres[0][0], centres[0][1], 3, 0, 2 * Math.PI);
  context.fill();
}

/**
 * Marks the cell that is asked about.
 * @param {CanvasRenderingContext2D} context @param {Layout} layout @param {number} index
 */
export function paintCursor(context, layout, index) {
  const [x, y, width, height] = square(layout, index);
  context.strokeStyle = colour("--chosen");
  context.lineWidth = 2;
  context.strokeRect(x, y, width, height);
}

/** Where a cell is painted. @param {Layout} layout @param {number} index @returns {[number, number, number, number]} */
function square(layout, index) {
  const [x, y] = corner(layout, index);
  return [x, y, layout.cell - layout.gap, layout.cell - layout.gap];
}
