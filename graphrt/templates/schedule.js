"use strict";

// The page itself: the data, what stands in a block, the drawing, and the tools above it.

// The data: tensors in execution order (leafs first); splits and copies name them by number.
const data = JSON.parse(document.getElementById("data").textContent);
const tensors = data.tensors;
const readers = tensors.map(() => []);
tensors.forEach((tensor, id) => tensor.sources.forEach((source) => readers[source].push(id)));

const OPEN_AT_FIRST = 160; // nodes up to which everything is drawn at once
const $ = (id) => document.getElementById(id);

// -- small helpers ----------------------------------------------------------------------------------------------------

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "colour") made.style.setProperty("--c", value);
    else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  while (count >= 1024 && power < units.length - 1) { count /= 1024; power += 1; }
  return `${power === 0 || count >= 100 ? Math.round(count).toLocaleString("en") : count.toFixed(1)} ${units[power]}`;
}

const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const shape = (tensor) => `${tensor.dtype} [${tensor.shape.join(", ")}]`;
const isView = (tensor) => tensor.op !== null && tensor.reason === null;
const isWeight = (id) => tensors[id].role === "weight";
const stageName = (stage) => (typeof stage === "number" ? `layer ${stage}` : stage);

// A colour for each backend that is used, in the order in which they are listed; the last ones for memories' own.
const used = new Set(data.splits.map((split) => split.backend).concat(tensors.map((tensor) => tensor.backend)));
const colours = new Map(
  data.backends.filter((backend) => used.has(backend.name)).map((backend, i) => [backend.name, `var(--backend-${i % 6})`]),
);
const colour = (backend) => colours.get(backend) ?? "var(--other)";

// -- blocks: the nodes of one stage (a layer, or what comes before, after or between) in one split --------------------

const layered = tensors.flatMap((tensor, id) => (tensor.op !== null && tensor.layer !== null ? [id] : []));

function stageOf(id) {
  if (tensors[id].layer !== null) return tensors[id].layer;
  if (!layered.length) return "all nodes";
  if (id < layered[0]) return "input";
  return id > layered.at(-1) ? "output" : "shared";
}

const blocks = [];
const blockOf = new Map();
const splitBlocks = data.splits.map(() => new Map());
tensors.forEach((tensor, id) => {
  if (tensor.op === null || tensor.split === null) return;
  const byStage = splitBlocks[tensor.split];
  const stage = stageOf(id);
  if (!byStage.has(stage)) byStage.set(stage, { split: tensor.split, stage, ids: [], open: false });
  byStage.get(stage).ids.push(id);
});
splitBlocks.forEach((byStage) => byStage.forEach((block) => {
  blocks.push(block);
  block.ids.forEach((id) => blockOf.set(id, block));
}));

let showViews = false;
let selected = null;
let matches = [];

// -- what stands in a block ------------------------------------------------------------------------------------------

const pen = document.createElement("canvas").getContext("2d");
const style = getComputedStyle(document.documentElement);
const MONO = style.getPropertyValue("--mono");
const widths = new Map();

function textWidth(text, font) {
  const key = font + text;
  if (!widths.has(key)) {
    pen.font = `${font} ${MONO}`;
    widths.set(key, pen.measureText(text).width);
  }
  return widths.get(key);
}

const HEAD_HEIGHT = 32;
const CANVAS_MARGIN = 18;

/** A node's sources as drawn: while views are hidden, what they are views of. */
function sourcesOf(id) {
  return [...new Set(tensors[id].sources.map((source) => (showViews ? source : valueOf(source))))];
}

/** What a view is a view of, else the tensor itself. */
function valueOf(id) {
  return isView(tensors[id]) ? valueOf(tensors[id].sources[0]) : id;
}

/** What is drawn in a block: its nodes, and a port for each source from outside; weights are written on their nodes. */
function itemsOf(block) {
  const items = new Map();
  const drawn = block.ids.filter((id) => showViews || !isView(tensors[id]));
  const copied = copiesInto(block.split);
  for (const id of drawn) items.set(id, nodeItem(id));
  for (const id of drawn) {
    for (const source of sourcesOf(id)) {
      if (isWeight(source)) continue;
      if (!items.has(source)) items.set(source, portItem(source, copied.get(valueOf(source))));
      items.get(id).sources.push(items.get(source));
    }
  }
  return [...items.values()];
}

function copiesInto(split) {
  const found = new Map();
  const memory = data.backends.find((backend) => backend.name === data.splits[split].backend).memory;
  for (let before = 0; before <= split; before += 1) {
    for (const copy of data.splits[before].copies) if (copy.to === memory) found.set(copy.tensor, copy);
  }
  return found;
}

function nodeItem(id) {
  const tensor = tensors[id];
  const view = isView(tensor);
  const lines = view ? [] : [`${tensor.op} → ${shape(tensor)}`];
  const weights = sourcesOf(id).filter(isWeight).map((source) => tensors[source]);
  const weightLines = weights.map((weight) => `${weight.name} ${shape(weight)} ${bytes(weight.nbytes)}`);
  const weightColours = weights.map((weight) => colour(weight.backend));
  const title = view ? `${tensor.name} [${tensor.shape.join(", ")}]` : tensor.name;
  return {
    id, kind: view ? "view" : "node", title, lines, weightLines, weightColours, sources: [], dummy: false,
    height: view ? 22 : 26 + 15 * (1 + weightLines.length),
    width: 30 + Math.max(
      textWidth(title, view ? "11px" : "600 12px"),
      ...lines.concat(weightLines).map((line) => textWidth(line, "11px")),
    ),
  };
}

function portItem(id, copy) {
  const tensor = tensors[id];
  const title = copy ? `${tensor.name}  ${bytes(copy.nbytes)} ${copy.from} → ${copy.to}` : tensor.name;
  return {
    id, kind: "port", copy, title, lines: [], weightLines: [], sources: [], dummy: false, height: 22,
    width: 28 + textWidth(title, "500 11px"),
  };
}

// -- drawing ---------------------------------------------------------------------------------------------------------

function drawBlock(block) {
  block.canvas?.remove();
  block.canvas = null;
  block.section.style.containIntrinsicHeight = `${HEAD_HEIGHT}px`;
  block.section.classList.toggle("open", block.open);
  block.section.firstChild.setAttribute("aria-expanded", block.open);
  if (!block.open) return;
  const items = itemsOf(block);
  rankItems(items);
  const { rows, edges } = rowsOf(items);
  const size = arrange(rows);
  const canvas = element("div", { class: "canvas", style: `width:${Math.ceil(size.width)}px;height:${Math.ceil(size.height)}px` });
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("width", Math.ceil(size.width));
  svg.setAttribute("height", Math.ceil(size.height));
  for (const edge of edges) svg.append(drawEdge(edge));
  canvas.append(svg, ...items.map(drawItem));
  block.canvas = canvas;
  block.section.append(canvas);
  // The browser draws only the blocks in view; this is how tall it takes the others to be.
  block.section.style.containIntrinsicHeight = `${Math.ceil(size.height) + CANVAS_MARGIN + HEAD_HEIGHT}px`;
  mark(canvas);
}

function drawEdge(edge) {
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  let line = "";
  edge.chain.forEach((item, i) => {
    const x = Math.round(item.x + item.width / 2);
    if (i === 0) { line = `M${x} ${item.y + item.height}`; return; }
    const before = edge.chain[i - 1];
    const fromX = Math.round(before.x + before.width / 2);
    const fromY = before.y + before.height;
    const bend = Math.max(12, (item.y - fromY) / 2);
    line += ` C${fromX} ${fromY + bend} ${x} ${item.y - bend} ${x} ${item.y}`;
    if (item.dummy) line += ` L${x} ${item.y + item.height}`;
  });
  path.setAttribute("d", line);
  path.setAttribute("class", edge.source.copy ? "edge copied" : "edge");
  path.style.setProperty("--c", colour(tensors[edge.source.id].backend));
  path.dataset.source = edge.source.id;
  path.dataset.target = edge.target.id;
  return path;
}

function drawItem(item) {
  const tensor = tensors[item.id];
  const classes = ["node", item.kind, item.copy ? "copied" : "", tensor.output && item.kind !== "port" ? "output" : ""];
  const made = element(
    "button",
    {
      type: "button", class: classes.join(" "), colour: colour(tensor.backend),
      style: `left:${item.x}px;top:${item.y}px;width:${item.width}px;height:${item.height}px`,
      onclick: () => (item.kind === "port" ? reveal(item.id) : select(item.id)),
    },
    element("b", {}, item.title),
    ...item.lines.map((line) => element("small", {}, line)),
    ...item.weightLines.map((line, i) => element("small", { class: "weight", colour: item.weightColours[i] }, line)),
  );
  made.style.setProperty("--c", colour(tensor.backend));
  made.dataset.id = item.id;
  return made;
}

function drawSplits() {
  const graph = $("graph");
  data.splits.forEach((split, number) => {
    if (number > 0 || split.copies.length) graph.append(drawTransfer(split.copies, split.backend, number > 0));
    const inside = [...splitBlocks[number].values()];
    const nodes = inside.flatMap((block) => block.ids).filter((id) => !isView(tensors[id])).length;
    graph.append(element(
      "section", { class: "split", colour: colour(split.backend) },
      element("h2", {}, `Split ${number}`, element("span", { class: "chip", colour: colour(split.backend) }, split.backend),
        element("small", {}, plural(nodes, "node"))),
      ...inside.map(drawHead),
    ));
  });
  if (data.outputCopies.length) graph.append(drawTransfer(data.outputCopies, "", true));
}

function drawTransfer(copies, backend, arrow) {
  const total = copies.reduce((sum, copy) => sum + copy.nbytes, 0);
  const pills = copies.map((copy) => element(
    "button", { type: "button", class: "copy", colour: colour(tensors[copy.tensor].backend), onclick: () => reveal(copy.tensor) },
    tensors[copy.tensor].name,
    element("b", {}, `${copy.byExpert ? "≤ " : ""}${bytes(copy.nbytes)}`),
    element("span", {}, `${copy.from} → ${copy.to}${copy.byExpert ? ", chosen experts" : ""}${copy.beside === null ? "" : `, beside split #${copy.beside}`}`),
  ));
  if (pills.length > 2) pills.unshift(element("span", { class: "total" }, `${bytes(total)} in ${plural(copies.length, "copy").replace("copys", "copies")}`));
  const classes = `transfer${copies.length ? " crossing" : ""}`;
  return element("div", { class: classes, colour: copies.length ? colour(tensors[copies[0].tensor].backend) : null }, ...pills);
}

function drawHead(block) {
  const computing = block.ids.filter((id) => !isView(tensors[id]));
  const count = new Map();
  for (const id of computing) count.set(tensors[id].op, (count.get(tensors[id].op) ?? 0) + 1);
  const ops = [...count].sort((a, b) => b[1] - a[1]).map(([op, n]) => (n > 1 ? `${op} ×${n}` : op)).join(", ");
  const head = element(
    "button", { type: "button", "aria-expanded": "false", onclick: () => { block.open = !block.open; drawBlock(block); } },
    element("span", {}, stageName(block.stage)), element("small", {}, `${plural(computing.length, "node")}: ${ops}`),
  );
  block.section = element("section", { class: "block" }, head);
  block.section.style.containIntrinsicHeight = `${HEAD_HEIGHT}px`;
  return block.section;
}

function drawMap() {
  const map = $("map");
  map.append(element("div", { class: "legend" }, ...[...colours].map(([name, value]) => element("span", { class: "chip", colour: value }, name))));
  const rows = new Map();
  for (const block of blocks) {
    if (!rows.has(block.stage)) rows.set(block.stage, []);
    rows.get(block.stage).push(block);
  }
  for (const [stage, parts] of rows) {
    map.append(element(
      "button", { type: "button", class: "map-row", title: stageName(stage), onclick: () => showBlocks(parts) },
      element("span", {}, String(stage)),
      element("span", { class: "bar" }, ...parts.map((block) => {
        const part = element("i", { colour: colour(data.splits[block.split].backend) });
        part.style.flex = block.ids.length;
        return part;
      })),
    ));
  }
}

function showBlocks(parts) {
  for (const block of parts) {
    if (!block.open) { block.open = true; drawBlock(block); }
  }
  parts[0].section.scrollIntoView({ block: "start" });
}

// -- tools -----------------------------------------------------------------------------------------------------------

function openAll(open) {
  for (const block of blocks) {
    if (block.open !== open) { block.open = open; drawBlock(block); }
  }
}

function toggleViews() {
  showViews = !showViews;
  $("views").setAttribute("aria-pressed", showViews);
  for (const block of blocks) if (block.open) drawBlock(block);
}

let place = -1;

function search() {
  const query = $("query").value.trim().toLowerCase();
  place = -1;
  matches = query ? tensors.flatMap((tensor, id) => (tensor.name.toLowerCase().includes(query) || tensor.op === query ? [id] : [])) : [];
  $("matches").textContent = query ? plural(matches.length, "match").replace("matchs", "matches") : "";
  for (const block of blocks) if (block.canvas) mark(block.canvas);
}

function step(by) {
  if (!matches.length) return;
  place = (place + by + matches.length) % matches.length;
  $("matches").textContent = `${place + 1} of ${matches.length}`;
  reveal(matches[place]);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "Light" : "Dark";
}

function start() {
  setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const nodes = tensors.filter((tensor) => tensor.op !== null && !isView(tensor)).length;
  const copied = data.splits.flatMap((split) => split.copies).concat(data.outputCopies);
  const moved = copied.reduce((sum, copy) => sum + copy.nbytes, 0);
  $("summary").textContent = [
    plural(nodes, "node"), plural(data.splits.length, "split"),
    copied.length ? `${bytes(moved)} copied a run` : "nothing copied", `${bytes(data.computeBytes)} of compute buffers`,
  ].join("  ·  ");
  drawMap();
  drawSplits();
  showOverview();
  if (nodes <= OPEN_AT_FIRST) openAll(true);

  $("expand").addEventListener("click", () => openAll(true));
  $("collapse").addEventListener("click", () => openAll(false));
  $("views").addEventListener("click", toggleViews);
  $("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  $("query").addEventListener("input", search);
  $("query").addEventListener("keydown", (event) => { if (event.key === "Enter") step(event.shiftKey ? -1 : 1); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== $("query")) { event.preventDefault(); $("query").focus(); }
    if (event.key === "Escape") { $("query").value = ""; search(); showOverview(); }
  });
}

const wanted = decodeURIComponent(location.hash.slice(1));
start();
const named = tensors.findIndex((tensor) => tensor.name === wanted);
if (named >= 0) reveal(named);
