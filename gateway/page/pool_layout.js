// How the blocks of a pool become cells of a picture: rows of squares, as large as there is room for.

/** Edge of a cell in pixels. Below the least, several blocks share a cell. */
const MOST_PX = 40;
const LEAST_PX = 3;
/** From here on cells have a gap between them. */
const GAP_FROM_PX = 6;

/**
 * @typedef {{cell: number, gap: number, columns: number, perCell: number, numCells: number, numBlocks: number}} Layout
 * @param {number} numBlocks @param {number} width @param {number} height in pixels
 * @returns {Layout}
 */
export function layout(numBlocks, width, height) {
  let cell = MOST_PX;
  const room = () => Math.floor(width / cell) * Math.floor(height / cell);
  while (cell > LEAST_PX && room() < numBlocks) cell--;
  const perCell = Math.max(1, Math.ceil(numBlocks / Math.max(1, room())));
  const numCells = Math.ceil(numBlocks / perCell);
  const gap = cell < GAP_FROM_PX ? 0 : cell < 16 ? 1 : 2;
  return { cell, gap, columns: Math.max(1, Math.floor(width / cell)), perCell, numCells, numBlocks };
}

/** The upper left corner of a cell. @param {Layout} layout @param {number} index */
export const corner = ({ cell, columns }, index) => [(index % columns) * cell, Math.floor(index / columns) * cell];

/** The cell at a point, or null. @param {Layout} layout @param {number} x @param {number} y */
export function cellAt({ cell, columns, numCells }, x, y) {
  const column = Math.floor(x / cell);
  const index = Math.floor(y / cell) * columns + column;
  return x >= 0 && y >= 0 && column < columns && index < numCells ? index : null;
}

/** The blocks of a cell: from the first up to the second. @param {Layout} layout @param {number} index */
export const blocksOf = ({ perCell, numBlocks }, index) =>
  [index * perCell, Math.min((index + 1) * perCell, numBlocks)];
