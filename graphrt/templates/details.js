"use strict";

// The selected tensor, its marks in the graph, and the panel that tells about it, or else about the whole.

function select(id) {
  selected = id;
  history.replaceState(null, "", `#${encodeURIComponent(tensors[id].name)}`);
  for (const block of blocks) if (block.canvas) mark(block.canvas);
  showDetails(id);
}

/** Select a tensor and bring it into view; a leaf has no place of its own. */
function reveal(id) {
  if (isView(tensors[id]) && !showViews) toggleViews();
  const block = blockOf.get(id);
  if (block && !block.open) { block.open = true; drawBlock(block); }
  select(id);
  block?.canvas?.querySelector(`.node:not(.port)[data-id="${id}"]`)?.scrollIntoView({ block: "center", inline: "center" });
}

function mark(canvas) {
  for (const node of canvas.querySelectorAll(".node")) {
    const id = Number(node.dataset.id);
    node.classList.toggle("selected", id === selected);
    node.classList.toggle("match", matches.includes(id) && !node.classList.contains("port"));
  }
  for (const edge of canvas.querySelectorAll(".edge")) {
    edge.classList.toggle("source", Number(edge.dataset.target) === selected);
    edge.classList.toggle("reader", Number(edge.dataset.source) === selected);
  }
}

function link(id) {
  const tensor = tensors[id];
  return element("li", {}, element(
    "button", { type: "button", class: "link", colour: colour(tensor.backend), onclick: () => reveal(id) },
    tensor.name, element("small", {}, `${tensor.op ?? tensor.role} ${shape(tensor)}, ${bytes(tensor.nbytes)}, ${tensor.backend}`),
  ));
}

function section(title, items) {
  return items.length ? [element("h3", {}, title), element("ul", {}, ...items)] : [];
}

function showDetails(id) {
  const tensor = tensors[id];
  const facts = [
    [tensor.op === null ? "Role" : "Op", tensor.op ?? tensor.role],
    ["Dtype", tensor.dtype],
    ["Shape", `[${tensor.shape.join(", ")}]`],
    ["Size", `${bytes(tensor.nbytes)}${tensor.nbytes >= 1024 ? ` (${tensor.nbytes.toLocaleString("en")} bytes)` : ""}`],
    ["Backend", element("span", { class: "chip", colour: colour(tensor.backend) }, tensor.backend)],
    ["Memory", tensor.memory],
    ["Split", tensor.split === null ? null : String(tensor.split)],
    ["Layer", tensor.layer === null ? null : String(tensor.layer)],
    ["View of", tensor.viewOf],
    ["In place of", tensor.inPlaceOf === null ? null : tensors[tensor.inPlaceOf].name],
    ...Object.entries(tensor.params),
  ].filter(([, value]) => value !== null);
  const copied = data.splits.flatMap((split) => split.copies).concat(data.outputCopies).filter((copy) => copy.tensor === id);
  $("details").replaceChildren(
    element("h2", {}, tensor.name),
    element("dl", {}, ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
    element("h3", {}, "Why here"),
    element("p", { class: "reason", colour: colour(tensor.backend) }, tensor.reason ?? whyUnplaced(tensor)),
    ...section("Passed over", tensor.rejected.map((words) => element("li", {}, words))),
    ...section("Copied", copied.map((copy) => element("li", {}, `${copy.byExpert ? "at most " : ""}${bytes(copy.nbytes)}, ${copy.from} → ${copy.to}`))),
    ...section("Sources", tensor.sources.map(link)),
    ...section("Readers", readers[id].map(link)),
    element("p", {}, element("button", { type: "button", class: "link", onclick: showOverview }, "Back to the overview")),
  );
}

function whyUnplaced(tensor) {
  if (tensor.op !== null) return "a view: it costs nothing and lies where its value does";
  return tensor.role === "input" ? "an input: it is given on the host at each run" : "its data is on the host";
}

function showOverview() {
  selected = null;
  history.replaceState(null, "", location.pathname + location.search);
  for (const block of blocks) if (block.canvas) mark(block.canvas);
  const memories = data.memories.flatMap((memory) => {
    const held = memory.compute + memory.resident;
    const full = memory.limit ?? Math.max(held, 1);
    const of = data.backends.filter((backend) => backend.memory === memory.name).map((backend) => backend.name);
    return [
      element("h3", {}, `Memory ${memory.name} (${of.join(", ")})`),
      element("div", { class: "meter", colour: colour(of.find((name) => colours.has(name))) },
        element("i", { style: `width:${(100 * memory.resident) / full}%` }), element("i", { style: `width:${(100 * memory.compute) / full}%` })),
      element("p", {}, `${bytes(memory.resident)} of weights and states, ${bytes(memory.compute)} of results and copies${memory.limit === null ? "" : `, of ${bytes(memory.limit)}`}`),
      ...(memory.peak.length ? [element("p", {}, "At its fullest:"), element("ul", {}, ...memory.peak.map(([name, size]) => element("li", {}, `${name}: ${bytes(size)}`)))] : []),
    ];
  });
  const rules = data.rules.map(([text, count]) => element("li", {}, `${text}: ${count ? plural(count, "tensor") : "matches nothing here"}`));
  $("details").replaceChildren(
    element("h2", {}, "Overview"),
    element("p", {}, "Click a node to see why it is where it is. Click a layer to open it."),
    ...memories,
    ...section("Override rules", rules),
  );
}
