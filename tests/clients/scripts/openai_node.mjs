// openai-node as an application uses it: base URL and key are all that differs from OpenAI.
// Usage: node openai_node.mjs SCENARIO WORD; prints one JSON object.
import { createRequire } from "node:module";

const require = createRequire(process.env.CLIENT_MODULES + "/");
const OpenAI = require("openai");

const [scenario, word] = process.argv.slice(2);
const client = new OpenAI({
  baseURL: process.env.GATEWAY_URL + "/v1",
  apiKey: process.env.GATEWAY_KEY,
  maxRetries: 0,
});
const model = "gpt-5";
const issue = `/call github.create_issue {"title": "${word}"}`;
const github = { type: "mcp", server_label: "github" };
const weather = { type: "function", name: "get_weather", parameters: {}, strict: false };
const stateless = { store: false, include: ["reasoning.encrypted_content"] };

/** A conversation: continued by id, or with all items again. */
class Talk {
  items = [];
  previous = undefined;

  constructor({ replays = false, ...options } = {}) {
    Object.assign(this, { replays, options });
  }

  async ask(content, create = (body) => client.responses.create(body)) {
    const added = typeof content === "string" ? [{ role: "user", content }] : content;
    this.items.push(...added);
    const response = await create({
      model,
      input: this.replays ? this.items : added,
      previous_response_id: this.replays ? undefined : this.previous,
      ...this.options,
    });
    this.items.push(...response.output);
    this.previous = response.id;
    return response;
  }

  stream(content) {
    return this.ask(content, (body) => client.responses.stream(body).finalResponse());
  }
}

async function functions(options) {
  const talk = new Talk({ tools: [weather], ...options });
  const { output } = await talk.ask('/think of rain\n/function get_weather {"city": "Paris"}');
  const calls = output.filter((item) => item.type === "function_call");
  const outputs = calls.map(({ call_id }) => ({
    type: "function_call_output",
    call_id,
    output: "sunny",
  }));
  const { output_text: text } = await talk.ask(outputs);
  const cities = calls.map((call) => JSON.parse(call.arguments).city);
  return { text, cities, recalled: (await talk.ask("/recall")).output_text };
}

async function held(options) {
  const talk = new Talk({ tools: [github], ...options });
  const { output_text: text } = await talk.stream(issue);
  return { text, recalled: (await talk.ask("/recall")).output_text };
}

async function native(options) {
  const talk = new Talk({ tools: [github], ...options });
  const { output } = await talk.ask(issue);
  const requests = output.filter((item) => item.type === "mcp_approval_request");
  const answers = requests.map(({ id }) => ({
    type: "mcp_approval_response",
    approval_request_id: id,
    approve: true,
  }));
  const { output_text: text } = await talk.ask(answers);
  const asked = requests.map((request) => JSON.parse(request.arguments));
  return { asked, text, recalled: (await talk.ask("/recall")).output_text };
}

async function three(options) {
  const talk = new Talk(options);
  const texts = [];
  for (const text of ["/think of plums\n/echo first", "/think of pears\n/echo second", "/recall"])
    texts.push((await talk.ask(text)).output_text);
  return { texts };
}

const scenarios = {
  plain: async () => ({ text: (await new Talk().ask("/echo hello")).output_text }),
  async stream() {
    const pieces = [];
    for await (const event of client.responses.stream({ model, input: "/echo a b c" }))
      if (event.type === "response.output_text.delta") pieces.push(event.delta);
    return { pieces };
  },
  functions: () => functions(),
  functions_stateless: () => functions({ replays: true, ...stateless }),
  held: () => held(),
  held_stateless: () => held({ replays: true, ...stateless }),
  native: () => native(),
  native_stateless: () => native({ replays: true, ...stateless }),
  replay: () => three({ replays: true, ...stateless }),
  chain: () => three({ store: false }),
};

console.log(JSON.stringify(await scenarios[scenario]()));
