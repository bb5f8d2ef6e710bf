// openai-node as an application uses it: base URL and key are all that differs from OpenAI.
// Usage: node openai_node.mjs SCENARIO; prints one JSON object.
import { createRequire } from "node:module";

const require = createRequire(process.env.CLIENT_MODULES + "/");
const OpenAI = require("openai");

const url = process.env.GATEWAY_URL;
const client = new OpenAI({ baseURL: url + "/v1", apiKey: process.env.GATEWAY_KEY, maxRetries: 0 });
const model = "gpt-4.1";
const github = { type: "mcp", server_label: "github" };

async function approve() {
  const headers = {
    Authorization: `Bearer ${process.env.GATEWAY_APPROVER_KEY}`,
    "Content-Type": "application/json",
  };
  for (let tries = 0; tries < 500; tries++) {
    const { data } = await (await fetch(`${url}/v1/approvals?status=pending`, { headers })).json();
    if (data.length > 0) {
      const [{ id, fingerprint }] = data;
      const body = JSON.stringify({ decision: "approve", fingerprint });
      const answer = await fetch(`${url}/v1/approvals/${id}/decision`, {
        method: "POST",
        headers,
        body,
      });
      return (await answer.json()).status;
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error("nothing waits for an approval");
}

async function read(stream) {
  const types = [];
  const numbers = [];
  for await (const event of stream) {
    types.push(event.type);
    numbers.push(event.sequence_number);
  }
  return { types, numbers };
}

const scenarios = {
  async plain() {
    const response = await client.responses.create({ model, input: "/echo hello" });
    const again = await client.responses.retrieve(response.id);
    return { text: response.output_text, status: response.status, same: again.id === response.id };
  },

  async stream() {
    const stream = await client.responses.create({ model, input: "/echo a b c", stream: true });
    return await read(stream);
  },

  async approval() {
    const stream = client.responses.stream({
      model,
      input: '/call github.create_issue {"title": "From Node"}',
      tools: [github],
    });
    const deciding = approve();
    const seen = await read(stream);
    const final = await stream.finalResponse();
    return {
      ...seen,
      decided: await deciding,
      id: final.id,
      status: final.status,
      output: final.output.map((item) => item.type),
      text: final.output_text,
    };
  },

  async error() {
    try {
      await client.responses.create({ model, input: "x", previous_response_id: "resp_unknown" });
    } catch (error) {
      return { name: error.constructor.name, status: error.status, code: error.code };
    }
    return {};
  },
};

console.log(JSON.stringify(await scenarios[process.argv[2]]()));
