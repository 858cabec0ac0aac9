// The page: the list of models, what is typed, its address, and the answer.

import {
  announce, byId, copied, element, errorLine, markdown, opened, paragraph, signatureTable, smallButton,
} from "./elements.js";
import { ask, getJson, named, pathOf, predict, predictAll, programs } from "./server.js";
import { remember, showPast, watchPast } from "./past.js";
import { offerRows, takeDrops } from "./rows.js";
import { pieces, words } from "./words.js";
import { taskOf } from "./tasks.js";
import { whys } from "./why.js";

const hideResult = (hidden) => { byId("result-card").hidden = hidden; };

function showError(error) {
  byId("result").replaceChildren(errorLine(error));
  hideResult(false);
}

let model = null;
let stopExplaining = () => {};
let turn = 0;               // Of what is on the screen: an answer to an earlier one is not shown.
const entries = new Map();  // Of all models, by name.
const drafts = new Map();   // What was typed, by model.
const typed = {};           // What was typed last, by field: a model not seen before begins with it.

let tellListed;
const listed = new Promise((done) => { tellListed = done; });  // that the models were looked at once

const isReady = (entry) => entry?.state === "ready";
const boxes = () => [...byId("fields").querySelectorAll("textarea")];
const written = () => Object.fromEntries(boxes().map((box) => [box.name, box.value]));

function valuesOf(entry) {
  if (!isReady(entry)) return {};
  const [example] = entry.task.examples;
  return Object.fromEntries(Object.entries(entry.task.fields).map(([name, { fits }]) => [
    name, drafts.get(entry.name)?.[name] ?? (name in typed && fits(typed[name]) ? typed[name] : example[name])]));
}

// === The address holds the model and what was typed: for links, and for Back ===

const MAX_ADDRESS = 30000;

function address(entry, values) {
  const example = isReady(entry) ? entry.task.examples[0] : {};
  const own = Object.entries(values).filter(([name, value]) => value !== example[name]);
  return "#" + new URLSearchParams([["model", entry.name], ...own]);
}

const fitting = (hash, entry) => (hash.length <= MAX_ADDRESS ? hash : address(entry, {}));

let keeping = null;

function keepAddress() {
  clearTimeout(keeping);
  keeping = null;
  if (isReady(model)) history.replaceState(written(), "", fitting(address(model, written()), model));
}

function readAddress() {
  const { model: name, ...values } = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  return { name, values };
}

function follow() {
  clearTimeout(keeping);
  const { name, values } = readAddress(), entry = entries.get(name);
  if (!entry) return showError(`There is no model "${name || ""}" here.`);
  return choose(entry, isReady(entry) ? { ...entry.task.examples[0], ...(history.state ?? values) } : null);
}

// To another model or text, from which Back leads here.
function go(entry, values) {
  keepAddress();
  // Before the title changes, which is that of the entry in the history.
  const given = values || valuesOf(entry);
  history.pushState(given, "", fitting(address(entry, given), entry));
  choose(entry, values);
}

async function goBackTo({ model: name, values }) {
  await listed;  // the history is here before the models are
  const entry = entries.get(name);
  if (!isReady(entry)) return showError(`The model "${name}" is not here.`);
  go(entry, { ...entry.task.examples[0], ...values });
  boxes()[0].focus();
  return boxes()[0].scrollIntoView({ block: "nearest" });
}

// === Choosing and asking ===

function field(name, settings, value) {
  const box = element("textarea", { id: "input-" + name, name, rows: settings.rows, spellcheck: "false" });
  box.value = value;
  if (settings.code) box.className = "code";
  const label = element("label", { for: box.id }, settings.label);
  if (settings.hint) label.append(" ", element("small", {}, settings.hint));
  return [label, box];
}

function showExamples({ fields, examples }) {
  // What tells them apart.
  const names = Object.keys(fields), told = (name) => new Set(examples.map((example) => example[name])).size;
  const first = names.find((name) => told(name) === examples.length) ?? names[0];
  const buttons = examples.map((example) => {
    const button = smallButton(example[first], () => {
      for (const box of boxes()) box.value = example[box.name];
      noteTyped();
    });
    button.title = example[first];
    return button;
  });
  byId("examples").replaceChildren(element("span", {}, "Examples"), ...buttons);
  byId("examples").hidden = examples.length < 2;
}

function showForm(values) {
  byId("fields").replaceChildren(...Object.entries(model.task.fields).flatMap(
    ([name, settings]) => field(name, settings, values[name])));
  showExamples(model.task);
  setRunning(false);
}

// A button that is disabled would lose the focus.
const isRunning = () => byId("run").getAttribute("aria-disabled") === "true";

function setRunning(running) {
  byId("run").setAttribute("aria-disabled", String(running));
}

function choose(chosen, given) {
  model = chosen;
  turn += 1;
  stopExplaining();
  const ready = isReady(model);
  document.title = `${model.name} – Try the models`;
  for (const button of byId("models").children) {
    button.setAttribute("aria-pressed", String(button.dataset.model === model.name));
  }
  byId("form").hidden = !ready;
  byId("about").hidden = false;
  hideResult(true);
  byId("note").textContent = "";
  announce("");
  if (ready) {
    if (given) drafts.set(model.name, given);
    showForm(given || valuesOf(model));
  } else {
    const told = `${model.name}: ${model.reason}`;
    byId("result").replaceChildren(model.state === "failed" ? errorLine(told) : paragraph(told));
    hideResult(false);
    if (model.state !== "failed") announce(told);
  }
  offerRows(ready ? model : null, written);
  byId("about-text").replaceChildren();
  if (byId("about").open) tellAbout(model).catch(showError);
}

function noteTyped() {
  const values = written();
  drafts.set(model.name, values);
  for (const [name, value] of Object.entries(values)) {
    if (value !== model.task.examples[0][name]) typed[name] = value;
  }
  clearTimeout(keeping);
  keeping = setTimeout(keepAddress, 400);
}

// What of an answer the history tells.
const said = (result) => (result.querySelector(".headline, .passage, .value, pre")?.textContent || "").slice(0, 80);

// Shows an answer unless another model or text was chosen before it came.
async function run(asker, mine) {
  const { task, signature, name } = asker, values = written(), instances = task.ask(values);
  const begun = performance.now();
  const rows = task.columns
    ? await predictAll(name, instances, (done) => { if (turn === mine) byId("note").textContent = `Running … ${done}`; })
    : await predict(name, instances);
  if (turn !== mine) return;
  byId("note").textContent = `${(performance.now() - begun).toFixed(0)} ms`;
  const answers = named(rows, signature), [asked] = instances, alone = instances.length === 1;
  const more = alone && task.columns ? [words(asker, asked, answers[0]), asker.signatures.pieces && pieces(asker, asked)] : [];
  const result = byId("result");
  const why = asker.explained && alone ? whys(asker, asked) : null;
  stopExplaining = () => why?.stop();
  result.replaceChildren(...task.show(answers, instances, values, why?.button, rows),
    ...[why?.panel, ...more].filter(Boolean), programs(name, { instances }, { predictions: rows }));
  hideResult(false);
  const told = task.said?.(answers[0]) || said(result);
  announce(`Result: ${told}`);
  if (result.getBoundingClientRect().top > 0.8 * innerHeight) result.scrollIntoView({ block: "nearest" });
  remember(name, values, told, goBackTo);
}

byId("form").addEventListener("input", noteTyped);

byId("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (isRunning()) return;
  const asker = model, mine = turn += 1;
  stopExplaining();
  keepAddress();
  setRunning(true);
  announce("");
  byId("note").textContent = "Running …";
  try {
    await run(asker, mine);
  } catch (error) {
    if (turn === mine) {
      byId("note").textContent = "";
      showError(error);
    }
  } finally {
    if (turn === mine) setRunning(false);
  }
});

byId("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
});

byId("link").addEventListener("click", async () => {
  keepAddress();
  await copied(location.href);
  byId("note").textContent = address(model, written()).length <= MAX_ADDRESS
    ? "Copied" : "Copied without the text, which is too long for a link";
});

addEventListener("popstate", follow);
takeDrops();

// === About a model ===

const STATES = { START: "waiting", LOADING: "loading", AVAILABLE: "available", UNLOADING: "unloading", END: "unloaded" };

const statusOf = ({ version, state, status }) =>
  `Version ${version}: ${status.error_message ? `failed: ${status.error_message}` : STATES[state] || state}`;

async function tellAbout(entry) {
  const versions = await versionsOf(entry.name);
  const card = isReady(entry) ? await ask(`/models/${encodeURIComponent(entry.name)}/card`) : null;
  const text = card?.ok ? await card.text() : "";
  if (model !== entry) return;
  const states = versions.length ? versions.map(statusOf) : ["No version was found yet"];
  const [about, ...sections] = text.split(/^(?=## )/m);
  const rest = text ? [...markdown(about), opened("Signatures and an example", () => markdown(sections.join("\n")))]
    : isReady(entry) ? [paragraph("No model card lies beside this model."), signatureTable(entry.signature)] : [];
  byId("about-text").replaceChildren(element("ul", {}, ...states.map((state) => element("li", {}, state))), ...rest);
}

byId("about").addEventListener("toggle", () => {
  if (byId("about").open && model) tellAbout(model).catch(showError);
});

// === The list of models ===

// None where no version lies in the model's folder.
async function versionsOf(name) {
  try {
    return (await getJson(pathOf(name))).model_version_status;
  } catch (error) {
    if (error.status !== 404) throw error;
    return [];
  }
}

// What the list says of a model: whether it answers, and if not, why.
async function look(name, explained) {
  const versions = await versionsOf(name);
  const failed = versions.find((version) => version.status.error_message);
  if (!versions.length) {
    return { name, state: "waiting", short: "waiting …", reason: "no version was found yet; others may be loaded first." };
  }
  if (!versions.some((version) => version.state === "AVAILABLE")) {
    const reason = failed && `version ${failed.version} failed: ${failed.status.error_message}`;
    return reason ? { name, state: "failed", short: "failed", reason }
      : { name, state: "waiting", short: "loading …", reason: "it is being loaded." };
  }
  const { metadata } = await getJson(`${pathOf(name)}/metadata`);
  const signatures = metadata.signature_def.signature_def, signature = signatures.serving_default;
  if (!signature) {
    return { name, state: "failed", final: true, short: "cannot be used", reason: 'it has no signature "serving_default".' };
  }
  const task = taskOf(signature), short = task.name + (failed ? ` · version ${failed.version} failed` : "");
  return { name, state: "ready", signature, signatures, task, short, explained, warns: Boolean(failed) };
}

function modelButton(name) {
  const button = element("button", { type: "button", "data-model": name }, name, element("small"));
  button.addEventListener("click", () => { if (entries.get(name) !== model) go(entries.get(name)); });
  return button;
}

function showState(entry) {
  const button = byId("models").querySelector(`[data-model="${CSS.escape(entry.name)}"]`), small = button.querySelector("small");
  if (small.textContent !== entry.short) small.textContent = entry.short;
  small.className = entry.state === "failed" || entry.warns ? "bad" : "";
  button.title = entry.reason || "";
}

function chooseFirst(models) {
  const { name, values } = readAddress(), wanted = entries.get(name);
  const ready = [...entries.values()].filter(isReady);
  if (wanted) {
    choose(wanted, isReady(wanted) ? { ...wanted.task.examples[0], ...(history.state ?? values) } : null);
  } else if (ready.length && !models.includes(name)) {
    choose(ready[0]);
    if (name) showError(`There is no model "${name}" here.`);
    keepAddress();
  }
}

// The model chosen can be used at last, or fails for another reason.
function chooseAnew(entry, before) {
  model = entry;
  if (!isReady(entry) && entry.reason === before.reason) return;
  const { name, values } = readAddress(), given = isReady(entry) && name === entry.name && Object.keys(values).length;
  choose(entry, given ? { ...entry.task.examples[0], ...values } : null);
  if (isReady(entry)) announce(`${entry.name} is ready`);
}

async function poll() {
  try {
    await refresh();
  } catch (error) {
    showError(error);
    setTimeout(poll, 2000);
  }
}

// Only what is new changes, so that focus, the model chosen and what was typed stay.
async function refresh() {
  const { models, explained } = await getJson("/models"), list = byId("models");
  if (!models.length) list.replaceChildren(paragraph("The server has no models."));
  for (const name of models) {
    if (entries.has(name)) continue;
    entries.set(name, { name, state: "waiting", short: "…", reason: "its state is asked for." });
    list.append(modelButton(name));
  }
  const open = models.filter((name) => !isReady(entries.get(name)) && !entries.get(name).final);
  await Promise.all(open.map(async (name) => {
    // One that cannot be looked at now is looked at again.
    const entry = await look(name, explained.includes(name)).catch((error) => ({ name, state: "waiting", short: "…", reason: error.message }));
    const before = entries.get(name);
    entries.set(name, entry);
    showState(entry);
    if (before === model) chooseAnew(entry, before);
  }));
  if (open.some((name) => !isReady(entries.get(name)) && !entries.get(name).final)) {
    setTimeout(poll, 2000);
  }
  if (!model) chooseFirst(models);
  tellListed();
}

byId("models").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const all = [...byId("models").children], at = all.indexOf(document.activeElement);
  all[(at + step + all.length) % all.length].focus();
});

// Where there is room beside the form, what the model is stands there.
byId("about").open = matchMedia("(min-width: 70rem)").matches;
showPast(goBackTo);
watchPast(goBackTo);
poll();
