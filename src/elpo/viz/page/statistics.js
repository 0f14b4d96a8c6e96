"use strict";
// What the run adds up to: tiles, the ledger of what was spent, searches, tools.

const total = (run, phase, name) => d3.sum(run.metrics[phase]?.[name] ?? []);
const totalOver = (index, phase, name) => d3.sum(index.runs, (run) => total(run, phase, name));
const last = (values) => values?.length ? values[values.length - 1] : null;

function tile(name, value, ...words) {
  return element("dl", {class: "tile"}, element("dt", {}, name),
    element("dd", {}, value, ...words.filter(Boolean).map((text) => element("small", {}, text))));
}

function successOfRun({metrics: {evaluation}}) {
  const values = evaluation["success/heldout"] ?? [], error = last(evaluation["success/heldout_standard_error"]);
  return tile("Held-out success", percent(last(values)),
    values.length > 1 ? `from ${percent(values[0])}, best ${percent(d3.max(values))}` : null,
    error ? `± ${percent(1.96 * error)} (95 % interval)` : null);
}

function successOfGroup({name, runs}) {
  const after = runs.map((run) => last(run.metrics.evaluation["success/heldout"])).filter((value) => value !== null);
  return tile("Held-out success", percent(d3.mean(after)), name, after.length > 1 ? `${percent(d3.min(after))} to ${percent(d3.max(after))}` : null);
}

function showOverview(index) {
  const run = index.runs[0], rl = run.metrics.rl;
  const steps = last(rl.step) ?? 0;
  const seconds = d3.sum(["sft", "rl", "evaluation"], (phase) => totalOver(index, phase, "time/total"));
  const rollouts = totalOver(index, "rl", "rollouts/total");
  byId("title").textContent = index.runs.map((each) => each.name).join(", ");
  byId("subtitle").textContent = [...new Set(index.runs.map((each) => `${each.algorithm} on ${each.task}, ${each.model}`))].join("; ");
  const notes = index.runs.filter((each) => each.error).map((each) =>
    tile(`${each.name} ended with an error`, "✕", each.error));
  byId("tiles").replaceChildren(
    ...notes,
    ...(index.runs.length > 1 ? groupsOf(index).map(successOfGroup) : [successOfRun(run)]),
    tile("RL steps", `${count(steps)} of ${count(run.num_steps.rl)}`,
      run.num_steps.sft ? `after ${plural(last(run.metrics.sft.step) ?? 0, "update")} of cold start` : null),
    tile("Training rollouts", count(rollouts), `${run.rollouts_per_problem} for each problem`,
      `${count(totalOver(index, "rl", "faults/count"))} lost to faults`),
    tile("Sampled tokens", count(totalOver(index, "rl", "tokens/sampled")),
      `${count(totalOver(index, "rl", "tokens/sampled") / (rollouts || 1))} per rollout`),
    tile("Tool calls", count(totalOver(index, "rl", "tool/calls"))),
    tile("Searches", count(totalOver(index, "rl", "localization/searches"))),
    tile("Time", duration(seconds), index.runs.length > 1 ? "of all runs together" : null),
    tile("Saved trees", count(index.trees.length)),
  );
}

function table(head, rows) {
  return element("div", {class: "scroll", tabindex: 0}, element("table", {},
    element("thead", {}, element("tr", {}, ...head.map((text) => element("th", {scope: "col"}, text)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {class: row[0] === "all" ? "total" : null},
      element("th", {scope: "row"}, row[0]), ...row.slice(1).map((text) => element("td", {}, text)))))));
}

function showLedger(index) {
  const columns = [
    ["rollouts", "rollouts/total", count], ["lost", "faults/count", count], ["sampled tokens", "tokens/sampled", count],
    ["feedback tokens", "tokens/feedback", count], ["tool calls", "tool/calls", count], ["tool time", "tool/seconds", duration],
    ["rollout time", "time/rollout", duration], ["training time", "time/train", duration], ["total time", "time/total", duration],
  ];
  const phases = [["cold start", "sft"], ["RL", "rl"], ["evaluation", "evaluation"]];
  const rows = [];
  for (const run of index.runs) {
    for (const [name, phase] of phases) {
      const steps = run.metrics[phase]?.step ?? [];
      if (!steps.length) continue;
      const title = index.runs.length > 1 ? `${run.name}: ${name}` : name;
      rows.push([title, count(steps.length), ...columns.map(([, metric, format]) =>
        run.metrics[phase][metric] ? format(total(run, phase, metric)) : "–")]);
    }
  }
  const sums = columns.map(([, metric, format]) =>
    format(d3.sum(phases, ([, phase]) => totalOver(index, phase, metric))));
  rows.push(["all", "", ...sums]);
  byId("ledger").replaceChildren(table(["phase", "steps", ...columns.map(([name]) => name)], rows));
}

function histogram(title, words, rows, x, series) {
  if (!rows.length) return null;
  return figure(title, words, {
    x: {label: x, type: "band", domain: d3.range(d3.min(rows, (r) => r.x), d3.max(rows, (r) => r.x) + 1), tickFormat: (v) => (d3.max(rows, (r) => r.x) > 20 && v % 5 ? "" : v)},
    y: {label: null, grid: true},
    marks: [
      Plot.rectY(rows, Plot.stackY({x: "x", y: "y", fill: "color", stroke: "var(--panel)", order: series, tip: true,
        title: (row) => `${x} ${row.x}\n${row.name}: ${count(row.y)}`})),
      Plot.ruleY([0]),
    ],
  });
}

/** Rows {x, y, name, color} that count values. */
const tally = (values, name, color) =>
  d3.rollups(values, (at) => at.length, (value) => value).map(([x, y]) => ({x, y, name, color}));

function showLocalization(index, groups) {
  const searches = index.trees.flatMap((tree) => tree.statistics.searches);
  const started = totalOver(index, "rl", "localization/searches");
  if (!started && !searches.length) {
    byId("localization-tiles").replaceChildren();
    return fill("localization-charts", [], "No searches: the algorithm has none, or no step is done yet.");
  }
  let finished = 0, weighed = 0;
  for (const {metrics: {rl}} of index.runs) {
    (rl["localization/finished_share"] ?? []).forEach((share, i) => {
      if (share === null) return;
      finished += share * rl["localization/searches"][i];
      weighed += rl["localization/searches"][i];
    });
  }
  const probes = searches.flatMap((search) => search.probes);
  const drawn = d3.sum(probes, (probe) => probe[1]);
  byId("localization-tiles").replaceChildren(
    tile("Searches in training", count(started), weighed ? `${percent(finished / weighed)} ended before the budget did` : null),
    tile("Searches in saved trees", count(searches.length), `${count(searches.filter((s) => s.exact && s.critical).length)} found a step`),
    tile("Probes per search", searches.length ? number(probes.length / searches.length) : "–", `${number(drawn / (probes.length || 1))} suffixes each`),
    tile("Probes with a success", percent(d3.mean(probes, (probe) => +(probe[2] > 0))), "from there the problem can still be solved"),
    tile("Searched rollouts", searches.length ? `${number(d3.mean(searches, (s) => s.length))} steps` : "–", "mean length"),
  );
  const exact = searches.filter((s) => s.critical && s.exact).map((s) => s.critical);
  const open = searches.filter((s) => s.critical && !s.exact).map((s) => s.critical);
  const recovered = probes.filter((p) => p[2] > 0).map((p) => p[0]), dead = probes.filter((p) => p[2] === 0).map((p) => p[0]);
  fill("localization-charts", [
    histogram("Where the critical step is", "saved trees; ◆ found" + (open.length ? ", lighter: budget ended first" : ""), [
      ...tally(exact, "found", "var(--critical)"),
      ...tally(open, "budget ended first", "color-mix(in oklab, var(--critical) 40%, var(--panel))")], "step"),
    histogram("Probes by the step they start after", "saved trees; blue: a suffix succeeded, orange: none did", [
      ...tally(recovered, "a suffix succeeded", "var(--good)"), ...tally(dead, "none succeeded", "var(--bad)")], "step"),
    histogram("Probes per search", "saved trees", tally(searches.map((s) => s.probes.length), "searches", "var(--probe)"), "probes"),
    ...LOCALIZATION_CURVES.map((panel) => curve(groups, panel)),
  ]);
}

function showTools(index, groups) {
  const tools = new Map();
  for (const {statistics} of index.trees) {
    for (const [name, {statuses, seconds}] of Object.entries(statistics.tools)) {
      if (!tools.has(name)) tools.set(name, {statuses: {}, seconds: []});
      const entry = tools.get(name);
      entry.seconds.push(...seconds);
      for (const [status, n] of Object.entries(statuses)) entry.statuses[status] = (entry.statuses[status] ?? 0) + n;
    }
  }
  const known = Object.keys(STATUS).filter((status) => status === "ok" || [...tools.values()].some((t) => t.statuses[status]));
  const rows = [...tools].map(([name, {statuses, seconds}]) => [
    name, count(seconds.length), ...known.map((status) => `${count(statuses[status] ?? 0)} (${percent((statuses[status] ?? 0) / seconds.length)})`),
    duration(d3.mean(seconds)), duration(d3.quantile(seconds, 0.95)), duration(d3.max(seconds))]);
  byId("tool-table").replaceChildren(rows.length
    ? table(["in saved trees", "calls", ...known.map((status) => STATUS[status]), "mean", "95 % within", "longest"], rows)
    : element("p", {class: "empty"}, "No tool calls in saved trees."));
  const calls = index.trees.flatMap((tree) => tree.statistics.calls);
  fill("tool-charts", [
    histogram("Calls in a rollout", "saved trees; blue: solved, orange: failed", [
      ...tally(calls.filter((c) => c[1]).map((c) => c[0]), "solved", "var(--good)"),
      ...tally(calls.filter((c) => !c[1]).map((c) => c[0]), "failed", "var(--bad)")], "calls"),
    ...TOOL_CURVES.map((panel) => curve(groups, panel)),
  ]);
}
