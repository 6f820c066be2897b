// Programs and code in colours: long texts in pieces, each coloured when it comes into view.

const COMMENTS = { tw: "//.*", mlir: "//.*", llvm: ";.*", asm: "#.*", numba: "#.*", triton: "#.*", cuda: "//.*" };
const KEYWORDS = "graph|stream|tile|return|yield|with|define|declare|func|module|def|for|while|if|else|elif|in|import|from|as|and|or|not|None|True|False|true|false|void|const|constexpr|static|struct|template|typename|unsigned|inline|__global__|__device__|__shared__|__restrict__|extern";
const TYPES = "tensor|stream|reg|buffer|scratch|shared|vector|memref|index|float|int|double|bool|char|half|ptr|[ubif][1-9][0-9]?|bf16";
const patterns = new Map();

function pattern(language) {
  if (!patterns.has(language)) {
    patterns.set(language, new RegExp([
      `(?<comment>${COMMENTS[language] || "//.*"})`,
      `(?<string>"(?:[^"\\\\]|\\\\.)*")`,
      `(?<value>[%@][\\w.$-]+)`,
      `(?<op>\\b(?:tensor|math|stream|tile|vector|memref|scf|arith|llvm|func|affine|tl|np)\\.[A-Za-z_][\\w.]*)`,
      `(?<type>\\b(?:${TYPES})(?=[<>,\\s)*}&;]|$))`,
      `(?<keyword>\\b(?:${KEYWORDS})\\b)`,
      `(?<number>(?<![\\w.])-?\\d[\\w.]*)`,
    ].join("|"), "gm"));
  }
  return patterns.get(language);
}

function coloured(text, language) {
  const out = [];
  let end = 0;
  for (const found of text.matchAll(pattern(language))) {
    if (found.index > end) out.push(text.slice(end, found.index));
    const kind = Object.keys(found.groups).find(name => found.groups[name] !== undefined);
    out.push(make("span", { class: `t-${kind}` }, found[0]));
    end = found.index + found[0].length;
  }
  out.push(text.slice(end));
  return out;
}

const PIECE = 60;  // lines
const watcher = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    watcher.unobserve(target);
    const parts = coloured(target.textContent, target.dataset.language);
    target.replaceChildren(...parts);
  }
}, { rootMargin: "600px" });

function codeView(text, language) {
  const lines = text.split("\n");
  const view = make("div", { class: "code" });
  for (let at = 0; at < lines.length; at += PIECE) {
    const piece = make("pre", { "data-language": language }, lines.slice(at, at + PIECE).join("\n"));
    view.append(piece);
    watcher.observe(piece);
  }
  return view;
}
