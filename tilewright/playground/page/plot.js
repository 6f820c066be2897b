// How full every channel is over time: one band a channel, the deepest first.

const LABELS = 12, BAND = 40, NAME = 15;

function occupancy(run) {
  const holder = make("figure", { class: "plot" });
  const reading = make("figcaption", { class: "about", "aria-live": "off" });
  const channels = [...run.channels].sort((a, b) => b.peak - a.peak);
  const paint = () => {
    const width = Math.max(260, Math.floor(holder.clientWidth || 700));
    holder.replaceChildren(reading, occupancyOf(run, channels, width, reading));
  };
  reading.textContent = hint(run);
  new ResizeObserver(paint).observe(holder);
  return holder;
}

const hint = run => `Places taken in each channel over ${run.cycles.toLocaleString("en")} cycles. Point at a cycle, or use the arrow keys.`;

function occupancyOf(run, channels, width, reading) {
  const height = channels.length * BAND + 22, bins = channels[0]?.bins.length || 1;
  const x = bin => (Math.min(bin * run.bin, run.cycles) / Math.max(1, run.cycles)) * width;
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, class: "occupancy", role: "img", tabindex: "0",
    "aria-label": `Occupancy of ${count(channels.length, "channel")} over ${run.cycles} cycles` });
  channels.forEach((channel, n) => svg.append(band(channel, n * BAND, width, x)));
  for (const part of [0, 0.25, 0.5, 0.75, 1]) {
    svg.append(draw("text", { class: "tick", x: part * width, y: height - 5, "text-anchor": part === 0 ? "start" : part === 1 ? "end" : "middle" },
      Math.round(part * run.cycles).toLocaleString("en")));
  }
  svg.append(draw("path", { class: "cross", d: "" }));
  let at = -1;
  const show = bin => { at = Math.max(0, Math.min(bins - 1, bin)); readOff(run, channels, svg, at, (x(at) + x(at + 1)) / 2, height, reading); };
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    show(Math.floor(((event.clientX - box.left) / box.width) * run.cycles / run.bin));
    hovered(svg, Math.floor((event.clientY - box.top) / (box.height / height) / BAND));
  });
  svg.addEventListener("pointerleave", () => { svg.querySelector(".cross").setAttribute("d", ""); reading.textContent = hint(run); hovered(svg, -1); });
  svg.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -bins, End: bins }[event.key];
    if (step) { event.preventDefault(); show(at + step); }
  });
  return svg;
}

function band(channel, top, width, x) {
  const most = Math.max(channel.peak, 2), base = top + BAND - 4, tall = BAND - NAME - 7;
  const y = value => base - (value / most) * tall;
  let path = `M0 ${base}`;
  channel.bins.forEach((value, bin) => { path += `V${y(value).toFixed(1)}H${x(bin + 1).toFixed(1)}`; });
  const limit = channel.capacity === null ? "no limit" : `of ${channel.capacity.toLocaleString("en")}`;
  return draw("g", { class: `band${channel.deep ? " deep" : ""}${channel.stuck ? " stuck" : ""}` },
    draw("title", {}, channel.name),
    draw("rect", { class: "bed", x: 0, y: top + NAME + 1, width, height: BAND - NAME - 3 }),
    draw("path", { class: "area", d: `${path}V${base}Z` }),
    draw("text", { class: "name", x: 0, y: top + LABELS }, channel.name),
    draw("text", { class: "peak", x: width, y: top + LABELS, "text-anchor": "end" }, `peak ${channel.peak.toLocaleString("en")} ${limit}${channel.stuck ? ", full" : ""}`));
}

function hovered(svg, number) {
  svg.querySelectorAll(".band").forEach((band, n) => band.classList.toggle("over", n === number));
}

function readOff(run, channels, svg, bin, x, height, reading) {
  svg.querySelector(".cross").setAttribute("d", `M${x} 0V${height - 18}`);
  const first = bin * run.bin, last = Math.min(run.cycles, first + run.bin) - 1;
  const held = channels.map(c => ({ name: c.name, value: c.bins[bin] || 0 })).filter(c => c.value > 0.005).sort((a, b) => b.value - a.value);
  const shown = held.slice(0, 4).map(c => `${c.name} ${+c.value.toFixed(2)}`).join(", ");
  const cycle = first >= last ? `cycle ${first.toLocaleString("en")}` : `cycles ${first.toLocaleString("en")}–${last.toLocaleString("en")}`;
  reading.textContent = `${cycle}: ${shown || "nothing held"}${held.length > 4 ? ` and ${held.length - 4} more` : ""}`;
}
