// The colours and the font of theme.css, for what is drawn on a canvas.

/** @type {Map<string, string>} */
const known = new Map();
document.addEventListener("quire-theme", () => known.clear());

/** The value of a custom property; a colour is #rrggbb. @param {string} name */
export function colour(name) {
  let value = known.get(name);
  if (value === undefined) {
    value = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    known.set(name, value);
  }
  return value;
}

/** Its red, green and blue, from 0 to 255. @param {string} name */
export const channels = (name) => [1, 3, 5].map((at) => Number.parseInt(colour(name).slice(at, at + 2), 16));

/** As the property `font` has it. @param {number} px @param {number} [weight] */
export const font = (px, weight = 400) => `${weight} ${px}px ${colour("--font")}`;
