// Elements, and questions to the server. Text of programs only ever becomes text nodes.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter(c => c !== null && c !== undefined && c !== false));
  return element;
}

const make = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const SVG = "http://www.w3.org/2000/svg";
const draw = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

function table(head, rows, right = []) {
  const side = at => (right.includes(at) ? "n" : null);
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" },
    make("table", {},
      make("thead", {}, make("tr", {}, head.map((h, at) => make("th", { scope: "col", class: side(at) }, h)))),
      make("tbody", {}, rows.map(row => make("tr", { class: row.kind || null },
        row.cells.map((cell, at) => make("td", { class: side(at) }, cell)))))));
}

// ---- questions: the newest of each kind counts; an older one is given up, which also ends its work

const running = new Map();
const known = new Map();  // answers by question, the latest ones
const KEPT = 40;

async function ask(kind, fields) {
  const body = JSON.stringify({ kind, ...fields });
  running.get(kind)?.abort();
  running.delete(kind);
  if (kind !== "run" && known.has(body)) return known.get(body);
  const control = new AbortController();
  running.set(kind, control);
  showBusy();
  try {
    const response = await fetch("/ask", {
      method: "POST", body, signal: control.signal, cache: "no-store", credentials: "omit",
      headers: { "Content-Type": "application/json", "X-Tilewright-Token": data.token },
    });
    const answer = await response.json();
    const lasting = response.ok && answer.error?.code !== "stopped";
    if (lasting) known.set(body, answer);
    if (known.size > KEPT) known.delete(known.keys().next().value);
    return answer;
  } catch (error) {
    if (control.signal.aborted) return null;  // a newer question is on its way
    return { error: { code: "", message: "The server does not answer. Is “tilewright playground” still running?" } };
  } finally {
    if (running.get(kind) === control) running.delete(kind);
    showBusy();
  }
}

// what was asked about an older state is not wanted any more
function giveUp(except) {
  for (const [kind, control] of running) if (kind !== except) control.abort();
}

function showBusy() {
  document.body.classList.toggle("busy", running.size > 0);
}

function problem(error) {
  const place = error.line ? make("button", { type: "button", class: "link", onclick: () => goTo(error.line, error.column) },
    `line ${error.line}${error.column ? `:${error.column}` : ""}`) : null;
  return make("div", { class: "problem" },
    make("p", {}, make("strong", {}, error.pass ? `In the pass ${error.pass}: ` : "", error.code ? `${error.code} ` : ""),
      place, place ? " " : "", error.message),
    error.trace ? make("pre", {}, error.trace) : null);
}
