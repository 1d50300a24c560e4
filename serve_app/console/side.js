// The card's memory, and the last switches.

import { backend, subscribe } from "./backend.js";
import { byId, el, seconds } from "./dom.js";

const PHASES = ["preparing", "draining", "unloading", "loading", "verifying"];
const GIB = 2 ** 30;
const OUTCOMES = { rolled_back: "rolled back", failed: "failed" };
const CAUSES = {
  start: "at the start",
  admin: "by an admin",
  lease: "for a lease",
  request: "for requests",
  idle: "nobody asked",
  recovery: "the engine died",
  retry: "tried again",
};

export function startSide() {
  byId("legend").append(...PHASES.map((phase) => el("span", { "data-phase": phase }, phase)));
  let shown = null;
  subscribe((kind) => {
    if (kind === "tickets") showTickets();
    const key = JSON.stringify(backend.health?.gpu ?? null);
    if (kind === "health" && backend.isOnline && key !== shown) {
      shown = key;
      showGpu(backend.health.gpu);
    }
  });
}

function showGpu(gpu) {
  const box = byId("gpu");
  box.classList.toggle("alarm", Boolean(gpu?.alarm));
  if (!gpu?.total_bytes) {
    box.replaceChildren(el("p", { class: "empty" }, "No GPU: the models run on the processor."));
    return;
  }
  const share = gpu.used_bytes / gpu.total_bytes;
  const percent = Math.round(share * 100);
  const fill = el("i");
  fill.style.setProperty("--share", Math.min(1, share));
  const meter = el("div", { class: "meter", role: "meter", "aria-label": "GPU memory", "aria-valuenow": percent, "aria-valuemin": 0, "aria-valuemax": 100 }, fill);
  const used = `${(gpu.used_bytes / GIB).toFixed(1)} of ${(gpu.total_bytes / GIB).toFixed(1)} GiB · ${percent} %`;
  const parts = [
    el("p", { class: "gpu-name" }, gpu.name ?? "GPU"),
    meter,
    line("Memory", used),
    gpu.temperature_c === null ? null : line("Temperature", `${gpu.temperature_c} °C`),
    gpu.utilization_percent === null ? null : line("Busy", `${gpu.utilization_percent} %`),
    gpu.power_w === null ? null : line("Power", `${Math.round(gpu.power_w)} W`),
    gpu.alarm ? el("p", { class: "alarm-text", role: "alert" }, "The memory is over 95 % full: the next load may fail.") : null,
  ];
  box.replaceChildren(...parts.filter(Boolean));
}

const line = (name, value) => el("p", { class: "gpu-line" }, el("span", {}, name), el("span", {}, value));

function showTickets() {
  const over = backend.tickets.filter(
    (ticket) => !["queued", "running"].includes(ticket.state) && phasesOf(ticket).length,
  );
  byId("legend").hidden = !over.length;
  const longest = Math.max(1, ...over.map((ticket) => ticket.seconds));
  const rows = over.map((ticket) => row(ticket, longest));
  byId("recent").replaceChildren(...(rows.length ? rows : [el("li", { class: "empty" }, "None yet")]));
}

const phasesOf = (ticket) => ticket.phases.filter((phase) => PHASES.includes(phase.phase));

function row(ticket, longest) {
  const isBad = ticket.state !== "done";
  const way = `${ticket.from ?? "empty"} → ${ticket.to ?? "empty"}`;
  const phases = phasesOf(ticket);
  const spoken = phases.map((phase) => `${phase.phase} ${seconds(phase.seconds)}`).join(", ");
  const bar = el("div", { class: "phases", role: "img", "aria-label": spoken || "no phases" });
  bar.style.width = `${Math.max(8, (ticket.seconds / longest) * 100)}%`;
  for (const phase of phases) {
    const part = el("i", { "data-phase": phase.phase, title: `${phase.phase} ${seconds(phase.seconds)}` });
    part.style.setProperty("--ms", Math.ceil(phase.seconds * 1000));
    bar.append(part);
  }
  return el(
    "li",
    { class: isBad ? "bad" : null },
    el("p", { class: "what", title: `${ticket.id}, ${CAUSES[ticket.cause] ?? ticket.cause}` }, el("span", {}, way), el("span", {}, OUTCOMES[ticket.state] ?? seconds(ticket.seconds))),
    bar,
    isBad ? el("p", { class: "why", title: ticket.error?.message }, ticket.error?.message ?? ticket.state) : null,
  );
}
