// Charts as SVG by Chartist: a legend that switches lines, values under the pointer, zoom by dragging along x.
(() => {
  const LOOKS = 8, DASHES = 3, MOST_SHOWN = 12, HEIGHT = 320;
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const shown = value => {
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2).replace(/\.?0+e/, "e");
    return value.toLocaleString("en", { maximumSignificantDigits: size >= 1000 && Number.isInteger(value) ? 12 : 4 });
  };
  // Round numbers within [low, high], about so many.
  const linearTicks = (low, high, about) => {
    const rough = (high - low) / about || 1, unit = 10 ** Math.floor(Math.log10(rough));
    const step = unit * [1, 2, 5, 10].find(factor => factor * unit >= rough * 0.999);
    const ticks = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) ticks.push(Number((i * step).toPrecision(12)));
    return ticks;
  };
  // Of logarithms: whole decades, thinned; 1, 2 and 5 where there are few.
  const logTicks = (low, high) => {
    const decades = Math.floor(high) - Math.ceil(low) + 1, every = Math.ceil(decades / 7), ticks = [];
    const factors = decades > 2 ? [1] : [1, 2, 5];
    for (let k = Math.floor(low); k <= high; k++) for (const factor of factors) {
      const at = k + Math.log10(factor);
      if (at >= low && at <= high && k % every === 0) ticks.push(at);
    }
    return ticks.length > 1 ? ticks : linearTicks(10 ** low, 10 ** high, 4).filter(v => v > 0).map(Math.log10);
  };

  function chart(place, spec) {
    const canvas = make("div", "canvas"), tip = make("div", "tip"), legend = make("div", "legend");
    const reset = make("button", "reset", "Whole range"), bar = make("div", "bar");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", spec.title);
    reset.type = "button";
    reset.hidden = tip.hidden = true;
    let choice = 0, zoom = null, hidden = new Set(), geometry = null;

    if (spec.choices.length > 1) {
      const label = make("label", "", spec.choose + " "), select = make("select");
      spec.choices.forEach((one, i) => select.add(new Option(one.name, i)));
      select.addEventListener("change", () => { choose(Number(select.value)); draw(); });
      label.append(select);
      bar.append(label);
    }
    bar.append(reset);
    place.append(bar, canvas, tip, legend);
    reset.addEventListener("click", () => { zoom = null; draw(); });

    const look = i => `s${i % LOOKS} d${Math.floor(i / LOOKS) % DASHES}`;
    function choose(i) {
      choice = i;
      zoom = null;
      const lines = spec.choices[i].lines;
      hidden = new Set(lines.map((_, k) => k).filter(k => k >= MOST_SHOWN));
      legend.replaceChildren();
      if (lines.length > 1) lines.forEach((line, k) => {
        const button = make("button", look(k)), swatch = make("i");
        button.type = "button";
        button.append(swatch, line.name);
        button.setAttribute("aria-pressed", !hidden.has(k));
        button.addEventListener("click", () => {
          hidden.has(k) ? hidden.delete(k) : hidden.add(k);
          button.setAttribute("aria-pressed", !hidden.has(k));
          draw();
        });
        legend.append(button);
      });
    }

    function extent(values, pad, least) {
      let low = Math.min(...values), high = Math.max(...values);
      const room = high > low ? pad * (high - low) : Math.max(Math.abs(high) * 0.05, least);
      return [low - room, high + room];
    }

    // Lines as drawn: those switched on, on the scale of the axis, within the zoom and one point beyond.
    function visible() {
      const { lines, log } = spec.choices[choice];
      return lines.map((line, i) => {
        if (hidden.has(i)) return { i, name: line.name, points: [] };
        let points = line.x.map((x, k) => ({ x, y: line.y[k] })).map(
          p => p.y === null || (log && !(p.y > 0)) ? { x: p.x, y: null } : { x: p.x, y: log ? Math.log10(p.y) : p.y, real: p.y });
        if (zoom) {
          const first = points.findIndex(p => p.x >= zoom[0]), after = points.findIndex(p => p.x > zoom[1]);
          points = points.slice(Math.max(0, (first < 0 ? points.length : first) - 1), after < 0 ? points.length : after + 1);
        }
        return { i, name: line.name, points };
      });
    }

    function draw() {
      const one = spec.choices[choice], width = canvas.clientWidth, drawn = visible();
      tip.hidden = true;
      const within = drawn.flatMap(line => line.points).filter(p => p.y !== null && (!zoom || (p.x >= zoom[0] && p.x <= zoom[1])));
      reset.hidden = !zoom;
      if (!within.length || width < 50) { geometry = null; canvas.replaceChildren(make("p", "quiet", within.length ? "" : "Nothing to draw here.")); return; }
      const marks = (one.marks ?? []).map(mark => ({ ...mark, at: one.log ? Math.log10(mark.y) : mark.y }));
      const [lowX, highX] = zoom ?? (spec.dots ? extent(within.map(p => p.x), 0.06, 1e-9) : extent(within.map(p => p.x), 0, 0.5));
      let [lowY, highY] = extent([...within.map(p => p.y), ...marks.map(mark => mark.at)], 0.05, one.log ? 0.1 : 1e-9);
      if (!one.log && lowY < 0 && within.every(p => p.y >= 0)) lowY = 0;
      const ticksX = linearTicks(lowX, highX, Math.max(2, width / 110)), ticksY = one.log ? logTicks(lowY, highY) : linearTicks(lowY, highY, 6);
      const nameY = t => shown(one.log ? Number((10 ** t).toPrecision(6)) : t);
      const left = 14 + 7.2 * Math.max(...ticksY.map(t => nameY(t).length));
      const axis = { type: Chartist.FixedScaleAxis, showLabel: false };
      canvas.replaceChildren();
      const few = drawn.every(line => line.points.length <= 40);
      const made = new Chartist.LineChart(canvas, {
        series: drawn.map(({ i, points }) => ({ className: look(i), data: points.length ? points : [{ x: lowX, y: null }] })),
      }, {
        width: `${width}px`, height: `${HEIGHT}px`, chartPadding: { top: 8, right: 12, bottom: 22, left }, lineSmooth: Chartist.Interpolation.none({ fillHoles: false }),
        showPoint: few || spec.dots, showLine: !spec.dots,
        axisX: { ...axis, ticks: ticksX, low: lowX, high: highX, offset: 0 }, axisY: { ...axis, ticks: ticksY, low: lowY, high: highY, offset: 0 },
      });
      made.on("created", ({ chartRect: rect, axisX, axisY, svg }) => {
        geometry = { rect, lowX, highX, drawn, svg: svg.getNode(), x: v => rect.x1 + axisX.projectValue({ x: v }), y: v => rect.y1 - axisY.projectValue({ y: v }) };
        const text = (x, y, words, anchor) => { svg.elem("text", { x, y, "text-anchor": anchor }, "axis").getNode().textContent = words; };
        for (const t of ticksX) text(geometry.x(t), rect.y1 + 17, shown(t), "middle");
        for (const t of ticksY) text(rect.x1 - 8, geometry.y(t) + 4, nameY(t), "end");
        for (const mark of marks) {
          svg.elem("line", { x1: rect.x1, x2: rect.x2, y1: geometry.y(mark.at), y2: geometry.y(mark.at) }, "mark");
          text(rect.x2 - 4, geometry.y(mark.at) - 5, mark.name, "end");
        }
        const clip = `clip-${place.id}`, node = svg.elem("clipPath", { id: clip });
        node.elem("rect", { x: rect.x1 - 4, y: rect.y2 - 6, width: rect.width() + 8, height: rect.height() + 10 });
        for (const group of geometry.svg.querySelectorAll(".ct-series")) group.setAttribute("clip-path", `url(#${clip})`);
        place.dataset.drawn = "yes";
        setTimeout(() => made.detach(), 0); // our own observer redraws it, with ticks that fit
      });
    }

    const valueAt = event => {
      const { rect, lowX, highX, svg } = geometry, at = event.clientX - svg.getBoundingClientRect().left;
      return Math.min(highX, Math.max(lowX, lowX + (at - rect.x1) / rect.width() * (highX - lowX)));
    };
    const overlay = (name, tag) => {
      let node = geometry.svg.querySelector("." + name);
      if (!node) { node = document.createElementNS("http://www.w3.org/2000/svg", tag); node.setAttribute("class", name); geometry.svg.append(node); }
      return node;
    };

    function point(event) {
      if (!geometry) return;
      const { rect, drawn, svg } = geometry, x = valueAt(event), rows = [];
      for (const { i, name, points } of drawn) {
        let best = null;
        for (const p of points) if (p.y !== null && (!best || distance(p, x, event) < distance(best, x, event))) best = p;
        if (best) rows.push({ i, name, p: best });
      }
      if (!rows.length) return;
      rows.sort((a, b) => distance(a.p, x, event) - distance(b.p, x, event));
      const near = rows[0].p, box = svg.getBoundingClientRect(), frame = place.getBoundingClientRect();
      const listed = (spec.dots ? rows.slice(0, 1) : [...rows].sort((a, b) => b.p.y - a.p.y)).slice(0, 14);
      tip.replaceChildren(make("b", "", `${spec.x} ${shown(near.x)}`), ...listed.map(({ i, name, p }) => {
        const row = make("div", look(i));
        row.append(make("i"), make("span", "", name), make("b", "", shown(p.real)));
        return row;
      }));
      tip.hidden = false;
      const at = geometry.x(near.x), half = tip.offsetWidth / 2, offset = box.left - frame.left;
      tip.style.left = `${Math.max(0, Math.min(frame.width - 2 * half, offset + at + (at > box.width / 2 ? -2 * half - 12 : 12)))}px`;
      tip.style.top = `${box.top - frame.top + 8}px`;
      const line = overlay("cursor", "line");
      for (const [key, v] of Object.entries({ x1: at, x2: at, y1: rect.y1, y2: rect.y2 })) line.setAttribute(key, v);
    }
    function distance(p, x, event) {
      if (!spec.dots) return Math.abs(p.x - x);
      const box = geometry.svg.getBoundingClientRect();
      return Math.hypot(geometry.x(p.x) - (event.clientX - box.left), geometry.y(p.y) - (event.clientY - box.top));
    }
    function leave() {
      tip.hidden = true;
      geometry?.svg.querySelector(".cursor")?.remove();
    }

    let from = null;
    canvas.addEventListener("pointerdown", event => { if (geometry && event.pointerType === "mouse" && event.button === 0) { from = valueAt(event); canvas.setPointerCapture(event.pointerId); event.preventDefault(); } });
    canvas.addEventListener("pointermove", event => {
      point(event);
      if (from === null || !geometry) return;
      const [a, b] = [from, valueAt(event)].sort((p, q) => p - q), { rect } = geometry, box = overlay("choice", "rect");
      for (const [key, v] of Object.entries({ x: geometry.x(a), width: geometry.x(b) - geometry.x(a), y: rect.y2, height: rect.height() })) box.setAttribute(key, v);
    });
    canvas.addEventListener("pointerup", event => {
      if (from === null || !geometry) return;
      const [a, b] = [from, valueAt(event)].sort((p, q) => p - q);
      from = null;
      geometry.svg.querySelector(".choice")?.remove();
      if (geometry.x(b) - geometry.x(a) > 8) { zoom = [a, b]; draw(); }
    });
    canvas.addEventListener("pointerleave", leave);
    canvas.addEventListener("dblclick", () => { zoom = null; draw(); });

    choose(0);
    let width = 0;
    const fit = () => { if (canvas.clientWidth !== width) { width = canvas.clientWidth; draw(); } };
    fit();  // where nothing is observed, as in a page that is printed at once
    new ResizeObserver(fit).observe(canvas);
  }

  const data = document.getElementById("charts-data");
  const specs = data ? JSON.parse(data.textContent) : {};
  for (const place of document.querySelectorAll(".chart")) chart(place, specs[place.id]);
})();
