"use strict";
// The map of an embedding on a canvas: D3 zooms and finds the nearest point; thumbnails take the place of points.
fgssl.each(".embedding", (root, data) => {
  const canvas = root.querySelector("canvas"), pen = canvas.getContext("2d"), tip = root.querySelector(".tip");
  const legend = root.querySelector(".legend"), chosenBox = root.querySelector(".chosen");
  const count = data.x.length, all = d3.range(count);
  const MARGIN = 24, FAR = 24, FEW = 90, SIDE = 44;  // pixels; pictures up to which all visible ones are drawn
  let width = 1, height = 1, transform = d3.zoomIdentity, pointed = -1, chosen = -1, group = null, found = null;
  let colouring = data.colourings[0] ?? null, colours = [], pictures = new Map(), due = false;

  const spans = [data.x, data.y].map((v) => (d3.max(v) - d3.min(v)) || 1);
  const middles = [data.x, data.y].map((v) => (d3.max(v) + d3.min(v)) / 2);
  const unit = () => Math.max(1, Math.min((width - 2 * MARGIN) / spans[0], (height - 2 * MARGIN) / spans[1]));
  const home = (i) => [width / 2 + (data.x[i] - middles[0]) * unit(), height / 2 - (data.y[i] - middles[1]) * unit()];
  const px = (i) => transform.applyX(home(i)[0]);
  const py = (i) => transform.applyY(home(i)[1]);
  const isShown = (i) => (group === null || colouring.values[i] === group) && (!found || found.has(i));
  const nearRows = () => (chosen < 0 || !data.neighbours.length ? [] : data.neighbours.at(-1).rows[chosen]);

  function hue(index, total) {  // well apart for any number of groups
    const dark = fgssl.dark();
    return total <= 10 ? d3.schemeTableau10[index] : d3.hcl((index * 137.508) % 360, dark ? 62 : 68, (dark ? 72 : 48) + 12 * (index % 3)).formatHex();
  }

  function recolour() {
    const plain = fgssl.ink("--accent"), none = fgssl.ink("--quiet");
    if (!colouring) colours = all.map(() => plain);
    else if (colouring.names) colours = colouring.values.map((g) => (g < 0 ? none : hue(g, colouring.names.length)));
    else {
      const [low, high] = d3.extent(colouring.values);
      const scale = d3.scaleSequential([low, high === low ? low + 1 : high], d3.interpolateViridis);
      colours = colouring.values.map((value) => (value === null ? none : scale(value)));
    }
    draw();
  }

  function draw() {
    if (!due) { due = true; requestAnimationFrame(paint); }
  }

  function paint() {
    due = false;
    const ratio = devicePixelRatio || 1, strong = fgssl.ink("--ink"), near = new Set(nearRows());
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const seen = all.filter((i) => px(i) > -SIDE && px(i) < width + SIDE && py(i) > -SIDE && py(i) < height + SIDE);
    const always = root.querySelector(".always").checked, shown = seen.filter(isShown);
    const radius = Math.max(2.5, Math.min(6, 60 / Math.sqrt(count))) * Math.min(2, Math.sqrt(transform.k));
    for (const i of seen) {
      pen.globalAlpha = isShown(i) ? 0.9 : 0.12;
      pen.fillStyle = colours[i];
      pen.beginPath();
      pen.arc(px(i), py(i), radius, 0, 7);
      pen.fill();
    }
    pen.globalAlpha = 1;
    if (always || (shown.length <= FEW && transform.k > 1)) drawPictures(shown);
    for (const i of near) ring(i, radius + 3, strong, 1.5);
    if (chosen >= 0) ring(chosen, radius + 4, strong, 3);
    if (pointed >= 0 && pointed !== chosen) ring(pointed, radius + 3, strong, 2);
  }

  function drawPictures(rows) {  // each where it covers no other
    const taken = [];
    for (const i of chosen >= 0 ? [chosen, ...rows] : rows) {
      const [x, y] = [px(i), py(i)];
      if (taken.some((at) => Math.abs(at[0] - x) < SIDE && Math.abs(at[1] - y) < SIDE)) continue;
      const image = picture(i);
      if (!image?.complete || !image.naturalWidth) continue;
      taken.push([x, y]);
      const scale = SIDE / Math.max(image.naturalWidth, image.naturalHeight);
      const [w, h] = [image.naturalWidth * scale, image.naturalHeight * scale];
      pen.drawImage(image, x - w / 2, y - h / 2, w, h);
      pen.strokeStyle = colours[i];
      pen.lineWidth = 2;
      pen.strokeRect(x - w / 2, y - h / 2, w, h);
    }
  }

  function picture(i) {
    if (!pictures.has(i)) {
      const image = data.thumbnails[i] ? new Image() : null;
      if (image) { image.onload = draw; image.src = data.thumbnails[i]; }
      pictures.set(i, image);
    }
    return pictures.get(i);
  }

  function ring(i, radius, colour, line) {
    pen.strokeStyle = colour;
    pen.lineWidth = line;
    pen.beginPath();
    pen.arc(px(i), py(i), radius, 0, 7);
    pen.stroke();
  }

  function image(i) {  // with what was seen enlarged outlined
    if (!data.thumbnails[i]) return fgssl.make("div", { className: "missing", textContent: "no picture" });
    const windows = (data.windows[i] ?? []).map(([left, top, width, height]) => {
      const made = fgssl.make("i", { className: "window" });
      Object.assign(made.style, { left: `${left}%`, top: `${top}%`, width: `${width}%`, height: `${height}%` });
      return made;
    });
    return fgssl.make("div", { className: "seen" }, fgssl.make("img", { src: data.thumbnails[i], alt: "" }), ...windows);
  }
  const groupOf = (i, each = colouring) => {
    if (!each) return "";
    const value = each.values[i];
    return each.names ? (value < 0 ? `no ${each.title}` : each.names[value]) : `${each.title} ${value ?? "–"}`;
  };

  function point(i) {
    pointed = i;
    tip.hidden = i < 0;
    if (i >= 0) {
      tip.replaceChildren(image(i), fgssl.make("div", { textContent: data.names[i] }),
        ...data.colourings.map((each) => fgssl.make("div", { className: "quiet", textContent: groupOf(i, each) })));
      const right = px(i) + 16 + tip.offsetWidth < width;
      tip.style.left = `${Math.max(0, right ? px(i) + 16 : px(i) - 16 - tip.offsetWidth)}px`;
      tip.style.top = `${Math.max(0, Math.min(height - tip.offsetHeight, py(i) - 20))}px`;
    }
    draw();
  }

  function choose(i) {
    chosen = i;
    chosenBox.replaceChildren();
    if (i >= 0) {
      const own = data.colourings.map((each) => groupOf(i, each)).join(" · ");
      chosenBox.append(fgssl.make("h3", { textContent: own ? `${data.names[i]} · ${own}` : data.names[i] }));
      const line = fgssl.make("div", { className: "line" });
      line.append(card(i, i));
      chosenBox.append(line);
      for (const each of data.neighbours) {
        const cards = each.rows[i].filter((j) => j >= 0).map((j) => card(j, i));
        chosenBox.append(fgssl.make("h3", { textContent: `Nearest, ${each.title}` }),
          fgssl.make("div", { className: "line" }, ...cards));
      }
    }
    draw();
  }

  function card(i, asked) {
    const made = fgssl.make("button", { type: "button", className: "near" }, image(i));
    made.append(fgssl.make("span", { textContent: data.names[i].split("/").at(-1) }));
    const labels = data.colourings[0];
    if (labels?.names) {
      made.append(fgssl.make("span", { className: "quiet", textContent: groupOf(i, labels) }));
      if (i !== asked && labels.values[asked] >= 0) made.classList.add(labels.values[i] === labels.values[asked] ? "right" : "wrong");
    }
    made.title = data.names[i];
    made.addEventListener("click", () => { reveal(i); choose(i); });
    return made;
  }

  function drawLegend() {
    legend.replaceChildren();
    if (!colouring) return;
    if (!colouring.names) {
      const [low, high] = d3.extent(colouring.values), bar = fgssl.make("div", { className: "scale" });
      bar.style.background = `linear-gradient(to right, ${d3.range(0, 1.01, 0.1).map(d3.interpolateViridis)})`;
      legend.append(`${low}`, bar, `${high}`);
      return;
    }
    const sizes = d3.rollup(colouring.values, (v) => v.length, (v) => v);
    for (const value of d3.sort(sizes.keys(), (v) => (v < 0 ? 1 : 0), (v) => -sizes.get(v))) {
      const dot = fgssl.make("i"), name = value < 0 ? `no ${colouring.title}` : colouring.names[value];
      dot.style.background = value < 0 ? fgssl.ink("--quiet") : hue(value, colouring.names.length);
      const button = fgssl.make("button", { type: "button" }, dot, `${name} (${sizes.get(value)})`);
      button.setAttribute("aria-pressed", String(group === value));
      button.addEventListener("click", () => {
        group = group === value ? null : value;
        for (const other of legend.children) other.setAttribute("aria-pressed", String(other === button && group !== null));
        draw();
      });
      legend.append(button);
    }
  }

  // ---- moving
  const zoom = d3.zoom().scaleExtent([0.5, 400])
    .filter((event) => !event.button && (event.type !== "touchstart" || event.touches.length > 1))  // one finger scrolls
    .on("zoom", (event) => { transform = event.transform; point(-1); draw(); });
  const view = d3.select(canvas).call(zoom).on("dblclick.zoom", null);
  const scale = (factor) => view.call(zoom.scaleBy, factor);

  function reveal(i) {  // bring a point into sight where it is not
    if (px(i) > 0 && px(i) < width && py(i) > 0 && py(i) < height) return;
    view.call(zoom.translateTo, ...home(i));
  }

  function nearest(x, y, most = FAR) {
    const far = (i) => Math.hypot(px(i) - x, py(i) - y), best = d3.least(all.filter(isShown), far);
    return best !== undefined && far(best) <= most ? best : -1;
  }

  function step(dx, dy) {  // the nearest point in that direction
    if (pointed < 0) return chosen >= 0 ? chosen : nearest(width / 2, height / 2, Infinity);
    const cost = (i) => {
      const [x, y] = [px(i) - px(pointed), py(i) - py(pointed)], along = x * dx + y * dy, aside = Math.abs(x * dy - y * dx);
      return along > 0.5 && aside <= 1.5 * along ? along + 2 * aside : Infinity;
    };
    const next = d3.least(all.filter(isShown), cost);
    return next === undefined || cost(next) === Infinity ? pointed : next;
  }

  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    const way = ways[event.key], known = { "+": 1.5, "=": 1.5, "-": 1 / 1.5 }[event.key];
    if (way && event.shiftKey) view.call(zoom.translateBy, (-way[0] * 60) / transform.k, (-way[1] * 60) / transform.k);
    else if (way) { const i = step(...way); if (i >= 0) { reveal(i); point(i); } }
    else if (known) scale(known);
    else if (event.key === "0") view.call(zoom.transform, d3.zoomIdentity);
    else if (event.key === "Enter" || event.key === " ") choose(pointed);
    else if (event.key === "Escape") { point(-1); choose(-1); }
    else return;
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => { if (!event.buttons) point(nearest(event.offsetX, event.offsetY)); });
  canvas.addEventListener("pointerleave", () => point(-1));
  canvas.addEventListener("click", (event) => choose(nearest(event.offsetX, event.offsetY)));
  root.querySelectorAll("[data-zoom]").forEach((button) => button.addEventListener("click", () => {
    if (button.dataset.zoom === "all") view.call(zoom.transform, d3.zoomIdentity);
    else scale(button.dataset.zoom === "in" ? 1.5 : 1 / 1.5);
  }));
  root.querySelector(".always").addEventListener("change", draw);
  root.querySelector(".find").addEventListener("input", (event) => {
    const asked = event.target.value.trim().toLowerCase();
    const holds = (i) => data.names[i].toLowerCase().includes(asked) || groupOf(i).toLowerCase().includes(asked);
    found = asked ? new Set(all.filter(holds)) : null;
    draw();
  });
  root.querySelector(".colouring")?.addEventListener("change", (event) => {
    colouring = data.colourings[event.target.value];
    group = null;
    drawLegend();
    recolour();
  });
  new ResizeObserver(() => {
    [width, height] = [canvas.clientWidth, canvas.clientHeight];
    const ratio = devicePixelRatio || 1;
    [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    draw();
  }).observe(canvas);
  fgssl.onTheme(() => { drawLegend(); recolour(); });
  drawLegend();
  recolour();
});
