// The Vercel AI SDK as an application uses it: base URL and key are all that differs from OpenAI.
// Usage: node vercel_ai.mjs SCENARIO WORD; prints one JSON object.
import { createRequire } from "node:module";

const require = createRequire(process.env.CLIENT_MODULES + "/");
const { generateText, stepCountIs, streamText, tool } = require("ai");
const { createOpenAI } = require("@ai-sdk/openai");
const { z } = require("zod");

const [scenario, word] = process.argv.slice(2);
const openai = createOpenAI({
  baseURL: process.env.GATEWAY_URL + "/v1",
  apiKey: process.env.GATEWAY_KEY,
});
const model = openai.responses("gpt-5");
const onError = ({ error }) => {
  throw error;
};

// The SDK wants a URL: an empty one leaves the place of the server to the gateway. It says "never"
// unless told otherwise, which the gateway refuses: a caller may not loosen its rules.
const github = openai.tools.mcp({ serverLabel: "github", serverUrl: "", requireApproval: "always" });
const issue = `/call github.create_issue {"title": "${word}"}`;

/** Ask, add question and answer to the history, and return the result. */
async function turn(messages, content, options = {}) {
  if (content) messages.push({ role: "user", content });
  const result = await generateText({ model, messages, maxRetries: 0, ...options });
  messages.push(...result.response.messages);
  return result;
}

async function read(options) {
  const result = streamText({ model, maxRetries: 0, onError, ...options });
  const types = [];
  const pieces = [];
  for await (const part of result.fullStream) {
    types.push(part.type);
    if (part.type === "text-delta") pieces.push(part.text);
    if (part.type === "error") throw part.error;
  }
  return { types, pieces, messages: (await result.response).messages };
}

async function functions(options = {}) {
  const cities = [];
  const get_weather = tool({
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => {
      cities.push(city);
      return "sunny";
    },
  });
  const prompt = '/think of rain\n/function get_weather {"city": "Paris"}';
  const messages = [];
  const loop = { tools: { get_weather }, stopWhen: stepCountIs(3), ...options };
  const { text } = await turn(messages, prompt, loop);
  const again = await turn(messages, "/recall", loop);
  return { text, cities, recalled: again.text };
}

async function replay(options) {
  const messages = [];
  const texts = [];
  for (const text of ["/think of plums\n/echo first", "/think of pears\n/echo second", "/recall"])
    texts.push((await turn(messages, text, options)).text);
  return { texts };
}

async function chain(options) {
  let previousResponseId;
  const texts = [];
  for (const prompt of ["/think of plums\n/echo first", "/think of pears\n/echo second", "/recall"]) {
    const providerOptions = { openai: { ...options, previousResponseId } };
    const result = await generateText({ model, prompt, maxRetries: 0, providerOptions });
    previousResponseId = result.providerMetadata.openai.responseId;
    texts.push(result.text);
  }
  return { texts };
}

async function held(options = {}) {
  const tools = { github };
  const messages = [{ role: "user", content: issue }];
  const seen = await read({ messages, tools, ...options });
  messages.push(...seen.messages);
  const later = await turn(messages, "/recall", { tools, ...options });
  return { types: seen.types, text: seen.pieces.join(""), recalled: later.text };
}

async function native(options = {}) {
  const tools = { github };
  const messages = [];
  const first = await turn(messages, issue, { tools, ...options });
  const asked = first.content.filter((part) => part.type === "tool-approval-request");
  messages.push({
    role: "tool",
    content: asked.map(({ approvalId }) => ({
      type: "tool-approval-response",
      approvalId,
      approved: true,
      providerExecuted: true,
    })),
  });
  const last = await turn(messages, undefined, { tools, ...options });
  const later = await turn(messages, "/recall", { tools, ...options });
  const inputs = asked.map(({ toolCall }) => toolCall.input);
  return { asked: inputs, text: last.text, recalled: later.text };
}

const stateless = { providerOptions: { openai: { store: false } } };

const scenarios = {
  async plain() {
    const { text } = await generateText({ model, prompt: "/echo hello", maxRetries: 0 });
    return { text };
  },
  stream: () => read({ prompt: "/echo a b c" }),
  functions: () => functions(),
  functions_stateless: () => functions(stateless),
  held: () => held(),
  held_stateless: () => held(stateless),
  native: () => native(),
  native_stateless: () => native(stateless),
  replay: () => replay(stateless),
  replay_stored: () => replay(),
  chain: () => chain({ store: false }),
};

console.log(JSON.stringify(await scenarios[scenario]()));
