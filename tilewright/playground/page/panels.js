// The tabs below the forms: why, layouts, code, simulator, run.

const TABS = [
  { key: "why", title: "Why" }, { key: "layouts", title: "Layouts" }, { key: "code", title: "Code" },
  { key: "simulate", title: "Simulator" }, { key: "run", title: "Run" },
];
const loop = (name, axes, meaning) => (axes.length ? [make("dt", {}, name), make("dd", {}, make("code", {}, axes.join(", ")), ` ${meaning}`)] : []);

// ---- why: rules and schedules

function showWhy(panel, forms, answer) {
  const parts = [];
  if (forms?.rules?.length) parts.push(make("h3", {}, "Rules that make deep channels shallow"), rulesTable(forms.rules, forms.passes));
  if (!answer) parts.push(waiting());
  else if (answer.error) parts.push(problem(answer.error));
  else if (!answer.kernels.length) parts.push(make("p", { class: "empty" }, "Nothing to explain: the program begins at the tile level."));
  else answer.kernels.forEach(k => parts.push(kernelFacts(k, answer.target)));
  panel.replaceChildren(...parts);
}

function rulesTable(rules, passes) {
  const off = passes.some(p => p.name === "reorder" && !p.on);
  const rows = rules.map(r => ({ kind: r.applied ? "applied" : "idle", cells: [
    `${r.graph ? `${r.graph}: ` : ""}${r.name}`, make("code", {}, r.algebra), r.applied ? `deep channels ${r.before} → ${r.after}` : "does not apply"] }));
  return make("div", {}, off ? make("p", { class: "about" }, "The pass reorder is switched off: this is what its rules would do.") : null, table(["rule", "algebra", "effect"], rows));
}

function kernelFacts(k, target) {
  const about = k.problem ? make("p", { class: "problem" }, `Not compiled: ${k.problem}`)
    : make("dl", {}, loop("grid", k.grid, "independent of each other"),
      loop("rows", k.rows, k.stream ? "share what is read along the stream" : "each by itself"),
      loop("stream", k.stream ? [k.stream] : [], `${k.shared_out ? "shared out in parts, " : ""}walked in blocks`),
      loop("masks", k.masks, "whole blocks outside are skipped"),
      [make("dt", {}, "channels"), make("dd", {}, `${k.channels}, the deepest holds ${count(k.deepest, "element")}`)]);
  const rows = k.schedules.map(s => ({ cells: [s.up_to ? `up to ${s.up_to}` : "any number", s.kind, String(s.rows), s.tile, String(s.block)] }));
  return make("section", {}, make("h3", {}, `Kernel ${k.name}`), about,
    rows.length && !k.problem ? [make("p", { class: "about" }, `Schedules for ${target}, chosen by the number of rows at the call`),
      table(["rows", "layout", "rows a block", "register tile", "block of the stream"], rows, [2, 3, 4])] : null,
    k.packings.map(p => make("pre", { class: "plain" }, p)));
}

const waiting = () => make("p", { class: "empty" }, "…");

// ---- layouts

function showLayouts(panel, answer) {
  const kernel = kernelHere();
  const list = kernel?.layouts || [];
  const field = make("input", { id: "expression", type: "text", value: state.layout, spellcheck: "false", autocomplete: "off",
    placeholder: "local(2, 1).spatial(8, 4).local(1, 2)" });
  const typed = make("form", { class: "typed", onsubmit: event => { event.preventDefault(); chooseLayout(field.value); } },
    make("label", { for: "expression" }, "Layout, or packing"), field, make("button", { type: "submit" }, "Draw"));
  const chosen = chosenLayout();
  const buttons = list.map(l => make("button", { type: "button", class: "layoutpick", "aria-pressed": String(l.text === chosen), disabled: !l.drawn,
    title: l.drawn ? l.summary : `${l.summary}: too large to draw`, onclick: () => chooseLayout(l.text) },
    make("code", {}, l.text), make("small", {}, count(l.count, "value"))));
  const side = make("div", { class: "layoutlist" }, typed,
    make("p", { class: "about" }, list.length ? `Layouts in ${kernel.name}, by use` : "No layouts: the kernel has no tile form here."), buttons);
  let shown = waiting();
  if (answer?.error) shown = problem(answer.error);
  else if (answer) shown = make("div", {}, make("p", { class: "drawn" }, make("code", {}, answer.text)),
    make("p", { class: "about" }, `${answer.summary}. ${answer.kind === "packing" ? "Each row a word, bit 31 left: code[bits of it]." : "In each cell: lane.register. Point at one to see its lane."}`), pictureOf(answer));
  else if (!chosen) shown = null;
  panel.replaceChildren(make("div", { class: "split" }, side, make("div", { class: "show" }, shown)));
}

// ---- code

function showCode(panel, answer) {
  const bar = make("div", { class: "choices", role: "group", "aria-label": "Language" }, data.languages.map(l =>
    make("button", { type: "button", "aria-pressed": String(l.key === state.language), onclick: () => { state.language = l.key; later(0); } }, l.title)));
  let shown = waiting();
  if (answer?.error) shown = problem(answer.error);
  else if (answer?.why) shown = make("div", { class: "whynot" }, make("p", {}, answer.why),
    make("button", { type: "button", onclick: () => { state.target = answer.suggest; $("target").value = answer.suggest; later(0); } }, `Take ${answer.suggest} as the target`));
  else if (answer) shown = make("div", {}, make("p", { class: "about tools" }, `${answer.title} · ${count(answer.lines, "line")} `,
    make("button", { type: "button", class: "link", onclick: event => copyText(answer.text, event.target) }, "Copy")), codeView(answer.text, state.language));
  panel.replaceChildren(bar, shown);
}

// ---- simulator

function showSimulation(panel, answer) {
  const depths = make("input", { id: "depths", type: "text", value: state.depths, spellcheck: "false", autocomplete: "off", placeholder: "full throughput; or short=2,long=N+2",
    oninput: event => { state.depths = event.target.value; later(); } });
  const nodes = make("select", { id: "nodes", onchange: event => { state.nodes = event.target.value; later(0); } },
    [["operations", "each operation is a node"], ["paper", "the paper's node kinds"]].map(([v, t]) => make("option", { value: v, selected: state.nodes === v }, t)));
  const bar = make("div", { class: "controls" }, make("label", {}, "Depths of channels", depths), make("label", {}, "Nodes", nodes));
  const old = panel.querySelector("#depths");
  const caret = document.activeElement === old && old ? [old.selectionStart, old.selectionEnd] : null;
  panel.replaceChildren(bar, make("div", { class: "results" }, answer ? (answer.error ? problem(answer.error) : simulation(answer)) : waiting()));
  if (caret) { depths.focus(); depths.setSelectionRange(...caret); }
}

function simulation(run) {
  const more = run.cycles - run.free, places = run.channels.reduce((n, c) => n + (c.capacity ?? 0), 0);
  const cards = [
    ["cycles", run.cycles.toLocaleString("en"), run.deadlock ? "until it is stuck" : more ? `${more.toLocaleString("en")} more than without limits` : "as without limits"],
    ["fired", run.firings.toLocaleString("en"), `${(run.firings / Math.max(1, run.cycles)).toFixed(2)} a cycle`],
    ["places", places.toLocaleString("en"), `in ${count(run.channels.length, "channel")}`],
    ["results", run.deadlock ? "none" : run.largest_error === null ? "not checked" : run.wrong ? "wrong" : "right", run.largest_error === null ? (run.deadlock ? "it does not end" : "too many for a check") : `error ${run.largest_error.toExponential(1)}`],
  ];
  const rows = [...run.channels].sort((a, b) => b.peak - a.peak).map(c => ({ kind: c.deep ? "deep" : null, cells: [c.name, c.capacity === null ? "∞" : String(c.capacity),
    String(c.peak), c.mean.toFixed(2), c.full === String(c.full_here) ? c.full : `${c.full} = ${c.full_here}`, String(c.least_here)] }));
  const nodes = run.nodes.map(n => ({ kind: n.stuck ? "deep" : null, cells: [n.name, n.kind, n.firings.toLocaleString("en"), n.rate.toFixed(3), String(n.first), String(n.last), n.waited.toLocaleString("en")] }));
  return make("div", {}, run.deadlock ? make("div", { class: "problem", role: "alert" }, make("p", {}, make("strong", {}, "Deadlock")), make("pre", {}, run.deadlock)) : null,
    make("ul", { class: "cards" }, cards.map(([a, b, c]) => make("li", {}, make("span", {}, a), make("b", {}, b), make("small", {}, c)))),
    occupancy(run),
    make("details", {}, make("summary", {}, "Channels in numbers"), table(["channel", "places", "peak", "mean", "full throughput", "no deadlock"], rows, [1, 2, 3, 4, 5])),
    make("details", {}, make("summary", {}, "Nodes"), table(["node", "kind", "firings", "a cycle", "first", "last", "waited"], nodes, [2, 3, 4, 5, 6])));
}

// ---- run

function showRun(panel, answer, go) {
  const backend = make("select", { id: "backend", onchange: event => { state.backend = event.target.value; later(0); } },
    [["", "the fastest here"], ["mlir", "mlir"], ["numba", "numba"], ["interpreter", "interpreter"], ["cuda-host", "cuda, emulated on this CPU"]].map(([v, t]) => make("option", { value: v, selected: state.backend === v }, t)));
  const seed = make("input", { id: "seed", type: "number", min: "0", value: String(state.seed), onchange: event => { state.seed = Math.max(0, event.target.valueAsNumber || 0); later(); } });
  const bar = make("div", { class: "controls" }, make("label", {}, "Back end", backend), make("label", { class: "short" }, "Seed", seed),
    make("button", { type: "button", class: "main", id: "go", onclick: go }, "Run"));
  const shown = answer === undefined ? make("p", { class: "empty" }, "Runs the program's kernels on random inputs of the sizes at the left, and compares every form with the float64 oracle. A program runs only when you say so.")
    : answer === null ? waiting() : answer.error ? problem(answer.error) : results(answer);
  panel.replaceChildren(bar, make("div", { class: "results" }, shown));
}

const seconds = s => (s >= 1 ? `${s.toFixed(2)} s` : s >= 1e-3 ? `${(s * 1e3).toPrecision(3)} ms` : `${(s * 1e6).toPrecision(3)} µs`);

function results(run) {
  const cards = [["a call", seconds(run.median), run.runs ? `median of ${run.runs}` : "one call"], ["first call", seconds(run.first), "with compiling or loading"],
    ["kernels", String(run.kernels.length), run.kernels.join(", ")], ["where", run.where, count(run.threads, "thread")]];
  const rows = run.forms.flatMap(form => form.results.map(r => ({ kind: r.good ? null : "deep", cells: [form.form, r.name,
    r.note || (r.error === null ? "∞" : r.error.toExponential(2)), r.scale === undefined ? "" : r.scale.toPrecision(3), r.allowed === undefined ? "" : r.allowed.toExponential(1), r.good ? "as it should be" : "WRONG"] })));
  return make("div", {}, make("ul", { class: "cards" }, cards.map(([a, b, c]) => make("li", {}, make("span", {}, a), make("b", {}, b), make("small", {}, c)))),
    make("h3", {}, "Errors against the float64 oracle"),
    run.unchecked ? make("p", { class: "about" }, `Not checked: ${run.unchecked}`) : table(["form", "result", "largest error", "largest result", "rounding explains", ""], rows, [2, 3, 4]),
    make("p", { class: "about" }, `Inputs: ${run.inputs.join("; ")}. The kernels are made by all passes, whatever is switched off; the stream form is that of the passes chosen.`));
}

async function copyText(value, button) {
  const said = button.textContent;
  try { await navigator.clipboard.writeText(value); button.textContent = "Copied"; } catch { button.textContent = "Copy by hand"; }
  setTimeout(() => { button.textContent = said; }, 1500);
}
