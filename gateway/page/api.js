// What the page asks of the server: JSON, and server-sent events with a key, which EventSource cannot send.

const KEY = "quire-api-key";

/** The API key of this tab; empty if there is none. */
export const apiKey = () => sessionStorage.getItem(KEY) ?? "";

/** Keeps the key until the tab is closed. @param {string} key */
export function setApiKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** An answer that is not 2xx, or (status 0) none. */
export class ApiError extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/**
 * Sends a request, and gives the answer if it is one of success.
 *
 * Paths are relative to the page, which a proxy may serve below a path of its own.
 * @param {string} path
 * @param {{body?: object, signal?: AbortSignal}} [options] with a body it is a POST
 * @returns {Promise<Response>}
 * @throws {ApiError} and AbortError
 */
export async function ask(path, { body, signal } = {}) {
  const headers = new Headers();
  if (apiKey()) headers.set("Authorization", `Bearer ${apiKey()}`);
  if (body) headers.set("Content-Type", "application/json");
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      body: body && JSON.stringify(body),
      headers,
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server cannot be reached.");
  }
  if (response.ok) return response;
  throw new ApiError(response.status, await errorMessage(response));
}

/** What an answer that is not 2xx says. @param {Response} response */
async function errorMessage(response) {
  let message = `The server answered ${response.status} ${response.statusText}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // Not our server's JSON: a proxy's page, say. The status tells what can be told.
  }
  const wait = response.headers.get("retry-after");
  return wait ? `${message} (Try again in ${wait} s.)` : message;
}

/**
 * The data of each event of a stream (https://html.spec.whatwg.org/#server-sent-events).
 * @param {ReadableStream<Uint8Array>} stream
 * @returns {AsyncGenerator<string>}
 * @throws {ApiError} when the connection breaks
 */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop() ?? "";
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError(0, "The connection to the server was lost.");
  } finally {
    reader.cancel().catch(() => {}); // It may be broken already, and nothing is left to be told.
  }
}
