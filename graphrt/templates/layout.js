"use strict";

// Layout of a block's items, as layered graphs are drawn: a row for each rank, long edges bent around what lies between,
// and rows ordered by the mean place of neighbours. An item has sources, a width and a height, and is given x and y.

const GAP_X = 22;
const GAP_Y = 26;

function rankItems(items) {
  const inner = items.filter((item) => item.kind !== "port");
  for (const item of items) item.rank = 0;
  for (const item of inner) { // in execution order, so sources come first
    item.rank = 1 + Math.max(0, ...item.sources.map((source) => source.rank));
  }
  for (const item of items) {
    if (item.kind !== "port") continue;
    item.rank = Math.min(...inner.filter((other) => other.sources.includes(item)).map((other) => other.rank)) - 1;
  }
}

/** Rows of items, with a narrow dummy in each row that a long edge crosses. */
function rowsOf(items) {
  const rows = [];
  const put = (item) => { (rows[item.rank] ??= []).push(item); };
  items.forEach(put);
  const edges = [];
  for (const item of items) {
    for (const source of item.sources) {
      let from = source;
      const chain = [source];
      for (let rank = source.rank + 1; rank < item.rank; rank += 1) {
        const dummy = { dummy: true, rank, width: 8, height: 0, above: [from], below: [] };
        put(dummy);
        (from.below ??= []).push(dummy);
        from = dummy;
        chain.push(dummy);
      }
      (from.below ??= []).push(item);
      (item.above ??= []).push(from);
      edges.push({ source, target: item, chain: [...chain, item] });
    }
  }
  return { rows: rows.filter(Boolean), edges };
}

function arrange(rows) {
  const middle = (item) => item.x + item.width / 2;
  const mean = (others, otherwise) => others?.length ? others.reduce((sum, other) => sum + middle(other), 0) / others.length : otherwise;
  for (const row of rows) spread(row, row.map((_, i) => i * 10));
  for (let sweep = 0; sweep < 8; sweep += 1) {
    const down = sweep % 2 === 0;
    for (const row of down ? rows : [...rows].reverse()) {
      const wish = new Map(row.map((item) => [item, mean(down ? item.above : item.below, middle(item))]));
      if (sweep < 6) row.sort((a, b) => wish.get(a) - wish.get(b));
      spread(row, row.map((item) => wish.get(item)));
    }
  }
  const left = Math.min(...rows.flat().map((item) => item.x));
  for (const item of rows.flat()) item.x -= left;
  let y = 4;
  for (const row of rows) {
    const height = Math.max(20, ...row.map((item) => item.height));
    for (const item of row) item.y = y + (height - item.height) / 2;
    y += height + GAP_Y;
  }
  return { width: Math.max(...rows.flat().map((item) => item.x + item.width)), height: y - GAP_Y + 8 };
}

/** Place a row's items as near as may be to where their middles wish to be, in order and without overlap. */
function spread(row, wishes) {
  const groups = []; // neighbours that touch move as one; each stands at the mean of what its members wish
  row.forEach((item, i) => {
    let group = { items: [item], width: item.width, sum: wishes[i] - item.width / 2, count: 1 };
    for (;;) {
      const last = groups.at(-1);
      if (!last || last.sum / last.count + last.width + GAP_X <= group.sum / group.count) break;
      groups.pop();
      const shift = last.width + GAP_X;
      group = {
        items: [...last.items, ...group.items],
        width: shift + group.width,
        sum: last.sum + group.sum - shift * group.count,
        count: last.count + group.count,
      };
    }
    groups.push(group);
  });
  for (const group of groups) {
    let x = group.sum / group.count;
    for (const item of group.items) { item.x = x; x += item.width + GAP_X; }
  }
}
