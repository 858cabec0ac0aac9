// Many rows: a CSV file in, the same file with the answers beside each row out.

import { announce, bars, byId, element, errorLine, heading, number, percent, tableOf } from "./elements.js";
import { MOST_ROWS, named, predict } from "./server.js";
import { parseCsv, writeCsv } from "./csv.js";

const MOST_PREVIEWED = 5, MOST_VALUES = 12;
const PARTS_HEARD = 4;  // how often a screen reader tells how far the rows are
// What an error does not end: another row may be right.
const OF_ROWS = [400, 413, 500, 504];

let entry = null;   // the model that is asked
let file = null;    // {name, table} of the file chosen
let job = null;     // what runs, or was stopped

const isStopped = (error) => error.name === "AbortError";
const columnsOf = () => (byId("rows-head").checked ? file.table.rows[0] : file.table.rows[0].map((_, i) => `column ${i + 1}`));
const fieldsOf = () => Object.entries(entry.task.fields).filter(([, { own }]) => !own);

// The column of a name like a field's; else the next one.
function likeliest(name, i, columns) {
  const plain = columns.map((column) => column.trim().toLowerCase());
  const names = { text: ["text", "sentence", "sentence1", "review", "text_a"], text_b: ["text_b", "sentence2", "second"],
    context: ["context", "passage"] };
  const found = plain.findIndex((column) => (names[name] || [name]).includes(column));
  return found >= 0 ? found : Math.min(i, columns.length - 1);
}

function showColumns() {
  const columns = columnsOf();
  byId("rows-columns").replaceChildren(...fieldsOf().map(([name, { label }], i) => {
    const choice = element("select", { id: "rows-" + name, name, change: reset },
      ...columns.map((column, k) => element("option", { value: k }, column || `column ${k + 1}`)));
    choice.value = likeliest(name, i, columns);
    return element("label", { for: choice.id }, `${label} from `, choice);
  }));
  reset();
}

const rowsOf = () => file.table.rows.slice(byId("rows-head").checked ? 1 : 0);

// Before the first row, whatever ran before.
function reset() {
  stop();
  job = null;
  byId("rows-answer").replaceChildren();
  byId("rows-run").textContent = "Run all rows";
  const count = file ? rowsOf().length : 0;
  byId("rows-run").disabled = !count;
  byId("rows-told").textContent = !file ? "" : count ? `${number(count)} ${count === 1 ? "row" : "rows"}` : "There is no row below the head.";
  byId("rows-bar").hidden = true;
}

export const stop = () => job?.stopping?.abort();

async function take(chosen) {
  stop();
  file = null;
  byId("rows-more").hidden = true;
  byId("rows-error").replaceChildren();
  try {
    const bytes = await chosen.arrayBuffer();
    if (byId("rows-file").files[0] !== chosen) return;  // Another was chosen meanwhile.
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    const table = parseCsv(text);
    if (!table.rows.length) throw new Error("The file is empty.");
    file = { name: chosen.name, table };
  } catch (error) {
    const told = error instanceof TypeError ? "it is no text in UTF-8; save it as “CSV UTF-8”." : error.message;
    byId("rows-error").replaceChildren(errorLine(`${chosen.name}: ${told}`));
    return;
  }
  byId("rows-more").hidden = false;
  // A head has a short name for each column.
  const plain = file.table.rows[0].map((cell) => cell.trim().toLowerCase());
  byId("rows-head").checked = file.table.rows.length > 1 && plain.every((cell) => cell && cell.length < 40);
  showColumns();
  announce(`${file.name}: ${byId("rows-told").textContent}`);
}

// Answers to rows, or why there is none: where many fail together, each by itself.
async function answersTo({ asked, stopping: { signal }, aid }, rows) {
  const instances = [], places = [], said = rows.map(() => null);
  rows.forEach((values, i) => {
    try {
      instances.push(asked.task.row(values));
      places.push(i);
    } catch (error) {
      said[i] = { error: error.message };
    }
  });
  async function part(from, to) {
    if (from === to) return;
    try {
      const found = named(await predict(asked.name, instances.slice(from, to), { signal }), asked.signature);
      found.forEach((answer, k) => { said[places[from + k]] = asked.task.columns(answer, instances[from + k], aid); });
    } catch (error) {
      if (!OF_ROWS.includes(error.status)) throw error;
      if (to - from === 1) {
        said[places[from]] = { error: error.message };
        return;
      }
      const middle = (from + to) >> 1;
      await part(from, middle);
      await part(middle, to);
    }
  }
  await part(0, instances.length);
  return said;
}

function tellProgress() {
  const done = job.said.length, all = job.rows.length;
  const speed = (done - job.before) / Math.max(0.001, (performance.now() - job.begun) / 1000);
  const seconds = Math.ceil((all - done) / speed);
  const left = seconds >= 120 ? `${Math.round(seconds / 60)} minutes` : `${seconds} s`;
  byId("rows-bar").value = done;
  byId("rows-told").textContent = `${number(done)} of ${number(all)} rows` +
    (done && done < all ? `, ${number(Math.round(speed))} a second, ${left} left` : "");
  const part = Math.floor(PARTS_HEARD * done / all);
  if (part !== job.heard && done < all) announce(byId("rows-told").textContent);
  job.heard = part;
}

function begin(values) {
  const rows = rowsOf();
  const places = fieldsOf().map(([name]) => [name, Number(byId("rows-" + name).value)]);
  return { asked: entry, file, rows, said: [], values, head: byId("rows-head").checked ? file.table.rows[0] : null,
    inputs: rows.map((row) => Object.fromEntries(places.map(([name, place]) => [name, row[place] ?? ""]))) };
}

async function run(values) {
  job ||= begin(values);
  const mine = job, { asked } = job;
  Object.assign(job, { stopping: new AbortController(), begun: performance.now(), before: job.said.length });
  byId("rows-answer").replaceChildren();
  byId("rows-bar").max = job.rows.length;
  byId("rows-bar").hidden = false;
  byId("rows-run").textContent = "Stop";
  let failure = null;
  try {
    if (asked.task.aid && job.aid === undefined) {
      const ready = async (instances) => named(await predict(asked.name, instances), asked.signature);
      job.aid = await asked.task.aid(values, ready);
    }
    while (job === mine && job.said.length < job.rows.length) {
      tellProgress();
      const at = job.said.length;
      const said = await answersTo(job, job.inputs.slice(at, at + MOST_ROWS));
      if (job !== mine) return;
      job.said.push(...said);
    }
  } catch (error) {
    if (!isStopped(error)) failure = error;
  }
  if (job !== mine) return;
  job.stopping = null;
  tellProgress();
  const over = job.said.length === job.rows.length;
  byId("rows-run").textContent = over ? "Run again" : "Go on";
  if (over) byId("rows-bar").hidden = true;
  showAnswer(over, failure);
}

function summary(names, said) {
  const counts = new Map(), [name] = names;
  for (const row of said) {
    if (!(name in row)) continue;
    if (typeof row[name] !== "string") return [];
    counts.set(row[name], (counts.get(row[name]) || 0) + 1);
    if (counts.size > MOST_VALUES) return [];
  }
  const most = [...counts].sort((a, b) => b[1] - a[1]), all = most.reduce((sum, [, count]) => sum + count, 0);
  return most.length ? [heading(`Rows by ${name}`), bars(most.map(([value, count]) => ({
    name: value || "(none)", value: count / all,
  })), most.length, (share) => `${number(Math.round(share * all))} · ${percent(share)}`)] : [];
}

let link = null;

function showAnswer(over, failure) {
  const { said, rows, head, asked } = job, names = [...new Set(said.flatMap((row) => Object.keys(row)))].filter((n) => n !== "error");
  const errors = said.filter((row) => row.error).length;
  if (errors) names.push("error");
  const width = rows.reduce((most, row) => Math.max(most, row.length), head?.length || 0);
  const padded = (row) => [...row, ...Array(width - row.length).fill("")];
  const written = said.map((row, i) => [...padded(rows[i]), ...names.map((name) => row[name] ?? "")]);
  // Of two columns with one name nobody could tell which is whose.
  const titles = names.map((name) => (head?.includes(name) ? `${name} (${asked.name})` : name));
  const top = head ? [[...padded(head), ...titles]] : [];
  const shown = [];
  if (failure) shown.push(errorLine(failure));
  if (said.length) {
    URL.revokeObjectURL(link);
    link = URL.createObjectURL(new Blob([writeCsv([...top, ...written], job.file.table)], { type: "text/csv;charset=utf-8" }));
    const name = job.file.name.replace(/(\.\w+)?$/, (extension) => `.${asked.name}${extension || ".csv"}`);
    const told = (over ? "Done" : "Stopped") + `: ${number(said.length)} of ${number(rows.length)} rows` +
      (errors ? `, of which ${number(errors)} failed; the column “error” says why.` : ".");
    const cut = (value) => {
      const text = Number.isFinite(value) ? String(Number(value.toFixed(4))) : String(value);
      return text.length > 80 ? text.slice(0, 80) + "…" : text;
    };
    announce(told);
    shown.push(element("p", {}, told),
      element("a", { class: "button main", href: link, download: name }, `Save ${name}`), ...summary(names, said),
      heading(said.length > MOST_PREVIEWED ? `The first ${MOST_PREVIEWED} rows` : "Rows"),
      tableOf([...(top.length ? top : [[...Array(width).fill(""), ...titles]]), ...written.slice(0, MOST_PREVIEWED)]
        .map((row) => row.map(cut)), "Rows"));
  }
  byId("rows-answer").replaceChildren(...shown);
}

// The panel for a model; `values` are those of the form, of which fields of the page's own count.
export function offerRows(chosen, values) {
  if (chosen && chosen === entry) return;  // Another text of the same model: its rows go on.
  stop();
  job = null;
  entry = chosen;
  byId("rows").hidden = !chosen?.task?.columns;
  if (byId("rows").hidden) return;
  if (!byId("rows-form").children.length) makePanel(values);
  byId("rows-needs").textContent = `Each row is a question of its own, with a column for ${fieldsOf().map(([, { label }]) => label.toLowerCase()).join(" and one for ")}. ` +
    "The answers come as columns beside yours; nothing is kept on the server.";
  if (file) showColumns();
}

function makePanel(values) {
  byId("rows-form").append(
    element("p", { id: "rows-needs" }),
    element("label", { for: "rows-file" }, "CSV file, chosen here or dropped anywhere on the page"),
    element("input", { id: "rows-file", type: "file", accept: ".csv,.tsv,.txt,text/csv", "aria-describedby": "rows-needs",
      change: (event) => event.target.files.length && take(event.target.files[0]) }),
    element("div", { id: "rows-error" }),
    element("div", { id: "rows-more" },
      element("label", { class: "check" }, element("input", { id: "rows-head", type: "checkbox", change: showColumns }), " The first row names the columns"),
      element("div", { id: "rows-columns" }),
      element("div", { class: "actions" },
        element("button", { id: "rows-run", type: "button", class: "main", click: pressed }, "Run all rows"),
        element("span", { id: "rows-told" })),
      element("progress", { id: "rows-bar", "aria-label": "Rows answered", value: "0" }),
      element("div", { id: "rows-answer" })));
  byId("rows-more").hidden = true;
  function pressed() {
    if (job?.stopping) return stop();
    if (job && job.said.length === job.rows.length) reset();
    return run(values());
  }
}

// === A file that is dropped on the page ===

const holdsFiles = (event) => [...event.dataTransfer.types].includes("Files");

function dropped(files) {
  if (byId("rows").hidden) return;
  byId("rows").open = true;
  byId("rows").scrollIntoView({ block: "nearest" });
  if (files.length !== 1) {
    byId("rows-error").replaceChildren(errorLine(`Drop one file, not ${files.length || "a folder"}.`));
    return;
  }
  byId("rows-file").files = files;
  take(files[0]);
}

// Beside the panel as well: there a browser would leave the page for the file, and what was typed be lost.
export function takeDrops() {
  for (const type of ["dragenter", "dragover", "dragleave", "drop"]) {
    addEventListener(type, (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      const inside = type === "dragenter" || type === "dragover" || (type === "dragleave" && event.relatedTarget);
      byId("rows").classList.toggle("dropping", Boolean(inside));
      if (type === "dragover") event.dataTransfer.dropEffect = byId("rows").hidden ? "none" : "copy";
      if (type === "drop") dropped(event.dataTransfer.files);
    });
  }
}
