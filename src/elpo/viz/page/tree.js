"use strict";
// One tree drawn large: steps from left to right, with zoom, and a keyboard that walks the steps.

const BOX = {width: 152, height: 50, across: 190, down: 66};
const STEP_COLORS = {
  advantage: "advantage A", branch: "branch advantage", trajectory: "trajectory advantage", value: "reward R",
  entropy: "entropy", none: "nothing",
};

/** The number a step is coloured by, or null. */
function stepNumber(node, by) {
  if (by === "value" || by === "entropy") return node[by];
  return node.credit === null ? null : node.credit[by] ?? null;
}

/** A class and a share of colour for `value` on a scale that ends at `most`. */
function tone(value, most, heat) {
  if (value === null || value === undefined || !(most > 0) || value === 0) return ["", "0%"];
  const share = Math.min(1, Math.abs(value) / most);
  return [heat ? "heat" : value > 0 ? "good" : "bad", `${Math.round(8 + 47 * share)}%`];
}

const callText = (call) => {
  const values = Object.values(call.arguments);
  const text = values.length === 1 && typeof values[0] === "string" ? values[0] : JSON.stringify(call.arguments);
  return `${call.name}: ${text}`;
};

/** What a step is, for its box: the only argument of its call, or what it says. */
function stepTitle(node, length) {
  if (node.call === null) return excerpt(node.text, length) || "(empty)";
  const text = excerpt(callText(node.call).slice(node.call.name.length + 2), length);
  return text === "" ? node.call.name : text;
}

/** Adds to a document what the drawing needs: children, depths, marks of every node. */
function prepare(tree) {
  tree.children = tree.nodes.map(() => []);
  tree.roots = [];
  tree.nodes.forEach((node, i) => {
    node.id = i;
    node.depth = node.parent < 0 ? 1 : tree.nodes[node.parent].depth + 1;
    (node.parent < 0 ? tree.roots : tree.children[node.parent]).push(i);
    node.probes = [];
    node.criticalOf = [];
    node.searched = false;
    node.outcome = null;
    node.wrong = tree.first_wrong[i] ?? null;
  });
  for (const outcome of tree.outcomes) tree.nodes[outcome.leaf].outcome = outcome;
  for (const search of tree.searches) {
    for (const i of search.path) tree.nodes[i].searched = true;
    for (const probe of search.probes) tree.nodes[probe.anchor].probes.push(probe);
    if (search.critical !== null) tree.nodes[search.critical].criticalOf.push(search);
  }
  const lows = tree.nodes.map((node) => node.credit?.low).filter((low) => low !== undefined);
  tree.ordinaryLow = d3.max(lows) ?? null;
  for (const node of tree.nodes) node.relaxed = node.credit !== null && node.credit.low < tree.ordinaryLow - 1e-9;
  return tree;
}

/** All of a step in words, for those who cannot see the drawing. */
function stepWords(tree, node) {
  const words = [`Step ${node.depth}`, stepTitle(node, 60), `rollouts ${node.rollouts}`, `R ${fixed(node.value)}`];
  if (node.credit) words.push(`A ${fixed(node.credit.advantage)}`);
  for (const search of node.criticalOf) words.push(`${search.exact ? "critical" : "perhaps critical"} step of rollout ${search.rollout}`);
  for (const probe of node.probes) words.push(`probed, ${probe.num_successes} of ${probe.num_rollouts} succeeded`);
  if (node.outcome) words.push(`rollout ${node.outcome.rollout} ${node.outcome.correct ? "solved" : "failed"}`);
  return words.join(", ");
}

/** Draws `tree` into `stage`. Returns functions to select, recolour and zoom; `chosen` is called with a node's id. */
function drawTree(stage, tree, colorBy, chosen) {
  const root = d3.hierarchy({id: -1}, ({id}) => (id < 0 ? tree.roots : tree.children[id]).map((child) => ({id: child})));
  let row = 0;  // every leaf has a row to itself, for the sign at its end
  root.eachAfter((place) => {
    place.x = place.children ? d3.mean(place.children, (child) => child.x) : BOX.down * row++;
    place.y = BOX.across * place.depth;
  });
  const places = new Map(root.descendants().map((place) => [place.data.id, place]));
  const [top, bottom] = d3.extent(root.descendants(), (place) => place.x);
  const right = d3.max(root.descendants(), (place) => place.y) + BOX.width + 70;

  const svg = d3.create("svg").attr("role", "tree").attr("aria-label", `Rollout tree of ${tree.problem.id}`);
  const hatch = `hatch-${Math.random().toString(36).slice(2)}`;
  svg.append("defs").append("pattern").attr("id", hatch).attr("patternUnits", "userSpaceOnUse")
    .attr("width", 6).attr("height", 6).attr("patternTransform", "rotate(45)")
    .append("line").attr("class", "hatch").attr("y2", 6);
  const ground = svg.append("g");
  const zoom = d3.zoom().scaleExtent([0.08, 3]).on("zoom", (event) => ground.attr("transform", event.transform));
  svg.call(zoom).on("dblclick.zoom", null);

  const searchedLeaves = new Set(tree.searches.flatMap((search) => search.path));
  const link = d3.linkHorizontal();
  ground.append("g").attr("aria-hidden", "true").selectAll("path").data(root.links()).join("path")
    .attr("class", ({target}) => `edge ${searchedLeaves.has(target.data.id) ? "searched" : ""}`)
    .attr("d", ({source, target}) => link({
      source: [source.data.id < 0 ? source.y + 110 : source.y + BOX.width, source.x], target: [target.y, target.x]}));
  const prompt = ground.append("g").attr("class", "root").attr("transform", `translate(${root.y + 98},${root.x})`);
  prompt.append("circle").attr("r", 12);
  prompt.append("text").attr("dy", 28).text("prompt");

  const nodes = ground.append("g").selectAll("g").data(tree.nodes).join("g")
    .attr("role", "treeitem").attr("tabindex", -1).attr("data-node", (node) => node.id)
    .attr("aria-level", (node) => node.depth).attr("aria-label", (node) => stepWords(tree, node))
    .attr("transform", (node) => `translate(${places.get(node.id).y},${places.get(node.id).x - BOX.height / 2})`)
    .on("click", (event, node) => chosen(node.id));
  nodes.append("rect").attr("class", "halo").attr("x", -5).attr("y", -5).attr("rx", 10)
    .attr("width", BOX.width + 10).attr("height", BOX.height + 10);
  nodes.append("rect").attr("class", "box").attr("rx", 6).attr("width", BOX.width).attr("height", BOX.height);
  nodes.filter((node) => node.relaxed).append("rect").attr("width", 7).attr("x", 2).attr("y", 3)
    .attr("height", BOX.height - 6).attr("fill", `url(#${hatch})`);
  nodes.append("title").text((node) => `${node.call ? callText(node.call) : node.text}`.slice(0, 400));
  const inside = 13;
  nodes.append("text").attr("class", "what").attr("x", inside).attr("y", 15).text((node) => stepTitle(node, 21));
  const numbers = nodes.append("text").attr("x", inside).attr("y", 30);
  numbers.append("tspan").attr("class", "sign").text((node) => `R ${short(node.value)}`);
  numbers.append("tspan").attr("class", "sign").attr("dx", 9).text((node) => (node.credit ? `A ${short(node.credit.advantage)}` : ""));
  const minor = nodes.append("text").attr("class", "minor").attr("x", inside).attr("y", 43);
  minor.text((node) => [
    node.credit ? `b ${short(node.credit.branch)}  t ${short(node.credit.trajectory)}` : "",
    node.entropy === null ? "" : `H ${short(node.entropy)}`].filter(Boolean).join("  "));

  const badge = (found, name, x, y, text) => {
    const group = found.append("g").attr("class", `badge ${name}`)
      .attr("transform", (node) => `translate(${typeof x === "function" ? x(node) : x},${y})`);
    const width = (node) => 10 + 5.9 * text(node).length;
    group.append("rect").attr("rx", 7).attr("height", 14).attr("width", width);
    group.append("text").attr("x", 5).attr("y", 10.5).text(text);
  };
  badge(nodes.filter((node) => node.criticalOf.length), "critical-badge", -4, -10,
    (node) => `◆ ${node.criticalOf.some((s) => s.exact) ? "critical" : "critical?"} of ${[...new Set(node.criticalOf.map((s) => s.rollout))].join(",")}`);
  badge(nodes.filter((node) => node.wrong && !node.criticalOf.length && node.searched), "wrong-badge", -4, -10, (node) => `first wrong ${node.wrong}`);
  badge(nodes.filter((node) => node.probes.length), "probe-badge", BOX.width - 64, BOX.height - 2,
    (node) => `probe ${node.probes.map((probe) => `${probe.num_successes}/${probe.num_rollouts}`).join(" ")}`);
  const ends = nodes.filter((node) => node.outcome).append("g").attr("class", "end").attr("transform", `translate(${BOX.width + 14},${BOX.height / 2})`);
  ends.append("path").attr("class", ({outcome}) => signOf(outcome.correct, outcome.stop))
    .attr("d", ({outcome}) => SIGNS[signOf(outcome.correct, outcome.stop)]);
  ends.append("text").attr("x", 10).attr("dy", 4).text(({outcome}) => `#${outcome.rollout}`);

  const recolor = (by) => {
    const most = d3.max(tree.nodes, (node) => Math.abs(stepNumber(node, by) ?? 0));
    nodes.each(function paint(node) {
      const [name, share] = tone(stepNumber(node, by), most, by === "entropy");
      this.style.setProperty("--share", share);
      this.setAttribute("class", `node ${name} ${node.criticalOf.length ? "critical" : ""} ${this.classList.contains("selected") ? "selected" : ""}`);
    });
  };
  const fit = () => {
    const {width, height: all} = stage.getBoundingClientRect(), height = all - 36;  // the legend is below
    const whole = Math.min(width / (right + 60), height / (bottom - top + BOX.down + 30));
    const scale = Math.max(Math.min(1.1, whole), 0.08);
    const tx = (width - (right - 60) * scale) / 2, ty = height / 2 - ((top + bottom) / 2) * scale;
    svg.call(zoom.transform, d3.zoomIdentity.translate(Math.max(tx, -60 * scale), ty).scale(scale));
  };
  const center = (id, scale) => {
    const place = places.get(id), {width, height} = stage.getBoundingClientRect();
    const k = scale ?? d3.zoomTransform(svg.node()).k;
    // No emptier than need be: the edges of the tree stay at those of the stage where it is larger.
    const within = (shift, low, high, size) =>
      (high - low < size ? (size - low - high) / 2 : Math.max(size - high, Math.min(-low, shift)));
    const tx = within(width / 2 - (place.y + BOX.width / 2) * k, 60 * k, (right + 20) * k, width);
    const ty = within(height / 2 - place.x * k, (top - BOX.down) * k, (bottom + BOX.down) * k, height);
    svg.call(zoom.transform, d3.zoomIdentity.translate(tx, ty).scale(k));
  };
  const reveal = (id) => {  // moves only where the step is out of sight
    const box = nodes.nodes()[id].getBoundingClientRect(), frame = stage.getBoundingClientRect();
    if (box.left < frame.left || box.right > frame.right || box.top < frame.top || box.bottom > frame.bottom) center(id);
  };
  const select = (id, focus) => {
    nodes.classed("selected", (node) => node.id === id).attr("tabindex", (node) => (node.id === id ? 0 : -1))
      .attr("aria-selected", (node) => String(node.id === id));
    reveal(id);
    if (focus) nodes.nodes()[id].focus({preventScroll: true});
  };
  /** The step that an arrow key leads to from `id`: along the tree, or to the next one of the same depth. */
  const neighbour = (id, key) => {
    const node = tree.nodes[id];
    if (key === "ArrowLeft") return node.parent < 0 ? id : node.parent;
    if (key === "ArrowRight") return tree.children[id][0] ?? id;
    const row = d3.sort(tree.nodes.filter((other) => other.depth === node.depth), (other) => places.get(other.id).x);
    return (row[row.indexOf(node) + (key === "ArrowDown" ? 1 : -1)] ?? node).id;
  };
  stage.replaceChildren(svg.node(), element("div", {class: "zoom"},
    element("button", {type: "button", "aria-label": "Zoom out", onclick: () => svg.call(zoom.scaleBy, 0.8)}, MINUS),
    element("button", {type: "button", "aria-label": "Zoom in", onclick: () => svg.call(zoom.scaleBy, 1.25)}, "+"),
    element("button", {type: "button", onclick: fit}, "Fit")));
  recolor(colorBy);
  const view = {tree, select, recolor, neighbour, fit, center, scale: (by) => svg.call(zoom.scaleBy, by)};
  view.open = (id) => {  // all of a small tree; of a large one the part around the step, readable
    fit();
    const across = stage.getBoundingClientRect().width / (right + 10);
    if (d3.zoomTransform(svg.node()).k < 0.62) center(id, Math.max(0.62, Math.min(0.8, across)));
    select(id);
  };
  return view;
}
