"use strict";
// Where documents come from: blocks inside the page, or the server the page came from.

const embedded = new Map(
  [...document.querySelectorAll("script[data-name]")].map((block) => [block.dataset.name, block]));
const isLive = embedded.size === 0;

/** A document by its name: "index", or the key of a tree. */
async function load(name) {
  const block = embedded.get(name);
  if (block === undefined) return fetched(name);
  const bytes = Uint8Array.from(atob(block.textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

async function fetched(name) {
  if (!isLive) throw new Error(`this page has no ${name}`);
  const answer = await fetch(`data/${encodeURIComponent(name)}`, {cache: "no-cache"});
  if (!answer.ok) throw new Error((await answer.text()).slice(0, 300) || answer.statusText);
  return answer.json();
}

/** An element with properties and children. Strings become text, never markup. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const byId = (id) => document.getElementById(id);
