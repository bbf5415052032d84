// What the official Node client throws.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { client, MODEL, test } from "./client.mjs";

const messages = [{ role: "user", content: "Hello!" }];

await test("an unknown model", async () => {
  await assert.rejects(client.chat.completions.create({ model: "gpt-none", messages }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.deepEqual([error.status, error.code, error.param], [404, "model_not_found", "model"]);
    assert.ok(error.requestID);
    return true;
  });
});

await test("a bad value, before the stream begins", async () => {
  const request = { model: MODEL, messages, temperature: 9, stream: true };
  await assert.rejects(client.chat.completions.create(request), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.deepEqual([error.type, error.param], ["invalid_request_error", "temperature"]);
    return true;
  });
});

await test("an aborted request", async () => {
  const abort = new AbortController();
  const stream = await client.chat.completions.create(
    { model: MODEL, messages, max_completion_tokens: 500, stream: true },
    { signal: abort.signal },
  );
  for await (const chunk of stream) if (chunk.id) abort.abort();
  assert.ok(abort.signal.aborted);
});
