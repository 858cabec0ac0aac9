// What was asked before: kept by the browser, on this machine alone.

import { announce, byId, element } from "./elements.js";

const KEY = "bert-tf.history", MOST_KEPT = 30, MOST_CHARACTERS = 10000;

function read() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY));
    return Array.isArray(kept) ? kept.filter((one) => one && typeof one.model === "string" && one.values) : [];
  } catch {
    return [];
  }
}

let past = read();

function keep() {
  try {
    localStorage.setItem(KEY, JSON.stringify(past));
  } catch { /* Without room it lasts as long as the page. */ }
}

export function showPast(go) {
  byId("past").hidden = !past.length;
  byId("past-list").replaceChildren(...past.map((one) => {
    const typed = Object.values(one.values).filter(Boolean).join(" · ");
    const when = new Date(one.at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    return element("li", {}, element("button", { type: "button", title: when, click: () => go(one) },
      element("span", { class: "typed" }, typed), element("small", {}, `${one.model}: ${one.said}`)));
  }));
}

// Of the same text and model the latest answer is kept.
export function remember(model, values, said, go) {
  const same = (one) => one.model === model && JSON.stringify(one.values) === JSON.stringify(values);
  if (JSON.stringify(values).length > MOST_CHARACTERS) return;
  past = [{ model, values, said, at: Date.now() }, ...read().filter((one) => !same(one))].slice(0, MOST_KEPT);
  keep();
  showPast(go);
}

byId("forget").addEventListener("click", () => {
  past = [];
  keep();
  showPast();
  announce("The history is empty");
  const next = byId("form").hidden ? byId("models").querySelector("[aria-pressed=true]") : byId("run");
  next?.focus();
});

// Of another window of the same browser.
export function watchPast(go) {
  addEventListener("storage", (event) => {
    if (event.key !== KEY) return;
    past = read();
    showPast(go);
  });
}
