// The three forms, the passes and the sizes.

const bodyOf = id => $(id).querySelector(".body");
const aboutOf = id => $(id).querySelector(".about");

function showForms(answer) {
  $("level").textContent = `${answer.level} level`;
  showSizes(answer.sizes);
  showPasses(answer.passes);
  showTensor(answer);
  showStream(answer);
}

function showSizes(sizes) {
  const holder = $("sizes"), names = sizes.map(s => s.name).join();
  if (holder.dataset.names !== names) {
    holder.dataset.names = names;
    holder.replaceChildren(...sizes.map(s => make("label", {}, make("span", {}, s.name),
      make("input", { type: "number", min: "0", max: "1048576", step: "1", inputmode: "numeric", "data-name": s.name,
        oninput: event => sizeChanged(s.name, event.target) }))));
    if (!sizes.length) holder.replaceChildren(make("p", { class: "about" }, "The program has no size names."));
  }
  for (const s of sizes) {
    const field = holder.querySelector(`[data-name="${CSS.escape(s.name)}"]`);
    if (document.activeElement !== field) field.value = s.value;
  }
}

function sizeChanged(name, field) {
  const value = field.valueAsNumber;
  if (Number.isSafeInteger(value) && value >= 0) state.sizes[name] = value;
  else if (field.value === "") delete state.sizes[name];
  else return;
  later();
}

function showPasses(passes) {
  const list = $("passes");
  if (!list.children.length) {
    list.replaceChildren(...passes.map(p => make("li", { "data-name": p.name },
      make("label", { title: p.about },
        make("input", { type: "checkbox", value: p.name, onchange: passSwitched }), make("span", {}, p.name)),
      make("span", { class: "time" }),
      make("button", { type: "button", class: "icon delta", "aria-label": `What ${p.name} changed`, title: "What it changed" }, "Δ"))));
  }
  for (const p of passes) {
    const row = list.querySelector(`[data-name="${CSS.escape(p.name)}"]`);
    row.querySelector("input").checked = !state.off.includes(p.name);
    row.classList.toggle("idle", !p.changed);
    row.querySelector(".time").textContent = !p.on ? "off" : p.changed ? `${p.ms < 10 ? p.ms.toFixed(1) : Math.round(p.ms)} ms` : "–";
    row.querySelector(".time").title = !p.on ? "not run" : p.changed ? "" : "changes nothing here";
    const delta = row.querySelector("button");
    delta.disabled = !p.changed;
    delta.onclick = () => showDiff(p);
  }
}

function passSwitched(event) {
  const name = event.target.value;
  state.off = state.off.filter(n => n !== name);
  if (!event.target.checked) state.off.push(name);
  later(0);
}

function showDiff(step) {
  $("h-diff").textContent = step.name;
  $("diff-about").textContent = step.about;
  const rows = step.diff.map(([sign, line]) => make("div", { class: sign === "+" ? "put" : sign === "-" ? "taken" : null },
    make("span", { class: "sign", "aria-label": sign === "+" ? "added" : sign === "-" ? "removed" : null }, sign), make("span", {}, coloured(line, "tw"))));
  $("diff").querySelector(".difftext").replaceChildren(...rows);
  $("diff").showModal();
}

function showTensor(answer) {
  const graphs = answer.tensor;
  aboutOf("tensor").textContent = graphs.length ? "after its passes" : "";
  bodyOf("tensor").replaceChildren(...(graphs.length ? graphs.map(g => textLines(g.text))
    : [make("p", { class: "empty" }, `The program begins at the ${answer.level} level.`)]));
}

// lines that wrap under their own indentation
function textLines(whole) {
  return make("div", { class: "lines" }, whole.split("\n").map(line => lineOf(line)));
}

function lineOf(line) {
  const indent = /^ */.exec(line)[0].length;
  const row = make("div", { class: "row", "data-indent": String(Math.min(indent / 2, 6) | 0) });
  row.append(...coloured(line.slice(indent), "tw"));
  return row;
}

function showStream(answer) {
  const kernels = answer.stream, deep = kernels.reduce((n, k) => n + k.deep, 0);
  const about = aboutOf("stream");
  about.replaceChildren();
  if (kernels.length) {
    about.append(make("span", { class: deep ? "deepcount bad" : "deepcount good" }, deep ? count(deep, "deep channel") : "no deep channel"),
      ` · ${count(kernels.length, "kernel")}`);
  }
  bodyOf("stream").replaceChildren(...(kernels.length ? kernels.map(k => streamKernel(k, answer)) : [noStream(answer)]));
}

function noStream(answer) {
  if (answer.error) return problem(answer.error);
  return make("p", { class: "empty" }, answer.level === "tile" ? "The program begins at the tile level." : "The pass to_stream is switched off.");
}

function streamKernel(kernel, answer) {
  const lines = kernel.text.split("\n"), rows = lines.map(line => lineOf(line));
  const from = new Map();
  for (const channel of kernel.channels) {
    if (!from.has(channel.line)) from.set(channel.line, []);
    from.get(channel.line).push(channel);
  }
  const out = [];
  rows.forEach((row, at) => {
    out.push(row);
    const channels = from.get(at);
    if (channels) out.push(make("ul", { class: "channels", "data-indent": row.dataset.indent }, channels.map(c => chip(c, rows, row))));
  });
  const sizes = answer.sizes.map(s => `${s.name} = ${s.value}`).join(", ");
  const title = `${count(kernel.places, "place")} in ${count(kernel.channels.length, "channel")}${sizes ? ` at ${sizes}` : ""}`;
  return make("div", { class: "kernel" }, make("p", { class: "about sum" }, make("b", {}, kernel.name), ` · ${title}`), make("div", { class: "lines" }, out));
}

function chip(channel, rows, row) {
  const number = String(channel.here), same = channel.depth === number;
  const tip = `${channel.name}: ${same ? number : `${channel.depth} = ${number}`} for full throughput, `
    + `${channel.least}${channel.least === String(channel.least_here) ? "" : ` = ${channel.least_here}`} or more to end at all`
    + (channel.deep ? ". Deep: it grows with a loop, so it would have to be kept in memory" : "");
  const mark = on => { rows[channel.to].classList.toggle("reads", on); row.classList.toggle("sends", on); };
  return make("li", { class: channel.deep ? "deep" : null, title: tip, "data-channel": channel.name,
    onpointerenter: () => mark(true), onpointerleave: () => mark(false) },
    make("span", {}, `→ ${channel.consumer} `), make("b", {}, same ? number : channel.depth), same ? null : make("i", {}, ` = ${number}`),
    channel.deep ? make("em", {}, "deep") : null);
}

function showTile(answer) {
  const picker = $("kernel"), body = bodyOf("tile");
  if (answer.error) { aboutOf("tile").textContent = ""; picker.hidden = true; body.replaceChildren(problem(answer.error)); return; }
  showClasses(answer);
  const kernels = answer.kernels, at = Math.min(state.kernel, kernels.length - 1);
  picker.hidden = kernels.length < 2;
  picker.replaceChildren(...kernels.map((k, n) => make("option", { value: String(n), selected: n === at }, k.name)));
  const kernel = kernels[at];
  aboutOf("tile").textContent = kernel.text ? `${answer.target} · ${count(kernel.text.split("\n").length, "line")}` : answer.target;
  body.replaceChildren(kernel.error ? problem(kernel.error) : codeView(kernel.text, "tw"));
  body.scrollTop = 0;
}

function showClasses(answer) {
  const rows = $("rows"), shown = answer.classes.join();
  if (rows.dataset.shown !== shown) {
    rows.dataset.shown = shown;
    const named = n => (n ? `up to ${n}` : "any number");
    rows.replaceChildren(...[...answer.classes].sort((a, b) => a - b).map(n => make("option", { value: String(n) }, named(n))));
  }
  rows.value = answer.classes.includes(state.rows) ? String(state.rows) : "0";
  rows.disabled = answer.classes.length < 2;
}
