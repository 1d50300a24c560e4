// The pictures of the next message: taken from a file, a paste or a drop, and made small enough.

import { byId, el, icon, notify } from "./dom.js";

const MAX_SIDE = 1024; // pixels; about what the vision model is shown of a picture anyway
const MAX_PICTURES = 2; // what the model's settings allow in one request

const chosen = []; // data addresses

/** What is chosen; `takePictures` also forgets it. */
export const hasPictures = () => chosen.length > 0;

export function takePictures() {
  const taken = chosen.splice(0);
  show();
  return taken;
}

/** `onAdded` is called after each new picture. */
export function startPictures(onAdded) {
  const composer = byId("composer");
  const add = async (files) => {
    for (const file of files) {
      if (chosen.length >= MAX_PICTURES) {
        notify(`At most ${MAX_PICTURES} pictures go into one message.`);
        break;
      }
      try {
        chosen.push(await shrink(file));
        onAdded();
      } catch {
        notify(`${file.name || "This"} is not a picture that this browser can read.`);
      }
    }
    show();
  };
  byId("attach").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", (event) => {
    add([...event.target.files]).then(() => (event.target.value = ""));
  });
  byId("prompt").addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files].filter(isPicture);
    if (files.length) {
      event.preventDefault();
      add(files);
    }
  });
  const chat = composer.closest(".chat");
  chat.addEventListener("dragover", (event) => {
    if (event.dataTransfer.types.includes("Files")) {
      event.preventDefault();
      composer.classList.add("over");
    }
  });
  chat.addEventListener("dragleave", () => composer.classList.remove("over"));
  chat.addEventListener("drop", (event) => {
    event.preventDefault();
    composer.classList.remove("over");
    add([...event.dataTransfer.files].filter(isPicture));
  });
}

const isPicture = (file) => file.type.startsWith("image/");

/** A picture as a data address, its longer side at most MAX_SIDE. */
async function shrink(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = el("canvas", {
    width: Math.max(1, Math.round(bitmap.width * scale)),
    height: Math.max(1, Math.round(bitmap.height * scale)),
  });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // JPEG knows no transparency
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas.toDataURL("image/jpeg", 0.88);
}

function show() {
  const box = byId("pictures");
  box.hidden = !chosen.length;
  box.replaceChildren(
    ...chosen.map((address, n) => {
      const remove = el("button", { type: "button", class: "icon", "aria-label": `Remove picture ${n + 1}` }, icon("m4 4 12 12M16 4 4 16"));
      remove.addEventListener("click", () => {
        chosen.splice(n, 1);
        show();
        byId("prompt").focus();
      });
      return el("figure", {}, el("img", { src: address, alt: `Picture ${n + 1}` }), remove);
    }),
  );
}
