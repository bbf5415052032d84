// Six charts of the last two minutes. Each shows its last figures as text too, or those under the pointer.

import uPlot from "./vendor/uPlot.js";
import { colour, font } from "./colours.js";
import { element, setText } from "./dom.js";
import { count, duration, percent, rate } from "./format.js";
import { SHOWN_S } from "./history.js";

/**
 * @typedef {import("./history.js").Point} Point
 * @typedef {{title: string, unit: string, lines: [string, keyof Point][], format: (value: number | null) => string,
 *   least: number, most?: number}} Definition `least`: what the axis shows at least; `most`: where it ends.
 */

const whole = (/** @type {number | null} */ value) => (value === null ? "–" : count(value));

/** @type {Definition[]} */
const DEFINITIONS = [
  {
    title: "Throughput",
    unit: "tokens/s",
    lines: [
      ["generation", "generationRate"],
      ["prompt", "promptRate"],
    ],
    format: rate,
    least: 10,
  },
  {
    title: "Time to first token",
    unit: "last minute",
    lines: [
      ["p50", "ttft50"],
      ["p95", "ttft95"],
    ],
    format: duration,
    least: 0.001,
  },
  {
    title: "Inter-token latency",
    unit: "last minute",
    lines: [
      ["p50", "itl50"],
      ["p95", "itl95"],
    ],
    format: duration,
    least: 0.001,
  },
  {
    title: "Requests",
    unit: "now",
    lines: [
      ["running", "running"],
      ["waiting", "waiting"],
    ],
    format: whole,
    least: 4,
  },
  { title: "KV usage", unit: "held blocks", lines: [["held", "kvUsage"]], format: percent, least: 1, most: 1 },
  {
    title: "Prefix hit rate",
    unit: "tokens, last minute",
    lines: [["hit", "hitRate"]],
    format: percent,
    least: 1,
    most: 1,
  },
];

const HEIGHT = 112;
/** Steps of an axis that counts. */
const WHOLE_STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000];

export class Charts {
  #charts;

  /** @param {HTMLElement} parent */
  constructor(parent) {
    this.#charts = DEFINITIONS.map((definition) => new Chart(definition, parent));
  }

  /** @param {Point[]} points */
  show(points) {
    for (const chart of this.#charts) chart.show(points);
  }
}

class Chart {
  #definition;
  #values;
  /** @type {Point[]} */
  #points = [];
  #plot;

  /** @param {Definition} definition @param {HTMLElement} parent */
  constructor(definition, parent) {
    this.#definition = definition;
    this.#values = definition.lines.map(() => element("dd", { textContent: "–" }));
    const names = definition.lines.map(([name], line) =>
      element("div", {}, [element("dt", { textContent: name }), this.#values[line]]),
    );
    const box = element("div", { className: "plot" });
    box.setAttribute("aria-hidden", "true"); // The figures above say it in words.
    const title = element("h3", {}, [
      definition.title,
      element("span", { className: "unit", textContent: ` · ${definition.unit}` }),
    ]);
    parent.append(
      element("figure", { className: "card chart" }, [title, element("dl", { className: "values" }, names), box]),
    );
    this.#plot = new uPlot(this.#options(box.clientWidth), this.#columns(), box);
    new ResizeObserver(() => this.#plot.setSize({ width: box.clientWidth, height: HEIGHT })).observe(box);
    // Its colours are asked for when it draws.
    document.addEventListener("quire-theme", () => this.#plot.redraw());
  }

  /** @param {Point[]} points */
  show(points) {
    this.#points = points;
    this.#plot.setData(this.#columns());
    this.#write(this.#plot.cursor.idx ?? null);
  }

  /** The figures at a point; at the last one for null. @param {number | null} index */
  #write(index) {
    const point = (index === null ? undefined : this.#points[index]) ?? this.#points.at(-1);
    for (const [line, [, field]] of this.#definition.lines.entries()) {
      setText(this.#values[line], this.#definition.format(point ? point[field] : null));
    }
  }

  #columns() {
    const now = this.#points.at(-1)?.time ?? 0;
    const ages = this.#points.map(({ time }) => time - now);
    return [ages, ...this.#definition.lines.map(([, field]) => this.#points.map((point) => point[field]))];
  }

  /** @param {number} width @returns {object} */
  #options(width) {
    const { least, most, format, lines } = this.#definition;
    const axis = { stroke: () => colour("--muted"), font: font(11), ticks: { show: false } };
    const grid = { stroke: () => colour("--line"), width: 1 };
    return {
      width,
      height: HEIGHT,
      padding: [10, 16, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
      hooks: { setCursor: [(/** @type {any} */ plot) => this.#write(plot.cursor.idx)] },
      scales: {
        x: { time: false, range: [-SHOWN_S, 0] },
        y: { range: (_, __, high) => [0, most ?? Math.max(least, (high ?? 0) * 1.15)] },
      },
      axes: [
        {
          ...axis,
          grid: { show: false },
          size: 22,
          gap: 4,
          splits: () => [-SHOWN_S, -SHOWN_S / 2, 0],
          values: (_, at) => at.map(age),
        },
        {
          ...axis,
          grid,
          size: 54,
          gap: 6,
          space: 34,
          incrs: format === whole ? WHOLE_STEPS : undefined,
          splits: most ? () => [0, most / 2, most] : undefined,
          values: (_, at) => at.map((value) => (value ? format(value) : "0")),
        },
      ],
      series: [
        {},
        ...lines.map((_, line) => ({
          stroke: () => colour(`--series-${line + 1}`),
          width: 1.75,
          dash: line ? [5, 4] : undefined,
          points: { show: false },
        })),
      ],
    };
  }
}

/** @param {number} seconds */
const age = (seconds) => (seconds ? `−${-seconds} s` : "now");
