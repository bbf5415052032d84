// What else could have been there: the tooltip of a token, by pointer, by touch and by keyboard.
//
// As WCAG 1.4.13 asks: Escape closes it, the pointer may rest on it, and it stays until pointer and focus have left.

import { percent, visible } from "./format.js";
import { element } from "./dom.js";

/** The pointer's time to get from a token to its tooltip, in milliseconds. */
const GRACE_MS = 120;

/** @param {HTMLElement} tip @param {HTMLElement} area where the tokens are */
export function installTooltip(tip, area) {
  /** @type {HTMLElement | null} */
  let shown = null;
  let closing = 0;

  const close = () => {
    clearTimeout(closing);
    shown?.classList.remove("shown");
    shown?.removeAttribute("aria-describedby");
    shown = null;
    tip.hidden = true;
  };
  const closeSoon = () => {
    clearTimeout(closing);
    closing = setTimeout(close, GRACE_MS);
  };
  const open = (/** @type {HTMLElement} */ span) => {
    clearTimeout(closing);
    if (span === shown) return;
    close();
    shown = span;
    span.classList.add("shown");
    span.setAttribute("aria-describedby", tip.id);
    tip.replaceChildren(...describe(tokenOf.get(span)));
    tip.hidden = false;
    place(tip, span);
  };
  const token = (/** @type {Event} */ event) => {
    const span = event.target instanceof HTMLElement ? event.target.closest(".token") : null;
    return span instanceof HTMLElement ? span : null;
  };

  area.addEventListener("pointerover", (event) => {
    const span = token(event);
    if (span) open(span);
    else if (shown && shown !== document.activeElement) closeSoon();
  });
  area.addEventListener("pointerleave", () => shown !== document.activeElement && closeSoon());
  tip.addEventListener("pointerenter", () => clearTimeout(closing));
  tip.addEventListener("pointerleave", () => shown !== document.activeElement && closeSoon());
  area.addEventListener("focusin", (event) => {
    const span = token(event);
    if (span) open(span);
  });
  area.addEventListener("focusout", closeSoon);
  area.addEventListener("scroll", close, { passive: true });
  addEventListener("resize", close);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && shown) close();
    else if (event.target instanceof HTMLElement && event.target.matches(".token")) step(event.target, event);
  });
}

/** The token of each span. @type {WeakMap<HTMLElement, import("./tokens.js").Token>} */
const tokenOf = new WeakMap();

/** A span of an answer that is a token. Of an answer only one is in the order of Tab; arrow keys reach the others.
 * @param {string} text @param {import("./tokens.js").Token} token @param {boolean} inTabOrder */
export function tokenSpan(text, token, inTabOrder) {
  const span = element("span", { className: "token", textContent: text, tabIndex: inTabOrder ? 0 : -1 });
  const share = Math.exp(token.logprob);
  span.dataset.likely = String(share > 0.9 ? 0 : share > 0.5 ? 1 : share > 0.2 ? 2 : 3);
  tokenOf.set(span, token);
  return span;
}

/** Moves the focus among the tokens of an answer. @param {HTMLElement} span @param {KeyboardEvent} event */
function step(span, event) {
  const spans = [...(span.parentElement?.querySelectorAll(".token") ?? [])];
  const at = spans.indexOf(span);
  const to = {
    ArrowRight: at + 1,
    ArrowDown: at + 1,
    ArrowLeft: at - 1,
    ArrowUp: at - 1,
    Home: 0,
    End: spans.length - 1,
  };
  const next = spans[to[event.key]];
  if (!(event.key in to)) return;
  event.preventDefault();
  if (!(next instanceof HTMLElement)) return;
  span.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

/** @param {import("./tokens.js").Token | undefined} token @returns {HTMLElement[]} */
function describe(token) {
  if (!token) return [];
  const share = Math.exp(token.logprob);
  const head = element("div", { className: "of" }, [
    element("span", { className: "name", textContent: visible(token.token) }),
    element("span", { className: "share", textContent: percent(share) }),
  ]);
  head.title = `log probability ${token.logprob.toFixed(3)}`;
  return [head, ...(token.top_logprobs ?? []).map((other) => describeOther(other, other.token === token.token))];
}

/** @param {import("./tokens.js").Candidate} other @param {boolean} isTaken */
function describeOther(other, isTaken) {
  const share = Math.exp(other.logprob);
  const bar = element("progress", { max: 1, value: share });
  bar.setAttribute("aria-hidden", "true");
  return element("div", { className: isTaken ? "other taken" : "other" }, [
    bar,
    element("span", { className: "name", textContent: visible(other.token) }),
    element("span", { className: "share", textContent: percent(share) }),
  ]);
}

/**
 * Below the token, or above it where there is no room, within the window.
 * @param {HTMLElement} tip @param {HTMLElement} span
 */
function place(tip, span) {
  const margin = 8;
  const [at] = span.getClientRects();
  if (!at) return;
  const size = tip.getBoundingClientRect();
  const below = at.bottom + 6 + size.height + margin <= innerHeight;
  tip.style.left = `${Math.max(margin, Math.min(at.left, innerWidth - size.width - margin))}px`;
  tip.style.top = `${Math.max(margin, below ? at.bottom + 6 : at.top - 6 - size.height)}px`;
}
