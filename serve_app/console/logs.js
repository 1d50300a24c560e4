// The logs: the last lines of a service, and what is added while "Follow" is on.

import { getKey, onKey, readEvents, request } from "./api.js";
import { backend, subscribe } from "./backend.js";
import { byId, el } from "./dom.js";

const NUM_LINES = 200;
const MAX_SHOWN = 1000;
const SERVICES = ["gateway", "switchboard", "serve", "standby", "redis"];
const FIRST = new Set(["time", "level", "logger", "event"]);

let reading = null; // the AbortController of what is read now

export function startLogs() {
  const select = byId("service");
  showServices();
  subscribe((kind) => kind === "health" && showServices());
  select.addEventListener("change", read);
  byId("follow").addEventListener("change", read);
  byId("filter").addEventListener("input", filter);
  onKey(read);
  const seen = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) {
      seen.disconnect();
      read();
    }
  });
  seen.observe(byId("lines"));
}

function showServices() {
  const names = [...SERVICES.slice(0, 2), ...backend.models.map((model) => model.id), ...SERVICES.slice(2), "all"];
  const select = byId("service");
  if (names.join() === [...select.options].map((option) => option.value).join()) return;
  const chosen = select.value || "gateway";
  select.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
  select.value = chosen;
}

async function read() {
  reading?.abort();
  const mine = (reading = new AbortController());
  const service = byId("service").value;
  const box = byId("lines");
  box.replaceChildren();
  try {
    if (byId("follow").checked) {
      const response = await request(`/admin/logs/${service}?lines=${NUM_LINES}&follow=true`, { signal: mine.signal });
      for await (const event of readEvents(response)) {
        if (mine.signal.aborted) return;
        if (event.data !== null) add(event.data, service === "all" ? event.type : null);
      }
      byId("follow").checked = false;
      return;
    }
    const response = await request(`/admin/logs/${service}?lines=${NUM_LINES}`, { signal: mine.signal });
    const text = await response.text();
    if (mine.signal.aborted) return;
    for (const line of text.split("\n")) if (line) add(line, null);
    if (!text) box.replaceChildren(el("p", { class: "empty" }, `${service} has written nothing yet.`));
  } catch (error) {
    if (mine.signal.aborted) return;
    byId("follow").checked = false;
    const why = error.status === 401 && !getKey() ? "Reading logs needs an admin key." : error.message;
    box.append(el("p", { class: "empty" }, why));
  }
}

function add(text, service) {
  const box = byId("lines");
  const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  box.append(matching(pretty(text, service)));
  while (box.childElementCount > MAX_SHOWN) box.firstElementChild.remove();
  if (isAtEnd) box.scrollTop = box.scrollHeight;
}

/** One of our own lines as time, event and fields; any other as it is. */
function pretty(text, service) {
  const label = service ? el("span", { class: "key" }, `${service} | `) : null;
  let line;
  try {
    line = JSON.parse(text);
  } catch {
    line = null;
  }
  if (!line?.event || !line.time) return el("p", {}, label, text);
  const time = new Date(line.time).toLocaleTimeString("en-GB");
  const fields = Object.entries(line)
    .sort(([a], [b]) => (a === "request_id") - (b === "request_id")) // long, and seldom read
    .filter(([key, value]) => !FIRST.has(key) && value !== null)
    .flatMap(([key, value]) => [el("span", { class: "key" }, ` ${key}=`), typeof value === "string" ? value : JSON.stringify(value)]);
  return el("p", { class: line.level, title: line.time }, label, el("time", {}, time), " ", el("span", { class: "event" }, line.event), ...fields);
}

function matching(line) {
  const wanted = byId("filter").value.toLowerCase();
  line.hidden = wanted !== "" && !line.textContent.toLowerCase().includes(wanted);
  return line;
}

function filter() {
  for (const line of byId("lines").children) matching(line);
  byId("lines").scrollTop = byId("lines").scrollHeight;
}
