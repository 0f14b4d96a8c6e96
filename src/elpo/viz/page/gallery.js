"use strict";
// The gallery: a card for every saved tree that the filters let through.

const PHASES = {rl: "training", evaluation: "held-out"};
const OUTCOMES = {
  "": "any", mixed: "solved and failed", solved: "all solved", failed: "all failed", searched: "with a search",
  found: "critical step found",
};
const numSolved = (tree) => d3.sum(tree.leaves, (leaf) => leaf[1]);

/** A tree's place in words. */
function placeOf(index, tree) {
  const run = index.runs.length > 1 ? `${index.runs[tree.run].name}, ` : "";
  return `${run}${PHASES[tree.phase]} step ${tree.step}`;
}

function passes(tree, filters) {
  const solved = numSolved(tree), all = tree.leaves.length;
  const outcome = {
    "": true, mixed: solved > 0 && solved < all, solved: all > 0 && solved === all, failed: all > 0 && solved === 0,
    searched: tree.searches > 0, found: tree.found > 0,
  }[filters.outcome];
  return outcome && (filters.run === "" || tree.run === +filters.run)
    && (filters.phase === "" || tree.phase === filters.phase) && (filters.step === "" || tree.step === +filters.step)
    && tree.problem.toLowerCase().includes(filters.problem.toLowerCase());
}

function showFilters(index, filters, changed) {
  const choice = (name, label, options) => {
    const select = element("select", {id: `filter-${name}`, onchange: () => { filters[name] = select.value; changed(); }},
      ...options.map(([value, text]) => element("option", {value, selected: String(value) === String(filters[name])}, text)));
    return element("label", {}, label, select);
  };
  const steps = d3.sort(new Set(index.trees.map((tree) => tree.step)));
  const problem = element("input", {id: "filter-problem", type: "search", value: filters.problem, list: "problems",
    placeholder: "part of its id", oninput: () => { filters.problem = problem.value; changed(); }});
  const repeated = d3.rollups(index.trees, (all) => all.length, (tree) => tree.problem);
  byId("filters").replaceChildren(
    element("label", {}, "Problem", problem),
    element("datalist", {id: "problems"}, ...d3.sort(repeated, (r) => -r[1]).slice(0, 200).map(([id]) => element("option", {value: id}))),
    index.runs.length > 1 ? choice("run", "Run", [["", "any"], ...index.runs.map((run, i) => [i, run.name])]) : "",
    choice("phase", "From", [["", "any"], ...Object.entries(PHASES)]),
    choice("step", "Training step", [["", "any"], ...steps.map((step) => [step, step])]),
    choice("outcome", "Outcome", Object.entries(OUTCOMES)),
    element("button", {type: "reset", onclick: (event) => {
      event.preventDefault();
      for (const name of Object.keys(filters)) filters[name] = "";
      showFilters(index, filters, changed);
      changed();
    }}, "All"),
  );
}

/** A small drawing of a tree: left to right, outcomes as signs, critical steps as diamonds. */
function thumbnail(tree) {
  const width = 240, height = 120;
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `-10 -8 ${width + 20} ${height + 16}`);
  svg.setAttribute("aria-hidden", "true");
  const children = tree.parents.map(() => []);
  const roots = [];
  tree.parents.forEach((parent, node) => (parent < 0 ? roots : children[parent]).push(node));
  const x = [], y = [];
  let leaf = 0, deepest = 1;
  tree.parents.forEach((parent, node) => { x[node] = parent < 0 ? 1 : x[parent] + 1; deepest = Math.max(deepest, x[node]); });
  const place = (start) => {  // leaves on evenly spaced rows, without recursion: trees may be deep
    const stack = [[start, false]];
    while (stack.length) {
      const [node, done] = stack.pop();
      if (!children[node].length) y[node] = leaf++;
      else if (done) y[node] = d3.mean(children[node], (child) => y[child]);
      else stack.push([node, true], ...children[node].map((child) => [child, false]).reverse());
    }
  };
  roots.forEach(place);
  const rootRow = roots.length ? d3.mean(roots, (node) => y[node]) : 0;
  const px = (depth) => (width * depth) / deepest, py = (row) => (leaf > 1 ? (height * row) / (leaf - 1) : height / 2);
  const edges = document.createElementNS(SVG, "path");
  edges.setAttribute("class", "thumb-edges");
  edges.setAttribute("d", tree.parents.map((parent, node) => {
    const [x0, y0] = parent < 0 ? [0, py(rootRow)] : [px(x[parent]), py(y[parent])];
    const x1 = px(x[node]), y1 = py(y[node]), middle = (x0 + x1) / 2;
    return `M${x0.toFixed(1)},${y0.toFixed(1)}C${middle.toFixed(1)},${y0.toFixed(1)} ${middle.toFixed(1)},${y1.toFixed(1)} ${x1.toFixed(1)},${y1.toFixed(1)}`;
  }).join(""));
  svg.append(edges);
  const small = (name, node, size) => {
    const path = sign(name);
    path.setAttribute("transform", `translate(${px(x[node]).toFixed(1)},${py(y[node]).toFixed(1)}) scale(${size})`);
    svg.append(path);
  };
  const size = Math.max(0.35, Math.min(0.8, 9 / Math.max(1, leaf)));
  for (const [node, correct, stop] of tree.leaves) small(signOf(correct, stop), node, size);
  for (const node of new Set(tree.critical)) small("critical", node, 0.85);
  return svg;
}

function card(index, tree) {
  const solved = numSolved(tree);
  const words = [
    `${solved} of ${tree.leaves.length} solved`, tree.searches ? plural(tree.searches, "search", "searches") : "", tree.found ? `◆ ${tree.found} found` : "",
  ].filter(Boolean).join(" · ");
  return element("li", {}, element("a", {class: "card", href: `#tree=${tree.key}`, "data-key": tree.key},
    element("strong", {title: tree.problem}, tree.problem), element("span", {}, placeOf(index, tree)),
    thumbnail(tree), element("span", {}, words)));
}

function showGallery(index, filters) {
  const shown = index.trees.filter((tree) => passes(tree, filters));
  byId("num-trees").textContent = index.trees.length
    ? `${shown.length} of ${plural(index.trees.length, "tree")}. Held-out trees are of the same problems at every evaluation, so that two can be put side by side.`
    : "No trees saved yet.";
  byId("gallery").replaceChildren(...shown.map((tree) => card(index, tree)));
  return shown;
}
