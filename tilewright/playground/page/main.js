// What happens when: edits, choices and links lead to questions, answers to what is shown.

const WAIT = 250;  // ms after the last key
let timer = 0, round = 0, forms = null, tile = null;

const common = () => ({ program: state.program, passes: data.passes.map(p => p.name).filter(n => !state.off.includes(n)) });
const forTarget = () => ({ ...common(), target: state.target, rows: state.rows });

function later(wait = WAIT) {
  clearTimeout(timer);
  timer = setTimeout(refresh, wait);
}

async function refresh() {
  const mine = ++round, start = performance.now();
  writeFragment();
  giveUp("run");
  document.body.classList.add("stale");
  const answer = await ask("forms", { ...common(), sizes: state.sizes });
  if (!answer || mine !== round) return;
  setMistake(answer.error || null);
  if (!answer.passes) {
    showStatus({ stopped: "stopped", bug: "a bug", "": "no answer" }[answer.error.code] || "does not parse", true);
    return;
  }
  forms = answer;
  showForms(answer);
  await Promise.all([refreshTile(mine), state.tab === "layouts" ? null : showTab(mine)]);
  if (mine !== round) return;
  if (state.tab === "layouts") await showTab(mine);
  if (mine !== round) return;
  document.body.classList.remove("stale");
  document.body.dataset.round = mine;
  showStatus(answer.error ? "a pass refuses it" : `up to date in ${Math.round(performance.now() - start)} ms`, Boolean(answer.error));
}

async function refreshTile(mine) {
  const answer = await ask("tile", forTarget());
  if (!answer || mine !== round) return;
  tile = answer;
  showTile(answer);
}

function showStatus(said, bad) {
  $("status").textContent = said;
  $("status").classList.toggle("bad", Boolean(bad));
}

// ---- tabs

async function showTab(mine = round) {
  const panel = $("panel"), tab = state.tab;
  for (const button of $("tabs").children) {
    const on = button.dataset.key === tab;
    button.setAttribute("aria-selected", String(on));
    button.tabIndex = on ? 0 : -1;
    if (on) panel.setAttribute("aria-labelledby", button.id);
  }
  if (panel.dataset.tab !== tab) { panel.dataset.tab = tab; panel.scrollTop = 0; SHOW[tab](panel, null); }
  const answer = await ASK[tab]();
  if (answer === null || mine !== round || tab !== state.tab) return;
  SHOW[tab](panel, answer);
}

const SHOW = {
  why: (panel, answer) => showWhy(panel, forms, answer),
  layouts: (panel, answer) => showLayouts(panel, answer || null),
  code: showCode,
  simulate: showSimulation,
  run: (panel, answer) => showRun(panel, answer || undefined, run),
};
const ASK = {
  why: () => ask("why", { ...common(), target: state.target }),
  layouts: () => {
    const wanted = chosenLayout();
    return wanted ? ask("layout", { layout: wanted }) : false;
  },
  code: () => ask("code", { ...forTarget(), kernel: state.kernel, language: state.language }),
  simulate: () => ask("simulate", { ...common(), kernel: state.kernel, sizes: state.sizes, depths: state.depths, nodes: state.nodes, seed: state.seed }),
  run: () => undefined,
};

function kernelHere() {
  return tile?.kernels?.[Math.min(state.kernel, tile.kernels.length - 1)];
}

// what is typed or picked, else the kernel's largest layout that is still easy to take in
function chosenLayout() {
  const few = (kernelHere()?.layouts || []).filter(l => l.cells <= 640).sort((a, b) => b.cells - a.cells);
  return state.layout || few[0]?.text || "";
}

function chooseTab(key) {
  state.tab = key;
  writeFragment();
  showTab();
}

function chooseLayout(wanted) {
  state.layout = wanted.trim();
  writeFragment();
  showTab();
}

async function run() {
  const asked = { ...common(), target: state.target, sizes: state.sizes, backend: state.backend, seed: state.seed };
  showRun($("panel"), null, run);
  const answer = await ask("run", asked);
  if (answer && state.tab === "run") showRun($("panel"), answer, run);
}

// ---- choices

function setUp() {
  $("example").replaceChildren(make("option", { value: "" }, "your own"), ...data.examples.map(e => make("option", { value: e.name }, e.title)));
  $("target").replaceChildren(...Object.entries(data.targets).map(([kind, names]) => make("optgroup", { label: kind }, names.map(n => make("option", { value: n }, n)))));
  $("rows").replaceChildren(make("option", { value: "0" }, "any number"));
  $("tabs").replaceChildren(...TABS.map(t => make("button", { type: "button", role: "tab", id: `tab-${t.key}`, "data-key": t.key,
    "aria-controls": "panel", onclick: () => chooseTab(t.key) }, t.title)));
  $("tabs").addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const keys = TABS.map(t => t.key), next = keys[(keys.indexOf(state.tab) + step + keys.length) % keys.length];
    chooseTab(next);
    $(`tab-${next}`).focus();
  });
  text.addEventListener("input", () => {
    state.program = text.value;
    const same = exampleNamed(state.example)?.text === state.program;
    $("example").value = same ? state.example : "";
    paintEditor();
    later();
  });
  $("example").addEventListener("change", event => {
    const chosen = exampleNamed(event.target.value);
    if (!chosen) return;
    Object.assign(state, { example: chosen.name, program: chosen.text, sizes: {}, kernel: 0, depths: "", layout: "" });
    setProgram(chosen.text);
    for (const body of document.querySelectorAll(".body")) body.scrollTop = 0;
    later(0);
  });
  $("target").addEventListener("change", event => { state.target = event.target.value; state.layout = ""; later(0); });
  $("rows").addEventListener("change", event => { state.rows = Number(event.target.value); state.layout = ""; later(0); });
  $("kernel").addEventListener("change", event => {
    state.kernel = Number(event.target.value);
    state.layout = "";
    if (tile) showTile(tile);
    writeFragment();
    showTab();
  });
  $("share").addEventListener("click", async event => {
    await writeFragment();
    copyText(`${location.origin}/#${written}`, event.currentTarget);
  });
  $("close").addEventListener("click", () => $("diff").close());
  $("diff").addEventListener("click", event => { if (event.target === $("diff")) $("diff").close(); });
  $("skip").addEventListener("click", event => { event.preventDefault(); bodyOf("tensor").focus(); });
  for (const button of document.querySelectorAll(".widen")) button.addEventListener("click", () => widen(button));
  window.addEventListener("hashchange", () => { if (location.hash.slice(1) !== written) open(); });
}

function widen(button) {
  const form = button.closest(".form"), on = button.getAttribute("aria-pressed") !== "true";
  for (const other of document.querySelectorAll(".widen")) {
    const chosen = on && other === button;
    other.setAttribute("aria-pressed", String(chosen));
    other.closest(".form").classList.toggle("wide", chosen);
  }
  $("forms").classList.toggle("one", on);
  form.querySelector(".body").focus({ preventScroll: true });
}

// ---- colours: as the system has them, or chosen

const SCHEMES = ["", "light", "dark"];
const kept = { get: () => { try { return localStorage.getItem("scheme") || ""; } catch { return ""; } },
  set: value => { try { localStorage.setItem("scheme", value); } catch { /* not kept then */ } } };

function useScheme(scheme) {
  if (scheme) document.documentElement.dataset.scheme = scheme;
  else delete document.documentElement.dataset.scheme;
  $("theme").textContent = { "": "◐", light: "☀", dark: "☾" }[scheme];
  $("theme").setAttribute("aria-label", `Colours: ${scheme || "as the system"}`);
  $("theme").title = $("theme").getAttribute("aria-label");
}

$("theme").addEventListener("click", () => {
  const next = SCHEMES[(SCHEMES.indexOf(kept.get()) + 1) % SCHEMES.length];
  kept.set(next);
  useScheme(next);
});

async function open() {
  const remark = await readFragment();
  setProgram(state.program);
  $("example").value = state.example;
  const targets = [...$("target").options].map(o => o.value);
  if (!targets.includes(state.target)) state.target = "host";
  if (!TABS.some(t => t.key === state.tab)) state.tab = "why";
  $("target").value = state.target;
  if (remark) showStatus(remark, true);
  await refresh();
  if (remark) showStatus(remark, true);
}

useScheme(SCHEMES.includes(kept.get()) ? kept.get() : "");
setUp();
open();
