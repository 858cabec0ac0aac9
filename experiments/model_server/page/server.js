// Requests to the server: TF Serving's REST API, and what stands beside it.

import { copyButton, element, opened, pretty, scrolled } from "./elements.js";

export const pathOf = (name) => `/v1/models/${encodeURIComponent(name)}`;

export async function ask(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer.");
  }
}

export async function getJson(path, options) {
  const response = await ask(path, options);
  const body = await response.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    return {};
  });
  if (response.ok) return body;
  const error = new Error(body.error || `HTTP status ${response.status}`);
  throw Object.assign(error, { status: response.status });
}

const BUSY = [429, 503], WAITS = [1, 2, 4, 8];  // seconds
const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

// The answer to a request, which is asked for again where the server is busy.
async function post(path, request, signal) {
  const body = JSON.stringify(request), headers = { "Content-Type": "application/json" };
  for (const wait of [...WAITS, 0]) {
    try {
      return await getJson(path, { method: "POST", headers, body, signal });
    } catch (error) {
      if (!BUSY.includes(error.status) || !wait) throw error;
      await pause(wait);
    }
  }
}

// What a signature says of instances, a row each, as it comes.
export const predict = async (name, instances, { signature = "", signal } = {}) =>
  (await post(`${pathOf(name)}:predict`, { ...(signature && { signature_name: signature }), instances }, signal)).predictions;

// Why an instance is answered as it is; `settings` say which label or entity of the answer is meant.
export const explain = async (name, instance, settings, signal) =>
  (await post(`${pathOf(name)}:explain`, { ...settings, instances: [instance] }, signal)).explanations;

// Rows as {name: value}, which they are not of a signature with one output.
export function named(rows, { outputs }) {
  const names = Object.keys(outputs);
  return names.length > 1 ? rows : rows.map((row) => ({ [names[0]]: row }));
}

export const MOST_ROWS = 32;  // of a request

// Of any number of instances, some at a time.
export async function predictAll(name, instances, told = () => {}) {
  const rows = [];
  for (let at = 0; at < instances.length; at += MOST_ROWS) {
    if (at) told(`${at} of ${instances.length}`);
    rows.push(...await predict(name, instances.slice(at, at + MOST_ROWS)));
  }
  return rows;
}

function python(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([key, part]) => `${JSON.stringify(key)}: ${python(part)}`).join(", ")}}`;
}

const MOST_SHOWN = 20000;  // characters; more is copied whole

// The request for a shell and for Python, and the answer.
export const programs = (name, request, response) => opened("Request and answer", () => {
  const url = location.origin + pathOf(name) + ":predict";
  const quoted = JSON.stringify(request).replaceAll("'", "'\\''");
  const texts = {
    curl: `curl -d '${quoted}' \\\n  ${url}`,
    Python: "import json\nimport urllib.request\n\n" +
      `request = ${python(request)}\nurl = "${url}"\n` +
      "with urllib.request.urlopen(url, json.dumps(request).encode()) as response:\n" +
      '    print(json.load(response)["predictions"])',
    Answer: pretty(response),
  };
  return Object.entries(texts).flatMap(([title, text]) => [
    element("div", { class: "titled" }, element("h3", {}, title), copyButton(title, text)),
    scrolled("pre", title, { class: "block" },
      text.length > MOST_SHOWN ? text.slice(0, MOST_SHOWN) + "\n… (Copy gives all of it)" : text),
  ]);
});
