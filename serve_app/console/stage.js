// The models, the switch that runs, and how the last one failed.

import { getJson } from "./api.js";
import { backend, hear, modelOf, progress, subscribe } from "./backend.js";
import { announce, byId, count, el, notify, seconds, setText } from "./dom.js";

const PHASES = ["preparing", "draining", "unloading", "loading", "verifying"];
const DOING = {
  queued: "waits for its turn",
  preparing: "is checked and read ahead",
  draining: "requests in flight end",
  unloading: "the old model is unloaded",
  loading: "is loading",
  verifying: "answers its known question",
  ready: "serves",
};

const cards = new Map(); // model -> {card, parts}
let failed = null; // the ticket of the last switch, if that failed and nobody has read it yet
let view = null; // the parts of the switch that is shown
let timer = 0;

export function startStage() {
  subscribe((kind, ticket) => {
    if (kind === "switch") take(ticket);
    if (kind !== "tickets") show();
  });
}

function take(ticket) {
  const name = ticket.to ?? "No model";
  if (["rolled_back", "failed"].includes(ticket.state)) {
    failed = ticket;
    announce(`The switch to ${name} failed. ${ticket.error?.message ?? ""}`);
  } else {
    if (ticket.state === "running") failed = null;
    announce(`${name}: ${DOING[ticket.phase] ?? ticket.phase}`);
  }
}

function show() {
  for (const model of backend.models) showModel(model);
  showState();
  showSwitch();
}

function showState() {
  const { health, isOnline, running } = backend;
  const state = !isOnline ? "offline" : running ? "switching" : health.state;
  byId("state").dataset.state = state;
  const words = {
    serving: `${health?.resident} serves`,
    switching: running ? `Switching to ${running.ticket.to ?? "no model"}` : "Switching",
    idle: "No model is resident",
    failed: "No model could be loaded",
    offline: "The backend does not answer",
  };
  setText(byId("state").querySelector(".words"), words[state] ?? state);
  document.title = `${words[state] ?? state} · llm-backend`;
  setText(
    byId("counts"),
    isOnline ? `${health.in_flight} in flight · ${health.queued} queued` : "",
  );
}

function showModel(model) {
  let entry = cards.get(model.id);
  if (!entry) {
    entry = makeCard(model);
    cards.set(model.id, entry);
    byId("models").append(entry.card);
  }
  const status = statusOf(model);
  entry.card.dataset.status = status;
  entry.where.replaceChildren(...whereabouts(model, status));
  const isTold = modelOf(failed?.to) === model.id && !backend.running; // below, at length
  setText(entry.reason, model.reason && status === "failed" && !isTold ? model.reason : "");
  entry.reason.hidden = !entry.reason.textContent;
  const hasItsTask = status === "resident" && (!model.task || model.task === model.tasks[0]);
  entry.act.hidden = hasItsTask || status === "loading";
  entry.act.disabled = !backend.isOnline;
  if (entry.act.hidden) entry.confirm.hidden = true;
}

/** Of the running switch, the ticket knows more than the last look at the models. */
function statusOf(model) {
  const ticket = backend.running?.ticket;
  if (modelOf(ticket?.to) === model.id) return "loading";
  const isLeaving = modelOf(ticket?.from) === model.id && ["unloading", "loading", "verifying"].includes(ticket.phase);
  return isLeaving ? "absent" : model.status;
}

function whereabouts(model, status) {
  const waiting = Object.entries(backend.status?.waiting ?? {})
    .filter(([target]) => modelOf(target) === model.id)
    .reduce((sum, [, { requests }]) => sum + requests, 0);
  const parts = [];
  if (status === "resident") {
    const since = backend.status?.serving_for_s;
    parts.push(el("strong", {}, "Resident"));
    if (model.task === "embed") parts.push(" for embeddings");
    if (since) parts.push(` for ${seconds(since)}`);
    const { health } = backend;
    if (health) parts.push(` · epoch ${health.epoch} · ${health.in_flight} in flight`);
    const lease = backend.status?.lease;
    if (modelOf(lease?.model) === model.id) parts.push(` · leased to ${lease.owner}`);
  } else if (status === "loading") parts.push(capital(backend.running?.ticket.phase ?? "loading"));
  else if (status === "asleep") parts.push("Asleep, wakes in a moment");
  else if (status === "failed") parts.push("Could not be loaded");
  else parts.push("Not resident");
  if (waiting) parts.push(` · ${count(waiting, "request waits", "requests wait")}`);
  return parts;
}

function makeCard(model) {
  const where = el("p", { class: "where" });
  const reason = el("p", { class: "reason", hidden: true });
  const act = el("button", { class: "second act", "aria-label": `Switch to ${model.id}` }, "Switch");
  const confirm = el("div", { class: "confirm", hidden: true });
  const able = [model.capabilities.vision ? "text and pictures" : "text", model.capabilities.embeddings ? "embeddings" : null];
  const limit = `${model.max_model_len.toLocaleString("en")} tokens`;
  const facts = [...able, limit, model.untrained ? "untrained" : null, model.root];
  const card = el(
    "li",
    { class: "model", "data-model": model.id },
    el("h3", {}, model.id),
    where,
    act,
    reason,
    el("p", { class: "facts", title: `${model.description} (${model.root})` }, facts.filter(Boolean).join(" · ")),
    confirm,
  );
  act.addEventListener("click", () => ask(model.id, act, confirm));
  return { card, where, reason, act, confirm };
}

/** Switches at once where that disturbs nobody; else says first what it would do. */
async function ask(model, act, confirm) {
  act.disabled = true;
  try {
    const dryRun = getJson("/admin/switch", { body: { model, dry_run: true } });
    const [would, health] = await Promise.all([dryRun, getJson("/health")]);
    // The Switchboard hears of an idle gateway every few seconds only; the gateway itself knows.
    would.in_flight = Math.min(would.in_flight, health.in_flight);
    const costs = consequences(would);
    if (!costs.length) {
      await switchTo(model);
      return;
    }
    if (would.estimate_s) costs.push(`It should take ${seconds(would.estimate_s)}.`);
    const yes = el("button", { class: "primary" }, `Switch to ${model}`);
    const no = el("button", { class: "quiet" }, "Not now");
    const close = () => {
      confirm.hidden = true;
      act.focus();
    };
    yes.addEventListener("click", () => {
      close();
      switchTo(model).catch(report);
    });
    no.addEventListener("click", close);
    confirm.onkeydown = (event) => event.key === "Escape" && close();
    confirm.replaceChildren(el("p", {}, costs.join(" ")), el("div", { class: "row" }, yes, no));
    confirm.hidden = false;
    yes.focus();
  } catch (error) {
    report(error);
  } finally {
    act.disabled = false;
  }
}

function consequences(would) {
  const costs = [];
  if (would.in_flight) {
    const end = would.in_flight === 1 ? "ends" : "end";
    costs.push(`${count(would.in_flight, "request")} in flight ${end} first.`);
  }
  for (const blocker of would.blockers ?? []) {
    if (blocker.kind === "lease") costs.push(`The lease of ${blocker.owner} on ${blocker.model} ends.`);
    else if (blocker.kind === "switch") costs.push(`The running switch to ${blocker.to ?? "no model"} ends first.`);
    else costs.push(`It would fail: ${blocker.message}.`);
  }
  return costs;
}

async function switchTo(model) {
  failed = null;
  hear(await getJson("/admin/switch", { body: { model: modelOf(model), ...task(model) } }));
}

/** The task that a target names, where that is not its model's first. */
const task = (target) => (target.includes(":") ? { task: target.split(":")[1] } : {});

const report = (error) => notify(error.message);

function showSwitch() {
  const box = byId("switch");
  const ticket = backend.running?.ticket ?? failed;
  box.hidden = !ticket;
  box.classList.toggle("failed", ticket !== null && ticket === failed);
  clearInterval(timer);
  if (!ticket) {
    view = null;
    return;
  }
  const key = `${ticket.id} ${ticket.phase}`;
  if (view?.key !== key) {
    view = ticket === failed ? failure(ticket) : running(ticket);
    view.key = key;
    box.replaceChildren(...view.children);
  }
  if (backend.running) {
    tick();
    timer = setInterval(tick, 200);
  }
}

function running(ticket) {
  const isGoingBack = ticket.error !== null;
  const verb = ticket.to === null ? "Unloading" : ticket.from ? "Switching to" : "Loading";
  const heading = isGoingBack ? `Bringing ${ticket.from ?? "nothing"} back` : `${verb} ${ticket.to ?? ticket.from}`;
  const clock = el("span", { class: "clock" });
  const now = el("small");
  const steps = el("ol", { class: "steps" }, ...PHASES.map((phase) => step(ticket, phase, now)));
  const label = `Switch to ${ticket.to ?? "no model"}`;
  const track = el("div", { role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 }, steps);
  const title = el("p", { class: "title" }, el("strong", {}, heading), why(ticket), clock);
  const { seconds: spent = 0 } = ticket.phases.findLast((p) => p.phase === ticket.phase) ?? {};
  return { children: [title, track], clock, track, now, began: backend.running.at - spent * 1000 };
}

function step(ticket, phase, now) {
  const done = ticket.phases.findLast((p) => p.phase === phase);
  const isNow = ticket.phase === phase;
  const isPast = done && PHASES.indexOf(phase) < PHASES.indexOf(ticket.phase); // it may come twice
  const time = isNow ? now : el("small", {}, isPast ? seconds(done.seconds) : "\u00a0");
  const label = el("span", { class: "label" }, phase, el("br"), time);
  return el("li", { "data-is": isNow ? "now" : isPast ? "done" : "later", "aria-current": isNow ? "step" : null }, label);
}

function why(ticket) {
  const flying = ticket.waits_for?.in_flight;
  const text = ticket.error ? sentence(ticket.error.message) : flying ? `waits for ${count(flying, "request")} in flight` : "";
  return el("span", { class: "small" }, text);
}

function tick() {
  if (!view?.clock || !backend.running) return;
  const { taken, left } = progress();
  const about = left === null ? "" : left > 0 ? `, about ${seconds(left)} to go` : ", any moment now";
  setText(view.clock, seconds(taken) + about);
  const inPhase = (performance.now() - view.began) / 1000;
  setText(view.now, seconds(inPhase));
  view.track.style.setProperty("--done", share(inPhase, left).toFixed(3));
  view.track.setAttribute("aria-valuenow", Math.round(share(taken, left) * 100));
}

/** How much is done; without an estimate half in ten seconds, and it never arrives by itself. */
const share = (taken, left) => (left === null ? 1 - 10 / (10 + taken) : Math.min(0.97, taken / (taken + left + 0.01)));

function failure(ticket) {
  const name = ticket.to ?? "no model";
  const back = ticket.state === "rolled_back" ? ` ${ticket.from} serves again.` : " No model is resident.";
  const again = el("button", { class: "second" }, "Try again");
  const dismiss = el("button", { class: "quiet" }, "Dismiss");
  again.addEventListener("click", () => switchTo(ticket.to).catch(report));
  dismiss.addEventListener("click", () => {
    failed = null;
    show();
  });
  const reason = `${sentence(ticket.error?.message ?? "no reason is known")}${back}`;
  return {
    children: [
      el("p", { class: "title" }, el("strong", {}, `${name} could not be loaded`), el("span", { class: "clock" }, `after ${seconds(ticket.seconds)}`)),
      el("p", { class: "why" }, reason),
      el("div", { class: "row" }, ticket.to ? again : null, dismiss),
    ],
  };
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const sentence = (text) => (/[.!?]$/.test(text) ? capital(text) : `${capital(text)}.`);
