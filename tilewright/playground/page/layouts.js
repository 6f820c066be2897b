// Pictures of layouts: the compiler's SVG, rebuilt of nothing but shapes and text.

const ALLOWED = {
  svg: ["width", "height", "role"], g: ["font-family", "font-size", "text-anchor", "fill", "stroke"],
  rect: ["x", "y", "width", "height", "fill"], text: ["x", "y", "fill", "stroke"], title: [],
};

function safePicture(source) {
  const root = new DOMParser().parseFromString(source, "image/svg+xml").documentElement;
  return root.localName === "svg" ? rebuilt(root) : null;
}

function rebuilt(node) {
  if (!(node.localName in ALLOWED)) return null;
  const copy = draw(node.localName, {});
  for (const name of ALLOWED[node.localName]) {
    if (node.hasAttribute(name)) copy.setAttribute(name, node.getAttribute(name));
  }
  for (const child of node.childNodes) {
    const inner = child.nodeType === Node.TEXT_NODE ? child.data.trim() : child.nodeType === Node.ELEMENT_NODE ? rebuilt(child) : null;
    if (inner) copy.append(inner);
  }
  return copy;
}

function pictureOf(answer) {
  const svg = safePicture(answer.svg);
  if (!svg) return problem({ message: "the picture cannot be read" });
  svg.setAttribute("viewBox", `0 0 ${svg.getAttribute("width")} ${svg.getAttribute("height")}`);
  svg.setAttribute("class", "layout");
  svg.setAttribute("aria-label", `${answer.text}: ${answer.summary}`);
  const cells = [...svg.querySelectorAll("g:last-of-type rect")].map(rect => ({ rect, label: rect.nextElementSibling }));
  const owner = label => label.textContent.split(answer.kind === "packing" ? "[" : ".")[0];
  for (const { rect, label } of cells) {
    const mark = on => {
      for (const other of cells) other.rect.classList.toggle("same", on && owner(other.label) === owner(label));
      svg.classList.toggle("marked", on);
    };
    for (const part of [rect, label]) {
      part.addEventListener("pointerenter", () => mark(true));
      part.addEventListener("pointerleave", () => mark(false));
    }
  }
  return make("div", { class: "picture", tabindex: "0", role: "region", "aria-label": "Picture of the layout" }, svg);
}
