// SPDX-License-Identifier: Apache-2.0
// Three linked planes through the volume, drawn on canvases without WebGL.
(() => {
  const box = document.querySelector("[data-viewer]");
  if (!box || !("DecompressionStream" in window)) return;
  const numbers = (name) => box.dataset[name].split(" ").map(Number);
  const shape = numbers("shape"), affine = numbers("affine"), spacing = numbers("spacing"), first = numbers("window");
  const colours = box.dataset.colours.match(/.{6}/g).map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  const LETTERS = [["R", "L"], ["A", "P"], ["S", "I"]];
  const layers = {}, state = { at: null, low: first[0], high: first[1], before: false, mask: true, cross: true, overlay: "", opacity: 0.6 };
  const control = (name) => box.querySelector(`[data-control="${name}"]`);
  const said = box.querySelector("[data-under]"), bar = box.querySelector("[data-bar]");
  const planes = [...box.querySelectorAll("[data-axis]")].map((figure) => {
    const axis = Number(figure.dataset.axis), [across, up] = [0, 1, 2].filter((other) => other !== axis);
    const voxels = document.createElement("canvas");
    voxels.width = shape[across];
    voxels.height = shape[up];
    return { axis, across, up, voxels, canvas: figure.querySelector("canvas"), slider: figure.querySelector("input"), words: figure.querySelector("output") };
  });

  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const offset = (index) => index[0] + shape[0] * (index[1] + shape[1] * index[2]);
  const valueOf = (layer, index) => layer.low + ((layer.high - layer.low) * layer.bytes[offset(index)]) / 255;
  const short = (value) => (value === 0 ? "0" : Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(3))));
  const inside = (index) => !layers.mask || layers.mask.bytes[offset(index)] > 127;
  const place = (index) => [0, 1, 2].map((row) => affine[4 * row] * index[0] + affine[4 * row + 1] * index[1] + affine[4 * row + 2] * index[2] + affine[4 * row + 3]);
  const side = (value, axis, places) => `${LETTERS[axis][value >= 0 ? 0 : 1]} ${Math.abs(value).toFixed(places)}`;

  async function unpack(part) {
    const packed = Uint8Array.from(atob(part.dataset.bytes), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const { key, label, low, high, unit } = part.dataset;
    part.removeAttribute("data-bytes");
    layers[key] = { label, unit, low: Number(low), high: Number(high), bytes: new Uint8Array(await new Response(stream).arrayBuffer()) };
  }

  // Voxels of a plane: greys, then the overlay inside the mask.
  function paint(plane) {
    const { axis, across, up, voxels } = plane, [columns, rows] = [shape[across], shape[up]];
    const base = state.before && layers.before ? layers.before : layers.volume, over = layers[state.overlay];
    const picture = new ImageData(columns, rows), scale = (base.high - base.low) / 255, gain = 255 / Math.max(state.high - state.low, 1e-9);
    const index = [...state.at];
    for (let row = 0, to = 0; row < rows; row += 1) {
      index[up] = rows - 1 - row;
      for (let column = 0; column < columns; column += 1, to += 4) {
        index[across] = columns - 1 - column;
        const from = offset(index), grey = (base.low + scale * base.bytes[from] - state.low) * gain;
        let colour = [grey, grey, grey];
        if (over && inside(index)) {
          const heat = colours[Math.round(((colours.length - 1) * over.bytes[from]) / 255)];
          colour = heat.map((part) => state.opacity * part + (1 - state.opacity) * clamp(grey, 0, 255));
        }
        picture.data.set([...colour, 255], to);
      }
    }
    voxels.getContext("2d").putImageData(picture, 0, 0);
  }

  // Edges between voxels inside and outside the mask.
  function outline(plane, pen, step) {
    const { across, up } = plane, [columns, rows] = [shape[across], shape[up]], index = [...state.at];
    const held = (column, row) => {
      if (column < 0 || row < 0 || column >= columns || row >= rows) return false;
      index[across] = columns - 1 - column;
      index[up] = rows - 1 - row;
      return inside(index);
    };
    pen.beginPath();
    for (let row = 0; row <= rows; row += 1) {
      for (let column = 0; column <= columns; column += 1) {
        const here = held(column, row);
        if (here !== held(column - 1, row)) { pen.moveTo(column * step[0], row * step[1]); pen.lineTo(column * step[0], (row + 1) * step[1]); }
        if (here !== held(column, row - 1)) { pen.moveTo(column * step[0], row * step[1]); pen.lineTo((column + 1) * step[0], row * step[1]); }
      }
    }
    pen.strokeStyle = "#ffd23f";
    pen.stroke();
  }

  function scaleBar(plane, pen, size, pixels) {
    const wide = shape[plane.across] * spacing[plane.across], length = wide > 60 ? 20 : wide > 30 ? 10 : 5;
    const long = (length / wide) * size[0], left = 8 * pixels, bottom = size[1] - 9 * pixels;
    pen.fillStyle = "#fff";
    pen.fillRect(left, bottom, long, 2 * pixels);
    pen.font = `600 ${11 * pixels}px system-ui, sans-serif`;
    pen.fillText(`${length} mm`, left, bottom - 4 * pixels);
  }

  function draw(plane) {
    const { axis, across, up, canvas, voxels, slider, words } = plane, pixels = window.devicePixelRatio || 1;
    const size = [canvas.clientWidth * pixels, canvas.clientHeight * pixels].map(Math.round);
    if (!size[0]) return;
    if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
    paint(plane);
    const pen = canvas.getContext("2d"), step = [size[0] / shape[across], size[1] / shape[up]];
    pen.imageSmoothingQuality = "high";
    pen.drawImage(voxels, 0, 0, ...size);
    pen.lineWidth = 1.2 * pixels;
    if (state.mask && layers.mask) outline(plane, pen, step);
    if (state.cross) {
      const x = (shape[across] - 0.5 - state.at[across]) * step[0], y = (shape[up] - 0.5 - state.at[up]) * step[1], gap = 7 * pixels;
      pen.strokeStyle = "rgba(110, 190, 255, .8)";
      pen.lineWidth = pixels;
      pen.beginPath();
      for (const [a, b, c, d] of [[0, y, x - gap, y], [x + gap, y, size[0], y], [x, 0, x, y - gap], [x, y + gap, x, size[1]]]) { pen.moveTo(a, b); pen.lineTo(c, d); }
      pen.stroke();
    }
    scaleBar(plane, pen, size, pixels);
    slider.value = state.at[axis];
    words.textContent = `${side(place(state.at)[axis], axis, 1)} mm`;
    slider.setAttribute("aria-valuetext", words.textContent);
  }

  function tell(index) {
    const where = place(index).map((value, axis) => side(value, axis, 1)).join(", ");
    const parts = Object.entries(layers).filter(([key]) => key !== "mask").map(([, layer]) => `${layer.label} ${short(valueOf(layer, index))}${layer.unit}`);
    if (layers.mask) parts.push(inside(index) ? "inside the mask" : "outside the mask");
    said.textContent = `${where} mm: ${parts.join(", ")}`;
  }

  let waiting = false;
  function show() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      planes.forEach(draw);
      tell(state.at);
      const over = layers[state.overlay], span = layers.volume.high - layers.volume.low;
      bar.hidden = !over;
      if (over) [bar.firstElementChild.textContent, bar.lastElementChild.textContent] = [`${over.label}: ${short(over.low)}`, `${short(over.high)}${over.unit}`];
      for (const [name, value] of [["before", state.before], ["mask", state.mask], ["cross", state.cross]]) if (control(name)) control(name).checked = value;
      if (control("overlay")) control("overlay").value = state.overlay;
      control("width").value = Math.round((100 * (state.high - state.low)) / span);
      control("level").value = Math.round((100 * ((state.high + state.low) / 2 - layers.volume.low)) / span);
    });
  }
  function go(index) {
    state.at = index.map((value, axis) => clamp(Math.round(value), 0, shape[axis] - 1));
    show();
  }
  function grey(level, width) {
    const span = layers.volume.high - layers.volume.low, half = Math.max(width, span / 100) / 2;
    [state.low, state.high] = [level - half, level + half];
    show();
  }
  const level = () => (state.high + state.low) / 2, width = () => state.high - state.low;
  const along = (axis, by) => go(state.at.map((value, other) => (other === axis ? value + by : value)));
  function cycle() {
    const names = ["", "coverage", "uncertainty"].filter((name) => !name || layers[name]);
    state.overlay = names[(names.indexOf(state.overlay) + 1) % names.length];
    show();
  }
  const toggle = (name) => { state[name] = !state[name]; show(); };
  function reset() {
    [state.low, state.high] = first;
    go(shape.map((count) => count / 2));
  }

  let scrolled = -1e9;
  window.addEventListener("scroll", () => { scrolled = performance.now(); }, { passive: true });

  function listen(plane) {
    const { axis, across, up, canvas, slider } = plane;
    const under = (event) => {
      const area = canvas.getBoundingClientRect(), index = [...state.at];
      index[across] = clamp(Math.floor((1 - (event.clientX - area.left) / area.width) * shape[across]), 0, shape[across] - 1);
      index[up] = clamp(Math.floor((1 - (event.clientY - area.top) / area.height) * shape[up]), 0, shape[up] - 1);
      return index;
    };
    let from = null;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      from = { x: event.clientX, y: event.clientY, level: level(), width: width(), greys: event.button === 2 || event.shiftKey };
      if (!from.greys) go(under(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!from) { tell(under(event)); return; }
      const share = (layers.volume.high - layers.volume.low) / 300;
      if (from.greys) grey(from.level - share * (event.clientY - from.y), from.width + share * (event.clientX - from.x));
      else go(under(event));
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { from = null; });
    canvas.addEventListener("pointerleave", () => { if (!from) tell(state.at); });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", reset);
    // A page that is being scrolled goes on scrolling: planes take the wheel once it has come to rest.
    canvas.addEventListener("wheel", (event) => {
      if (event.ctrlKey || performance.now() - scrolled < 250) return;
      event.preventDefault();
      along(axis, event.deltaY < 0 ? 1 : -1);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: [across, 1], ArrowRight: [across, -1], ArrowUp: [up, 1], ArrowDown: [up, -1], PageUp: [axis, 1], PageDown: [axis, -1], ".": [axis, 1], ",": [axis, -1] };
      const step = steps[event.key];
      if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      along(step[0], step[1] * (event.shiftKey ? 5 : 1));
    });
    slider.addEventListener("input", () => along(axis, Number(slider.value) - state.at[axis]));
  }

  function listenAll() {
    planes.forEach(listen);
    box.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
      const span = (layers.volume.high - layers.volume.low) / 20;
      const keys = {
        b: () => layers.before && toggle("before"), m: () => toggle("mask"), x: () => toggle("cross"), o: cycle, r: reset,
        "[": () => grey(level(), width() - span), "]": () => grey(level(), width() + span),
        "-": () => grey(level() + span, width()), "+": () => grey(level() - span, width()), "=": () => grey(level() - span, width()),
      };
      const act = keys[event.key.toLowerCase()];
      if (act) { event.preventDefault(); act(); }
    });
    for (const name of ["before", "mask", "cross"]) control(name)?.addEventListener("change", () => toggle(name));
    control("overlay")?.addEventListener("change", (event) => { state.overlay = event.target.value; show(); });
    control("opacity")?.addEventListener("input", (event) => { state.opacity = event.target.value / 100; show(); });
    const span = layers.volume.high - layers.volume.low;
    control("width").addEventListener("input", (event) => grey(level(), (span * event.target.value) / 100));
    control("level").addEventListener("input", (event) => grey(layers.volume.low + (span * event.target.value) / 100, width()));
    control("reset").addEventListener("click", reset);
    new ResizeObserver(show).observe(box);
    window.addEventListener("beforeprint", () => planes.forEach(draw));
  }

  Promise.all([...box.querySelectorAll("[data-key]")].map(unpack)).then(() => {
    box.hidden = false;
    listenAll();
    reset();
    box.dataset.ready = "yes";
  }).catch(() => { document.getElementById("planes").open = true; });
})();
