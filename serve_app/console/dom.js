// Making elements. Text is only ever text: nothing here, or elsewhere, parses markup.

/** An element: `el("button", { class: "quiet", onclick: f }, "Text", child)`. */
export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  set(element, attributes);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function icon(path) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(SVG, "path");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, value);
    }
  }
}

export const byId = (id) => document.getElementById(id);

/** Changes the text only where it differs, so that what is selected stays selected. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Says something to those who hear the page. */
export function announce(text) {
  setText(byId("live"), text);
}

/** A message that goes away by itself. */
export function notify(text, kind = "error") {
  const notice = el("p", { class: `notice ${kind}` }, text);
  const close = el("button", { class: "icon", "aria-label": "Dismiss" }, icon("m5 5 10 10M15 5 5 15"));
  close.addEventListener("click", () => notice.remove());
  notice.append(close);
  byId("notices").replaceChildren(notice);
  setTimeout(() => notice.remove(), 9000);
}

export function seconds(value) {
  if (value < 9.95) return `${value.toFixed(1)} s`;
  if (value < 99.5) return `${Math.round(value)} s`;
  if (value < 3600) return `${Math.round(value / 60)} min`;
  return value < 86400 ? `${(value / 3600).toFixed(1)} h` : `${Math.round(value / 86400)} d`;
}

export const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;
