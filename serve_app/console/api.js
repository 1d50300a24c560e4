// Talking to the backend: the key, errors in OpenAI's shape, and server-sent events.
// Events come by fetch, not EventSource, which cannot send a key.

const KEY = "api-key";
let memory = ""; // where storage is switched off

export class ApiError extends Error {
  constructor(status, error) {
    super(error?.message ?? `The backend answered ${status}.`);
    this.status = status;
    this.code = error?.code ?? null;
  }
}

export function getKey() {
  try {
    return sessionStorage.getItem(KEY) ?? memory;
  } catch {
    return memory;
  }
}

export function setKey(key) {
  memory = key;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // it holds until the page is left
  }
  for (const listener of keyListeners) listener();
}

const keyListeners = new Set();
const refusalListeners = new Set();
/** Calls back when another key is used. */
export const onKey = (listener) => keyListeners.add(listener);
/** Calls back with a status of 401 or 403, and the backend's own words. */
export const onRefusal = (listener) => refusalListeners.add(listener);

/** The response once its head is there. Throws ApiError for any status that is not 2xx. */
export async function request(path, { body, headers, ...options } = {}) {
  const key = getKey();
  const response = await fetch(path, {
    cache: "no-store",
    credentials: "omit",
    redirect: "error",
    ...options,
    method: body ? "POST" : (options.method ?? "GET"),
    body: body && JSON.stringify(body),
    headers: {
      ...(body && { "Content-Type": "application/json" }),
      ...(key && { Authorization: `Bearer ${key}` }),
      ...headers,
    },
  });
  if (response.ok) return response;
  const error = await response.json().then((value) => value.error, () => null);
  const failure = new ApiError(response.status, error);
  const isOfThisKey = key === getKey(); // the answer to an older one may come late
  if (isOfThisKey && (failure.status === 401 || failure.status === 403)) {
    for (const listener of refusalListeners) listener(failure.status, failure.message);
  }
  throw failure;
}

export async function getJson(path, options) {
  return (await request(path, options)).json();
}

/** The events of a response: {type, data, id}, and {comment} for each line of comment. */
export async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) yield parseEvent(block);
    }
  } finally {
    reader.cancel().catch(() => {}); // it may have failed already
  }
}

function parseEvent(block) {
  const event = { type: "message", data: "", id: null, comment: null };
  const data = [];
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    const value = line.slice(colon + 1).replace(/^ /, "");
    if (colon === 0) event.comment = value;
    else if (line.startsWith("data:")) data.push(value);
    else if (line.startsWith("event:")) event.type = value;
    else if (line.startsWith("id:")) event.id = value;
  }
  event.data = data.length ? data.join("\n") : null;
  return event;
}

/**
 * Follows a stream of events for as long as the page lives, from where it was cut.
 * Without the right to, it waits for another key.
 */
export async function follow(path, { onEvent, onState, signal }) {
  let last = null;
  let pause = 500;
  while (!signal?.aborted) {
    try {
      const headers = last ? { "Last-Event-ID": last } : {};
      const response = await request(path, { headers, signal });
      onState?.("open");
      pause = 500;
      for await (const event of readEvents(response)) {
        last = event.id ?? last;
        if (event.data !== null) onEvent(event);
      }
    } catch (error) {
      if (signal?.aborted) return;
      onState?.("closed", error);
      if (error.status === 401 || error.status === 403) await anotherKey(signal);
    }
    await new Promise((wake) => setTimeout(wake, pause));
    pause = Math.min(pause * 2, 8000);
  }
}

function anotherKey(signal) {
  return new Promise((resolve) => {
    const done = () => {
      keyListeners.delete(done);
      resolve();
    };
    keyListeners.add(done);
    signal?.addEventListener("abort", done, { once: true });
  });
}
