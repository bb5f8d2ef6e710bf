// A chat over the public API: fetch, a stream of events, and nothing that the page trusts.
// Every text of a model or a tool is set as text, never as markup.
"use strict";

(() => {
  const root = document.getElementById("playground");
  const talk = document.getElementById("talk");
  const wire = document.getElementById("wire");
  const message = document.getElementById("message");
  let pass = { text: "", until: 0 };
  let previous = null;
  let running = null;
  let events = 0;

  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  async function credential() {
    if (Date.now() < pass.until) return pass.text;
    const body = new URLSearchParams({ ticket: root.dataset.ticket });
    const answer = await fetch("/console/playground/pass", { method: "POST", body });
    if (answer.status === 401) location.assign("/console/sign-in");
    if (!answer.ok) throw new Error("The console gives no pass: open the page again.");
    const given = await answer.json();
    pass = { text: given.pass, until: Date.now() + (given.expires_in - 60) * 1000 };
    return pass.text;
  }

  function request(text) {
    const body = { model: document.getElementById("model").value, input: text, stream: true };
    const servers = [...root.querySelectorAll("input[name=server]:checked")];
    if (servers.length) body.tools = servers.map((one) => ({ type: "mcp", server_label: one.value }));
    if (previous) body.previous_response_id = previous;
    if (document.getElementById("stateless").checked) body.store = false;
    return body;
  }

  async function* read(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value;
      const frames = rest.split(/\r?\n\r?\n/);
      rest = frames.pop();
      for (const frame of frames) {
        const data = frame.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (data.length) yield data.map((line) => line.slice(5)).join("\n");
        else note(": comment", "");
      }
    }
  }

  function note(type, number) {
    const line = element("li", type.startsWith("gateway.") ? "ours" : type.startsWith(":") ? "comment" : "");
    const last = wire.lastElementChild;
    events += 1;
    document.getElementById("wire-count").textContent = `${events}`;
    if (last && last.dataset.type === type) {  // a run of deltas is one line
      last.dataset.times = Number(last.dataset.times) + 1;
      last.querySelector("span").textContent = `× ${last.dataset.times}`;
      last.querySelector("small").textContent = number;
    } else {
      line.dataset.type = type;
      line.dataset.times = 1;
      line.append(element("code", "", type), element("span", "muted"), element("small", "muted", number));
      wire.append(line);
    }
    wire.scrollTop = wire.scrollHeight;
  }

  class Reply {
    constructor() {
      this.root = element("li", "reply");
      this.items = new Map();
      this.cards = new Map();
      talk.append(this.root);
    }
    add(node) {
      this.root.append(node);
      node.scrollIntoView({ block: "nearest" });
      return node;
    }
    part(id, className) {
      const key = `${id}:${className}`;
      if (!this.items.has(key)) this.items.set(key, this.add(element("p", className)));
      return this.items.get(key);
    }
    item(item) {
      if (item.type === "mcp_list_tools") {
        this.add(element("p", "step", `${item.server_label} offers ${(item.tools || []).map((one) => one.name).join(", ")}`));
      } else if (item.type === "mcp_call") {
        const call = element("details", `step call ${item.error ? "failed" : ""}`);
        call.append(
          element("summary", "", `${item.error ? "Failed" : "Ran"} ${item.server_label}.${item.name}`),
          element("pre", "raw", item.arguments),
          element("pre", "raw", item.error ? JSON.stringify(item.error) : item.output ?? ""),
        );
        this.add(call);
      }
    }
    card(approval) {
      let card = this.cards.get(approval.id);
      if (!card) {
        card = this.add(element("section", "approval-card"));
        this.cards.set(approval.id, card);
      }
      const waits = approval.status === "pending";
      const head = element("p", "state");
      head.append(element("span", `pill ${approval.status}`, approval.status));
      if (waits) {
        const left = element("span", "muted");
        left.dataset.until = approval.expires_at;
        head.append(left);
      }
      const title = element("p");
      title.append(
        waits ? "The stream waits: may " : "", element("b", "tool", approval.name),
        ` on ${approval.server_label}`, waits ? " run?" : "",
      );
      card.replaceChildren(head, title);
      if (!waits) return;
      const path = `/console/approvals/${encodeURIComponent(approval.id)}`;
      const buttons = element("p", "buttons");
      for (const [decision, word, key] of [["approve", "Approve…", "approve"], ["deny", "Deny…", "deny"]]) {
        const link = element("a", `button ${decision}`, word);
        link.href = `${path}/confirm?decision=${decision}`;
        link.dataset.ask = "";
        link.dataset.key = key;
        buttons.append(link);
      }
      const open = element("a", "", "Open in a second tab");
      open.href = path;
      open.target = "_blank";
      card.append(buttons, open);
      card.scrollIntoView({ block: "nearest" });
    }
    fail(text) {
      const box = element("div", "notice bad");
      box.append(element("p", "", text));
      this.add(box);
    }
  }

  function act(event, reply) {
    switch (event.type) {
      case "response.created": previous = event.response.id; break;
      case "response.output_text.delta": reply.part(event.item_id, "text").textContent += event.delta; break;
      case "response.refusal.delta": reply.part(event.item_id, "text refusal").textContent += event.delta; break;
      case "response.reasoning_summary_text.delta": reply.part(event.item_id, "step thought").textContent += event.delta; break;
      case "response.output_item.done": reply.item(event.item); break;
      case "gateway.approval.requested":
      case "gateway.approval.voted":
      case "gateway.approval.resolved": reply.card(event.approval); break;
      case "error": reply.fail((event.error || event).message || "The stream failed."); break;
      case "response.failed": previous = reply.before; break;
      case "response.completed": reply.usage = event.response.usage; break;
    }
  }

  async function stream(text, reply) {
    const answer = await fetch("/v1/responses", {
      method: "POST",
      signal: running.signal,
      headers: {
        Authorization: `Bearer ${await credential()}`,
        "Content-Type": "application/json",
        "Gateway-Events": "approvals",
      },
      body: JSON.stringify(request(text)),
    });
    if (!answer.ok) {
      const told = await answer.json().catch(() => ({}));
      throw new Error(told.error?.message || `The gateway answered ${answer.status}.`);
    }
    for await (const data of read(answer.body)) {
      if (data.trim() === "[DONE]") continue;
      const event = JSON.parse(data);
      note(event.type, event.sequence_number ?? "");
      act(event, reply);
    }
    if (reply.usage) {
      const used = reply.usage;
      reply.add(element("p", "usage muted", `${used.input_tokens} tokens in, ${used.output_tokens} out`));
    }
  }

  function busy(is) {
    document.getElementById("send").hidden = is;
    document.getElementById("stop").hidden = !is;
    root.classList.toggle("busy", is);
  }

  async function say(text) {
    if (running || !text.trim()) return;
    talk.querySelector(".welcome")?.remove();
    talk.append(element("li", "said", text));
    const reply = new Reply();
    reply.before = previous;
    running = new AbortController();
    busy(true);
    try {
      await stream(text, reply);
    } catch (error) {
      reply.fail(error.name === "AbortError" ? "Stopped. A turn that waits for an approval goes on." : error.message);
      if (error.name === "AbortError") previous = reply.before;
    } finally {
      running = null;
      busy(false);
      message.focus();
    }
  }

  document.getElementById("say").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = message.value;
    message.value = "";
    say(text);
  });
  message.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      document.getElementById("say").requestSubmit();
    }
  });
  document.getElementById("stop").addEventListener("click", () => running?.abort());
  document.getElementById("fresh").addEventListener("click", () => location.reload());
  talk.addEventListener("click", (event) => {
    const suggestion = event.target.closest(".suggestion");
    if (suggestion) say(suggestion.dataset.text);
  });

  // A decision in the dialog leaves the chat where it is.
  document.getElementById("dialog").addEventListener("submit", async (event) => {
    const form = event.target;
    if (form.method !== "post") return;
    event.preventDefault();
    const body = new URLSearchParams(new FormData(form, event.submitter));
    const answer = await fetch(form.action, { method: "POST", body });
    if (answer.ok) return document.getElementById("dialog").close();
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const told = page.querySelector(".notice.bad, main");
    const box = element("div", "notice bad");
    box.setAttribute("role", "alert");
    box.append(element("p", "", told ? told.textContent.trim() : "Nothing was decided."));
    form.before(box);
  });
})();
