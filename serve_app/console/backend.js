// What the page knows of the backend. Others subscribe, and are called after each change.

import { ApiError, follow, getJson, onKey } from "./api.js";

const LOOK_MS = 2500;
const HIDDEN_LOOK_MS = 15000;
const NUM_TICKETS = 8;

export const backend = {
  health: null, // GET /health
  models: [], // GET /v1/models
  status: null, // GET /admin/status; null without the right to
  tickets: [], // GET /admin/switches, newest first
  running: null, // the ticket of the switch that runs, and when it was heard of: {ticket, at}
  isOnline: false,
};

const ended = new Set(); // the ids of tickets that are over
const listeners = new Set();
/** Calls back after each change, with its kind: "health", "switch" or "tickets". */
export const subscribe = (listener) => listeners.add(listener);

const tell = (kind, data) => {
  for (const listener of listeners) listener(kind, data);
};

/** The seconds that the running switch has taken, and those it should still take (or null). */
export function progress() {
  const { ticket, at } = backend.running;
  const passed = (performance.now() - at) / 1000;
  const isDraining = ["queued", "preparing", "draining"].includes(ticket.phase);
  const left = ticket.eta_s === null ? null : Math.max(0, ticket.eta_s - (isDraining ? 0 : passed));
  return { taken: ticket.seconds + passed, left };
}

/** The model of a target: an engine does one task, so "qwen-vl:embed" is a target of its own. */
export const modelOf = (target) => target?.split(":")[0] ?? null;

/** Looks now; at the models only where something has changed. */
export async function look({ isSure = false } = {}) {
  const [health, status] = await Promise.all([
    getJson("/health").catch(() => null),
    getJson("/admin/status").catch((error) => (error instanceof ApiError ? null : undefined)),
  ]);
  const hasChanged = health?.state !== backend.health?.state || health?.resident !== backend.health?.resident;
  backend.isOnline = health !== null;
  backend.health = health;
  if (health && (isSure || hasChanged || !backend.models.length)) {
    const models = await getJson("/v1/models").catch(() => null);
    if (models) backend.models = models.data;
  }
  if (status !== undefined) backend.status = status;
  const ticket = status?.switch;
  if (ticket) hear(ticket);
  else if (status && backend.running && !justHeard()) backend.running = null;
  tell("health");
}

export async function lookBack() {
  const listed = await getJson(`/admin/switches?limit=${NUM_TICKETS}`).catch(() => null);
  if (listed) {
    backend.tickets = listed.data;
    tell("tickets");
  }
}

/** Takes what is told of a ticket, by an event or as an answer; the answer may come last. */
export function hear(ticket) {
  if (ended.has(ticket.id)) return;
  const isOver = !["queued", "running"].includes(ticket.state);
  const running = backend.running?.ticket;
  if (isOver) {
    ended.add(ticket.id);
    if (running?.id === ticket.id) backend.running = null;
  } else if (ticket.state === "running" || !running) {
    backend.running = { ticket, at: performance.now() };
  }
  tell("switch", ticket);
}

// A status that was asked for before the last event came is older than that.
const justHeard = () => performance.now() - backend.running.at < 1500;

async function listen() {
  await follow("/admin/events", {
    onEvent: async (event) => {
      const data = JSON.parse(event.data);
      if (event.type === "switch") hear(data);
      const isOver = event.type !== "switch" || !backend.running;
      await look({ isSure: isOver });
      if (isOver) await lookBack();
    },
    onState: (state) => {
      if (state === "open") lookBack();
    },
  });
}

/** Looks and listens from now on. */
export function watch() {
  let timer;
  const again = async () => {
    clearTimeout(timer);
    await look();
    clearTimeout(timer);
    timer = setTimeout(again, document.hidden ? HIDDEN_LOOK_MS : LOOK_MS);
  };
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) again();
  });
  onKey(again);
  again();
  listen();
}
