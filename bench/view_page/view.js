(async () => {
  const byId = id => document.getElementById(id);
  const images = { files: [], at: 0 };            // the user's own; of the test split where there are none
  let about, opened = null, codes = null, erased = new Set(), past = [], chosen = null, selected = new Set(), at = 0, asked = 0;

  async function call(path, body) {
    const answer = await fetch(path, body === undefined ? {} : { method: "POST", body });
    const said = await answer.json().catch(() => ({ error: `the server answered with status ${answer.status}` }));
    if (!answer.ok) throw new Error(said.error);
    return said;
  }

  // runs one request at a time on the page: what an older one answers is dropped
  async function during(work) {
    const mine = ++asked;
    document.body.classList.add("busy");
    try {
      await work(() => mine === asked);
      byId("error").hidden = true;
    } catch (error) {
      if (mine !== asked) return;
      byId("error").textContent = error.message;
      byId("error").hidden = false;
    } finally {
      if (mine === asked) { document.body.classList.remove("busy"); document.documentElement.dataset.answered = String(mine); }
    }
  }

  const levels = () => about.vocabulary.length;
  const level = () => Number(byId("level").value || 0);
  const grid = () => Number(byId("grid").value || 0);
  const shape = () => about.grids[grid()];
  const first = () => about.grids.slice(0, grid()).reduce((sum, [h, w]) => sum + h * w, 0);
  const place = (token, l = level()) => token * levels() + l;
  const range = () => {
    const size = about.vocabulary[level()] / about.tables, low = about.tables > 1 ? grid() * size : 0;
    return [low, low + size - 1];
  };
  const quality = shown => `PSNR ${shown.psnr.toFixed(2)} dB` + (shown.ssim === null ? "" : `, SSIM ${shown.ssim.toFixed(3)}`);
  const erasures = () => [...erased].map(key => key.split(",").map(Number));
  const edited = () => codes !== null && (erased.size > 0 || codes.some((c, i) => c !== opened.codes[i]));

  // -- images

  async function open(path, body, name) {
    await during(async current => {
      const found = await call(path, body);
      if (!current()) return;
      opened = found;
      codes = found.codes && [...found.codes];
      erased = new Set(); past = []; selected = new Set(); at = 0; chosen = null;
      byId("name").textContent = name;
      byId("original").src = found.original;
      byId("panels").hidden = false;
      byId("save").disabled = false;
      byId("editing").hidden = byId("map-panel").hidden = codes === null;
      show(found);
      await stages(current);
    });
  }

  function go(step) {
    const count = images.files.length || about.images;
    if (!count) return;
    images.at = step === "random" ? Math.floor(Math.random() * count) : ((images.at + step) % count + count) % count;
    byId("index").value = images.at;
    const file = images.files[images.at];
    return file ? open("upload", file, file.name) : open(`pick?index=${images.at}`, undefined, `image ${images.at} of the test split`);
  }

  function take(files) {
    if (!files.length) return;
    images.files = [...files];
    images.at = 0;
    sources();
    return go(0);
  }

  function sources() {
    const count = images.files.length || about.images;
    for (const id of ["previous", "next", "random", "index-label"]) byId(id).hidden = count < 2;
    byId("of").textContent = `of ${count.toLocaleString("en")}${images.files.length ? " files" : ""}`;
    byId("index").max = count - 1;
  }

  // -- what is shown

  function show(shown) {
    byId("picture").src = shown.picture;
    const changed = codes === null ? 0 : codes.filter((c, i) => c !== opened.codes[i]).length + erased.size;
    const some = chosen && `${about.stages.name} ${[...chosen].map(i => i + 1).join(", ")} alone`;
    const what = [changed ? `${changed} token${changed > 1 ? "s" : ""} edited` : "", some || ""].filter(Boolean).join("; ");
    byId("made").textContent = `${what ? `${what[0].toUpperCase() + what.slice(1)}: ` : ""}${quality(shown)}`
      + (what ? ` (was ${opened.psnr.toFixed(2)} dB)` : "");
    if (codes !== null) draw();
  }

  function draw(canvas = byId("map"), plain = false) {
    const [h, w] = shape(), cell = Math.max(8, Math.floor(1024 / Math.max(h, w))), pen = canvas.getContext("2d");
    canvas.width = w * cell; canvas.height = h * cell;
    const [, high] = range(), digits = String(high).length, font = Math.min(cell * 0.5, cell * 1.5 / digits);
    pen.textAlign = "center"; pen.textBaseline = "middle"; pen.font = `600 ${font}px system-ui, sans-serif`;
    for (let t = 0; t < h * w; t++) {
      const token = first() + t, x = t % w * cell, y = Math.floor(t / w) * cell, code = codes[place(token)];
      const gone = erased.has(`${token},${level()}`);
      pen.fillStyle = gone ? "#fff" : colourOf(code);
      pen.fillRect(x, y, cell, cell);
      if (gone) {
        pen.strokeStyle = "#c62828"; pen.lineWidth = Math.max(1, cell / 12);
        pen.beginPath(); pen.moveTo(x, y); pen.lineTo(x + cell, y + cell); pen.moveTo(x + cell, y); pen.lineTo(x, y + cell); pen.stroke();
      } else if (byId("numbers").checked) {
        pen.lineWidth = font / 6; pen.strokeStyle = "#000a"; pen.strokeText(code, x + cell / 2, y + cell / 2);
        pen.fillStyle = "#fff"; pen.fillText(code, x + cell / 2, y + cell / 2);
      }
      if (plain) continue;
      if (!gone && code !== opened.codes[place(token)]) {
        pen.fillStyle = "#fff";
        pen.beginPath(); pen.moveTo(x + cell, y); pen.lineTo(x + cell * 0.7, y); pen.lineTo(x + cell, y + cell * 0.3); pen.fill();
      }
      if (selected.has(token) || (t === at && document.activeElement === canvas)) {
        const line = Math.max(2, cell / (selected.has(token) ? 10 : 20));
        pen.lineWidth = line * 2; pen.strokeStyle = "#000"; pen.strokeRect(x + line, y + line, cell - 2 * line, cell - 2 * line);
        pen.lineWidth = line; pen.strokeStyle = "#ffbf00"; pen.strokeRect(x + line, y + line, cell - 2 * line, cell - 2 * line);
      }
    }
    if (!plain) tell();
  }

  function tell() {
    const [h, w] = shape(), token = first() + at, code = codes[place(token)], [low, high] = range();
    const uses = codes.filter((c, i) => i % levels() === level() && c === code).length;
    const where = h === 1 ? `token ${at}` : `row ${Math.floor(at / w)}, column ${at % w}`;
    byId("map-title").textContent = `Tokens${levels() > 1 ? `, level ${level() + 1} of ${levels()}` : ""}${about.grids.length > 1 ? `, grid ${h} × ${w}` : ""}`;
    byId("line").textContent = `${where}: ${erased.has(`${token},${level()}`) ? "erased, was " : ""}code ${code.toLocaleString("en")} of ${low} to ${high.toLocaleString("en")}, `
      + `${uses} time${uses === 1 ? "" : "s"} in this image; ${selected.size} chosen`;
    byId("map").setAttribute("aria-label", `token map, ${byId("line").textContent}`);
    const some = selected.size > 0;
    byId("code").min = low; byId("code").max = high;
    byId("set").disabled = !some;
    byId("swap").disabled = selected.size !== 2;
    byId("erase").disabled = !some || !about.erase;
    byId("erase").title = about.erase ? "Zero stands for what these tokens are looked up to" : "Tokens of this tokenizer have no place of their own in its latents";
    byId("undo").disabled = !past.length;
    byId("reset").disabled = !edited() && !past.length;
  }

  // -- editing

  function remember() { past.push([[...codes], new Set(erased)]); }

  function update() {
    draw();
    return during(async current => {
      const body = JSON.stringify({ image: opened.image, codes, erased: erasures(), stages: chosen });
      const shown = await call("decode", body);
      if (!current()) return;
      show(shown);
      await stages(current);
    });
  }

  const edits = {
    set() {
      const code = Number(byId("code").value), [low, high] = range();
      if (!Number.isInteger(code) || code < low || code > high) {
        byId("error").textContent = `Codes of this map are ${low} to ${high}.`;
        byId("error").hidden = false;
        return false;
      }
      for (const token of selected) { codes[place(token)] = code; erased.delete(`${token},${level()}`); }
    },
    swap() {
      const [a, b] = selected, one = place(a), other = place(b);
      [codes[one], codes[other]] = [codes[other], codes[one]];
      const marks = [a, b].map(token => `${token},${level()}`), had = marks.map(mark => erased.has(mark));
      marks.forEach((mark, i) => { if (had[1 - i]) erased.add(mark); else erased.delete(mark); });
    },
    erase() { for (const token of selected) erased.add(`${token},${level()}`); },
    shuffle() {
      const [h, w] = shape(), places = [...Array(h * w).keys()].map(t => place(first() + t));
      for (let i = places.length - 1; i > 0; i--) {
        const j = Math.floor(Math.random() * (i + 1));
        [codes[places[i]], codes[places[j]]] = [codes[places[j]], codes[places[i]]];
      }
    },
    reset() { codes = [...opened.codes]; erased = new Set(); },
  };

  for (const [name, edit] of Object.entries(edits)) byId(name).addEventListener("click", () => {
    remember();
    if (edit() === false) { past.pop(); return; }
    update();
  });
  byId("undo").addEventListener("click", () => { [codes, erased] = past.pop(); update(); });

  const map = byId("map");
  function choose(token) {
    if (!selected.delete(token)) selected.add(token);
    byId("code").value = codes[place(token)];
    draw();
  }
  map.addEventListener("click", event => { at = pointed(event, map, ...shape()); choose(first() + at); });
  map.addEventListener("keydown", event => {
    const to = arrowed(event.key, at, ...shape());
    if (to !== undefined) { at = to; draw(); }
    else if (event.key === " " || event.key === "Enter") choose(first() + at);
    else if (event.key === "Delete" || event.key === "Backspace") byId("erase").click();
    else if (event.key === "Escape") { selected.clear(); draw(); }
    else return;
    event.preventDefault();
  });
  for (const kind of ["focus", "blur"]) map.addEventListener(kind, () => draw());
  for (const id of ["level", "grid"]) byId(id).addEventListener("change", () => { selected.clear(); at = 0; draw(); });
  byId("numbers").addEventListener("change", () => draw());

  // -- levels, scales, groups

  async function stages(current) {
    if (!about.stages || codes === null) return;
    const { count, name } = about.stages;
    const found = await call("stages", JSON.stringify({ image: opened.image, codes, erased: erasures() }));
    if (!current()) return;
    const all = [...Array(count).keys()], strip = byId("strip");
    const tile = (shown, set, title) => make("button", {
      type: "button", title: "Decode these alone", onclick: () => take_(set), "data-set": set.join(","),
    }, make("img", { src: shown.picture, alt: "" }), `${title}: ${shown.psnr.toFixed(1)} dB`);
    const rows = found.upto.length ? [make("h3", {}, "Coarse to fine"), ...found.upto.map((shown, i) => tile(shown, all.slice(0, i + 1), i ? `1–${i + 1}` : "1"))] : [];
    strip.replaceChildren(...rows, make("h3", {}, "Each alone"), ...found.alone.map((shown, i) => tile(shown, [i], `${name} ${i + 1}`)));
    byId("chosen").replaceChildren(`Decode ${name}s`, ...all.map(i => make("label", {}, make("input", {
      type: "checkbox", checked: !chosen || chosen.includes(i), "data-stage": String(i), onchange: () => {
        const set = all.filter(j => byId("chosen").querySelector(`[data-stage="${j}"]`).checked);
        take_(set.length ? set : all);
      },
    }), ` ${i + 1}`)), make("button", { type: "button", onclick: () => take_(all) }, "All"));
    mark();
  }

  function mark() {
    const set = (chosen || [...Array(about.stages.count).keys()]);
    for (const button of byId("strip").querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.dataset.set === set.join(",")));
    for (const box of byId("chosen").querySelectorAll("input")) box.checked = set.includes(Number(box.dataset.stage));
  }

  function take_(set) {
    chosen = set.length === about.stages.count ? null : set;
    mark();
    return during(async current => {
      const shown = await call("decode", JSON.stringify({ image: opened.image, codes, erased: erasures(), stages: chosen }));
      if (current()) show(shown);
    });
  }

  // -- saving

  byId("save").addEventListener("click", () => {
    const side = Math.max(256, about.size), parts = [byId("original"), byId("picture")], gap = 8;
    if (codes !== null) { const canvas = make("canvas"); draw(canvas, true); parts.push(canvas); }
    const heights = parts.map(p => side * (p.height && p.tagName === "CANVAS" ? p.height / p.width : 1));
    const sheet = make("canvas", { width: parts.length * (side + gap) - gap, height: Math.ceil(Math.max(...heights)) }), pen = sheet.getContext("2d");
    pen.fillStyle = "#fff"; pen.fillRect(0, 0, sheet.width, sheet.height);
    pen.imageSmoothingEnabled = false;
    parts.forEach((part, i) => {
      pen.imageSmoothingEnabled = part.tagName === "CANVAS";
      pen.drawImage(part, i * (side + gap), 0, side, heights[i]);
    });
    sheet.toBlob(blob => {
      const name = byId("name").textContent.replace(/\.[A-Za-z0-9]{1,5}$/, "").replace(/[^A-Za-z0-9]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 60) || "image";
      const link = make("a", { href: URL.createObjectURL(blob), download: `${name}.png` });
      document.body.append(link);
      link.click();
      link.remove();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    }, "image/png");
  });

  // -- setting up

  byId("previous").addEventListener("click", () => go(-1));
  byId("next").addEventListener("click", () => go(1));
  byId("random").addEventListener("click", () => go("random"));
  byId("index").addEventListener("change", () => { images.at = Math.trunc(Number(byId("index").value)) || 0; go(0); });
  byId("file").addEventListener("change", event => take(event.target.files));
  document.addEventListener("dragover", event => { event.preventDefault(); document.body.classList.add("over"); });
  document.addEventListener("dragleave", () => document.body.classList.remove("over"));
  document.addEventListener("drop", event => { event.preventDefault(); document.body.classList.remove("over"); take(event.dataTransfer.files); });

  await during(async () => { about = await call("about"); });
  if (!about) return;
  byId("title").textContent = document.title = about.title;
  const sizes = [...new Set(about.vocabulary)].map(k => k.toLocaleString("en")).join(", ");
  byId("about").textContent = `${about.tokenizer}, ${about.size} pixels; ` + (levels()
    ? `${about.tokens.toLocaleString("en")} tokens${levels() > 1 ? ` of ${levels()} levels` : ""}, ${sizes} codes, ${Math.round(about.bits).toLocaleString("en")} bits an image`
    : "continuous latents: no tokens") + ".";
  for (const [id, count, text] of [["level", levels(), i => i + 1], ["grid", about.grids.length, i => about.grids[i].join(" × ")]]) {
    byId(id).append(...[...Array(count).keys()].map(i => make("option", { value: i }, String(text(i)))));
    byId(`${id}-label`).hidden = count < 2;
  }
  if (about.grids.length > 1) byId("grid").value = String(about.grids.length - 1);
  if (about.stages) {
    const title = about.stages.refine ? `What each ${about.stages.name} adds` : `Each ${about.stages.name} alone`;
    byId("stages-title").textContent = title;
    byId("stages").hidden = false;
  }
  sources();
  if (about.images) await go(0);
  else byId("name").textContent = `Choose an image, or drop one here: ${about.why}.`;
  document.documentElement.dataset.ready = "true";
})();
