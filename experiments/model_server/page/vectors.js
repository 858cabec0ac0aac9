// Embeddings: how like each other texts are, and which of a list are nearest to one.

import { bars, decimal, element, heading, headline, paragraph, scrolled } from "./elements.js";

const norm = (vector) => Math.hypot(...vector);
export const cosine = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0) / (norm(a) * norm(b));

const MOST_COMPARED = 10;  // texts in a table of each with each
const MOST_NEAR = 10;

function table(texts, vectors) {
  const head = element("tr", {}, element("th", { scope: "col" }, "Cosine similarity"),
    ...texts.map((_, i) => element("th", { scope: "col" }, String(i + 1))), element("th", { scope: "col" }, "Norm"));
  const rows = vectors.map((vector, i) => element("tr", {},
    element("th", { scope: "row" }, `${i + 1}. ${texts[i]}`),
    ...vectors.map((other) => {
      const value = cosine(vector, other);
      return element("td", { class: "cell", "--share": 45 * Math.max(0, value || 0) + "%" }, decimal(value));
    }),
    element("td", {}, decimal(norm(vector)))));
  return scrolled("div", "Similarity", { class: "wide" },
    element("table", { class: "similarity" }, element("thead", {}, head), element("tbody", {}, ...rows)));
}

function compared(texts, vectors) {
  const pairs = vectors.flatMap((a, i) => vectors.slice(i + 1).map((b, j) => ({ value: cosine(a, b), i, j: i + j + 1 })))
    .filter(({ value }) => value >= -1.0001).sort((a, b) => b.value - a.value);
  const [best] = pairs;
  if (!best) {
    return [headline(`${vectors[0].length} numbers`), paragraph(
      `Norm ${decimal(norm(vectors[0]))}. Write two texts or more, one a line, to compare them.`)];
  }
  const title = pairs.length === 1 ? `Similarity ${decimal(best.value)}`
    : `Most alike: ${best.i + 1} and ${best.j + 1}, ${decimal(best.value)}`;
  if (vectors.length <= MOST_COMPARED) return [headline(title), table(texts, vectors)];
  const rows = pairs.slice(0, 100).map(({ value, i, j }) => ({ name: `${texts[i]} – ${texts[j]}`, value }));
  return [headline(title), heading("Pairs, by cosine similarity"), bars(rows, MOST_NEAR, decimal)];
}

function nearest(texts, vectors, query) {
  const rows = texts.map((name, i) => ({ name, value: cosine(vectors[i], query) }))
    .filter(({ value }) => Number.isFinite(value)).sort((a, b) => b.value - a.value);
  if (!rows.length) return [headline("No vector has a direction.")];
  rows[0].chosen = true;
  return [headline(rows[0].name), heading("Nearest, by cosine similarity"), bars(rows, MOST_NEAR, decimal)];
}

// Of answers for texts, to which that for `query`, where there is one, comes last.
export function embeddings(answers, instances, query) {
  const texts = instances.map((instance) => instance.text), shown = element("div");
  function show(name) {
    const vectors = answers.map((answer) => answer[name]);
    shown.replaceChildren(...query
      ? nearest(texts.slice(0, -1), vectors.slice(0, -1), vectors.at(-1)) : compared(texts, vectors));
  }
  const names = Object.keys(answers[0]);
  show(names[0]);
  if (names.length === 1) return [shown];
  const choice = element("select", { change: () => show(choice.value) },
    ...names.map((name) => element("option", {}, name)));
  return [element("label", {}, "Vector ", choice), shown];
}
