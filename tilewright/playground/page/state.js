// What the page shows, and the same in the part of the address after #: compressed, in base64url.

const MOST_STATE = 4 * data.mostProgram + 16384;  // characters, once it is unpacked
const fresh = () => ({
  example: data.first, program: "", off: [], target: "host", rows: 0, kernel: 0, backend: "",
  sizes: {}, tab: "why", language: "mlir", depths: "", nodes: "operations", layout: "", seed: 0,
});
let state = fresh();

const exampleNamed = name => data.examples.find(e => e.name === name);

async function pump(bytes, stream, most) {
  const writer = stream.writable.getWriter();
  writer.write(bytes).catch(() => {});
  writer.close().catch(() => {});
  const parts = [];
  let length = 0;
  const reader = stream.readable.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    length += value.length;
    if (length > most) { reader.cancel(); throw new Error("too long"); }
    parts.push(value);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function packed() {
  const base = fresh(), small = {};
  for (const key of Object.keys(base)) {
    if (JSON.stringify(state[key]) !== JSON.stringify(base[key])) small[key] = state[key];
  }
  const same = exampleNamed(state.example)?.text === state.program;
  if (same) { delete small.program; small.example = state.example; } else delete small.example;
  const bytes = await pump(new TextEncoder().encode(JSON.stringify(small)), new CompressionStream("deflate-raw"), Infinity);
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return "1" + btoa(binary).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
}

async function unpacked(fragment) {
  if (!fragment.startsWith("1")) throw new Error("of another version");
  const binary = atob(fragment.slice(1).replace(/-/g, "+").replace(/_/g, "/"));
  const bytes = Uint8Array.from(binary, c => c.charCodeAt(0));
  const plain = await pump(bytes, new DecompressionStream("deflate-raw"), MOST_STATE);
  return JSON.parse(new TextDecoder().decode(plain));
}

// Only fields of the right kind are taken; anything may stand in a link.
function adopt(given) {
  const next = fresh();
  if (typeof given !== "object" || given === null) given = {};
  for (const [key, value] of Object.entries(next)) {
    const offered = given[key];
    if (offered === undefined || typeof offered !== typeof value) continue;
    if (Array.isArray(value)) next[key] = Array.isArray(offered) ? offered.filter(x => typeof x === "string").slice(0, 20) : value;
    else if (typeof value === "object") {
      if (offered && !Array.isArray(offered)) {
        next[key] = Object.fromEntries(Object.entries(offered).filter(([, n]) => Number.isSafeInteger(n) && n >= 0).slice(0, 64));
      }
    } else if (typeof value === "number") next[key] = Number.isSafeInteger(offered) && offered >= 0 ? offered : value;
    else next[key] = offered.slice(0, data.mostProgram);
  }
  if (typeof given.program !== "string") {
    if (!exampleNamed(next.example)) next.example = data.first;
    next.program = exampleNamed(next.example).text;
  } else next.example = "";
  state = next;
}

let written = "";  // the fragment that this page wrote last

async function writeFragment() {
  written = await packed();
  history.replaceState(null, "", `${location.pathname}${location.search}#${written}`);
}

async function readFragment() {
  const fragment = location.hash.slice(1);
  if (!fragment) { adopt(data.opened || {}); return ""; }
  try {
    adopt(await unpacked(fragment));
    return "";
  } catch {
    adopt(data.opened || {});
    return "The link cannot be read: it was cut off or is of another version.";
  }
}
