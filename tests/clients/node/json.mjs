// JSON that is held to a schema, through the official Node client.
import assert from "node:assert/strict";
import { client, MODEL, test } from "./client.mjs";

const schema = {
  type: "object",
  properties: { name: { type: "string", maxLength: 20 }, age: { type: "integer", minimum: 0, maximum: 120 } },
  required: ["name", "age"],
  additionalProperties: false,
};
const request = {
  model: MODEL,
  messages: [{ role: "user", content: "Write a person as JSON." }],
  temperature: 0,
  max_completion_tokens: 300,
};
const response_format = { type: "json_schema", json_schema: { name: "person", strict: true, schema } };

await test("parse", async () => {
  const { choices } = await client.chat.completions.parse({ ...request, response_format });
  assert.equal(choices[0].finish_reason, "stop");
  assert.deepEqual(Object.keys(choices[0].message.parsed), ["name", "age"]);
});

await test("a stream", async () => {
  const runner = client.chat.completions.stream({ ...request, response_format });
  const { choices } = await runner.finalChatCompletion();
  assert.equal(typeof JSON.parse(choices[0].message.content).age, "number");
});

await test("any object", async () => {
  const { choices } = await client.chat.completions.create({ ...request, response_format: { type: "json_object" } });
  if (choices[0].finish_reason === "stop") assert.equal(typeof JSON.parse(choices[0].message.content), "object");
  else assert.equal(choices[0].finish_reason, "length");
});

await test("the responses API", async () => {
  const format = { type: "json_schema", name: "person", strict: true, schema };
  const answer = await client.responses.parse({
    model: MODEL,
    input: "Write a person as JSON.",
    temperature: 0,
    max_output_tokens: 300,
    text: { format },
  });
  assert.equal(answer.status, "completed");
  assert.deepEqual(Object.keys(answer.output_parsed), ["name", "age"]);
});
