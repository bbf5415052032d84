// The responses API through the official Node client.
import assert from "node:assert/strict";
import { client, MODEL, test } from "./client.mjs";

const request = { model: MODEL, input: "What is the capital of France?", temperature: 0, max_output_tokens: 100 };
const ANSWER = "The capital of France is Paris.";

await test("a text", async () => {
  const answer = await client.responses.create(request);
  assert.equal(answer.status, "completed");
  assert.equal(answer.output_text, ANSWER);
});

await test("a stream", async () => {
  const events = [];
  for await (const event of await client.responses.create({ ...request, stream: true })) events.push(event);
  assert.deepEqual(events.map((event) => event.sequence_number), [...events.keys()]);
  const deltas = events.filter((event) => event.type === "response.output_text.delta");
  assert.equal(deltas.map((event) => event.delta).join(""), ANSWER);
  assert.equal(events.at(-1).type, "response.completed");
});

await test("the stream helper", async () => {
  const final = await client.responses.stream(request).finalResponse();
  assert.equal(final.output[0].content[0].text, ANSWER); // the helper adds no output_text
});
