// Why an answer is what it is: what each word adds to its score, and the attention beside that.

import {
  announce, element, errorLine, heading, opened, paragraph, percent, points, scrolled, smallButton, tableOf,
} from "./elements.js";
import { explain } from "./server.js";

const MOST_RANKED = 8;
const LEAST_SHARE = 0.05;  // of the strongest word: what is less has no line below it
const SIGNED_SHARE = 0.3;  // what is less has no sign beside it
const NOTHING = 0.02;      // scores that are all less tell of no word
const COLOURS = { score: "for and against", attention: "attention" };

const signOf = (value) => (value < 0 ? "−" : "+");
const size = (value) => Math.abs(value).toFixed(2);
const signed = (value) => (size(value) === "0.00" ? "0.00" : signOf(value) + size(value));
const plain = (value) => (value < 0 && size(value) !== "0.00" ? "−" : "") + size(value);
const inWords = (word) => `${word.text}: ${signed(word.score)}, attention ${percent(word.attention)}`;

function paint(option, word, colours, largest) {
  const value = word[colours], share = Math.abs(value) / largest[colours];
  const kind = colours === "attention" ? "attended" : value < 0 ? "against" : "for";
  option.className = `word ${kind}${share < LEAST_SHARE ? " weak" : ""}`;
  option.style.setProperty("--share", Math.round(60 * share) + "%");
  option.dataset.sign = colours === "score" && share >= SIGNED_SHARE ? signOf(value) : "";
}

// A text with its words as options, of which the arrow keys choose one. `chosen` is told of each.
function passage(text, words, name, chosen) {
  const all = points(text), options = [];
  const box = element("p", { class: "passage", role: "listbox", "aria-label": name, "aria-orientation": "horizontal" });
  let at = 0;
  for (const word of words) {
    const option = element("span", { role: "option", "aria-selected": "false", "aria-label": inWords(word), tabindex: "-1" },
      all.slice(word.char_start, word.char_end).join(""));
    box.append(all.slice(at, word.char_start).join(""), option);
    options.push(option);
    at = word.char_end;
  }
  box.append(all.slice(at).join(""));
  options[0].tabIndex = 0;
  function choose(option) {
    for (const other of options) {
      other.tabIndex = other === option ? 0 : -1;
      other.setAttribute("aria-selected", String(other === option));
    }
    chosen(words[options.indexOf(option)]);
  }
  const optionOf = (event) => event.target.closest("[role=option]");
  box.addEventListener("focusin", (event) => choose(optionOf(event)));
  box.addEventListener("click", (event) => optionOf(event)?.focus());
  box.addEventListener("pointerover", (event) => { if (optionOf(event)) chosen(words[options.indexOf(optionOf(event))]); });
  box.addEventListener("keydown", (event) => {
    const place = options.indexOf(document.activeElement), last = options.length - 1;
    const next = { ArrowRight: place + 1, ArrowDown: place + 1, ArrowLeft: place - 1, ArrowUp: place - 1, Home: 0, End: last }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    options[Math.min(Math.max(next, 0), last)].focus();
  });
  return { box, options };
}

// What of a text the model did not read for this answer: it was cut, or stands in another window.
function unread(text, words) {
  const all = points(text), isText = (part) => /[\p{L}\p{N}]/u.test(part.join(""));
  if (!isText(all.slice(0, words[0].char_start)) && !isText(all.slice(words.at(-1).char_end))) return [];
  return [paragraph(element("small", {}, `Read for this answer: from “${words[0].text}” to “${words.at(-1).text}”.`))];
}

const sample = (kind, sign, text) => element("span", { class: `word ${kind}`, "--share": "45%", "data-sign": sign }, text);

// What the colours mean, which lines and signs say too, and whether the scores add up.
function legend(told, of, isNumber) {
  const change = told.value - told.baseline_value, sum = told.words.reduce((all, { score }) => all + score, 0);
  const gap = told.completeness_gap, isWhole = gap !== null && gap <= 0.01;
  const off = gap === null ? "" : gap < 0.001 ? "less than 0.1% off, " : `${percent(gap)} off, `;
  const [speaks, speaksAgainst] = isNumber ? ["raise", "lower"] : ["speak for", "speak against"];
  const value = isNumber ? "The model gives" : `The model gives ${of} a score, before it is made a probability, of`;
  return [
    paragraph("Words ", sample("for", "+", "blue, with a line"), ` ${speaks} ${of}, words `, sample("against", "−", "orange, dotted"),
      ` ${speaksAgainst} it; + and − stand beside the strongest.`),
    paragraph(`${value} ${plain(told.value)}; with every word blanked out it would be ${plain(told.baseline_value)}. `
      + `The difference, ${signed(change)}, is shared out among the words. `,
    isWhole ? `Their scores add up to ${signed(sum)}, so that nothing is missing (${off}with ${told.steps} points).`
      : element("strong", {}, `Their scores add up to ${signed(sum)} and not to that (${off}with ${told.steps} points): `
        + "take them with care.")),
    ...(told.words.some(({ score }) => Math.abs(score) >= NOTHING) ? []
      : [paragraph(element("strong", {}, "No word counts: the model says this whatever is written."))]),
  ];
}

const rows = (words) => [["Word", "Score", "Attention"], ...words.map((word) => [word.text, signed(word.score), percent(word.attention)])];

function shown(entry, asked, told, of) {
  if (!told.words.length) return [paragraph("There is no word that the model could read.")];
  const largest = Object.fromEntries(Object.keys(COLOURS).map(
    (name) => [name, Math.max(...told.words.map((word) => Math.abs(word[name])), NOTHING)]));
  const readout = element("p", { class: "readout" }, "Point at a word for its numbers, or go from word to word with the arrow keys.");
  const chosen = (word) => readout.replaceChildren(element("b", {}, word.text),
    ` ${signed(word.score)} (${word.score < 0 ? "against" : "for"}) · attention ${percent(word.attention)}`);
  const fields = [...new Set(told.words.map(({ input }) => input))], painted = [];
  const passages = fields.flatMap((name) => {
    const words = told.words.filter(({ input }) => input === name), { label } = entry.task.fields[name];
    const { box, options } = passage(asked[name], words, `${label}, word by word`, chosen);
    painted.push(...options.map((option, k) => [option, words[k]]));
    return [...(fields.length > 1 ? [heading(label)] : []), box, ...unread(asked[name], words)];
  });
  const colour = (name) => { for (const [option, word] of painted) paint(option, word, name, largest); };
  colour("score");
  const choice = element("select", { change: () => colour(choice.value) },
    ...Object.entries(COLOURS).map(([name, title]) => element("option", { value: name }, title)));
  const ranked = [...told.words].sort((a, b) => Math.abs(b.score) - Math.abs(a.score)).slice(0, MOST_RANKED);
  const rest = told.words.length > ranked.length
    ? [opened(`All ${told.words.length} words`, () => [tableOf(rows(told.words), "All words")])] : [];
  return [
    ...legend(told, of, entry.task.outputs.includes("value")), element("label", { class: "choice" }, "Colours: ", choice), ...passages, readout,
    heading("Words that count most"), tableOf(rows(ranked), "Words that count most"),
    paragraph(element("small", {}, "Attention is the share of a word in the place that the answer is read from (attention rollout). "
      + "It tells what the model could use, not whether that speaks for the answer or against it.")),
    ...rest,
  ];
}

// Makes the buttons of an answer, and the panel that they open. `stop` ends what is asked for.
export function whys(entry, asked) {
  const panel = element("section", { id: "why", class: "why", "aria-label": "Why", hidden: "" });
  let pressed = null, asking = null;

  function stop() {
    asking?.abort();
    asking = null;
    pressed?.setAttribute("aria-expanded", "false");
    pressed = null;
    panel.hidden = true;
  }

  async function open(button, of, settings) {
    stop();
    pressed = button;
    const mine = asking = new AbortController();
    button.setAttribute("aria-expanded", "true");
    panel.hidden = false;
    panel.replaceChildren(heading(`Why ${of}?`), paragraph("Following the model's gradients; this takes many runs of the model …"));
    announce(`Explaining ${of} …`);
    let parts;
    try {
      const [told] = await explain(entry.name, asked, settings, mine.signal);
      parts = shown(entry, asked, told, of);
    } catch (error) {
      parts = [errorLine(error)];
    }
    if (asking !== mine) return;
    panel.replaceChildren(heading(`Why ${of}?`), ...parts);
    announce(`Why ${of}: shown`);
    panel.scrollIntoView({ block: "nearest" });
  }

  function button(of, settings = {}) {
    const made = smallButton("Why?", () => (pressed === made ? stop() : open(made, of, settings)));
    for (const [name, value] of [["aria-label", `Why? ${of}`], ["aria-expanded", "false"], ["aria-controls", "why"]]) {
      made.setAttribute(name, value);
    }
    return made;
  }

  return { button, panel, stop };
}
