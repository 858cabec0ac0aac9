// A text piece by piece, as the model reads it, and word by word, as its answer hangs on them.

import { element, heading, opened, paragraph, percent, points, tableOf } from "./elements.js";
import { named, predict, predictAll } from "./server.js";

const MOST_WORDS = 128;
const LEAST_SHARE = 0.01;  // of a start or an end that is told

// What a piece is told beside: its label, or how likely an answer begins and ends there.
function marksOf({ label, score, begins, ends }) {
  if (label) return [{ name: label, value: score, shown: label !== "O" }];
  if (begins === undefined) return [];
  return [{ name: "begins", value: begins, shown: begins >= LEAST_SHARE }, { name: "ends", value: ends, shown: ends >= LEAST_SHARE }];
}

function chip(piece, { text, start, end, ...told }) {
  const unknown = piece === "[UNK]", marks = marksOf(told);
  const made = element("li", { class: unknown ? "piece unknown" : "piece" }, element("span", {}, piece));
  if (unknown) made.append(" ", element("small", {}, text));
  const all = marks.map(({ name, value, shown }) => {
    if (shown) made.append(" ", element("small", { class: "yes" }, `${name} ${percent(value)}`));
    return `${name}, ${percent(value)}`;
  });
  made.title = `“${text}”, characters ${start} to ${end}` + (all.length ? `: ${all.join("; ")}` : "");
  return made;
}

// The pieces of each text of an instance, where the model has a signature for them.
export const pieces = (entry, asked) => opened("Pieces", async () => {
  const texts = Object.entries(entry.task.fields).filter(([name]) => typeof asked[name] === "string");
  const rows = await predict(entry.name, texts.map(([name]) => ({ text: asked[name] })), { signature: "pieces" });
  const place = texts.findIndex(([name]) => name === "context");
  // Of a passage also where the answer to the question may begin and end.
  if (place >= 0 && entry.signatures.span_pieces) {
    [rows[place]] = await predict(entry.name, [asked], { signature: "span_pieces" });
  }
  return texts.flatMap(([name, { label }], i) => {
    const row = rows[i], all = points(asked[name]), count = row.piece_count;
    const chips = row.pieces.slice(0, count).map((piece, k) => {
      const [start, end] = [row.char_starts[k], row.char_ends[k]];
      return chip(piece, { text: all.slice(start, end).join(""), start, end, label: row.labels?.[k], score: row.scores?.[k],
        begins: row.start_scores?.[k], ends: row.end_scores?.[k] });
    });
    const unknown = row.pieces.filter((piece) => piece === "[UNK]").length;
    const told = `${count} ${count === 1 ? "piece" : "pieces"}` +
      (unknown ? `, ${unknown} of them unknown to the vocabulary` : "") +
      (row.start_scores ? ". How likely the answer begins or ends there, of all pieces of the passage, is told from 1% on." : "");
    return [...(texts.length > 1 ? [heading(label)] : []), paragraph(told), element("ol", { class: "pieces", role: "list" }, ...chips)];
  });
});

// Words of a text, what white space parts; [MASK] stays, since the answer is about it.
function wordsOf(text) {
  return [...text.matchAll(/\S+/g)].map((match) => ({ word: match[0], start: match.index, end: match.index + match[0].length }))
    .filter(({ word }) => !word.includes("[MASK]"));
}

const without = (text, { start, end }) => (text.slice(0, start) + text.slice(end)).replace(/ {2,}/g, " ").trim();

function marked(text, words, largest, written) {
  const passage = element("p", { class: "passage" });
  let at = 0;
  for (const { word, start, end, score, change } of words) {
    const share = Math.round(60 * Math.abs(change) / largest) + "%";
    passage.append(text.slice(at, start), element("mark", {
      class: change < 0 ? "against" : "for", "--share": share, title: `${written(score)} without this word`,
    }, word));
    at = end;
  }
  passage.append(text.slice(at));
  return passage;
}

// How the answer changes without each word.
export function words(entry, asked, answer) {
  const about = entry.task.about?.(answer);
  return about && opened("Which words count", async (tell) => {
    const left = Object.keys(entry.task.fields).filter((name) => typeof asked[name] === "string").flatMap(
      (name) => wordsOf(asked[name]).map((word) => ({ ...word, name })));
    if (!left.length) return [paragraph("There is no word to leave out.")];
    const kept = left.slice(0, MOST_WORDS);
    tell("Leaving out each word in turn …");
    const rows = await predictAll(entry.name, kept.map((word) => ({ ...asked, [word.name]: without(asked[word.name], word) })),
      (done) => tell(`Leaving out each word in turn: ${done}`));
    const others = named(rows, entry.signature), all = about.value(answer);
    kept.forEach((word, i) => {
      word.score = about.value(others[i]);
      word.change = all - word.score;
    });
    const written = about.written || percent, largest = Math.max(...kept.map(({ change }) => Math.abs(change)), 1e-9);
    const fields = [...new Set(kept.map(({ name }) => name))];
    const ranked = [...kept].sort((a, b) => Math.abs(b.change) - Math.abs(a.change)).slice(0, 5);
    return [
      paragraph(`All words together give ${about.of} ${written(all)}. Each was left out once: without a `,
        element("mark", { class: "for", "--share": "50%" }, "blue"), " one it is less, without an ",
        element("mark", { class: "against", "--share": "50%" }, "orange"), " one more.", about.note ? ` ${about.note}` : "",
        left.length > kept.length ? ` Of the first ${MOST_WORDS} words.` : ""),
      ...fields.flatMap((name) => [...(fields.length > 1 ? [heading(entry.task.fields[name].label)] : []),
        marked(asked[name], kept.filter((word) => word.name === name), largest, written)]),
      tableOf([["Without", about.of], ...ranked.map(({ word, score }) => [word, written(score)])], "Words that count most"),
    ];
  });
}
