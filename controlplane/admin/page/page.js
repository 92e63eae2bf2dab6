"use strict";
// Polls /api/state once a second while the page is visible. All text goes through textContent: nothing is parsed as HTML.

const POLL_MS = 1000;
const HIDDEN_MS = 15000;
const MAX_ROWS = 200;
const FULL_BAR_AT_LEAST = 8;
const LINK = "decision="; // the page's address names the receipt that is open, so that it can be passed on

const byId = (id) => document.getElementById(id);
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const seen = { after: 0, decisions: 0, at: 0, rate: null };
let paused = false;
let shownReceipt = "";

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function age(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

function number(value) {
  if (!Number.isFinite(value)) return "–";
  if (value !== 0 && Math.abs(value) < 0.01) return value.toExponential(1);
  return new Intl.NumberFormat("en", { maximumFractionDigits: Math.abs(value) < 10 ? 2 : 1 }).format(value);
}

// Rows are kept by key and only their text changes, so that selection, scroll and focus survive each poll.
function keyed(parent, items, keyOf, create, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, index) => {
    const key = keyOf(item);
    let row = old.get(key);
    if (row) old.delete(key);
    else { row = create(item); row.dataset.key = key; }
    update(row, item);
    if (parent.children[index] !== row) parent.insertBefore(row, parent.children[index] || null);
  });
  for (const row of old.values()) row.remove();
}

function createReplica() {
  const row = make("div", "replica");
  const name = make("div", "name");
  row.dot = make("span", "dot");
  row.label = make("span");
  name.append(row.dot, row.label);
  row.state = make("span", "state");
  row.track = make("div", "bar");
  row.fill = make("i");
  row.track.append(row.fill);
  row.load = make("span", "number");
  row.firstByte = make("span", "number soft first-byte");
  row.detail = make("div", "detail");
  row.append(name, row.state, row.track, row.load, row.firstByte, row.detail);
  return row;
}

function updateReplica(row, replica, scale) {
  row.dot.className = `dot ${replica.state}`;
  row.label.replaceChildren(replica.name, make("span", "generation", ` g${replica.generation}`));
  row.label.title = `${replica.server} on ${replica.node}, ${replica.address}`;
  row.state.className = `state ${replica.state}`;
  row.state.textContent = replica.state;
  row.state.title = `for ${age(replica.state_age_s)}, ${replica.restarts} restarts`;
  const load = replica.in_flight === null ? replica.streams : replica.in_flight;
  row.fill.style.width = `${Math.min(100, (100 * load) / scale)}%`;
  row.track.title = replica.in_flight === null ? "streams that HAProxy counts" : "requests that the router counts in flight";
  row.load.textContent = `${load} in flight`;
  row.firstByte.textContent = replica.first_byte_ms === null ? "" : `${number(replica.first_byte_ms)} ms`;
  row.firstByte.title = "smoothed time to first byte";
  row.detail.textContent = replica.detail;
  row.detail.hidden = !replica.detail;
}

function createPool() {
  const pool = make("div", "pool");
  pool.head = make("div", "pool-head");
  pool.rows = make("div");
  pool.append(pool.head, pool.rows);
  return pool;
}

function createModel() {
  const model = make("article", "model");
  model.head = make("div", "model-head");
  model.pools = make("div");
  model.append(model.head, model.pools);
  return model;
}

function showFleet(state) {
  const loads = state.replicas.map((replica) => (replica.in_flight === null ? replica.streams : replica.in_flight));
  const scale = Math.max(FULL_BAR_AT_LEAST, ...loads);
  const listed = new Set(state.pools.map((pool) => pool.name));
  const leaving = state.replicas.filter((replica) => !listed.has(replica.pool));
  const pools = [...state.pools];
  for (const replica of leaving) {
    if (!pools.some((pool) => pool.name === replica.pool)) {
      pools.push({ name: replica.pool, model: replica.model, role: "leaving", kind: "", wanted: 0, ready: 0 });
    }
  }
  const models = [...state.models];
  for (const pool of pools) {
    if (!models.some((model) => model.name === pool.model)) {
      models.push({ name: pool.model, policy: "", adapters: [], wanted: 0, ready: 0 });
    }
  }
  keyed(byId("models"), models, (model) => model.name, createModel, (box, model) => {
    const adapters = model.adapters.length ? `adapters ${model.adapters.join(", ")}` : "";
    const routed = model.policy ? `routed by ${model.policy.replaceAll("_", " ")}` : "no longer in the spec";
    box.head.replaceChildren(
      make("h3", "", model.name),
      make("p", "quiet", [`${model.ready} of ${model.wanted} ready`, routed, adapters].filter(Boolean).join(", ")),
    );
    const own = pools.filter((pool) => pool.model === model.name);
    keyed(box.pools, own, (pool) => pool.name, createPool, (part, pool) => {
      part.head.replaceChildren(make("b", "", pool.name), make("span", "", [pool.role, pool.kind].filter(Boolean).join(", ")),
        make("span", "", `${pool.ready}/${pool.wanted}`));
      const members = state.replicas.filter((replica) => replica.pool === pool.name);
      keyed(part.rows, members, (replica) => replica.name, createReplica, (row, replica) => updateReplica(row, replica, scale));
    });
  });
}

function showFacts(state) {
  const wanted = state.pools.reduce((sum, pool) => sum + pool.wanted, 0);
  const ready = state.pools.reduce((sum, pool) => sum + pool.ready, 0);
  const streams = state.gateways.reduce((sum, gateway) => sum + gateway.streams, 0);
  byId("cluster").textContent = state.cluster || "no spec is applied yet";
  document.title = state.cluster ? `${state.cluster}: ${ready}/${wanted} ready` : "Slipstream";
  byId("fact-ready").textContent = `${ready} / ${wanted}`;
  byId("fact-streams").textContent = number(streams);
  byId("fact-topology").textContent = String(state.topology_number);
  byId("fact-revision").textContent = String(state.revision);
  const decisions = state.router ? state.router.decisions : null;
  if (decisions !== null && seen.at && decisions >= seen.decisions && state.now_unix_ms > seen.at) {
    seen.rate = (1000 * (decisions - seen.decisions)) / (state.now_unix_ms - seen.at);
  }
  seen.decisions = decisions || 0;
  seen.at = decisions === null ? 0 : state.now_unix_ms;
  byId("fact-rate").textContent = decisions === null || seen.rate === null ? "–" : number(seen.rate);
  byId("fact-errors").textContent = state.router ? number(state.router.errors) : "–";
  const down = state.gateways.some((gateway) => !gateway.ready);
  const health = wanted && ready === wanted && !down ? "ready" : ready ? "starting" : wanted ? "failed" : "pending";
  byId("health").className = `dot ${health}`;
  byId("health").title = down ? "a gateway is not ready" : `${ready} of ${wanted} replicas are ready`;
  byId("nodes").textContent = state.nodes.map((node) =>
    `node ${node.name} ${node.connected ? "connected" : node.report_age_s < 0 ? "never heard" : `silent for ${age(node.report_age_s)}`}`).join(", ");
  byId("gateways").textContent = state.gateways.map((gateway) =>
    `${gateway.name} on ${gateway.listen.join(", ")}, ${gateway.ready ? `topology ${gateway.topology_number} applied` : "not ready"}`).join("; ");
  const troubles = state.gateways.filter((gateway) => gateway.error).map((gateway) => `${gateway.name}: ${gateway.error}`);
  if (!state.router) troubles.push("The router does not answer: HAProxy balances by itself.");
  notice(troubles.join(" "));
}

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

function showEvents(events) {
  keyed(byId("events"), [...events].reverse(), (event) => String(event.number), (event) => {
    const row = make("li");
    const [kind, name] = event.subject.split("/");
    const what = event.reason.replace(`${kind}_`, "").replaceAll("_", " ");
    row.append(make("time", "", clock.format(event.unix_ms)), make("span", "", `${name || kind} ${what}`),
      make("span", "message", event.message));
    return row;
  }, () => {});
}

function showDecisions(state) {
  const list = byId("decisions");
  if (state.decisions_last < seen.after) seen.after = 0; // another controller counts from 1
  for (const decision of state.decisions) {
    seen.after = Math.max(seen.after, decision.number);
    const row = make("li");
    const button = make("button");
    button.type = "button";
    button.append(make("time", "", clock.format(decision.unix_ms)), make("span", "ellipsis", decision.server || decision.model || decision.kind),
      make("span", "ellipsis reason", decision.reason.replaceAll("_", " ")), make("span", `outcome ${decision.outcome}`, decision.outcome));
    button.addEventListener("click", () => explain(decision.request_id));
    row.append(button);
    list.prepend(row);
  }
  while (list.children.length > MAX_ROWS) list.lastElementChild.remove();
  const note = byId("decisions-note");
  note.hidden = list.children.length > 0 && !state.decisions_skipped;
  if (list.children.length) note.textContent = `A sample: ${number(state.decisions_skipped)} more were not shown.`;
}

async function explain(requestId) {
  shownReceipt = requestId;
  history.replaceState(null, "", `#${LINK}${encodeURIComponent(requestId)}`);
  const body = byId("receipt-body");
  body.replaceChildren(make("p", "quiet", "Reading the receipt."));
  byId("receipt").showModal();
  const answer = await fetch(`/api/decisions/${encodeURIComponent(requestId)}`).catch(() => null);
  if (shownReceipt !== requestId) return;
  if (!answer || !answer.ok) {
    body.replaceChildren(make("p", "quiet", "The receipt is gone."));
    return;
  }
  showReceipt(body, await answer.json());
}

function story(receipt) {
  if (receipt.outcome === "error") return `Answered with ${receipt.error_code}.`;
  if (receipt.outcome === "shed") return "Shed: the client was told to try again later.";
  const why = receipt.reason ? receipt.reason.replaceAll("_", " ") : "no reason given";
  const distance = receipt.margin ? `It beat ${receipt.runner_up} by ${number(receipt.margin)}.` : `It tied with ${receipt.runner_up}.`;
  const beaten = receipt.runner_up ? ` ${distance}` : "";
  return `${receipt.policy.replaceAll("_", " ")} chose ${receipt.server || "no replica"}: ${why}.${beaten}`;
}

function candidateTable(receipt) {
  const names = [...new Set(receipt.candidates.flatMap((candidate) => candidate.signals.map((signal) => signal.name)))];
  const table = make("table");
  const head = make("tr");
  for (const title of ["Candidate", ...names.map((name) => name.replaceAll("_", " ")), "Score"]) head.append(make("th", "", title));
  table.append(head);
  for (const candidate of receipt.candidates) {
    const row = make("tr", candidate.server === receipt.server ? "chosen" : "");
    row.append(make("td", "", candidate.server));
    for (const name of names) {
      const signal = candidate.signals.find((other) => other.name === name);
      const cell = make("td", "", signal ? number(signal.value) : "–");
      if (signal && signal.age_ms !== null) cell.append(make("small", "", ` ${number(signal.age_ms)} ms old`));
      row.append(cell);
    }
    row.append(make("td", "", number(candidate.score)));
    table.append(row);
  }
  const wrap = make("div", "table-wrap");
  wrap.append(table);
  return wrap;
}

function showReceipt(body, receipt) {
  const left = Object.entries(receipt.rejected).map(([reason, count]) => `${count} ${reason.replaceAll("_", " ")}`).join(", ");
  const end = receipt.completion;
  const pairs = [
    ["Asked for", [receipt.kind, receipt.model, receipt.adapter].filter(Boolean).join(", ")],
    ["Eligible", `${receipt.eligible} replicas${left ? `; left out: ${left}` : ""}`],
    ["Prompt", `${number(receipt.prompt_bytes)} bytes, ${receipt.prefix_blocks} blocks hashed`],
    ["Decided", `${new Date(receipt.unix_ms).toISOString()} on topology ${receipt.topology_number}`],
    ["Outcome", end ? `${end.server} answered ${end.status} after ${end.first_byte_ms} ms, ${end.total_ms} ms and ${number(end.bytes)} bytes in all` +
      `${end.retries ? `, ${end.retries} retries` : ""} (${end.termination})` : "not finished yet"],
  ];
  const list = make("dl", "pairs");
  for (const [term, value] of pairs) list.append(make("dt", "", term), make("dd", "", value));
  body.replaceChildren(make("code", "", receipt.request_id), make("p", "story", story(receipt)));
  if (receipt.candidates.length) body.append(candidateTable(receipt));
  body.append(list);
}

async function poll() {
  try {
    const answer = await fetch(`/api/state?after=${seen.after}`);
    if (!answer.ok) throw new Error(String(answer.status));
    const state = await answer.json();
    showFacts(state);
    showFleet(state);
    showEvents(state.events);
    if (!paused) showDecisions(state);
  } catch {
    byId("health").className = "dot failed";
    seen.after = 0;
    byId("decisions").replaceChildren();
    notice("The controller does not answer. Traffic flows on without it; this page tries again.");
  }
  setTimeout(poll, document.hidden ? HIDDEN_MS : POLL_MS);
}

byId("pause").addEventListener("click", (click) => {
  paused = !paused;
  click.target.textContent = paused ? "Resume" : "Pause";
  click.target.setAttribute("aria-pressed", String(paused));
});
byId("receipt-close").addEventListener("click", () => byId("receipt").close());
byId("receipt").addEventListener("click", (click) => { if (click.target === byId("receipt")) byId("receipt").close(); });
byId("receipt").addEventListener("close", () => {
  shownReceipt = "";
  history.replaceState(null, "", location.pathname);
});
if (location.hash.startsWith(`#${LINK}`)) explain(decodeURIComponent(location.hash.slice(LINK.length + 1)));
poll();
