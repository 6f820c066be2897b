// The editor: a text area over a coloured copy of its text, with numbers and marks of mistakes.

const text = $("text"), under = $("under"), numbers = $("numbers");
let marked = [];  // lines (from 1) with a mistake: {line, column, message}

function paintEditor() {
  const lines = text.value.split("\n");
  const byLine = new Map(marked.map(m => [m.line, m]));
  numbers.replaceChildren(...lines.map((_, at) => {
    const mistake = byLine.get(at + 1);
    return make("span", { class: mistake ? "wrong" : null, title: mistake ? mistake.message : null }, String(at + 1));
  }));
  under.replaceChildren(...lines.flatMap((line, at) => {
    const mistake = byLine.get(at + 1);
    const row = make("span", { class: mistake ? "line wrong" : "line" });
    row.append(...(mistake ? marks(line, mistake.column) : coloured(line, "tw")), "\n");
    return [row];
  }));
  followScroll();
}

// the word at the column underlined (the whole line where there is no column)
function marks(line, column) {
  if (!column) return [make("u", {}, line || " ")];
  const start = Math.min(column - 1, Math.max(0, line.length - 1));
  const word = /^[%@]?[\w.]+|^./.exec(line.slice(start) || " ")?.[0] || " ";
  return [...coloured(line.slice(0, start), "tw"), make("u", {}, word), ...coloured(line.slice(start + word.length), "tw")];
}

function followScroll() {
  under.style.transform = `translate(${-text.scrollLeft}px, ${-text.scrollTop}px)`;
  numbers.style.transform = `translateY(${-text.scrollTop}px)`;
}

function setMistake(error) {
  marked = error?.line ? [error] : [];
  text.setAttribute("aria-invalid", error ? "true" : "false");
  $("mistake").replaceChildren(...(error ? [problem(error)] : []));
  paintEditor();
}

function setProgram(program) {
  if (text.value !== program) {
    text.value = program;
    text.scrollTop = text.scrollLeft = 0;
  }
  marked = [];
  paintEditor();
}

function goTo(line, column) {
  const lines = text.value.split("\n");
  const start = lines.slice(0, line - 1).reduce((sum, l) => sum + l.length + 1, 0) + Math.max(0, (column || 1) - 1);
  text.focus();
  text.setSelectionRange(start, start);
  const height = parseFloat(getComputedStyle(text).lineHeight);
  text.scrollTop = Math.max(0, (line - 4) * height);
}

text.addEventListener("scroll", followScroll);
