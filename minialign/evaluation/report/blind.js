"use strict";
// Votes are kept in this browser after each key press. Texts are set as text and never as markup.
const at = id => document.getElementById(id);
const content = JSON.parse(at("content").textContent);
const pairs = content.pairs;
const place = `minialign-blind-${content.page}`;
const choices = ["left", "right", "neither"];
const keys = {
  ArrowLeft: "left", a: "left", 1: "left", ArrowRight: "right", b: "right", 2: "right",
  ArrowDown: "neither", n: "neither", 0: "neither",
};
// [pair, vote] in the order in which they were cast.
let state = { cast: content.cast, revealed: false };
let atEnd = false;

const warn = text => { at("warning").textContent = text; at("warning").hidden = !text; };

function recall() {
  try {
    const kept = JSON.parse(localStorage.getItem(place));
    const good = kept && Array.isArray(kept.cast) && kept.cast.every(
      ([pair, vote]) => pairs[pair] && choices.includes(vote));
    if (good && kept.cast.length >= state.cast.length) state = kept;
  } catch { /* nothing was kept, or nothing can be: keep() says so */ }
}

function keep() {
  try {
    localStorage.setItem(place, JSON.stringify(state));
  } catch {
    warn("This browser forgets when the page is closed: save your votes before.");
  }
  if (content.live) send();
}

async function send() {
  try {
    const answer = await fetch(location.pathname, { method: "POST", body: lines() });
    warn(answer.ok ? "" : `The server did not save: ${await answer.text()}`);
  } catch {
    warn("The server is gone: your votes are kept in this browser; save them as a file.");
  }
}

const opened = () => JSON.parse(new TextDecoder().decode(
  Uint8Array.from(atob(content.key), letter => letter.charCodeAt(0))));

// The file: a vote a line, in the order of the pairs, with who wrote what.
function lines() {
  const { by } = opened();
  const side = (pair, name, place) => (
    { by: by[pair][place][0], text: pairs[pair][name], finish_reason: by[pair][place][1] });
  return [...state.cast].sort((a, b) => a[0] - b[0]).map(([pair, vote]) => JSON.stringify({
    page: content.page, pair, messages: pairs[pair].messages,
    left: side(pair, "left", 0), right: side(pair, "right", 1), vote,
  }) + "\n").join("");
}

function cast(vote) {
  if (atEnd || state.revealed) return;
  state.cast.push([current(), vote]);
  keep();
  atEnd = state.cast.length === pairs.length;
  show(true);
}

function undo() {
  if (state.revealed || !state.cast.length) return;
  state.cast.pop();
  atEnd = false;
  keep();
  show(true);
}

function current() {
  const done = new Set(state.cast.map(([pair]) => pair));
  return pairs.findIndex((_, pair) => !done.has(pair));
}

function show(isNew) {
  const count = state.cast.length;
  const voting = !atEnd && !state.revealed;
  at("count").textContent = `${count} of ${pairs.length}`;
  at("progress").value = count;
  at("undo").disabled = !count || state.revealed;
  at("finish").disabled = !count;
  at("finish").hidden = !voting;
  for (const [id, seen] of [["vote", voting], ["choices", voting], ["end", !voting]])
    at(id).hidden = !seen;
  (voting ? showPair : showEnd)();
  if (!isNew) return;
  scrollTo(0, 0);
  const drawn = document.querySelector(".pair");
  drawn.classList.remove("next");
  void drawn.offsetWidth;
  drawn.classList.add("next");
}

function showPair() {
  const pair = pairs[current()];
  const earlier = pair.messages.slice(0, -1).map(m => `${m.role}: ${m.content}`).join("\n\n");
  at("before").hidden = !earlier;
  at("before").lastChild.textContent = earlier;
  at("prompt").textContent = pair.messages.at(-1).content;
  at("left").textContent = pair.left;
  at("right").textContent = pair.right;
}

function showEnd() {
  const left = pairs.length - state.cast.length;
  at("thanks").textContent = left ? `${state.cast.length} votes so far` : "That was the last pair";
  at("back").hidden = !left || state.revealed;
  at("command").textContent = content.command;
  at("reveal").hidden = at("hint").hidden = state.revealed;
  at("tally").replaceChildren(...(state.revealed ? tally() : []));
}

// Counts alone: how sure they are is for evaluate.py to say.
function tally() {
  const { by, titles } = opened();
  return Object.keys(titles).map(name => {
    const own = state.cast.filter(([pair]) => by[pair].some(([who]) => who === name));
    const won = own.filter(([pair, vote]) =>
      vote !== "neither" && by[pair][vote === "left" ? 0 : 1][0] === name).length;
    const ties = own.filter(([, vote]) => vote === "neither").length;
    const row = document.createElement("p");
    const cells = ["b", "span", "i"].map(tag => document.createElement(tag));
    cells[0].textContent = titles[name];
    cells[1].textContent = `chosen ${won} of ${own.length}${ties ? `, ${ties} for neither` : ""}`;
    cells[2].style.setProperty("--share", `${100 * won / Math.max(1, own.length)}%`);
    row.append(...cells);
    return row;
  });
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines()], { type: "application/jsonl" }));
  link.download = "votes.jsonl";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  at("saved").textContent = "Saved as votes.jsonl, where this browser puts what it saves.";
}

async function copy() {
  try {
    await navigator.clipboard.writeText(lines());
    at("saved").textContent = "Copied: paste it into a file called votes.jsonl.";
  } catch {
    at("saved").textContent = "This browser does not let a page copy: save the file.";
  }
}

addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (keys[key] && !at("vote").hidden) {
    event.preventDefault();
    cast(keys[key]);
  } else if (key === "z" || key === "Backspace") {
    event.preventDefault();
    undo();
  }
});
for (const button of document.querySelectorAll("[data-vote]"))
  button.addEventListener("click", () => cast(button.dataset.vote));
const tools = {
  undo, save, copy,
  finish: () => { atEnd = true; show(true); },
  back: () => { atEnd = false; show(true); },
  reveal: () => { state.revealed = true; keep(); show(false); },
};
for (const [id, action] of Object.entries(tools)) at(id).addEventListener("click", action);

recall();
atEnd = state.cast.length === pairs.length;
show(false);
