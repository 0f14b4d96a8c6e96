"use strict";
// The page: what is shown where, the address (#tree=KEY&step=N&with=KEY&step2=N), the keyboard, the live run.

const filters = {problem: "", run: "", phase: "", step: "", outcome: ""};
const panes = [];  // the open trees: {key, view, node, details}
const shown = {index: null, keys: [], active: 0, asked: 0, focus: false};
const cache = new Map();  // documents of trees; a live run does not change a tree it has written

async function treeOf(key) {
  if (!cache.has(key)) {
    if (cache.size > 40) cache.delete(cache.keys().next().value);
    cache.set(key, prepare(await load(key)));
  }
  return cache.get(key);
}

// the address

const route = () => new URLSearchParams(location.hash.slice(1));

function go(changes) {
  const to = route();
  for (const [name, value] of Object.entries(changes)) value === null ? to.delete(name) : to.set(name, value);
  location.hash = to.toString();
}

/** Notes the chosen step in the address without a new entry in the history. */
function note(name, value) {
  const to = route();
  to.set(name, value);
  history.replaceState(null, "", `#${to}`);
}

// the report

function showReport(index) {
  shown.index = index;
  showOverview(index);
  const groups = showCurves(index);
  showLedger(index);
  showLocalization(index, groups);
  showTools(index, groups);
  showFilters(index, filters, filtered);
  filtered();
}

function filtered() {
  const trees = showGallery(shown.index, filters);
  shown.keys = trees.map((tree) => tree.key);
}

// the viewer

async function follow() {
  const to = route(), keys = [to.get("tree"), to.get("with")].filter((key) => key !== null);
  const open = to.has("tree");
  byId("report").hidden = open;
  byId("viewer").hidden = !open;
  if (!open) {
    panes.length = 0;
    byId("panes").replaceChildren();
    if (shown.back) document.querySelector(`[data-key="${CSS.escape(shown.back)}"]`)?.focus();
    shown.back = null;
    const section = location.hash.length > 1 ? byId(location.hash.slice(1)) : null;
    section?.scrollIntoView();
    return;
  }
  shown.back = keys[0];
  document.documentElement.style.setProperty("--head", `${document.querySelector(".page-head").offsetHeight}px`);
  window.scrollTo(0, 0);
  const asked = ++shown.asked;
  let trees;
  try {
    trees = await Promise.all(keys.map(treeOf));
  } catch (error) {
    byId("panes").replaceChildren(element("p", {class: "empty"}, `This tree cannot be shown: ${error.message}`));
    return;
  }
  if (asked !== shown.asked) return;
  byId("compare").setAttribute("aria-pressed", String(keys.length === 2));
  byId("panes").className = `panes ${keys.length === 2 ? "two" : ""}`;
  const steps = [to.get("step"), to.get("step2")];
  panes.splice(0, panes.length, ...keys.map((key, i) => paneOf(i, key, trees[i])));
  byId("panes").replaceChildren(...panes.map((pane) => pane.element));
  panes.forEach((pane, i) => {
    pane.view = drawTree(pane.stage, pane.tree, colorSteps(pane.tree), (id) => choose(i, id, true));
    pane.stage.append(legend());
    if (!pane.tree.nodes.length) return;
    const step = steps[i] === null ? firstStep(pane.tree) : Math.min(+steps[i], pane.tree.nodes.length - 1) || 0;
    pane.view.open(step);
    choose(i, step, false);
  });
  shown.active = Math.min(shown.active, panes.length - 1);
  if (shown.focus && panes[0].tree.nodes.length) panes[0].view.select(panes[0].node, true);
  shown.focus = false;
}

const firstStep = (tree) => tree.searches.find((search) => search.critical !== null)?.critical ?? 0;

function colorSteps(tree) {
  const by = byId("color-steps").value;
  const known = tree.nodes.some((node) => node.credit !== null);
  return known || by === "entropy" || by === "none" ? by : "value";  // held-out trees have no credit
}

function paneOf(i, key, tree) {
  const {index} = shown;
  const summary = index.trees.find((other) => other.key === key);
  const same = index.trees.filter((other) => other.problem === tree.problem.id);
  const rest = shown.keys.map((other) => index.trees.find((t) => t.key === other)).filter((t) => t && t.problem !== tree.problem.id);
  const option = (other) => element("option", {value: other.key, selected: other.key === key},
    `${other.problem}, ${placeOf(index, other)}`);
  const select = element("select", {"aria-label": i ? "Second tree" : "Tree", onchange: () => {
    go(i ? {with: select.value, step2: null} : {tree: select.value, step: null});
  }}, element("optgroup", {label: "the same problem"}, ...same.map(option)),
  element("optgroup", {label: "others"}, ...rest.slice(0, 300).map(option)));
  const solved = tree.outcomes.filter((outcome) => outcome.correct).length;
  const question = tree.confidential ? "confidential problem" : excerpt(tree.problem.messages.at(-1)?.content ?? "", 600);
  const stage = element("div", {class: "stage"});
  const details = element("div", {class: "details", tabindex: 0, role: "region", "aria-label": "The chosen step"});
  const made = element("section", {class: "pane", "data-key": key, onpointerdown: () => { shown.active = i; }, onfocusin: () => { shown.active = i; }},
    element("div", {class: "pane-head"}, select,
      element("span", {class: "legend"}, [
        summary ? placeOf(index, summary) : "", plural(tree.outcomes.length, "rollout"), `${solved} solved`,
        summary?.phase === "rl" ? `policy ${tree.policy_version}` : "", tree.confidential ? "" : `answer ${excerpt(tree.problem.answer, 40)}`].filter(Boolean).join(" · ")),
      element("p", {title: tree.confidential ? "" : tree.problem.messages.at(-1)?.content ?? ""}, question)),
    stage, tree.nodes.length ? details : element("p", {class: "empty"}, "All rollouts of this tree were lost to faults."));
  return {key, tree, stage, details, element: made, node: 0, view: null};
}

function choose(i, id, focus) {
  const pane = panes[i];
  pane.node = id;
  pane.view.select(id, focus);
  showDetails(pane);
  note(i ? "step2" : "step", id);
}

function showDetails(pane) {
  pane.details.replaceChildren(...stepDetails(pane.tree, pane.tree.nodes[pane.node], byId("color-tokens").value));
  pane.details.scrollTop = 0;
}

function legend() {
  const line = document.createElementNS(SVG, "path");
  line.setAttribute("class", "edge searched");
  line.setAttribute("d", "M0,7H16");
  return element("div", {class: "legend"},
    legendEntry("solved", sign("solved")), legendEntry("failed", sign("failed")), legendEntry("no answer", sign("stopped")),
    legendEntry("critical", sign("critical", 8)), legendEntry("searched", line));
}

/** Opens the tree before or after this one, among those that the filters let through. */
function turn(by) {
  const at = shown.keys.indexOf(panes[0]?.key);
  const key = shown.keys[(at + by + shown.keys.length) % shown.keys.length];
  shown.focus = true;
  if (key !== undefined) go({tree: key, step: null, with: null, step2: null});
}

/** A second tree beside the first: of the same problem if there is one, the latest. */
function compare() {
  if (panes.length === 2) return go({with: null, step2: null});
  const {index} = shown, first = panes[0];
  const others = index.trees.filter((tree) => tree.key !== first.key);
  const same = others.filter((tree) => tree.problem === first.tree.problem.id);
  const second = (same.length ? same : others).at(-1);
  if (second) go({with: second.key, step2: null});
}

function toCritical() {
  const pane = panes[shown.active];
  const found = [...new Set((pane?.tree.searches ?? []).map((search) => search.critical).filter((id) => id !== null))];
  if (found.length) choose(shown.active, found[(found.indexOf(pane.node) + 1) % found.length], true);
}

const leave = () => { location.hash = "trees"; };

// the keyboard

const KEYS = [
  ["← → ↑ ↓", "walk the steps of a tree: to the parent, to the first child, to the neighbours of the same depth"],
  ["c", "to the critical step; again for the next one"], ["n  p", "next and previous tree of the gallery"],
  ["s", "side by side with another step of the same problem"], ["+  -  0", "zoom in, out, show all"],
  ["Esc", "back to the gallery"], ["/", "filter the gallery by problem"], ["d", "light or dark"], ["?", "this list"],
];

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea, dialog")) return;
  const pane = panes[shown.active];
  if (event.key === "?") help();
  else if (event.key === "d") toggleTheme();
  else if (event.key === "/" && !panes.length) byId("filter-problem").focus();
  else if (!pane) return;
  else if (event.key.startsWith("Arrow") && !event.target.closest(".details, button") && pane.tree.nodes.length) {
    choose(shown.active, pane.view.neighbour(pane.node, event.key), true);
  } else if (event.key === "c") toCritical();
  else if (event.key === "n") turn(1);
  else if (event.key === "p") turn(-1);
  else if (event.key === "s") compare();
  else if (event.key === "+" || event.key === "=") pane.view.scale(1.25);
  else if (event.key === "-") pane.view.scale(0.8);
  else if (event.key === "0") pane.view.fit();
  else if (event.key === "Escape") leave();
  else return;
  event.preventDefault();
}

function help() {
  byId("help-dialog").replaceChildren(
    element("h2", {id: "help-title"}, "Keys"),
    element("dl", {}, ...KEYS.flatMap(([keys, words]) => [
      element("dt", {}, ...keys.split(/ +/).flatMap((key) => [element("kbd", {}, key), " "])), element("dd", {}, words)])),
    element("h2", {}, "A tree"),
    element("dl", {}, ...[
      ["R", "the value of a step: the mean reward of what was sampled from there on"],
      ["A", "its advantage, from b (against its siblings) and t (its trajectories against all)"],
      ["H", "mean entropy of its sampled tokens, in nats"],
      ["◆", "the critical step a search found: the first from which no suffix succeeded"],
      ["probe 1/2", "two suffixes were drawn from here, one succeeded"],
      ["▨", "hatched: the lower clip bound is relaxed"],
      ["● ✕ ▲", "a rollout that solved the problem, failed, ended without an answer"],
    ].flatMap(([name, words]) => [element("dt", {}, name), element("dd", {}, words)])),
    element("button", {type: "button", onclick: () => byId("help-dialog").close()}, "Close"));
  byId("help-dialog").showModal();
}

function toggleTheme() {
  const {dataset} = document.documentElement;
  const dark = dataset.theme ? dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  dataset.theme = dark ? "light" : "dark";
}

// the live run

async function keepUp(stamp) {
  const live = byId("live");
  live.hidden = false;
  try {
    const answer = await fetch("data/index", {cache: "no-cache", headers: stamp ? {"If-None-Match": stamp} : {}});
    if (answer.status === 200) {
      stamp = answer.headers.get("ETag");
      const index = await answer.json();
      const focused = document.activeElement?.id;
      showReport(index);
      if (focused?.startsWith("filter-")) byId(focused).focus();
      live.textContent = `live, ${new Date().toLocaleTimeString()}`;
    } else if (answer.status !== 304) {
      throw new Error(await answer.text());
    }
    live.classList.remove("lost");
  } catch (error) {
    live.classList.add("lost");
    live.textContent = `not up to date: ${error.message.slice(0, 120)}`;
  }
  setTimeout(() => keepUp(stamp), 2000);
}

function selectOf(id, options, changed) {
  byId(id).replaceChildren(...Object.entries(options).map(([value, text]) => element("option", {value}, text)));
  byId(id).addEventListener("change", changed);
}

async function start() {
  selectOf("color-steps", STEP_COLORS, () => panes.forEach((pane) => pane.view.recolor(colorSteps(pane.tree))));
  selectOf("color-tokens", TOKEN_COLORS, () => panes.forEach(showDetails));
  byId("back").addEventListener("click", leave);
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  byId("compare").addEventListener("click", compare);
  byId("to-critical").addEventListener("click", toCritical);
  byId("help").addEventListener("click", help);
  byId("theme").addEventListener("click", toggleTheme);
  document.addEventListener("keydown", pressed);
  window.addEventListener("hashchange", follow);
  try {
    showReport(await load("index"));
  } catch (error) {
    byId("subtitle").textContent = `cannot be shown: ${error.message}`;
    if (!isLive) throw error;
  }
  await follow();
  document.documentElement.dataset.ready = performance.now().toFixed(0);
  if (isLive) keepUp(null);
}

start();
