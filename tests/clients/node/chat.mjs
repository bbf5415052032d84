// Chats through the official Node client: text, streams, many at once.
import assert from "node:assert/strict";
import { client, MODEL, test } from "./client.mjs";

const messages = [{ role: "user", content: "What is the capital of France?" }];
const greedy = { model: MODEL, messages, temperature: 0, max_completion_tokens: 40 };
const ANSWER = "The capital of France is Paris.";

await test("a chat", async () => {
  const answer = await client.chat.completions.create(greedy);
  assert.equal(answer.object, "chat.completion");
  assert.equal(answer.choices[0].message.content, ANSWER);
  assert.equal(answer.choices[0].message.refusal, null);
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
});

await test("a stream", async () => {
  const stream = await client.chat.completions.create({
    ...greedy,
    stream: true,
    stream_options: { include_usage: true },
  });
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  const last = chunks.pop();
  assert.deepEqual(last.choices, []);
  assert.ok(last.usage.completion_tokens > 0);
  assert.equal(new Set([last, ...chunks].map((chunk) => chunk.id)).size, 1);
  assert.equal(chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join(""), ANSWER);
  assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
});

await test("the stream helper", async () => {
  const runner = client.chat.completions.stream(greedy);
  let text = "";
  runner.on("content", (delta) => (text += delta));
  assert.equal(await runner.finalContent(), ANSWER);
  assert.equal(text, ANSWER);
});

await test("a stream left early", async () => {
  const stream = await client.chat.completions.create({ ...greedy, max_completion_tokens: 500, stream: true });
  for await (const chunk of stream) {
    assert.ok(chunk.id);
    break;
  }
  assert.equal((await client.chat.completions.create(greedy)).choices[0].message.content, ANSWER);
});

await test("many at once", async () => {
  const answers = await Promise.all(Array.from({ length: 12 }, () => client.chat.completions.create(greedy)));
  for (const answer of answers) assert.equal(answer.choices[0].message.content, ANSWER);
});

await test("a completion with logprobs", async () => {
  const answer = await client.completions.create({
    model: MODEL,
    prompt: "The capital of France is",
    max_tokens: 4,
    temperature: 0,
    logprobs: 2,
  });
  assert.ok(answer.choices[0].text.startsWith(" Paris"));
  assert.equal(answer.choices[0].logprobs.tokens[0], " Paris");
});

await test("models", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.deepEqual(ids, [MODEL]);
});
