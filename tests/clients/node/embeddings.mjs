// Embeddings through the official Node client, which asks for base64 and decodes it.
import assert from "node:assert/strict";
import { client, MODEL, test } from "./client.mjs";

await test("base64 is the same as floats", async () => {
  const request = { model: MODEL, input: ["A cat", "A dog"] };
  const decoded = await client.embeddings.create(request);
  const floats = await client.embeddings.create({ ...request, encoding_format: "float" });
  for (const index of [0, 1]) {
    const [left, right] = [decoded.data[index].embedding, floats.data[index].embedding];
    assert.equal(left.length, right.length);
    for (const [position, value] of left.entries()) assert.ok(Math.abs(value - right[position]) < 1e-6);
  }
  assert.ok(decoded.usage.prompt_tokens > 0);
});

await test("dimensions", async () => {
  const { data } = await client.embeddings.create({ model: MODEL, input: "A cat", dimensions: 8 });
  assert.equal(data[0].embedding.length, 8);
  assert.ok(Math.abs(Math.hypot(...data[0].embedding) - 1) < 1e-3);
});
