// A model's answer as elements: code blocks, lists, headings, emphasis, links. What a model writes
// is never parsed as markup, no picture it names is fetched, and only web addresses become links.

import { el, notify } from "./dom.js";

const INLINE = /(`+)([^`]|[^`][\s\S]*?[^`])\1(?!`)|\*\*([^*]+?)\*\*|\*([^*\s][^*]*?)\*|\[([^\]\n]+)\]\((https?:\/\/[^\s)]+)\)/g;

/** The elements of a text, which may still be growing: an open code block counts as one. */
export function render(text) {
  const blocks = [];
  const lines = text.replaceAll("\r\n", "\n").split("\n");
  let at = 0;
  const take = (test) => {
    const taken = [];
    while (at < lines.length && test(lines[at])) taken.push(lines[at++]);
    return taken;
  };
  while (at < lines.length) {
    const line = lines[at];
    const fence = line.match(/^\s{0,3}(```+|~~~+)\s*([\w+#.-]*)/);
    if (fence) {
      at += 1;
      const code = take((other) => !other.trim().startsWith(fence[1]));
      at += 1;
      blocks.push(codeBlock(code.join("\n"), fence[2]));
    } else if (/^#{1,6}\s/.test(line)) {
      at += 1;
      blocks.push(el(line.startsWith("###") ? "h4" : "h3", {}, ...inline(line.replace(/^#+\s*/, ""))));
    } else if (/^\s*[-*+]\s/.test(line)) {
      const items = take((other) => /^\s*[-*+]\s/.test(other));
      blocks.push(list("ul", items, /^\s*[-*+]\s+/));
    } else if (/^\s*\d+[.)]\s/.test(line)) {
      const start = Number.parseInt(line, 10);
      const items = take((other) => /^\s*\d+[.)]\s/.test(other));
      blocks.push(list("ol", items, /^\s*\d+[.)]\s+/, start));
    } else if (line.startsWith(">")) {
      const quoted = take((other) => other.startsWith(">")).map((other) => other.replace(/^>\s?/, ""));
      blocks.push(el("blockquote", {}, ...inline(quoted.join("\n"))));
    } else if (!line.trim()) {
      at += 1;
    } else {
      blocks.push(el("p", {}, ...inline(take(isParagraph).join("\n"))));
    }
  }
  return blocks;
}

const isParagraph = (line) => line.trim() && !/^(\s{0,3}(```|~~~)|#{1,6}\s|\s*[-*+]\s|\s*\d+[.)]\s|>)/.test(line);

function list(kind, items, mark, start = 1) {
  const attributes = kind === "ol" && start !== 1 ? { start } : {};
  return el(kind, attributes, ...items.map((item) => el("li", {}, ...inline(item.replace(mark, "")))));
}

function inline(text) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    parts.push(...withBreaks(text.slice(end, match.index)));
    const [whole, , code, strong, emphasis, label, address] = match;
    if (code !== undefined) parts.push(el("code", {}, code));
    else if (strong !== undefined) parts.push(el("strong", {}, strong));
    else if (emphasis !== undefined) parts.push(el("em", {}, emphasis));
    else parts.push(el("a", { href: address, target: "_blank", rel: "noreferrer noopener" }, label));
    end = match.index + whole.length;
  }
  parts.push(...withBreaks(text.slice(end)));
  return parts;
}

const withBreaks = (text) => text.split("\n").flatMap((line, n) => (n ? [el("br"), line] : [line]));

function codeBlock(code, language) {
  const copy = el("button", { type: "button", class: "quiet" }, "Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code);
      copy.textContent = "Copied";
      setTimeout(() => (copy.textContent = "Copy"), 1500);
    } catch {
      notify("The browser does not let this page copy. Select the code instead.");
    }
  });
  const top = el("div", { class: "top" }, el("span", {}, language || "code"), copy);
  return el("div", { class: "code" }, top, el("pre", { tabindex: "0" }, el("code", {}, code)));
}
