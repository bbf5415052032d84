// Puts the page together.

import { Charts } from "./charts.js";
import { Chat } from "./chat.js";
import { byId, setText } from "./dom.js";
import { Feed } from "./feed.js";
import { History } from "./history.js";
import { KeyField } from "./key.js";
import { Pool } from "./pool.js";
import { PoolMap } from "./pool_map.js";
import { RequestTable } from "./requests.js";

const REFUSALS = {
  401: "The server asks for an API key. Give yours with the button “API key” above.",
  403: "This key may use the model, but only an operator's may see what the server does. The playground works.",
  404: "This server does not tell what it does. The playground works.",
};

const pool = new Pool();
const history = new History();
const charts = new Charts(byId("charts"));
const map = new PoolMap(pool);
const table = new RequestTable((key) => map.choose(key));
/** @type {import("./feed.js").ServerState | null} */
let latest = null;

/** Shows the latest state; a browser does so once per frame, and not at all while nobody looks. */
function show() {
  if (!latest) return;
  const { loads, sequences } = latest;
  latest = null;
  charts.show(history.points);
  map.show();
  table.show(sequences ?? [], loads.num_requests_running + loads.num_requests_waiting);
}

const feed = new Feed((state) => {
  pool.apply(state);
  history.add(state);
  const { num_live_executors: live, num_executors: executors } = state.loads;
  if (live < executors) showStatus("refused", `${live} of ${executors} executors`);
  else showStatus("live", "live");
  if (latest === null) requestAnimationFrame(show);
  latest = state;
}, onStatus);

/** @param {import("./feed.js").FeedStatus} status */
function onStatus(status) {
  const notice = byId("notice");
  if (status.kind === "refused") {
    showStatus("refused", status.status === 401 ? "key needed" : "no view");
    setText(notice, REFUSALS[status.status] ?? status.message);
    if (status.status === 401) keyField.ask();
  } else if (status.kind === "away") {
    showStatus("away", "server away");
    setText(notice, `${status.message} What is shown is from before. Trying again …`);
  } else if (status.kind === "quiet") {
    showStatus("refused", "no news");
    setText(notice, "The server sends no news: it is very busy, or its scheduler is being replaced. Still listening …");
  } else {
    showStatus(status.kind, status.kind);
    // The server is back, and may be another one.
    if (status.kind === "live" && !notice.hidden) chat.loadModels();
  }
  notice.hidden = status.kind === "live" || status.kind === "connecting";
}

/** @param {string} state @param {string} words */
function showStatus(state, words) {
  const pill = byId("feed-status");
  pill.dataset.state = state;
  const target = pill.querySelector(".words");
  if (target) setText(target, words);
}

const keyField = new KeyField(() => {
  chat.loadModels();
  feed.start();
});
const chat = new Chat(() => keyField.ask());

const themeButton = byId("theme-button");
const showTheme = () => setText(themeButton, document.documentElement.dataset.theme === "dark" ? "Light" : "Dark");
document.addEventListener("quire-theme", showTheme);
themeButton.addEventListener("click", () => document.dispatchEvent(new Event("quire-toggle-theme")));
showTheme();

chat.loadModels();
feed.start();
