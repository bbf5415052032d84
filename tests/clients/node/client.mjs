// What the scripts of the Node client share. Each script stops at its first failed test, with status 1.
import OpenAI from "openai";

export const MODEL = "quire-tiny";
export const client = new OpenAI({
  baseURL: process.env.QUIRE_URL,
  apiKey: "none",
  maxRetries: 0,
  timeout: 120_000,
});

export async function test(name, body) {
  try {
    await body();
  } catch (error) {
    console.error(`failed: ${name}`);
    throw error;
  }
  console.log(`passed: ${name}`);
}
