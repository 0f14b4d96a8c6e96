"use strict";
// Learning curves: one chart a panel, one line a group of runs, with its spread.

const CURVES = [
  {title: "Held-out success", phase: "evaluation", lines: [["success/heldout"]], zero: true},
  {title: "Held-out success for rollouts spent", phase: "evaluation", lines: [["success/heldout"]], zero: true, x: "rollouts"},
  {title: "Success of training rollouts", lines: [["success/train"]], zero: true},
  {title: "Mean reward", lines: [["reward/mean"]]},
  {title: "Entropy of sampled tokens (nats)", lines: [["entropy/mean"]], zero: true},
  {title: "Share of tokens clipped", lines: [["clip/low_share", "low"], ["clip/high_share", "high"]], zero: true},
  {title: "Share of tokens under the relaxed bound", lines: [["clip/elc_share"]], zero: true},
  {title: "KL to the behaviour policy (nats)", lines: [["kl/approx"]], zero: true},
  {title: "KL to the policy RL began with (nats)", lines: [["kl/reference"]], zero: true},
  {title: "Gradient norm", lines: [["grad/norm"]], zero: true},
  {title: "Trees without a gradient", lines: [["trees/all_failed_share", "all failed"], ["trees/all_solved_share", "all solved"]], zero: true},
  {title: "Tokens per rollout", lines: [["tokens/sampled", "sampled"], ["tokens/feedback", "feedback"]], per: "rollouts/total", zero: true},
  {title: "Turns per rollout", lines: [["turns/mean"]], zero: true},
  {title: "Cold start: loss", phase: "sft", lines: [["loss"]], zero: true},
];
const LOCALIZATION_CURVES = [
  {title: "Searches per step", lines: [["localization/searches"]], zero: true},
  {title: "Searches that finished", lines: [["localization/finished_share"]], zero: true},
  {title: "Step number of critical steps", lines: [["localization/step_mean"]], zero: true},
];
const TOOL_CURVES = [
  {title: "Tool calls per rollout", lines: [["tool/calls"]], per: "rollouts/total", zero: true},
  {title: "Calls that failed", lines: [["tool/failed_share"]], zero: true},
  {title: "Seconds of tools per call", lines: [["tool/seconds"]], per: "tool/calls", zero: true},
];
const BUDGET_CURVES = [
  {title: "Seconds per step", lines: [["time/rollout", "rollouts"], ["time/train", "training"]], zero: true},
  {title: "Share of slots that decode", lines: [["engine/occupancy"]], zero: true},
];
const SYMBOLS = ["circle", "square", "triangle", "diamond", "star", "cross", "wye"];
const DASHES = ["", "6 3", "2 3", "8 3 2 3"];

/** Points {x, y} of a metric in one run; `per` divides by another metric. */
function points(run, phase, name, per, x) {
  const columns = run.metrics[phase];
  if (columns === undefined || columns[name] === undefined) return [];
  const found = [];
  columns[name].forEach((value, i) => {
    const by = per ? columns[per]?.[i] : 1;
    if (value === null || value === undefined || !by) return;
    const error = columns[`${name}_standard_error`]?.[i];
    found.push({x: columns.step[i], y: value / by, error: error ?? null});
  });
  found.sort((a, b) => a.x - b.x);
  if (x !== "rollouts") return found;
  const rollouts = run.metrics.rl["rollouts/total"] ?? [];
  return found.map((point) =>
    ({...point, x: d3.sum(rollouts.filter((_, i) => run.metrics.rl.step[i] <= point.x))}));
}

/** The sign of a group's line. */
function symbolOf({color, symbol}) {
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", d3.symbol(d3[`symbol${symbol[0].toUpperCase()}${symbol.slice(1)}`], 60)());
  path.setAttribute("transform", "translate(8,7)");
  path.style.fill = color;
  return path;
}

/** A line with its spread from the points of the runs of one group. */
function lineOf(runs) {
  if (runs.length > 1) {  // runs that differ in their seed: mean, and least to most
    const steps = d3.rollups(runs.flat(), (at) => at, (point) => point.x).filter(([, at]) => at.length > 1);
    return d3.sort(steps.map(([x, at]) =>
      ({x, y: d3.mean(at, (p) => p.y), low: d3.min(at, (p) => p.y), high: d3.max(at, (p) => p.y)})), (p) => p.x);
  }
  const [all] = runs;
  if (all.some((point) => point.error !== null)) {
    return all.map((p) => ({...p, low: p.y - 1.96 * p.error, high: p.y + 1.96 * p.error}));
  }
  const window = Math.min(25, 2 * Math.floor(all.length / 16) + 1);
  if (window < 3) return all;
  return all.map((point, i) => {
    const near = all.slice(Math.max(0, i - (window - 1) / 2), i + (window + 1) / 2).map((p) => p.y);
    const y = d3.mean(near), spread = d3.deviation(near) ?? 0;
    return {x: point.x, y, low: y - spread, high: y + spread, raw: point.y};
  });
}

/** A point whose band does not leave what the metric can be. */
function possible(point, name, zero) {
  if (point.low === undefined) return point;
  const most = name.startsWith("success/") || name.endsWith("_share") ? 1 : Infinity;
  return {...point, low: zero ? Math.max(0, point.low) : point.low, high: Math.min(most, point.high)};
}

/** The groups of runs: those that differ in nothing but where they are and their seed. */
function groupsOf(index) {
  return d3.groups(index.runs, (run) => run.group).map(([, runs], i) => ({
    runs,
    color: `var(--run-${i % SYMBOLS.length})`,
    symbol: SYMBOLS[i % SYMBOLS.length],
    name: runs.length > 1 ? `${runs[0].algorithm}, ${runs.length} seeds (${runs[0].name}, …)` : runs[0].name,
  }));
}

/** A figure of one panel, or null where no run recorded it. */
function curve(groups, panel) {
  const phase = panel.phase ?? "rl";
  const drawn = [];
  groups.forEach((group) => panel.lines.forEach(([name, label], i) => {
    const runs = group.runs.map((run) => points(run, phase, name, panel.per, panel.x)).filter((all) => all.length);
    if (runs.length) drawn.push({group, label, dash: DASHES[i], points: lineOf(runs).map((p) => possible(p, name, panel.zero))});
  }));
  if (!drawn.length) return null;
  const marks = drawn.flatMap(({group, label, dash, points: line}) => {
    const title = (p) => [
      [groups.length > 1 ? group.name : "", label ?? ""].filter(Boolean).join(", "),
      `${panel.x === "rollouts" ? "rollouts" : "step"} ${count(p.x)}: ${number(p.y, 4)}`,
      p.low === undefined ? "" : `${number(p.low)} to ${number(p.high)}`,
    ].filter(Boolean).join("\n");
    return [
      Plot.areaY(line.filter((p) => p.low !== undefined), {x: "x", y1: "low", y2: "high", fill: group.color, fillOpacity: 0.18}),
      line.some((p) => p.raw !== undefined)
        ? Plot.dot(line, {x: "x", y: "raw", r: 1.2, fill: group.color, fillOpacity: 0.45}) : null,
      Plot.lineY(line, {x: "x", y: "y", stroke: group.color, strokeWidth: 2, strokeDasharray: dash}),
      groups.length > 1 || line[0].raw === undefined  // a symbol of its own for each line, some ten on each
        ? Plot.dot(line.filter((_, i) => i % Math.ceil(line.length / 12) === 0),
          {x: "x", y: "y", r: groups.length > 1 ? 3.2 : 2.5, fill: group.color, symbol: group.symbol}) : null,
      Plot.tip(line, Plot.pointer({x: "x", y: "y", title})),
    ];
  });
  const words = panel.lines.filter(([, label]) => label).map(([, label], i) => `${label} ${["———", "– – –", "· · ·"][i]}`);
  const xLabel = panel.x === "rollouts" ? "training rollouts" : phase === "sft" ? "update" : "RL step";
  return figure(panel.title, words.join("   "), {
    x: {label: xLabel, tickFormat: (value) => (Number.isInteger(value) ? shortTick(value) : "")}, y: {label: null, grid: true, nice: true, zero: panel.zero, tickFormat: shortTick}, marks,
  }, panel.lines.map(([name]) => name).join(", "));
}

const shortTick = (value) => Math.abs(value) >= 10000 ? d3.format("~s")(value) : d3.format(".3~r")(value).replace("-", MINUS);

/** A captioned chart. `names` are the metrics of the glossary it shows. */
function figure(title, words, options, names = "") {
  const caption = element("figcaption", {}, title, names && element("code", {}, names), words && element("small", {}, words));
  const chart = Plot.plot({
    width: 420, height: 220, marginLeft: 48, marginRight: 12, marginBottom: 34, marginTop: 12, style: {fontSize: "11.5px"},
    ariaLabel: title, ...options,
  });
  return element("figure", {class: "chart"}, caption, chart);
}

function fill(id, figures, nothing) {
  const found = figures.filter(Boolean);
  byId(id).replaceChildren(...(found.length ? found : nothing ? [element("p", {class: "empty"}, nothing)] : []));
}

function showCurves(index) {
  const groups = groupsOf(index);
  const several = groups.some((group) => group.runs.length > 1);
  byId("curves-note").textContent = (several
    ? "Runs that differ only in their seed are one line, their mean; the band is from the least to the most. "
    : "") + "The band of held-out success is its 95 % interval over problems. Of a single run the other lines are "
    + "moving means of the dots, with one standard deviation of the dots around them.";
  byId("curves-legend").replaceChildren(...(groups.length < 2 ? [] : groups.map((group) =>
    legendEntry(group.name, symbolOf(group)))));
  fill("charts", CURVES.map((panel) => curve(groups, panel)), "No metrics yet.");
  fill("budget-charts", BUDGET_CURVES.map((panel) => curve(groups, panel)));
  return groups;
}
