// What the page is drawn with: elements, bars, passages with marks, tables, and what is copied.

export const byId = (id) => document.getElementById(id);

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("--")) made.style.setProperty(name, value);
    else if (name === "width") made.style.width = value;
    else if (typeof value === "function") made.addEventListener(name, value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export const heading = (text) => element("h3", { class: "part" }, text);
export const headline = (text) => element("p", { class: "headline" }, text);
// With what stands beside it, where something does.
export const answered = (text, beside) =>
  (beside ? element("div", { class: "answered" }, headline(text), beside) : headline(text));
export const paragraph = (...parts) => element("p", {}, ...parts);
export const smallButton = (text, click) => element("button", { type: "button", class: "small", click }, text);
export const errorLine = (error) => element("p", { class: "error", role: "alert" }, String(error.message || error));

// For those who hear the page: what else is to be seen.
export const announce = (text) => { byId("heard").textContent = text; };

// What scrolls by itself, which takes the focus so that keys can do that, and thus has a name.
export const scrolled = (tag, name, attributes, ...inside) =>
  element(tag, { tabindex: "0", role: "group", "aria-label": name, ...attributes }, ...inside);

// What is made once it is opened, and anew after it failed.
export function opened(title, make) {
  const inside = element("div"), box = element("details", {}, element("summary", {}, title), inside);
  let made = false;
  box.addEventListener("toggle", async () => {
    if (!box.open || made) return;
    made = true;
    try {
      inside.replaceChildren(...await make((told) => {
        announce(told);
        inside.replaceChildren(paragraph(told));
      }));
      announce(`${title}: shown`);
    } catch (error) {
      made = false;
      inside.replaceChildren(errorLine(error));
    }
  });
  return box;
}

// Offsets of answers count Unicode code points; a JavaScript string counts UTF-16 units.
export const points = (text) => Array.from(text);
export const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);
export const number = (count) => count.toLocaleString("en");
export const percent = (share) => (100 * share).toFixed(1) + "%";
export const decimal = (value) => (Number.isFinite(value) ? value.toFixed(3) : "–");
// Shares of 0 to 1 fill a bar; other scores (logits) only tell their order.
const isShare = (values) => values.every((v) => v >= 0 && v <= 1.0001);

// Of rows of name and value, and an element `more` beside that; those beyond `most` come with a click. `written` is a value in words,
// of what is a share of 1 in any case.
export function bars(rows, most = rows.length, written = null) {
  const shares = written || isShare(rows.map((row) => row.value));
  const low = Math.min(...rows.map((row) => row.value), 0);
  const high = Math.max(...rows.map((row) => row.value), low + 1e-9);
  const more = rows.some((row) => row.more);
  const items = rows.map((row, i) => {
    const share = shares ? Math.max(0, row.value) : (row.value - low) / (high - low);
    const name = element("span", { class: row.chosen ? "name yes" : "name" }, row.name);
    if (row.type) name.append(" ", element("small", {}, row.type));
    const value = written ? written(row.value) : shares ? percent(row.value) : row.value.toFixed(2);
    const item = element("li", {}, name,
      element("span", { class: "track", "aria-hidden": "true" },
        element("span", { class: "fill", width: Math.max(0.5, 100 * share) + "%" })),
      element("span", { class: "value" }, value));
    if (more) item.append(row.more || element("span"));
    item.hidden = i >= most;
    return item;
  });
  const list = element("ul", { class: more ? "bars more" : "bars", role: "list", tabindex: "-1" }, ...items);
  if (most >= rows.length) return list;
  const all = smallButton(`Show all ${rows.length}`, () => {
    for (const item of items) item.hidden = false;
    all.remove();
    list.focus();  // which the button had
  });
  return element("div", {}, list, all);
}

export function highlighted(text, spans) {
  const all = points(text), passage = element("p", { class: "passage" });
  let at = 0;
  for (const span of [...spans].sort((a, b) => a.start - b.start)) {
    if (span.start < at) continue;  // One inside another would cut it.
    passage.append(all.slice(at, span.start).join(""));
    passage.append(element("mark", span.attributes || {}, all.slice(span.start, span.end).join("")));
    at = span.end;
  }
  passage.append(all.slice(at).join(""));
  return passage;
}

// A text with pieces in place of its [MASK]s, and where they stand.
export function filledIn(masked, pieces) {
  const parts = masked.split("[MASK]"), spans = [];
  let text = parts[0];
  parts.slice(1).forEach((part, i) => {
    let piece = i < pieces.length ? pieces[i] : "[MASK]";
    if (piece.startsWith("##")) { text = text.trimEnd(); piece = piece.slice(2); }
    const start = points(text).length;
    text += piece;
    if (i < pieces.length) spans.push({ start, end: points(text).length });
    text += part;
  });
  return { text, spans };
}

const HUES = { PER: 210, PERSON: 210, LOC: 140, GPE: 140, ORG: 28, MISC: 285, DATE: 190 };

export function hue(type) {
  if (type in HUES) return HUES[type];
  let sum = 0;
  for (const point of type) sum = (sum * 31 + point.codePointAt(0)) % 360;
  return sum;
}

// A table that scrolls by itself where it is wider than the page; cells are texts or elements.
export function tableOf([head, ...body], name, attributes = {}) {
  const top = element("tr", {}, ...head.map((cell) => (
    cell === "" ? element("td") : element("th", { scope: "col" }, cell))));
  return scrolled("div", name, { class: "wide" },
    element("table", attributes, element("thead", {}, top),
      element("tbody", {}, ...body.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, cell)))))));
}

const withCode = (text) => text.split("`").map((part, i) => (i % 2 ? element("code", {}, part) : part));
const codeTable = (rows, name) => tableOf(rows.map((row) => row.map((text) => (
  text && element("span", text.startsWith("[") ? { class: "shape" } : {}, ...withCode(text))))), name);

// What of Markdown the cards have: headings, paragraphs, tables and code.
export function markdown(text) {
  return text.split(/\n{2,}/).filter((block) => block.trim()).map((block) => {
    const title = block.match(/^(#+) (.*)/);
    if (title) return element("h3", {}, ...withCode(title[2]));
    if (block.startsWith("|")) {
      const rows = block.trim().split("\n").map((row) => row.slice(1, -1).split("|").map((cell) => cell.trim()));
      return codeTable(rows.filter((cells) => !cells.every((cell) => /^:?-+:?$/.test(cell))), "Signature");
    }
    if (block.startsWith("    ")) return scrolled("pre", "Code", { class: "block" }, block.replace(/^ {4}/gm, ""));
    return paragraph(...withCode(block));
  });
}

export function signatureTable({ inputs, outputs }) {
  const rows = (side, tensors) => Object.entries(tensors).sort().map(([name, { dtype, tensor_shape: shape }]) => [
    side, "`" + name + "`", dtype.slice(3).toLowerCase(),
    shape.unknown_rank ? "any" : `[${(shape.dim || []).map(({ size }) => (size < 0 ? "?" : size)).join(", ")}]`]);
  return codeTable([["", "name", "type", "shape"], ...rows("in", inputs), ...rows("out", outputs)], "Signature");
}

// JSON with short values and lists of numbers on a line each.
export function pretty(value, indent = "") {
  const flat = JSON.stringify(value), parts = value && typeof value === "object" ? Object.entries(value) : [];
  if (flat.length < 80 || !parts.some(([, part]) => part && typeof part === "object") && Array.isArray(value)) return flat;
  if (!parts.length) return flat;
  const [open, close] = flat[0] + flat.at(-1);
  const inner = parts.map(([key, part]) =>
    `${indent}  ${Array.isArray(value) ? "" : JSON.stringify(key) + ": "}${pretty(part, indent + "  ")}`);
  return `${open}\n${inner.join(",\n")}\n${indent}${close}`;
}

export async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // Not allowed to pages of other machines without encryption.
    const source = element("textarea", {}, text), focused = document.activeElement;
    document.body.append(source);
    source.select();
    document.execCommand("copy");
    source.remove();
    if (focused) focused.focus();
  }
}

export function copyButton(name, text) {
  const button = smallButton("Copy", async () => {
    await copied(text);
    button.textContent = "Copied";
    announce(`Copied ${name}`);
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  button.setAttribute("aria-label", `Copy ${name}`);
  return button;
}
