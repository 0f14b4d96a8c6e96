"use strict";
// A step in full: its numbers and marks, thought, code, output, and every token in colour.

const TOKEN_COLORS = {
  advantage: "advantage", low: "lower clip bound", entropy: "entropy", probability: "probability", none: "nothing",
};

function numbersOf(tree, node) {
  const {credit} = node;
  const rows = [
    ["reward R", fixed(node.value)],
    ["advantage A", credit && fixed(credit.advantage)], ["branch", credit && fixed(credit.branch)],
    ["trajectory", credit && fixed(credit.trajectory)],
    ["clip range", credit && `${number(credit.low, 4)} to ${number(credit.high, 4)}`],
    ["entropy", node.entropy === null ? null : `${number(node.entropy)} nats`],
    ["sampled tokens", `${node.num_sampled} of ${node.num_tokens}`],
    ["rollouts", node.rollouts],
  ].filter(([, text]) => text !== null);
  return element("dl", {class: "numbers"}, ...rows.map(([name, text]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, text))));
}

function marksOf(tree, node) {
  const marks = [];
  for (const search of node.criticalOf) {
    marks.push(["critical", search.exact ? `◆ critical step of rollout ${search.rollout}` : `◆ critical step of rollout ${search.rollout}? The budget ended first`]);
  }
  if (node.wrong) marks.push(["bad", `first wrong step of ${node.wrong}`]);
  for (const probe of node.probes) marks.push(["probe", `probed: ${probe.num_successes} of ${probe.num_rollouts} suffixes succeeded`]);
  if (node.searched) marks.push(["critical", "┅ on a searched path"]);
  if (node.relaxed) marks.push(["critical", `▨ lower bound relaxed to ${number(node.credit.low, 4)}`]);
  if (node.outcome) {
    const {correct, stop, reward, rollout} = node.outcome;
    marks.push([correct ? "good" : "bad", `${correct ? "●" : stop === "answer" ? "✕" : "▲"} rollout ${rollout} ${correct ? "solved" : "failed"}, ${STOP[stop] ?? stop}, reward ${number(reward)}`]);
  }
  return element("ul", {class: "marks"}, ...marks.map(([kind, text]) => element("li", {class: `tone-${kind}`}, text)));
}

/** What the model wrote before its call. */
function thoughtOf(node) {
  const at = node.call === null ? -1 : node.text.indexOf("<tool_call>");
  return (at < 0 ? node.text : node.text.slice(0, at)).trim();
}

function callOf(call) {
  const entries = Object.entries(call.arguments);
  if (entries.length === 1 && typeof entries[0][1] === "string") return entries[0][1];
  return JSON.stringify(call.arguments, null, 2);
}

/** The tokens of a step, coloured by one of `TOKEN_COLORS`. Feedback is never trained on and has no colour. */
function tokensOf(tree, node, by) {
  const {texts, sampled, logprobs, entropies} = node.tokens;
  const most = {advantage: d3.max(tree.nodes, (n) => Math.abs(n.credit?.advantage ?? 0)), entropy: Math.log(4)}[by];
  return element("pre", {class: "tokens", "data-by": by}, ...texts.map((text, i) => {
    if (!sampled[i]) return element("span", {class: "token feedback", title: "not sampled, not trained on"}, text);
    let painted = ["", "0%"];
    if (by === "advantage") painted = tone(node.credit?.advantage, most, false);
    if (by === "low") painted = node.relaxed ? ["heat", "55%"] : ["", "0%"];
    if (by === "entropy") painted = tone(entropies[i], most, true);
    if (by === "probability") painted = tone(1 - Math.exp(logprobs[i]), 1, true);
    const title = [
      `probability ${number(Math.exp(logprobs[i]))}`, `entropy ${number(entropies[i])} nats`,
      node.credit && `advantage ${fixed(node.credit.advantage)}`,
      node.credit && `ratio kept within ${number(node.credit.low, 4)} to ${number(node.credit.high, 4)}`,
    ].filter(Boolean).join("\n");
    return element("span", {class: `token ${painted[0]} ${node.relaxed ? "wide" : ""}`, style: `--share:${painted[1]}`, title}, text);
  }));
}

const TOKEN_WORDS = {
  advantage: "blue: sampled more often from now on; orange: less often", low: "coloured: the relaxed bound",
  entropy: "full colour from 1.4 nats on", probability: "full colour: unlikely", none: "",
};

/** The details of a step. */
function stepDetails(tree, node, tokensBy) {
  const parts = [
    element("h3", {}, `Step ${node.depth}`, node.outcome ? ", the last" : ""),
    numbersOf(tree, node), marksOf(tree, node),
  ];
  if (tree.confidential) {
    parts.push(element("p", {class: "empty", style: "margin-top:1rem"}, "The problem is confidential: no text of it is stored."));
    return parts;
  }
  const thought = thoughtOf(node);
  if (thought) parts.push(element("h4", {}, node.call ? "Thought" : "Answer"), element("pre", {class: "thought"}, thought));
  if (node.call) parts.push(element("h4", {}, `Call of ${node.call.name}`), element("pre", {class: "code"}, callOf(node.call)));
  if (node.result) {
    const {status, output, seconds} = node.result;
    parts.push(
      element("h4", {}, "Output", element("span", {class: `status ${status === "ok" ? "tone-good" : "tone-bad"}`},
        STATUS[status] ?? status), element("small", {}, duration(seconds))),
      element("pre", {class: `output ${status === "ok" ? "" : "went-wrong"}`}, output || "(nothing)"));
  }
  if (node.outcome && node.outcome.answer !== null) {
    parts.push(element("h4", {}, "Graded answer"),
      element("pre", {class: "answer"}, `${node.outcome.answer}\n(right: ${tree.problem.answer})`));
  }
  parts.push(element("h4", {}, "Tokens", element("span", {}, TOKEN_WORDS[tokensBy])));
  parts.push(node.tokens.texts
    ? tokensOf(tree, node, tokensBy)
    : element("p", {class: "empty"}, "The run has no tokenizer, so its tokens cannot be told apart."));
  return parts;
}
