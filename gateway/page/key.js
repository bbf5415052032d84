// The field for an API key.

import { apiKey, setApiKey } from "./api.js";
import { byId, setText } from "./dom.js";

export class KeyField {
  #button = byId("key-button");
  #dialog = /** @type {HTMLDialogElement} */ (byId("key-dialog"));
  #input = /** @type {HTMLInputElement} */ (byId("key"));
  #onChange;

  /** @param {() => void} onChange there is another key */
  constructor(onChange) {
    this.#onChange = onChange;
    this.#button.addEventListener("click", () => {
      this.#input.value = apiKey();
      this.#dialog.showModal();
    });
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#use(this.#input.value.trim());
    });
    byId("key-forget").addEventListener("click", () => this.#use(""));
    byId("key-cancel").addEventListener("click", () => this.#dialog.close());
    this.#show();
  }

  /** The server asks for a key, or for another one. */
  ask() {
    this.#button.classList.replace("quiet", "primary");
  }

  /** @param {string} key */
  #use(key) {
    setApiKey(key);
    this.#dialog.close();
    this.#input.value = "";
    this.#show();
    this.#onChange();
  }

  #show() {
    this.#button.classList.replace("primary", "quiet");
    setText(this.#button, apiKey() ? "API key set" : "API key");
  }
}
