// Sends files in chunks to /upload, several at a time, each with its bar; goes on where an earlier attempt stopped.
// What is under way is kept beside the page's elements, so that a rerun of the page does not end it.
const CHUNK = 4 * 1024 * 1024;
const AT_ONCE = 2;
const TRIES = 5;
const all = (window.theodoliteUploads ||= new Map());

const TABLE = Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

async function crc32(blob) {
  let crc = 0xffffffff;
  for (let at = 0; at < blob.size; at += CHUNK) {
    const bytes = new Uint8Array(await blob.slice(at, at + CHUNK).arrayBuffer());
    for (let i = 0; i < bytes.length; i++) crc = TABLE[(crc ^ bytes[i]) & 0xff] ^ (crc >>> 8);
  }
  return (crc ^ 0xffffffff) >>> 0;
}

const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const address = (state, tail) => `${state.data.base}/upload${tail}`;

async function ask(state, item, tail, options) {
  const headers = { "X-Upload-Token": state.data.token, ...(options.headers || {}) };
  const reply = await fetch(address(state, tail), { ...options, headers, signal: item.stop.signal });
  const about = await reply.json().catch(() => ({ detail: `The server answered ${reply.status}.` }));
  return { ok: reply.ok, status: reply.status, ...about };
}

async function declare(state, item, fresh) {
  // Two files may have the same name, size and date: their first bytes are part of the mark.
  const head = await crc32(item.file.slice(0, 65536));
  const tail = await crc32(item.file.slice(-65536));
  const mark = [item.file.lastModified, head, tail].join("-");
  const about = { name: item.file.name, bytes: item.file.size, mark, fresh };
  const body = JSON.stringify(about);
  return ask(state, item, "", { method: "POST", body, headers: { "Content-Type": "application/json" } });
}

async function begin(state, item) {
  let here = await declare(state, item, false);
  if (here.ok && here.offset > 0) {
    item.said = "checking what is here already";
    state.draw();
    if ((await crc32(item.file.slice(0, here.offset))) !== here.crc32) here = await declare(state, item, true);
  }
  if (!here.ok && here.status !== 423) throw Object.assign(new Error(here.detail), { final: true });
  if (!here.ok) throw new Error(here.detail);
  item.id = here.id;
  item.offset = here.offset;
}

async function send(state, item) {
  await begin(state, item);
  while (!item.sha256) {
    item.said = "";
    state.draw();
    const body = item.file.slice(item.offset, item.offset + CHUNK);
    const reply = await ask(state, item, `/${item.id}?offset=${item.offset}`, { method: "PUT", body });
    if (reply.ok || reply.status === 409) item.offset = reply.offset;
    else if (reply.status === 404) await begin(state, item);
    else if (reply.status === 423) throw new Error(reply.detail);
    else throw Object.assign(new Error(reply.detail), { final: true });
    if (reply.ok) item.tries = 0;
    if (reply.done) item.sha256 = reply.sha256;
  }
}

async function carry(state, item) {
  item.at = "sending";
  while (item.at === "sending") {
    try {
      await send(state, item);
      item.at = "done";
    } catch (error) {
      if (item.at !== "sending") break;
      item.tries += 1;
      item.said = error.message;
      if (error.final || item.tries >= TRIES) item.at = "failed";
      else await pause(300 * 2 ** item.tries);
    }
    state.draw();
  }
  if (item.at === "done") state.tell(item.sha256);
  next(state);
}

function next(state) {
  const busy = state.items.filter((item) => item.at === "sending").length;
  const waiting = state.items.filter((item) => item.at === "waiting");
  waiting.slice(0, Math.max(0, AT_ONCE - busy)).forEach((item) => carry(state, item));
  state.draw();
}

function add(state, files) {
  for (const file of files) {
    state.items.push({ file, at: "waiting", offset: 0, tries: 0, said: "", stop: new AbortController() });
  }
  next(state);
}

function cancel(state, item) {
  item.at = "cancelled";
  item.stop.abort();
  item.stop = new AbortController();
  if (item.id) ask(state, item, `/${item.id}`, { method: "DELETE" }).catch(() => {});
  state.items = state.items.filter((each) => each !== item);
  next(state);
}

function resume(state, item) {
  Object.assign(item, { at: "waiting", tries: 0, said: "", stop: new AbortController() });
  next(state);
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  if (text) made.textContent = text; // names are text, never markup
  return made;
}

function act(text, label, then) {
  const button = element("button", "", text);
  button.type = "button";
  button.setAttribute("aria-label", label);
  button.onclick = then;
  return button;
}

const WORDS = { waiting: "waiting", done: "stored", failed: "stopped" };

function row(state, item) {
  const share = item.at === "done" ? 1 : item.offset / item.file.size || 0;
  const line = element("li", item.at);
  const bar = element("div", "bar");
  const said = item.said || WORDS[item.at] || `${Math.floor(100 * share)} %`;
  bar.setAttribute("role", "progressbar");
  bar.setAttribute("aria-valuenow", String(Math.floor(100 * share)));
  bar.setAttribute("aria-label", `Upload of ${item.file.name}`);
  bar.append(element("i", ""));
  bar.firstChild.style.width = `${100 * share}%`;
  const acts = element("span", "acts");
  if (item.at === "failed") acts.append(act("Resume", `Resume ${item.file.name}`, () => resume(state, item)));
  if (item.at !== "done") acts.append(act("Cancel", `Cancel ${item.file.name}`, () => cancel(state, item)));
  const name = element("span", "name", item.file.name);
  name.title = item.file.name;
  line.append(name, bar, element("span", "said", said), acts);
  return line;
}

export default function (component) {
  const { parentElement, data, setTriggerValue } = component;
  const state = all.get(data.key) || { items: [], told: new Set(), untold: [] };
  all.set(data.key, state);
  const list = parentElement.querySelector(".list");
  const drop = parentElement.querySelector(".drop");
  const input = parentElement.querySelector("input");
  Object.assign(state, { data });
  state.draw = () => list.replaceChildren(...state.items.map((item) => row(state, item)));
  state.tell = (sha256) => {
    state.draw();
    setTriggerValue("finished", sha256);
    setTimeout(() => {
      state.items = state.items.filter((item) => item.sha256 !== sha256);
      state.draw();
    }, 2500);
  };
  parentElement.querySelector(".hint").textContent = data.hint;
  input.setAttribute("aria-label", data.label);
  input.onchange = () => {
    add(state, [...input.files]);
    input.value = "";
  };
  parentElement.querySelector(".choose").onclick = () => input.click();
  drop.ondragover = (event) => {
    event.preventDefault();
    drop.classList.add("over");
  };
  drop.ondragleave = () => drop.classList.remove("over");
  drop.ondrop = (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    add(state, [...event.dataTransfer.files]);
  };
  state.draw();
}
