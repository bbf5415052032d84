// Tool calls through the official Node client.
import assert from "node:assert/strict";
import { client, MODEL, test } from "./client.mjs";

const parameters = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
const weather = { type: "function", function: { name: "get_weather", description: "Get the weather", parameters } };
const messages = [{ role: "user", content: "What is the weather in Paris?" }];
const greedy = { model: MODEL, messages, temperature: 0, max_completion_tokens: 150, tools: [weather] };

await test("auto", async () => {
  const { choices } = await client.chat.completions.create(greedy);
  assert.equal(choices[0].finish_reason, "tool_calls");
  const [call] = choices[0].message.tool_calls;
  assert.equal(call.function.name, "get_weather");
  assert.ok(call.id);
  assert.equal(typeof JSON.parse(call.function.arguments), "object");
});

await test("required, in a stream", async () => {
  const runner = client.chat.completions.stream({ ...greedy, tool_choice: "required" });
  let pieces = 0;
  runner.on("tool_calls.function.arguments.delta", () => (pieces += 1));
  const { choices } = await runner.finalChatCompletion();
  assert.equal(choices[0].finish_reason, "tool_calls");
  assert.deepEqual(Object.keys(JSON.parse(choices[0].message.tool_calls[0].function.arguments)), ["city"]);
  assert.ok(pieces > 0);
});

await test("a named tool, run by the client", async () => {
  const asked = [];
  const runner = client.chat.completions.runTools({
    ...greedy,
    tool_choice: { type: "function", function: { name: "get_weather" } },
    tools: [
      {
        type: "function",
        function: {
          ...weather.function,
          parse: JSON.parse,
          function: ({ city }) => {
            asked.push(city);
            return "18 degrees, sunny";
          },
        },
      },
    ],
  });
  await runner.done();
  assert.equal(asked.length, 1);
  assert.equal(typeof asked[0], "string");
});
