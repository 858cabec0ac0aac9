// What each task is known by, asks for, shows, and writes into a table.

import { answered, bars, decimal, element, filledIn, heading, headline, highlighted, hue, lines, paragraph, pretty, scrolled } from "./elements.js";
import { cosine, embeddings } from "./vectors.js";

const PASSAGE = "BERT was made at Google by Jacob Devlin, Ming-Wei Chang, Kenton Lee and Kristina " +
  "Toutanova. It was first published in October 2018 and reads a text from both sides at once.";

const MOST_BARS = 10;
// Of candidates, best first: those worth a look.
const likely = (rows) => rows.filter((row, k) => row.chosen || !k || (k < 5 && row.value >= 0.01)).length;
// `fits` tells whether a text that was typed for another model may stand there; `own` fields are the
// page's, no inputs of the model.
const area = (label, rows = 3, hint = "", more = {}) => ({ label, rows, hint, fits: () => true, ...more });

const firsts = (answer) => answer.tokens.slice(0, answer.mask_count).map((row) => row[0]);
const entitiesOf = (answer) => [...Array(answer.entity_count).keys()].map((i) => ({
  text: answer.entity_text?.[i], type: answer.entity_type[i], score: answer.entity_score?.[i],
  start: answer.entity_char_start[i], end: answer.entity_char_end[i],
}));
const isChosen = (answer, name, k) => (answer.is_label ? answer.is_label[k] : name === answer.label);

function withChoices(values) {
  const choices = lines(values.choices);
  if (choices.length < 2) throw new Error("Choices: write two or more, one a line.");
  return { ...values, choices };
}

// Of each task:
// fields, examples   what is typed, by name of the input;
// ask(values)        the instances to send, if they are not the values, or what is wrong with those;
// row(values)        the instance of a row of a table, likewise;
// show(answers, instances, values, why, rows)   `why(of what, settings)` makes a button beside an answer, where
//                    the model can be explained;
// said(answer)       what the history tells, where it is not the headline;
// columns(answer, instance, aid)   what a row of a table says; `aid(values, answersTo)` makes ready for all;
// about(answer)      what of an answer its words speak for: {of: its name, value(answer to other words),
//                    written(value) of what is no share, note}.
// The first whose outputs are there counts.
const TASKS = [
  {
    name: "Fill-mask", outputs: ["tokens", "scores", "mask_count"],
    fields: { text: area("Text", 3, "with one [MASK] or more", { fits: (text) => text.includes("[MASK]") }) },
    examples: [
      { text: "The capital of France is [MASK]." },
      { text: "She put the [MASK] on the table and sat down to [MASK]." },
      { text: "The film was [MASK], and I would watch it again." },
    ],
    show([answer], [asked]) {
      const count = answer.mask_count;
      if (!count) return [paragraph("There is no [MASK] in the text, or it was cut off before it.")];
      const { text, spans } = filledIn(asked.text, firsts(answer));
      const shown = [highlighted(text, spans)];
      for (let i = 0; i < count; i++) {
        const rows = answer.tokens[i].map((name, k) => ({ name, value: answer.scores[i][k], chosen: !k }));
        shown.push(heading(count > 1 ? `[MASK] ${i + 1}` : "Candidates"), bars(rows, MOST_BARS));
      }
      return shown;
    },
    columns: (answer, asked) => ({
      filled: filledIn(asked.text, firsts(answer)).text,
      pieces: firsts(answer).join(" "),
      scores: answer.scores.slice(0, answer.mask_count).map((row) => row[0]).join(" "),
    }),
    about(answer) {
      const [piece] = firsts(answer);
      return answer.mask_count === 1 && {
        of: `“${piece}”`, value: (other) => other.scores[0][other.tokens[0].indexOf(piece)] ?? other.scores[0].at(-1),
        note: "Where it is none of the candidates, the last one's score stands for it.",
      };
    },
  },
  {
    name: "Question answering", outputs: ["answer", "char_start", "char_end", "score"],
    fields: { question: area("Question", 2), context: area("Passage", 6) },
    examples: [
      { question: "When was BERT first published?", context: PASSAGE },
      { question: "Who made BERT?", context: PASSAGE },
      { question: "What does BERT cost?", context: PASSAGE },
    ],
    show([answer], [asked], values, why) {
      const none = !answer.answer;
      const spans = none ? [] : [{ start: answer.char_start, end: answer.char_end }];
      const because = why?.(none ? "no answer" : `“${answer.answer}”`);
      const shown = [answered(none ? "The passage has no answer." : answer.answer, because), highlighted(asked.context, spans)];
      const names = (answer.n_best_answers || []).slice(0, answer.n_best_count);
      const chosen = names.indexOf(answer.answer);
      const rows = names.map((name, k) => (
        { name: name || "(no answer)", value: answer.n_best_scores[k], chosen: k === chosen }));
      if (rows.length) shown.push(heading("Best answers"), bars(rows, likely(rows)));
      return shown;
    },
    columns: ({ answer, score, char_start, char_end }) => ({ answer, score, char_start, char_end }),
  },
  {
    name: "Named entities", outputs: ["entity_type", "entity_char_start", "entity_char_end", "entity_count"],
    fields: { text: area("Text") },
    examples: [
      { text: "Angela Merkel visited the United Nations in New York with a French delegation." },
      { text: "Toyota will build a plant in Poland, said its president Akio Toyoda on Monday." },
    ],
    show([answer], [asked], values, why) {
      const found = entitiesOf(answer);
      const shown = [highlighted(asked.text, found.map(({ start, end, type }) => (
        { start, end, attributes: { class: "entity", "--hue": hue(type), "data-type": type } })))];
      if (!found.length) return [...shown, paragraph("No entities.")];
      if (answer.entity_score) {
        shown.push(heading("Scores"), bars(found.map(({ text, type, score }, entity) => (
          { name: text, type, value: score, more: why?.(`“${text}” as ${type}`, { entity }) })), MOST_BARS));
      }
      return shown;
    },
    said: (answer) => entitiesOf(answer).map(({ text, type }) => `${text} ${type}`).join(", ") || "no entities",
    columns: (answer) => ({ entities: JSON.stringify(entitiesOf(answer)) }),
  },
  {
    name: "Classification", outputs: ["labels", "probabilities"],
    fields: { text: area("Text"), text_b: area("Second text") },
    examples: [
      { text: "A touching and funny film from beginning to end.", text_b: "The film is good." },
      { text: "Two hours that I will never get back.", text_b: "It was worth the time." },
      { text: "The parcel came a day late, but nothing was broken.", text_b: "The parcel was damaged." },
    ],
    show([answer], instances, values, why) {
      const rows = answer.labels.map((name, k) => (
        { name, value: answer.probabilities[k], chosen: isChosen(answer, name, k), more: why?.(`“${name}”`, { target: name }) })).sort((a, b) => b.value - a.value);
      const chosen = rows.filter((row) => row.chosen).map((row) => row.name);
      return [headline(chosen.join(", ") || "No label applies."), bars(rows, Math.max(MOST_BARS, chosen.length))];
    },
    columns: (answer) => ({
      label: answer.labels.filter((name, k) => isChosen(answer, name, k)).join("|"),
      ...Object.fromEntries(answer.labels.map((name, k) => [`p(${name})`, answer.probabilities[k]])),
    }),
    about(answer) {
      const best = answer.probabilities.indexOf(Math.max(...answer.probabilities));
      return { of: `“${answer.labels[best]}”`, value: (other) => other.probabilities[best] };
    },
  },
  {
    name: "Multiple choice", outputs: ["choice", "probabilities"], inputs: ["choices"],
    fields: { text: area("Text"), choices: area("Choices", 4, "two or more, one a line") },
    examples: [
      { text: "She opened the umbrella because", choices: "it had begun to rain.\nthe soup was cold.\nhe plays the piano." },
      { text: "The bread had been in the oven for two hours, so", choices: "it was burnt.\nit was frozen.\nit sang." },
    ],
    ask: (values) => [withChoices(values)],
    row: withChoices,
    show: ([answer], [asked]) => [
      headline(asked.choices[answer.choice]),
      bars(asked.choices.map((name, k) => ({ name, value: answer.probabilities[k], chosen: k === answer.choice }))),
    ],
    columns: ({ choice, probabilities }, { choices }) => ({ choice: choices[choice], probability: probabilities[choice] }),
    about: ({ choice }) => ({ of: `choice ${choice + 1}`, value: (other) => other.probabilities[choice] }),
  },
  {
    name: "Next sentence", outputs: ["is_next"],
    fields: { text: area("First text"), text_b: area("Second text") },
    examples: [
      { text: "The sky grew dark.", text_b: "Then it began to rain." },
      { text: "The sky grew dark.", text_b: "Penguins cannot fly." },
    ],
    show: ([answer]) => [bars([{ name: "is the next", value: answer.is_next }])],
    columns: ({ is_next }) => ({ is_next }),
    about: () => ({ of: "“is the next”", value: (other) => other.is_next }),
  },
  {
    name: "Regression", outputs: ["value"],
    fields: { text: area("Text"), text_b: area("Second text") },
    examples: [
      { text: "A man is playing a guitar.", text_b: "Somebody plays an instrument." },
      { text: "A man is playing a guitar.", text_b: "The train leaves at noon." },
    ],
    show: ([answer], instances, values, why) => [answered(String(answer.value), why?.("this value"))],
    columns: ({ value }) => ({ value }),
    about: () => ({ of: "the value", value: (other) => other.value, written: decimal }),
  },
  {
    name: "Embeddings", outputs: ["mean"],
    fields: {
      text: area("Texts", 5, "one a line; two or more are compared"),
      query: area("Nearest to", 1, "if filled, sorts the texts by likeness to it", { own: true }),
    },
    examples: [
      { text: "A man is playing a guitar.\nSomebody plays an instrument.\nThe train leaves at noon.", query: "" },
      {
        text: "How do I get my money back?\nWhere is the museum?\nWhen does the museum open?\nIs there a place to park?\n" +
          "Can I bring my dog?\nDo you sell coffee?\nAre there guided tours?",
        query: "I want a refund.",
      },
    ],
    ask({ text, query }) {
      const texts = lines(text), near = query.trim();
      if (!texts.length) throw new Error("Texts: write one or more, one a line.");
      return [...texts, ...(near ? [near] : [])].map((line) => ({ text: line }));
    },
    row: ({ text }) => ({ text }),
    show: (answers, instances, { query }) => embeddings(answers, instances, query.trim()),
    async aid({ query }, answersTo) {
      return query.trim() ? (await answersTo([{ text: query.trim() }]))[0] : null;
    },
    columns(answer, instance, near) {
      const names = Object.keys(answer);
      return near ? Object.fromEntries(names.map((name) => [`similarity(${name})`, cosine(answer[name], near[name])]))
        : Object.fromEntries(names.map((name) => [name, JSON.stringify(answer[name])]));
    },
  },
];

// A value of each input as its type and shape ask for: what anyone may begin with.
function template(signature) {
  const value = ({ dtype, tensor_shape: shape }) => (shape.dim || []).slice(1).reduceRight(
    (inner, { size }) => Array(Math.min(Math.max(Number(size), 1), 16)).fill(inner),
    dtype === "DT_STRING" ? "text" : dtype === "DT_BOOL" ? false : 0);
  const values = Object.entries(signature.inputs).map(([name, input]) => [name, value(input)]);
  return JSON.stringify([values.length === 1 ? values[0][1] : Object.fromEntries(values)]);
}

// Any other model: its inputs as JSON.
const otherTask = (signature) => ({
  name: "JSON", outputs: [],
  fields: {
    instances: area("Instances", 5, "JSON; inputs: " + Object.keys(signature.inputs).sort().join(", "),
      { fits: () => false, code: true }),
  },
  examples: [{ instances: template(signature) }],
  ask(values) {
    try {
      return JSON.parse(values.instances);
    } catch (error) {
      throw new Error(`Instances: not JSON: ${error.message}`);
    }
  },
  show: (answers, instances, values, why, rows) => [scrolled("pre", "Answer", {}, pretty(rows))],
});

export function taskOf(signature) {
  const has = (names, tensors) => (names || []).every((name) => name in tensors);
  const known = TASKS.find((task) => has(task.outputs, signature.outputs) && has(task.inputs, signature.inputs) &&
    Object.keys(signature.inputs).every((name) => name in task.fields));
  if (!known) return otherTask(signature);
  const fields = Object.entries(known.fields).filter(([name, { own }]) => own || name in signature.inputs);
  const kept = (values) => Object.fromEntries(fields.map(([name]) => [name, values[name]]));
  return { ask: (values) => [values], row: (values) => values, ...known,
    fields: Object.fromEntries(fields), examples: known.examples.map(kept) };
}
