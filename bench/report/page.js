"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = new Map(data.runs.map(run => [run.id, run]));

  function copyButton(title, text) {
    const button = make("button", { type: "button" }, title);
    button.addEventListener("click", async () => {
      let copied = true;
      try { await navigator.clipboard.writeText(text); } catch {
        const area = make("textarea", { value: text, style: "position:fixed;opacity:0" });
        document.body.append(area);
        area.select();
        copied = document.execCommand("copy");
        area.remove();
        button.focus();
      }
      button.textContent = copied ? "Copied" : "Copying was refused";
      setTimeout(() => { button.textContent = title; }, 1500);
    });
    return button;
  }

  // -- tables

  function number(cell) {
    return cell.dataset.value === undefined ? NaN : Number(cell.dataset.value);
  }

  function compare(a, b, falling) {
    const x = number(a), y = number(b);
    if (!Number.isNaN(x) || !Number.isNaN(y)) {
      if (Number.isNaN(x)) return 1;                      // what was not measured comes last either way
      if (Number.isNaN(y)) return -1;
      return falling ? y - x : x - y;
    }
    const order = a.textContent.localeCompare(b.textContent, undefined, { numeric: true });
    return falling ? -order : order;
  }

  function setUpTable(section) {
    const table = section.querySelector("table"), body = table.tBodies[0], tools = section.querySelector(".tools");
    const heads = [...table.tHead.rows[0].cells], rows = [...body.rows];
    let expanded = false;

    function expand() {                                   // every row gets all its headers, so that it can stand anywhere
      if (expanded) return;
      expanded = true;
      const open = [];
      for (const row of rows) {
        const missing = heads.length - row.cells.length;
        const own = [...row.cells].filter(cell => cell.tagName === "TH");
        const covered = open.slice(0, missing).map(cell => cell.cloneNode(true));
        own.forEach((cell, i) => { open[missing + i] = cell; });
        open.length = missing + own.length;
        row.prepend(...covered);
        row.classList.remove("first");
      }
      for (const cell of body.querySelectorAll("th")) { cell.rowSpan = 1; cell.scope = "row"; }
    }

    function sortBy(column) {
      expand();
      const falling = heads[column].getAttribute("aria-sort") === "ascending";
      heads.forEach(head => head.removeAttribute("aria-sort"));
      heads[column].setAttribute("aria-sort", falling ? "descending" : "ascending");
      const sorted = rows.map((row, i) => [row, i]).sort(([a, i], [b, j]) =>
        a.classList.contains("sanity") - b.classList.contains("sanity")
        || compare(a.cells[column], b.cells[column], falling) || i - j);
      body.append(...sorted.map(([row]) => row));
    }

    heads.forEach((head, column) => {
      const button = make("button", { type: "button", title: "Sort by this column", onclick: () => sortBy(column) });
      button.append(...head.childNodes);
      head.append(button);
    });

    const filter = make("input", { type: "search", placeholder: "Filter rows", "aria-label": "Filter rows of this table" });
    filter.addEventListener("input", () => {
      expand();
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every(word => text.includes(word));
      }
    });

    const menu = make("div", { className: "menu" });
    heads.forEach((head, column) => {
      const box = make("input", { type: "checkbox", checked: true, onchange: () => {
        expand();
        for (const row of table.rows) row.cells[column].hidden = !box.checked;
      } });
      menu.append(make("label", {}, box, " ", head.textContent));
    });

    const source = data.tables[Number(section.dataset.table)];
    tools.append(filter, make("details", {}, make("summary", {}, "Columns"), menu),
      copyButton("Copy LaTeX", source.latex), copyButton("Copy Markdown", source.markdown), copyButton("Copy CSV", source.csv));
    tools.hidden = false;
  }

  // -- curves

  function setUpCurves(section) {
    const names = new Map(data.curves.map(curve => [curve.name, curve])), off = new Set();
    const chart = section.querySelector(".chart"), legend = make("div", { className: "legend" });
    const choice = make("select", { "aria-label": "Quantity" }, ...data.curves.map(c => make("option", { value: c.name }, c.name)));
    const log = make("input", { type: "checkbox" });
    section.querySelector(".tools").append(choice, make("label", {}, log, " logarithmic"));
    section.append(legend);
    const svg = "http://www.w3.org/2000/svg";

    function node(tag, attributes, text) {
      const element = document.createElementNS(svg, tag);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      if (text !== undefined) element.textContent = text;
      return element;
    }

    function ticks(low, high, logarithmic) {
      if (logarithmic) {
        const found = [];
        for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
          for (const m of [1, 2, 5]) if (m * 10 ** e >= low && m * 10 ** e <= high) found.push(m * 10 ** e);
        }
        return found;
      }
      const raw = (high - low) / 5 || 1, step = 10 ** Math.floor(Math.log10(raw));
      const nice = step * [1, 2, 5, 10].find(m => m * step >= raw);
      const found = [];
      for (let v = Math.ceil(low / nice) * nice; v <= high + nice * 1e-9; v += nice) found.push(v);
      return found;
    }

    const short = v => Number(v.toPrecision(4)).toLocaleString("en");

    function draw() {
      const lines = names.get(choice.value).lines.filter(line => !off.has(line.run));
      const xs = lines.flatMap(l => l.x), ys = lines.flatMap(l => l.y).filter(y => !log.checked || y > 0);
      chart.replaceChildren();
      if (!xs.length || !ys.length) { chart.append("No line is left to draw."); return; }
      const least = values => values.reduce((a, b) => Math.min(a, b)), most = values => values.reduce((a, b) => Math.max(a, b));
      const [x0, x1] = [least(xs), most(xs)], [y0, y1] = [least(ys), most(ys)];
      const w = 900, h = 380, left = 70, right = 28, top = 10, bottom = 34, f = log.checked ? Math.log10 : v => v;
      const px = x => left + (x - x0) / (x1 - x0 || 1) * (w - left - right);
      const py = y => h - bottom - (f(y) - f(y0)) / (f(y1) - f(y0) || 1) * (h - top - bottom);
      const root = node("svg", { viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": `${choice.value} over training steps` });
      for (const v of ticks(y0, y1, log.checked)) {
        root.append(node("line", { class: "grid", x1: left, x2: w - right, y1: py(v), y2: py(v) }));
        root.append(node("text", { x: left - 6, y: py(v) + 4, "text-anchor": "end" }, short(v)));
      }
      for (const v of ticks(x0, x1, false)) root.append(node("text", { x: px(v), y: h - 14, "text-anchor": "middle" }, short(v)));
      root.append(node("text", { x: w - right, y: h - 1, "text-anchor": "end" }, "training steps"));
      for (const line of lines) {
        const points = line.x.map((x, i) => [x, line.y[i]]).filter(([, y]) => !log.checked || y > 0);
        root.append(node("polyline", { fill: "none", stroke: byId.get(line.run).colour, "stroke-width": 1.5,
          "stroke-dasharray": line.test ? "5 3" : "none", points: points.map(([x, y]) => `${px(x)},${py(y)}`).join(" ") }));
      }
      const dot = node("circle", { r: 4, visibility: "hidden" }), tip = make("div", { className: "tip", hidden: true });
      root.append(dot);
      root.addEventListener("pointermove", event => {
        const box = root.getBoundingClientRect(), x = (event.clientX - box.left) * w / box.width, y = (event.clientY - box.top) * h / box.height;
        let best = null;
        for (const line of lines) line.x.forEach((v, i) => {
          const away = Math.hypot(px(v) - x, py(line.y[i]) - y);
          if (away < 40 && (!best || away < best.away)) best = { away, line, i };
        });
        tip.hidden = !best;
        dot.setAttribute("visibility", best ? "visible" : "hidden");
        if (!best) return;
        const { line, i } = best, cx = px(line.x[i]), cy = py(line.y[i]);
        dot.setAttribute("cx", cx); dot.setAttribute("cy", cy); dot.setAttribute("fill", byId.get(line.run).colour);
        tip.textContent = `${byId.get(line.run).label}${line.test ? ", test" : ""}: ${short(line.y[i])} at step ${short(line.x[i])}`;
        tip.style.left = `${Math.min(cx * box.width / w + 10, box.width * 0.6)}px`;
        tip.style.top = `${cy * box.height / h + 10}px`;
      });
      root.addEventListener("pointerleave", () => { tip.hidden = true; dot.setAttribute("visibility", "hidden"); });
      chart.append(root, tip);
    }

    for (const run of data.runs) {
      const swatch = make("span", { className: "swatch", style: `background:${run.colour}` });
      const button = make("button", { type: "button", "aria-pressed": "true", onclick: () => {
        if (!off.delete(run.id)) off.add(run.id);
        button.setAttribute("aria-pressed", String(!off.has(run.id)));
        draw();
      } }, swatch, run.label);
      legend.append(button);
    }
    choice.addEventListener("change", draw);
    log.addEventListener("change", draw);
    section.hidden = false;
    draw();
  }

  // -- the curves of one run, drawn when its section is opened

  function drawRunCurves(place) {
    const svg = "http://www.w3.org/2000/svg", w = 220, h = 80, gallery = make("div", { className: "sparks" });
    const short = v => Number(v.toPrecision(4)).toLocaleString("en");
    for (const curve of data.curves) {
      const lines = curve.lines.filter(line => line.run === place.dataset.run);
      if (!lines.length) continue;
      const xs = lines.flatMap(l => l.x), ys = lines.flatMap(l => l.y);
      const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
      const picture = document.createElementNS(svg, "svg");
      picture.setAttribute("viewBox", `0 0 ${w} ${h}`);
      picture.setAttribute("role", "img");
      picture.setAttribute("aria-label", `${curve.name} of this run over ${short(x1)} steps, between ${short(y0)} and ${short(y1)}`);
      for (const line of lines) {
        const drawn = document.createElementNS(svg, "polyline");
        drawn.setAttribute("fill", "none");
        drawn.setAttribute("stroke", byId.get(line.run).colour);
        drawn.setAttribute("stroke-dasharray", line.test ? "4 3" : "none");
        drawn.setAttribute("points", line.x.map((x, i) =>
          `${2 + (x - x0) / (x1 - x0 || 1) * (w - 4)},${h - 2 - (line.y[i] - y0) / (y1 - y0 || 1) * (h - 4)}`).join(" "));
        picture.append(drawn);
      }
      const last = lines[0].y[lines[0].y.length - 1];
      gallery.append(make("figure", {}, picture, make("figcaption", {}, `${curve.name}: ${short(last)} at the end, ${short(y0)} to ${short(y1)}`)));
    }
    if (gallery.childNodes.length) place.replaceChildren(make("h3", {}, "Curves"), gallery);
  }

  // -- reconstructions

  function decodeCodes(run) {
    if (!run.codes) return null;
    const bytes = Uint8Array.from(atob(run.codes), c => c.charCodeAt(0));
    return new Int32Array(bytes.buffer);
  }

  async function setUpBrowser(section) {
    const { images, height, width, across } = data.browser;
    const runs = data.browser.runs.map(run => ({ ...run, ...byId.get(run.run), list: decodeCodes(run) }));
    const scale = Math.max(1, Math.floor(128 / width)), tall = height * scale, wide = width * scale;
    const sheets = await Promise.all([data.browser.originals, ...runs.map(run => run.sheet)].map(async source => {
      const image = make("img", { src: source, alt: "" });
      await image.decode();
      return image;
    }));
    const metrics = [...new Set(runs.flatMap(run => Object.keys(run.metrics)))];
    const form = section.querySelector(".tools"), line = section.querySelector(".token-line");
    const pictures = section.querySelector(".pictures"), pager = section.querySelector(".pager");
    const page = 8;
    let first = 0, shown = new Set(runs.slice(0, 6).map(run => run.id)), maps = [];

    const select = (label, options) => {
      const element = make("select", { "aria-label": label }, ...options.map(([value, text]) => make("option", { value }, text)));
      form.append(make("label", {}, `${label} `, element));
      return element;
    };
    form.addEventListener("submit", event => event.preventDefault());
    const metric = select("Metric", metrics.map(name => [name, name]));
    const names = runs.map((run, i) => [String(i), run.label]);
    const order = select("Order", [["split", "as in the test split"], ["best", "best first, of run A"], ["worst", "worst first, of run A"],
      ["beats", "where A beats B most"]]);
    const a = select("A", names), b = select("B", names);
    if (runs.length > 1) b.value = "1";
    const factor = make("input", { type: "range", min: 1, max: 16, value: 4, "aria-label": "Amplification of the difference" });
    const showDifference = make("input", { type: "checkbox", checked: true }), showTokens = make("input", { type: "checkbox", checked: true });
    form.append(make("label", {}, showDifference, " difference ×", make("output", {}, "4"), " ", factor), make("label", {}, showTokens, " tokens"));
    const levels = Math.max(1, ...runs.map(run => run.levels || 1)), scales = Math.max(1, ...runs.map(run => (run.grids || []).length));
    const level = levels > 1 ? select("Level", [...Array(levels).keys()].map(i => [String(i), String(i)])) : null;
    const grid = scales > 1 ? select("Grid", [...Array(scales).keys()].map(i => [String(i), String(i)])) : null;
    if (grid) grid.value = String(scales - 1);
    const menu = make("div", { className: "menu" });
    for (const run of runs) {
      const box = make("input", { type: "checkbox", checked: shown.has(run.id), onchange: () => {
        if (box.checked) shown.add(run.id); else shown.delete(run.id);
        draw();
      } });
      menu.append(make("label", {}, box, " ", run.label));
    }
    form.append(make("details", {}, make("summary", {}, "Runs"), menu));

    function valueOf(run, image) {
      const found = run.metrics[metric.value];
      return found ? found.values[image] : undefined;
    }

    function ordered() {
      const list = [...Array(images).keys()], one = runs[a.value], other = runs[b.value];
      const better = (one.metrics[metric.value] || {}).better === "lower" ? -1 : 1;
      const key = {
        split: i => i, best: i => -better * valueOf(one, i), worst: i => better * valueOf(one, i),
        beats: i => -better * (valueOf(one, i) - valueOf(other, i)),
      }[order.value];
      return list.sort((i, j) => (key(i) - key(j)) || i - j);
    }

    function canvasOf(w, h, label) {
      const canvas = make("canvas", { width: w, height: h, style: `width:${wide}px;height:${tall}px` });
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", label);
      return canvas;
    }

    function cut(sheet, image, label) {
      const canvas = canvasOf(width, height, label), context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(sheet, (image % across) * width, Math.floor(image / across) * height, width, height, 0, 0, width, height);
      return canvas;
    }

    function difference(one, other, label) {
      const canvas = canvasOf(width, height, label), context = canvas.getContext("2d");
      const x = one.getContext("2d").getImageData(0, 0, width, height), y = other.getContext("2d").getImageData(0, 0, width, height);
      for (let i = 0; i < x.data.length; i++) x.data[i] = i % 4 === 3 ? 255 : Math.min(255, Math.abs(x.data[i] - y.data[i]) * factor.value);
      context.putImageData(x, 0, 0);
      return canvas;
    }

    function place(run) {
      const g = Math.min(grid ? Number(grid.value) : 0, run.grids.length - 1);
      const start = run.grids.slice(0, g).reduce((sum, [h, w]) => sum + h * w, 0);
      return { start, h: run.grids[g][0], w: run.grids[g][1], l: Math.min(level ? Number(level.value) : 0, run.levels - 1) };
    }

    const codeAt = (run, image, token, l) => run.list[(image * run.tokens + token) * run.levels + l];

    function tokenMap(run, image) {
      const { h, w } = place(run), canvas = canvasOf(w, h, `token map of ${run.label}, image ${image}; arrow keys choose a token`);
      canvas.tabIndex = 0;
      const map = { run, image, canvas, at: 0 };
      canvas.addEventListener("pointermove", event => {
        const p = place(run);
        map.at = pointed(event, canvas, p.h, p.w);
        choose(map);
      });
      canvas.addEventListener("pointerleave", () => choose(null));
      canvas.addEventListener("focus", () => choose(map));
      canvas.addEventListener("blur", () => choose(null));
      canvas.addEventListener("keydown", event => {
        const p = place(run), to = arrowed(event.key, map.at, p.h, p.w);
        if (to === undefined) return;
        event.preventDefault();
        map.at = to;
        choose(map);
      });
      maps.push(map);
      paint(map, null);
      return canvas;
    }

    function paint(map, code) {
      const { run, image, canvas } = map, p = place(run), context = canvas.getContext("2d");
      context.clearRect(0, 0, p.w, p.h);
      for (let t = 0; t < p.h * p.w; t++) {
        const own = codeAt(run, image, p.start + t, p.l);
        context.globalAlpha = code === null || own === code ? 1 : 0.15;
        context.fillStyle = colourOf(own);
        context.fillRect(t % p.w, Math.floor(t / p.w), 1, 1);
      }
    }

    function choose(map) {
      if (!map) {
        maps.forEach(other => paint(other, null));
        line.textContent = "";
        return;
      }
      const { run, image, at } = map, p = place(run), code = codeAt(run, image, p.start + at, p.l);
      let count = 0;
      const where = new Set();
      for (let i = 0; i < images; i++) for (let t = 0; t < p.h * p.w; t++) {
        if (codeAt(run, i, p.start + t, p.l) === code) { count++; where.add(i); }
      }
      maps.forEach(other => paint(other, other.run === run ? code : null));
      const vocabulary = run.vocabulary[p.l], list = [...where].slice(0, 12).join(", ");
      line.textContent = `${run.label}: code ${code}${vocabulary ? ` of ${vocabulary.toLocaleString("en")}` : ""}, row ${Math.floor(at / p.w)}, `
        + `column ${at % p.w}; ${count.toLocaleString("en")} of ${(images * p.h * p.w).toLocaleString("en")} tokens, in ${where.size} of ${images} images (${list}${where.size > 12 ? ", …" : ""})`;
    }

    const tile = (text, ...canvases) => make("div", { className: "tile" }, make("div", { className: "name", title: text, style: `width:${wide}px` }, make("span", {}, text)), ...canvases);

    function draw() {
      maps = [];
      line.textContent = "";
      const list = ordered(), rows = [];
      first = Math.max(0, Math.min(first, Math.floor((images - 1) / page) * page));
      for (const image of list.slice(first, first + page)) {
        const original = cut(sheets[0], image, `original, image ${image}`);
        const row = make("div", { className: "row", "data-image": String(image) }, tile(`image ${image}`, original));
        runs.forEach((run, i) => {
          if (!shown.has(run.id)) return;
          const value = valueOf(run, image), made = cut(sheets[i + 1], image, `reconstruction of ${run.label}, image ${image}`);
          const parts = [made];
          if (showDifference.checked) parts.push(difference(original, made, `difference of ${run.label}, image ${image}`));
          if (showTokens.checked && run.list) parts.push(tokenMap(run, image));
          row.append(tile(`${run.label}${value === undefined ? "" : `: ${Number(value.toPrecision(5))}`}`, ...parts));
        });
        rows.push(row);
      }
      pictures.replaceChildren(...rows);
      pager.replaceChildren(
        make("button", { type: "button", disabled: first === 0, onclick: () => { first -= page; draw(); } }, "Back"),
        ` images ${first + 1} to ${Math.min(first + page, images)} of ${images} `,
        make("button", { type: "button", disabled: first + page >= images, onclick: () => { first += page; draw(); } }, "Next"));
    }

    factor.addEventListener("input", () => { form.querySelector("output").textContent = factor.value; draw(); });
    for (const control of [metric, order, a, b]) control.addEventListener("change", () => { first = 0; draw(); });
    for (const control of [showDifference, showTokens, level, grid]) if (control) control.addEventListener("change", draw);
    section.hidden = false;
    draw();
  }

  document.querySelectorAll(".report-table").forEach(setUpTable);
  const bibtex = document.getElementById("copy-bibtex");
  if (bibtex) bibtex.replaceWith(copyButton("Copy BibTeX of the systems", data.bibtex));
  const curves = document.getElementById("curves");
  if (curves) setUpCurves(curves);
  document.querySelectorAll(".run-curves").forEach(place => {
    place.closest("details").addEventListener("toggle", () => drawRunCurves(place), { once: true });
  });
  const browser = document.getElementById("browser");
  const ready = browser ? setUpBrowser(browser) : Promise.resolve();
  ready.finally(() => { document.documentElement.dataset.ready = "true"; });
})();
