"use strict";
// The signs and number formats that all parts of the page share.

const SVG = "http://www.w3.org/2000/svg";
const SIGNS = {
  solved: "M5,0A5,5,0,1,1,-5,0A5,5,0,1,1,5,0Z",  // a disc
  failed: "M-4.5,-4.5L4.5,4.5M4.5,-4.5L-4.5,4.5",  // a cross
  stopped: "M0,-5.5L5.5,4.5L-5.5,4.5Z",  // a triangle: ended without an answer
  critical: "M0,-7L7,0L0,7L-7,0Z",  // a diamond
};
const STATUS = {
  ok: "ok", program_error: "program error", timeout: "time-out", resource_limit: "limit exceeded",
  malformed_call: "unknown tool", infrastructure_fault: "infrastructure fault",
};
const STOP = {
  answer: "answered", turn_limit: "turn limit", token_limit: "token limit",
  malformed_calls: "malformed calls", fault: "fault",
};

/** The sign of an outcome: solved, failed, or stopped (failed, without an answer). */
const signOf = (correct, stop) => correct ? "solved" : stop === "answer" ? "failed" : "stopped";

function sign(name, x = 7, y = 7) {
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", SIGNS[name]);
  path.setAttribute("class", name === "critical" ? "critical-mark" : name);
  path.setAttribute("transform", `translate(${x},${y})`);
  return path;
}

/** A legend's entry: a small drawing and words. */
function legendEntry(words, ...shapes) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("width", 16);
  svg.setAttribute("height", 14);
  svg.setAttribute("aria-hidden", "true");
  svg.append(...shapes);
  return element("span", {}, svg, words);
}

const MINUS = "\u2212";
const number = (value, digits = 3) =>
  value === null || value === undefined ? "–" : d3.format(`,.${digits}~r`)(value).replace("-", MINUS);
const count = (value) =>
  value === null || value === undefined ? "–"
    : Math.abs(value) < 10000 ? d3.format(",.4~r")(value) : d3.format(".3~s")(value).replace("G", "B");
const percent = (value) =>
  value === null || value === undefined || Number.isNaN(value) ? "–" : d3.format(".1~%")(value);
/** Three decimals; what rounds to zero has no sign. */
const fixed = (value) =>
  value === null || value === undefined ? "–" : ((Math.round(value * 1000) / 1000) || 0).toFixed(3).replace("-", MINUS);
const short = (value) =>
  value === null || value === undefined ? "–" : ((Math.round(value * 100) / 100) || 0).toFixed(2).replace("-", MINUS);
function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 100) return `${number(seconds)} s`;
  if (seconds < 6000) return `${number(seconds / 60)} min`;
  return `${number(seconds / 3600)} h`;
}
const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/** One line of at most `length` characters, its middle left out. */
function excerpt(text, length) {
  const line = text.trim().replace(/\s*\n\s*/g, " ⏎ ");
  const letters = [...line];
  if (letters.length <= length) return line;
  const half = Math.floor((length - 1) / 2);
  return `${letters.slice(0, length - 1 - half).join("")}…${letters.slice(-half).join("")}`;
}
