// The page's beginning: its parts, the key, and the keyboard.

import { getKey, onRefusal, setKey } from "./api.js";
import { watch } from "./backend.js";
import { choose, clear, startChat, stop } from "./chat.js";
import { byId } from "./dom.js";
import { startLogs } from "./logs.js";
import { startSide } from "./side.js";
import { startStage } from "./stage.js";

startKey();
startKeyboard();
startStage();
startChat();
startSide();
startLogs();
watch();

function startKey() {
  const dialog = byId("key-dialog");
  let isDeclined = false; // "Not now" holds until the key button is used
  byId("key").addEventListener("click", () => openKey(null));
  byId("key").hidden = !getKey();
  onRefusal((status, message) => {
    byId("key").hidden = false;
    if (!isDeclined && !dialog.open && status === 401) openKey(getKey() ? message : null);
  });
  dialog.addEventListener("close", () => {
    const key = byId("key-value").value.trim();
    byId("key-value").value = "";
    isDeclined = dialog.returnValue !== "use" || !key;
    if (!isDeclined) setKey(key);
  });

  function openKey(why) {
    byId("key-why").textContent = why ?? "This backend asks for a key.";
    dialog.returnValue = "cancel";
    dialog.showModal();
    byId("key-value").focus();
  }
}

function startKeyboard() {
  byId("help").addEventListener("click", () => byId("help-dialog").showModal());
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    const isTyping = event.target.matches("input, textarea, select");
    if (event.key === "Escape") {
      byId("options").open = false;
      stop();
    } else if (event.altKey && /^Digit[1-9]$/.test(event.code)) act(event, () => choose(Number(event.code.at(-1)) - 1));
    else if (event.altKey && event.code === "KeyN") act(event, clear);
    else if (event.altKey && event.code === "KeyL") act(event, () => byId("lines").focus());
    else if (!isTyping && event.key === "/") act(event, () => byId("prompt").focus());
    else if (!isTyping && event.key === "?") act(event, () => byId("help-dialog").showModal());
  });
}

function act(event, action) {
  event.preventDefault();
  action();
}
