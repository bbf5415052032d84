// Numbers and names as people read them.

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

/** 12,345. @param {number} value */
export const count = (value) => whole.format(value);

/** "1 block", "2,000 blocks". @param {number} value @param {string} noun */
export const counted = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

/** Three digits, or a dash for nothing. @param {number | null} value */
export const rate = (value) => {
  if (value === null) return "–";
  return value >= 1000 ? count(Math.round(value)) : short.format(value);
};

/** "84 ms", "1.2 s". @param {number | null} seconds */
export const duration = (seconds) => {
  if (seconds === null) return "–";
  return seconds < 1 ? `${short.format(seconds * 1000)} ms` : `${short.format(seconds)} s`;
};

/** "9 s", "2 min 5 s". @param {number} seconds */
export const age = (seconds) =>
  `${seconds < 60 ? "" : `${count(Math.floor(seconds / 60))} min `}${Math.floor(seconds % 60)} s`;

/** "12.3 %". @param {number | null} share from 0 to 1 */
export const percent = (share) => {
  if (share === null) return "–";
  if (share > 0 && share < 0.0001) return "< 0.01 %";
  return `${(share * 100).toFixed(share < 0.01 ? 2 : 1).replace(/\.0+$/, "")} %`;
};

/** A token's text with its blanks made visible. @param {string} text */
export const visible = (text) =>
  text === "" ? "(nothing)" : text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");
