// How the blocks of a pool become cells of a picture: rows of squares, as large as there is room for.

/** Edge of a cell in pixels. Below the least, several blocks share a cell. */
const MOST_PX = 40;
const LEAST_PX = 3;
/** From here on cells have a gap between them, and whole pixels. */
const GAP_FROM_PX = 6;
const FINE_STEP_PX = 1 / 8;

/**
 * @typedef {{cell: number, gap: number, columns: number, perCell: number, numCells: number, numBlocks: number}} Layout
 * @param {number} numBlocks @param {number} width @param {number} height in pixels
 * @returns {Layout}
 */
export function layout(numBlocks, width, height) {
  const perCell = Math.max(1, Math.ceil(numBlocks / Math.max(1, room(LEAST_PX, width, height))));
  const numCells = Math.ceil(numBlocks / perCell);
  let cell = MOST_PX;
  while (cell > LEAST_PX && room(cell, width, height) < numCells) cell -= cell > GAP_FROM_PX ? 1 : FINE_STEP_PX;
  const gap = cell < GAP_FROM_PX ? 0 : cell < 16 ? 1 : 2;
  return { cell, gap, columns: Math.max(1, Math.floor(width / cell)), perCell, numCells, numBlocks };
}

/** How many cells of this edge there is room for. @param {number} cell @param {number} width @param {number} height */
const room = (cell, width, height) => Math.floor(width / cell) * Math.floor(height / cell);

/** The upper left corner of a cell. @param {Layout} layout @param {number} index */
export const corner = ({ cell, columns }, index) => [(index % columns) * cell, Math.floor(index / columns) * cell];

/** The cell at a point, or null. @param {Layout} layout @param {number} x @param {number} y */
export function cellAt({ cell, columns, numCells }, x, y) {
  const column = Math.floor(x / cell);
  const index = Math.floor(y / cell) * columns + column;
  return x >= 0 && y >= 0 && column < columns && index < numCells ? index : null;
}

/** The blocks of a cell: from the first up to the second. @param {Layout} layout @param {number} index */
export const blocksOf = ({ perCell, numBlocks }, index) => [
  index * perCell,
  Math.min((index + 1) * perCell, numBlocks),
];
