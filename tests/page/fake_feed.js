// Instead of the server's states: those that a test gives. Everything else goes to the server.
"use strict";

{
  const real = window.fetch;
  window.fakeFeed = {
    /** What the next connections get: a status, and the message of an error. */
    status: 200,
    message: "",
    /** How often the page has connected. */
    numConnections: 0,
    push(state) {
      this.controller.enqueue(new TextEncoder().encode(`data: ${JSON.stringify(state)}\n\n`));
    },
    end() {
      this.controller.close();
    },
  };
  window.fetch = (path, options) => {
    if (!String(path).startsWith("monitor/state")) return real(path, options);
    const feed = window.fakeFeed;
    feed.numConnections++;
    if (feed.status === 0) return Promise.reject(new TypeError("Failed to fetch"));
    if (feed.status !== 200) {
      const body = JSON.stringify({ error: { message: feed.message } });
      return Promise.resolve(new Response(body, { status: feed.status }));
    }
    const stream = new ReadableStream({ start: (controller) => (feed.controller = controller) });
    options.signal.addEventListener("abort", () => feed.controller.error(new DOMException("", "AbortError")));
    return Promise.resolve(new Response(stream));
  };
}
