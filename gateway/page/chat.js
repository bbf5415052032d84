// The playground: a conversation with the model.

import { Answer } from "./answer.js";
import { ApiError, ask } from "./api.js";
import { complete, Timing } from "./completion.js";
import { byId, element, setText } from "./dom.js";
import { counted } from "./format.js";
import { installTooltip } from "./tooltip.js";

/** How near to its end the conversation counts as followed, in pixels. */
const NEAR_END_PX = 48;

export class Chat {
  /** @type {import("./completion.js").Message[]} */
  #messages = [];
  /** @type {AbortController | null} */
  #running = null;
  #list = byId("messages");
  #prompt = /** @type {HTMLTextAreaElement} */ (byId("prompt"));
  #send = /** @type {HTMLButtonElement} */ (byId("send"));
  #error = byId("chat-error");
  #onKeyNeeded;

  /** @param {() => void} onKeyNeeded */
  constructor(onKeyNeeded) {
    this.#onKeyNeeded = onKeyNeeded;
    installTooltip(byId("token-tip"), this.#list);
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#running) this.#running.abort();
      else this.#ask();
    });
    this.#prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.#running) this.#ask();
    });
    byId("regenerate").addEventListener("click", () => this.#regenerate());
    byId("clear").addEventListener("click", () => this.#clear());
  }

  /** Fills the choice of models. */
  async loadModels() {
    const select = /** @type {HTMLSelectElement} */ (byId("model"));
    try {
      const models = (await (await ask("v1/models")).json()).data;
      const chosen = select.value;
      select.replaceChildren(...models.map(({ id }) => element("option", { value: id, textContent: id })));
      if (models.some(({ id }) => id === chosen)) select.value = chosen;
      this.#fail(null);
    } catch (error) {
      this.#fail(error);
    }
  }

  #ask() {
    const content = this.#prompt.value.trim();
    if (!content) {
      this.#prompt.focus();
      return;
    }
    this.#prompt.value = "";
    this.#messages.push({ role: "user", content });
    this.#list.append(
      element("div", { className: "message user" }, [element("div", { className: "text", textContent: content })]),
    );
    this.#answer();
  }

  #regenerate() {
    if (this.#running) return;
    if (this.#messages.at(-1)?.role === "assistant") this.#messages.pop();
    if (this.#list.lastElementChild?.matches(".assistant")) this.#list.lastElementChild.remove();
    this.#answer();
  }

  #clear() {
    this.#running?.abort();
    this.#messages = [];
    for (const message of this.#list.querySelectorAll(".message")) message.remove();
    this.#fail(null);
    this.#update();
    this.#prompt.focus();
  }

  async #answer() {
    const running = new AbortController();
    const messages = this.#messages;
    const answer = new Answer();
    const timing = new Timing();
    this.#running = running;
    this.#fail(null);
    this.#list.append(answer.element);
    this.#list.scrollTop = this.#list.scrollHeight;
    this.#update();
    let state = "broken off";
    let frame = 0;
    try {
      for await (const piece of complete(this.#question(), timing, running.signal)) {
        answer.add(piece);
        // Tokens come faster than frames, and each change of a long answer costs a layout of it.
        frame ||= requestAnimationFrame(() => {
          frame = 0;
          this.#show(answer, timing, "answering …");
        });
      }
      state = timing.finishReason === "length" ? "cut at max tokens" : "complete";
    } catch (error) {
      if (error.name === "AbortError") state = "stopped";
      else if (messages === this.#messages) this.#fail(error);
    }
    cancelAnimationFrame(frame);
    answer.end();
    this.#show(answer, timing, state);
    if (answer.content) messages.push({ role: "assistant", content: answer.content });
    if (!timing.numTokens && state !== "complete") answer.element.remove();
    if (this.#running === running) this.#running = null;
    setText(byId("chat-status"), `Answer ${state}, ${counted(timing.numTokens, "token")}.`);
    this.#update();
  }

  /** Shows what came, and stays at the end of it for who is there.
   * @param {Answer} answer @param {Timing} timing @param {string} state */
  #show(answer, timing, state) {
    const list = this.#list;
    const follows = list.scrollHeight - list.scrollTop - list.clientHeight < NEAR_END_PX;
    answer.show(timing, state);
    if (follows) list.scrollTop = list.scrollHeight;
  }

  /** @returns {import("./completion.js").Question} */
  #question() {
    const value = (/** @type {string} */ id) => /** @type {HTMLInputElement} */ (byId(id)).value.trim();
    /** @type {import("./completion.js").Message[]} */
    const system = value("system") ? [{ role: "system", content: value("system") }] : [];
    return {
      model: value("model"),
      messages: [...system, ...this.#messages],
      // An empty field leaves it to the server.
      ...(value("temperature") && { temperature: Number(value("temperature")) }),
      ...(value("max-tokens") && { max_tokens: Number(value("max-tokens")) }),
    };
  }

  /** Shows what went wrong, or that nothing did. @param {Error | null} error */
  #fail(error) {
    if (error && !(error instanceof ApiError)) console.error(error);
    this.#error.hidden = !error;
    setText(this.#error, error?.message ?? "");
    if (error instanceof ApiError && error.status === 401) this.#onKeyNeeded();
  }

  #update() {
    const isRunning = this.#running !== null;
    const hasMessages = this.#messages.length > 0;
    setText(this.#send, isRunning ? "Stop" : "Send");
    /** @type {HTMLButtonElement} */ (byId("regenerate")).disabled = isRunning || !hasMessages;
    /** @type {HTMLButtonElement} */ (byId("clear")).disabled = !hasMessages;
    byId("chat-hint").hidden = hasMessages;
  }
}
