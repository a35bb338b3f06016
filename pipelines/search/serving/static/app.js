"use strict";
/* The URL holds the whole state of the page. Every change updates the URL and searches again, so any view can be shared. */

const PAGE = 24;
const $ = (id) => document.getElementById(id);
const LISTS = ["images", "like", "not_words", "not_images", "not_like"];
const SHORT = { words: "q", images: "i", like: "l", not_words: "nw", not_images: "ni", not_like: "nl" };
let tables = [];
let state = empty();
let turn = 0;

function empty() {
  return { table: "", beside: "", words: "", images: [], like: [], not_words: [], not_images: [], not_like: [],
    mode: "", diversity: 0, distinct: true, filters: [] };
}

function fromUrl() {
  const given = new URLSearchParams(location.search);
  const found = empty();
  found.table = given.get("t") || (tables[0] && tables[0].name) || "";
  found.beside = given.get("t2") || "";
  found.words = given.get("q") || "";
  for (const name of LISTS) found[name] = given.getAll(SHORT[name]);
  found.mode = given.get("m") || "";
  found.diversity = Number(given.get("v") || 0);
  found.distinct = given.get("d") !== "0";
  try { found.filters = JSON.parse(given.get("f") || "[]"); } catch { found.filters = []; }
  return found;
}

function toUrl() {
  const out = new URLSearchParams();
  const put = (name, value) => { if (value) out.append(name, value); };
  put("t", state.table); put("t2", state.beside); put("q", state.words);
  for (const name of LISTS) for (const value of state[name]) put(SHORT[name], value);
  put("m", state.mode); put("v", state.diversity ? String(state.diversity) : ""); put("d", state.distinct ? "" : "0");
  put("f", state.filters.length ? JSON.stringify(state.filters) : "");
  return "/?" + out;
}

function change(part) {
  Object.assign(state, part);
  history.pushState(null, "", toUrl());
  show();
}

function node(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "class") made.className = value;
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

async function api(path, options) {
  const answer = await fetch(path, options);
  const data = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    const detail = Array.isArray(data.detail) ? data.detail.map((d) => `${d.loc.slice(1).join(".")}: ${d.msg}`).join("; ") : data.detail;
    throw new Error(detail || `the server answered ${answer.status}`);
  }
  return data;
}

const pictureOf = (table, row) => `/api/tables/${encodeURIComponent(table)}/picture?row=${encodeURIComponent(row)}`;
const asksForSomething = () => state.words || state.images.length || state.like.length;

function request(table, skip) {
  const asked = { table, k: PAGE, skip, diversity: state.diversity, distinct: state.distinct, filters: state.filters };
  if (state.words) asked.words = state.words;
  for (const name of LISTS) asked[name] = state[name];
  if (state.mode) asked[state.mode] = true;
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(asked) };
}

function show() {
  $("words").value = state.words;
  $("table").value = state.table;
  $("beside").value = state.beside;
  $("mode").value = state.mode;
  $("diversity").value = state.diversity;
  $("distinct").checked = state.distinct;
  showTerms();
  showFacets();
  document.title = state.words ? `${state.words} · isthmus` : "isthmus";
  const results = $("results");
  const asked = [state.table, state.beside].filter(Boolean);
  results.className = asked.length > 1 ? "two" : "";
  turn += 1;
  if (!asksForSomething()) {
    results.replaceChildren(node("p", { class: "message" }, "Type words, or drop a picture anywhere on this page."));
    return;
  }
  results.replaceChildren(...asked.map((table) => column(table, turn)));
}

function column(table, mine) {
  const title = node("h2", {}, `searching ${table} …`);
  const grid = node("ul", { class: "grid" });
  const made = node("section", { "data-table": table, "aria-busy": "true" }, title, grid);
  load(made, title, grid, table, 0, mine);
  return made;
}

async function load(made, title, grid, table, skip, mine) {
  try {
    const answer = await api("/api/search", request(table, skip));
    if (mine !== turn) return;
    title.replaceChildren(node("b", {}, table), ` · version ${answer.version} · ${answer.searched} · ${answer.ms} ms · ` +
      (answer.exact ? "compared with every row" : "through the index"));
    grid.append(...answer.hits.map((hit) => card(table, hit)));
    if (!grid.children.length) made.append(node("p", { class: "message" }, "No rows found."));
    if (answer.hits.length === PAGE) {
      const more = node("button", { class: "more", type: "button" }, "More");
      more.onclick = () => { more.remove(); load(made, title, grid, table, skip + PAGE, mine); };
      made.append(more);
    }
  } catch (error) {
    if (mine !== turn) return;
    title.replaceChildren(node("b", {}, table));
    made.append(node("p", { class: "problem", role: "alert" }, error.message));
  }
  made.setAttribute("aria-busy", "false");
}

function card(table, hit) {
  const picture = node("div", { class: "picture" });
  const image = node("img", { src: pictureOf(table, hit.row_id), alt: hit.caption || hit.row_id, loading: "lazy" });
  image.onerror = () => picture.replaceChildren("no picture");
  picture.append(image);
  const facts = Object.entries(hit.fields).filter(([name]) => name !== "image_uri");
  const acts = node("div", { class: "acts" },
    node("button", { type: "button", class: "alike", onclick: () => alike(hit.row_id) }, "More like this"),
    node("button", { type: "button", class: "small towards", title: "towards this", onclick: () => add("like", hit.row_id) }, "+"),
    node("button", { type: "button", class: "small away", title: "away from this", onclick: () => add("not_like", hit.row_id) }, "−"));
  return node("li", { class: "card", tabIndex: 0, "data-row": hit.row_id }, picture,
    node("div", { class: "text" }, node("p", { class: "caption" }, hit.caption || ""),
      node("p", { class: "about" }, node("b", { title: hit.score.toFixed(3) }, hit.match === null ? hit.score.toFixed(3) : `${(100 * hit.match).toFixed(0)} %`), ` ${hit.row_id}`),
      facts.length ? node("details", {}, node("summary", {}, "details"), ...facts.map(([name, value]) => node("div", {}, `${name}: ${value}`))) : null),
    acts);
}

function alike(row) { change({ ...empty(), table: state.table, beside: state.beside, filters: state.filters, distinct: state.distinct, like: [row] }); scrollTo(0, 0); }
function add(list, value) {
  const other = { like: "not_like", not_like: "like" }[list];
  const part = { [list]: [...state[list].filter((v) => v !== value), value] };
  if (other) part[other] = state[other].filter((v) => v !== value);
  change(part);
}

function showTerms() {
  const chips = [];
  for (const name of LISTS) for (const value of state[name]) {
    const away = name.startsWith("not_");
    const source = name.endsWith("images") ? `/api/pictures/${value}` : name.endsWith("like") ? pictureOf(state.table, value) : null;
    const drop = node("button", { type: "button", title: "remove", "aria-label": `remove ${value}` }, "×");
    drop.onclick = () => change({ [name]: state[name].filter((v) => v !== value) });
    chips.push(node("span", { class: away ? "term away" : "term" }, away ? "−" : "+", source ? node("img", { src: source, alt: "" }) : null,
      node("span", {}, name.endsWith("images") ? "your picture" : value), drop));
  }
  $("terms").replaceChildren(...chips);
}

function showFacets() {
  const about = tables.find((t) => t.name === state.table);
  const chosen = (column, operation) => (state.filters.find((f) => f.column === column && f.operation === operation) || {}).value ?? "";
  const set = (column, operation, value) => change({ filters: [
    ...state.filters.filter((f) => f.column !== column || f.operation !== operation), ...(value === "" ? [] : [{ column, operation, value }])] });
  const field = (column, operation, hint, kind) => {
    const made = node("input", { type: "text", value: chosen(column, operation), placeholder: hint ?? "", name: `${column}.${operation}`, inputMode: kind });
    made.onchange = () => set(column, operation, made.value.trim());
    return made;
  };
  $("facets").replaceChildren(...(about ? about.facets : []).map((facet) => {
    if (facet.kind === "choice") {
      const made = node("select", { name: facet.column }, node("option", { value: "" }, "any"), ...facet.values.map((v) => node("option", { value: v }, v)));
      made.value = chosen(facet.column, "is");
      made.onchange = () => set(facet.column, "is", made.value);
      return node("label", {}, facet.column, made);
    }
    if (facet.kind === "range") {
      return node("label", {}, facet.column, node("span", { class: "range" },
        field(facet.column, "at_least", `from ${facet.low ?? ""}`, "decimal"), field(facet.column, "at_most", `to ${facet.high ?? ""}`, "decimal")));
    }
    return node("label", {}, facet.column, field(facet.column, "contains", "contains", "text"));
  }));
  $("filtered").textContent = state.filters.map((f) => `${f.column} ${{ is: "=", at_least: "≥", at_most: "≤", contains: "has" }[f.operation]} ${f.value}`).join(", ");
}

async function bring(file) {
  if (!file || !file.type.startsWith("image/")) return;
  try {
    const { id } = await api("/api/pictures", { method: "POST", body: file });
    change({ images: [id], like: [] });
  } catch (error) {
    $("results").replaceChildren(node("p", { class: "problem", role: "alert" }, error.message));
  }
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input:not([type=range]):not([type=checkbox]), select, textarea");
  if (event.key === "Escape") { event.target.blur(); change({ ...empty(), table: state.table, beside: state.beside }); return; }
  if (typing) return;
  if (event.key === "/") { event.preventDefault(); $("words").focus(); $("words").select(); return; }
  const cards = [...document.querySelectorAll(".card")];
  const here = cards.indexOf(document.activeElement);
  if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
    const next = cards[Math.max(0, Math.min(cards.length - 1, here + (event.key === "ArrowRight" ? 1 : -1)))];
    if (next) { event.preventDefault(); next.focus(); }
  } else if (here >= 0 && document.activeElement === event.target) {
    const row = cards[here].dataset.row;
    if (event.key === "Enter") alike(row);
    else if (event.key === "+") add("like", row);
    else if (event.key === "-" || event.key === "−") add("not_like", row);
  }
}

function listen() {
  $("ask").onsubmit = (event) => { event.preventDefault(); change({ words: $("words").value.trim() }); };
  $("table").onchange = () => change({ table: $("table").value, filters: [] });
  $("beside").onchange = () => change({ beside: $("beside").value });
  $("mode").onchange = () => change({ mode: $("mode").value });
  $("diversity").onchange = () => change({ diversity: Number($("diversity").value) });
  $("distinct").onchange = () => change({ distinct: $("distinct").checked });
  $("file").onchange = () => bring($("file").files[0]);
  $("bring").onkeydown = (event) => { if (event.key === "Enter" || event.key === " ") $("file").click(); };
  $("theme").onclick = () => {
    const dark = getComputedStyle(document.documentElement).colorScheme === "dark" ||
      (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    localStorage.setItem("theme", document.documentElement.dataset.theme);
  };
  document.addEventListener("keydown", keys);
  document.addEventListener("dragover", (event) => { event.preventDefault(); $("drop").hidden = false; });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").hidden = true; });
  document.addEventListener("drop", (event) => { event.preventDefault(); $("drop").hidden = true; bring(event.dataTransfer.files[0]); });
  document.addEventListener("paste", (event) => bring([...event.clipboardData.files][0]));
  addEventListener("popstate", () => { state = fromUrl(); show(); });
}

async function begin() {
  const theme = localStorage.getItem("theme");
  if (theme) document.documentElement.dataset.theme = theme;
  listen();
  try {
    tables = await api("/api/tables");
  } catch (error) {
    $("results").replaceChildren(node("p", { class: "problem", role: "alert" }, error.message));
    return;
  }
  const option = (t) => node("option", { value: t.name }, `${t.name} (${t.rows.toLocaleString()})`);
  $("table").replaceChildren(...tables.map(option));
  $("beside").append(...tables.map(option));
  state = fromUrl();
  show();
}

begin();
