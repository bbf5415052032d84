// The official Node client: a stream, and a tool call.
//
//     make run                                      # in another terminal
//     npm install openai
//     node examples/openai_node.mjs
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.QUIRE_URL ?? "http://127.0.0.1:8000/v1", apiKey: "none" });
const model = "quire-tiny";

const stream = await client.chat.completions.create({
  model,
  messages: [{ role: "user", content: "What is the capital of France?" }],
  temperature: 0,
  stream: true,
});
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
process.stdout.write("\n");

const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const called = await client.chat.completions.create({
  model,
  messages: [{ role: "user", content: "What is the weather in Paris?" }],
  tools: [{ type: "function", function: { name: "get_weather", description: "Get the weather", parameters } }],
  tool_choice: "required",
  temperature: 0,
});
for (const call of called.choices[0].message.tool_calls) console.log(call.function.name, call.function.arguments);
