// The chat: what was said, and the one answer that is being written.

import { ApiError, readEvents, request } from "./api.js";
import { backend, progress, subscribe } from "./backend.js";
import { announce, byId, count, el, notify, seconds, setText } from "./dom.js";
import { render } from "./markdown.js";
import { hasPictures, startPictures, takePictures } from "./pictures.js";

const said = []; // OpenAI's messages, without the system prompt
let writing = null; // the AbortController of the answer that is being written
let hasChosen = false; // the user has picked a model

export function startChat() {
  const prompt = byId("prompt");
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  if (!CSS.supports("field-sizing", "content")) prompt.addEventListener("input", () => grow(prompt));
  byId("stop").addEventListener("click", stop);
  byId("clear").addEventListener("click", clear);
  byId("model").addEventListener("change", () => (hasChosen = true));
  document.addEventListener("click", (event) => {
    if (!byId("options").contains(event.target)) byId("options").open = false;
  });
  startPictures(choosePictureModel);
  subscribe((kind) => kind === "health" && showModels());
  clear();
}

/** Makes the box as high as its text, where the browser does not do that by itself. */
function grow(prompt) {
  if (CSS.supports("field-sizing", "content")) return;
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

/** Ends the answer that is being written; what has come of it stays. */
export function stop() {
  writing?.abort();
}

export function clear() {
  stop();
  said.length = 0;
  byId("clear").hidden = true;
  byId("messages").replaceChildren(
    el("p", { class: "hello" }, el("strong", {}, "Ask any model"), "One is resident at a time. Another is switched to when you ask it, and you see how far it is."),
  );
}

/** Chats with the model at this place in the list, from 0. */
export function choose(place) {
  const model = backend.models[place];
  if (!model) return;
  byId("model").value = model.id;
  hasChosen = true;
  announce(`Chat with ${model.id}`);
}

/** Whether it answers at once. */
const chats = (model) => model.status === "resident" && model.task !== "embed";

function showModels() {
  const select = byId("model");
  const names = backend.models.map((model) => [model.id, chats(model) ? `${model.id} · resident` : model.id]);
  const shown = [...select.options].map((option) => [option.value, option.text]);
  if (JSON.stringify(shown) !== JSON.stringify(names)) {
    const chosen = select.value;
    select.replaceChildren(...names.map(([value, text]) => el("option", { value }, text)));
    if (chosen) select.value = chosen;
  }
  if (!hasChosen && !said.length && backend.health?.resident) select.value = backend.health.resident;
  if (!shown.length && hasPictures()) choosePictureModel(); // they came before the names
  byId("send").disabled = !names.length;
}

function choosePictureModel() {
  const sees = (id) => backend.models.find((model) => model.id === id)?.capabilities.vision;
  const select = byId("model");
  const seer = backend.models.find((model) => model.capabilities.vision);
  if (seer && !sees(select.value)) {
    notify(`${select.value} does not see pictures, so ${seer.id} is chosen.`, "info");
    select.value = seer.id;
    hasChosen = true;
  }
}

function send() {
  const prompt = byId("prompt");
  const text = prompt.value.trim();
  if (writing || (!text && !hasPictures())) return;
  if (!byId("model").value) {
    notify("The backend has not named its models yet.");
    return;
  }
  const pictures = takePictures();
  const parts = pictures.map((url) => ({ type: "image_url", image_url: { url } }));
  const question = { role: "user", content: parts.length ? [...parts, { type: "text", text }] : text };
  byId("messages").querySelector(".hello")?.remove();
  const images = pictures.map((src, n) => el("img", { src, alt: `Picture ${n + 1} of the question` }));
  byId("messages").append(el("div", { class: "message user" }, ...images, text ? el("p", { class: "text" }, text) : null));
  prompt.value = "";
  grow(prompt);
  byId("clear").hidden = false;
  ask(question);
}

function requestBody(model) {
  const system = byId("system").value.trim();
  const temperature = byId("temperature").valueAsNumber;
  const longest = byId("max-tokens").valueAsNumber;
  return {
    model,
    messages: system ? [{ role: "system", content: system }, ...said] : [...said],
    stream: true,
    stream_options: { include_usage: true },
    ...(Number.isFinite(temperature) && { temperature }),
    ...(Number.isFinite(longest) && { max_tokens: longest }),
  };
}

async function answer() {
  const model = byId("model").value;
  const question = said.at(-1);
  const shown = makeAnswer(model);
  writing = new AbortController();
  showWriting(true);
  try {
    const response = await request("/v1/chat/completions", { body: requestBody(model), signal: writing.signal });
    await read(response, shown);
    shown.end();
    said.push({ role: "assistant", content: shown.text });
    announce(`${model} has answered. ${shown.text.slice(0, 300)}`);
  } catch (error) {
    const wasStopped = writing.signal.aborted;
    if (wasStopped && shown.text && said.includes(question)) said.push({ role: "assistant", content: shown.text });
    else forget(question); // nothing came of it: it is not part of what follows
    if (wasStopped) shown.end("stopped");
    else shown.fail(error instanceof ApiError ? error.message : "The connection to the backend was lost.", () => ask(question));
  } finally {
    writing = null;
    showWriting(false);
  }
}

function ask(question) {
  if (writing) return;
  said.push(question);
  answer();
}

function forget(question) {
  const place = said.indexOf(question);
  if (place >= 0) said.splice(place, 1); // a new chat may have begun
}

async function read(response, shown) {
  for await (const event of readEvents(response)) {
    if (event.data === "[DONE]") return;
    if (event.data === null) continue; // a heartbeat: `shown` tells what is going on
    const value = JSON.parse(event.data);
    if (value.error) throw new ApiError(response.status, value.error);
    shown.add(value.choices?.[0]?.delta?.content ?? value.choices?.[0]?.message?.content ?? "");
    if (value.usage) shown.usage = value.usage;
  }
  throw new ApiError(response.status, { message: "The answer ended early." });
}

function showWriting(isWriting) {
  byId("send").hidden = isWriting;
  byId("stop").hidden = !isWriting;
  byId("messages").setAttribute("aria-busy", String(isWriting));
  if (!isWriting && document.activeElement === document.body) byId("prompt").focus();
}

function makeAnswer(model) {
  const began = performance.now();
  const waiting = el("p", { class: "waiting" });
  const prose = el("div", { class: "prose" });
  const element = el("article", { class: "message", "aria-label": `Answer of ${model}` }, el("p", { class: "by" }, model), waiting, prose);
  let first = null;
  let frame = 0;
  const elapsed = () => (performance.now() - began) / 1000;
  const say = () => setText(waiting, waitingWords(model, elapsed()));
  const timer = setInterval(say, 200);
  const draw = () => {
    frame = 0;
    keepAtEnd(() => prose.replaceChildren(...render(shown.text)));
  };
  const close = (...children) => {
    clearInterval(timer);
    cancelAnimationFrame(frame);
    waiting.remove();
    draw();
    keepAtEnd(() => element.append(...children));
  };
  const meta = (how) => {
    const tokens = shown.usage?.completion_tokens;
    const parts = [how, tokens && count(tokens, "token"), seconds(elapsed())];
    if (first > 1) parts.push(`first word after ${seconds(first)}`);
    return el("p", { class: "meta" }, parts.filter(Boolean).join(" · "));
  };
  const shown = {
    text: "",
    usage: null,
    add(piece) {
      if (!piece) return;
      if (first === null) {
        first = elapsed();
        clearInterval(timer);
        waiting.hidden = true;
      }
      shown.text += piece;
      frame ||= requestAnimationFrame(draw);
    },
    end: (how = null) => close(meta(how)),
    fail(why, again) {
      const retry = el("button", { class: "second" }, "Ask again");
      const box = el("div", { class: "error" }, el("p", { role: "alert" }, why), retry);
      retry.addEventListener("click", () => {
        retry.remove();
        again();
      });
      close(box);
    },
  };
  say();
  byId("messages").append(element);
  byId("messages").scrollTop = byId("messages").scrollHeight;
  return shown;
}

/** "Waiting for qwen-vl: loading, 3.0 s of about 6 s" while a switch runs; else how long it takes. */
function waitingWords(model, elapsed) {
  const running = backend.running?.ticket;
  if (!running || running.to === null) {
    const { resident, task } = backend.health ?? {};
    const doing = resident === model && task !== "embed" ? `${model} reads` : `Waiting for ${model}`;
    return elapsed < 1 ? doing : `${doing}, ${seconds(elapsed)}`;
  }
  const { taken, left } = progress();
  const of = left === null ? "" : ` of about ${seconds(taken + left)}`;
  const other = running.to === model ? "" : ` (${running.to} first)`;
  return `Waiting for ${model}${other}: ${running.phase}, ${seconds(taken)}${of}`;
}

/** Changes what is said, and stays at its end if that was in sight. */
function keepAtEnd(change) {
  const box = byId("messages");
  const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
  change();
  if (isAtEnd) box.scrollTop = box.scrollHeight;
}
