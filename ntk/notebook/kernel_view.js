// A kernel that answers to a pointer and to arrow keys. All of it happens in the page: Python sends
// the entries once, and hears of a click alone.

const STEPS = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};

function add(parent, name, className, attributes = {}) {
  const element = document.createElement(name);
  element.className = className;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return parent.appendChild(element);
}

function bytes(view) {  // a DataView, which may start anywhere in its buffer
  return new Uint8Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

// Numbers for people: three digits, and a minus sign.
function digits(value) {
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

class KernelView {
  constructor(model, el) {
    this.model = model;
    this.el = add(el, "div", "ntk-view", {role: "group"});
    if (model.get("sheet")) this.sheet = this.board("ntk-sheet", "Sheet of the inputs");
    this.map = this.board("ntk-map", "Heatmap of the kernel");
    this.bars = add(this.map.frame, "canvas", "ntk-row", {"aria-hidden": "true"});
    const beside = add(this.el, "div", "ntk-beside");
    this.faces = [add(beside, "canvas", "ntk-face"), add(beside, "canvas", "ntk-face")];
    this.says = add(beside, "p", "ntk-says", {"aria-live": "polite"});
    this.listen(this.map.frame, "map", this.map.canvas);
    if (this.sheet) this.listen(this.sheet.frame, "sheet", this.sheet.canvas);
    this.drawn = 0;
    this.read();
  }

  // A canvas with one pixel for an entry, which CSS enlarges, and a frame around what is chosen.
  board(className, label) {
    const about = {tabindex: 0, role: "application", "aria-label": `${label}: use the arrow keys`,
                   "data-lm-suppress-shortcuts": "true"};
    const frame = add(this.el, "div", `ntk-board ${className}`, about);
    const title = add(frame, "div", "ntk-title");
    const area = add(frame, "div", "ntk-area");
    return {frame, title, area, canvas: add(area, "canvas", "ntk-pixels", {"aria-hidden": "true"}),
            row: add(area, "div", "ntk-mark"), column: add(area, "div", "ntk-mark ntk-dot")};
  }

  listen(frame, name, canvas) {
    canvas.parentElement.addEventListener("pointermove", event => {
      if (!this.pinned) this.go(...this.under(event, name, canvas));
    });
    canvas.parentElement.addEventListener("pointerleave", () => this.go(...(this.pinned ?? this.at)));
    canvas.parentElement.addEventListener("click", event => this.pin(this.under(event, name, canvas)));
    frame.addEventListener("keydown", event => {
      if (event.key in STEPS) this.walk(name, ...STEPS[event.key]);
      else if (event.key === "Enter" || event.key === " ") this.pin(this.at);
      else if (event.key === "Escape") this.pin(null);
      else return;
      event.preventDefault();
      event.stopPropagation();  // JupyterLab would move to another cell
    });
  }

  // Row and column of the entry under the pointer; an input of the sheet is both.
  under(event, name, canvas) {
    const box = canvas.getBoundingClientRect();
    const part = (at, start, length, count) =>
      Math.min(count - 1, Math.max(0, Math.floor((at - start) / length * count)));
    if (name === "map") {
      return [part(event.clientY, box.top, box.height, this.rows),
              part(event.clientX, box.left, box.width, this.columns)];
    }
    const down = part(event.clientY, box.top, box.height, Math.ceil(this.rows / this.across));
    const right = part(event.clientX, box.left, box.width, this.across);
    const tile = Math.min(this.rows - 1, down * this.across + right);
    return [tile, tile];
  }

  walk(name, down, right) {
    const inside = (value, count) => Math.min(count - 1, Math.max(0, value));
    let [i, j] = this.at;
    if (name === "sheet") i = j = inside(i + down * this.across + right, this.rows);
    else [i, j] = [inside(i + down, this.rows), inside(j + right, this.columns)];
    if (this.pinned) this.pin([i, j], false);
    else this.go(i, j);
  }

  pin(place, toggle = true) {
    const same = toggle && this.pinned && place && String(place) === String(this.pinned);
    this.pinned = same ? null : place;
    this.model.set("pinned", this.pinned ?? []);
    this.model.save_changes();
    this.go(...(this.pinned ?? this.at));
  }

  // What Python sent.
  read() {
    const {model} = this;
    [this.rows, this.columns] = model.get("_shape");
    this.entries = new Float32Array(bytes(model.get("_entries")).buffer);
    this.colours = bytes(model.get("_colours"));
    this.images = bytes(model.get("_images"));
    this.across = Math.min(this.rows, Math.max(10, Math.ceil(Math.sqrt(this.rows))));
    const pinned = model.get("pinned");
    this.pinned = pinned.length ? [...pinned] : null;
    const [i, j] = this.pinned ?? this.at ?? [0, 0];
    this.el.setAttribute("aria-label", model.get("alt"));
    this.map.title.textContent = model.get("title");
    this.paint();
    this.go(Math.min(i, this.rows - 1), Math.min(j, this.columns - 1));
  }

  colour(value) {  // where its three bytes begin
    const part = (value / this.model.get("_largest") + 1) / 2;
    const last = this.colours.length / 3 - 1;
    return 3 * Math.min(last, Math.max(0, Math.round(part * last)));
  }

  paint() {
    const {canvas} = this.map, {colours, entries} = this;
    [canvas.width, canvas.height] = [this.columns, this.rows];
    canvas.style.aspectRatio = `${this.columns} / ${this.rows}`;
    const context = canvas.getContext("2d"), pixels = context.createImageData(this.columns, this.rows);
    entries.forEach((value, k) => {
      const c = this.colour(value);
      pixels.data.set([colours[c], colours[c + 1], colours[c + 2], 255], 4 * k);
    });
    context.putImageData(pixels, 0, 0);
  }

  // Choose an entry: frames, row, inputs and sentence follow.
  go(i, j) {
    this.at = [i, j];
    const place = (mark, left, top, width, height) => Object.assign(mark.style, {
      left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * width}%`,
      height: `${100 * height}%`});
    place(this.map.row, 0, i / this.rows, 1, 1 / this.rows);
    place(this.map.column, j / this.columns, i / this.rows, 1 / this.columns, 1 / this.rows);
    this.paintRow(i);
    if (this.sheet) this.paintSheet(i, place);
    this.face(this.faces[0], i);
    this.face(this.faces[1], j);
    this.says.textContent = this.sentence(i, j);
    this.el.dataset.drawn = ++this.drawn;
  }

  paintRow(i) {
    const {bars, colours} = this, height = 48, largest = this.model.get("_largest");
    const lowest = Math.max(-1, Math.min(0, this.entries.reduce((a, b) => Math.min(a, b)) / largest));
    const zero = height / (1 - lowest);  // the height of the baseline, from above
    [bars.width, bars.height] = [this.columns, height];
    const context = bars.getContext("2d");
    for (let j = 0; j < this.columns; j++) {
      const value = this.entries[i * this.columns + j], c = this.colour(value);
      const size = Math.max(-1, Math.min(1, value / largest)) * zero;
      context.fillStyle = `rgb(${colours[c]}, ${colours[c + 1]}, ${colours[c + 2]})`;
      context.fillRect(j, zero - Math.max(0, size), 1, Math.max(1, Math.abs(size)));
    }
  }

  // Every input glows by the entry it has with input i: its shape stays visible in grey.
  paintSheet(i, place) {
    const [height, width] = this.model.get("_image_shape"), {canvas, row, title} = this.sheet;
    const down = Math.ceil(this.rows / this.across), {colours} = this;
    [canvas.width, canvas.height] = [this.across * (width + 1), down * (height + 1)];
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(canvas.width, canvas.height);
    for (let k = 0; k < pixels.data.length; k += 4) pixels.data[k + 3] = 255;
    for (let tile = 0; tile < this.rows; tile++) {
      const c = this.colour(this.entries[i * this.columns + tile]);
      const tint = [70, 70, 80].map((grey, k) => Math.max(grey, colours[c + k]));
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++) {
          const ink = this.images[(tile * height + y) * width + x] / 255;
          const at = (Math.floor(tile / this.across) * (height + 1) + y) * canvas.width
            + (tile % this.across) * (width + 1) + x;
          for (let k = 0; k < 3; k++) pixels.data[4 * at + k] = ink * tint[k];
        }
      }
    }
    context.putImageData(pixels, 0, 0);
    canvas.style.aspectRatio = `${canvas.width} / ${canvas.height}`;
    place(row, (i % this.across) / this.across, Math.floor(i / this.across) / down,
          1 / this.across, 1 / down);
    title.textContent = `A step for ${this.name(i)} moves these`;
  }

  // An input as a picture, or as an arrow.
  face(canvas, k) {
    const [height, width] = this.model.get("_image_shape"), arrow = this.model.get("_arrows")[k];
    canvas.hidden = !height && !arrow;
    [canvas.width, canvas.height] = arrow ? [120, 120] : [width || 1, height || 1];
    const context = canvas.getContext("2d");
    if (arrow) {
      const [x, y] = arrow.map(part => 60 + 50 * part);
      context.strokeStyle = context.fillStyle = "#D55E00";
      context.lineWidth = 5;
      context.beginPath();
      context.moveTo(60, 60);
      context.lineTo(x, 120 - y);
      context.stroke();
      context.beginPath();
      context.arc(x, 120 - y, 8, 0, 7);
      context.fill();
    } else if (height) {
      const pixels = context.createImageData(width, height), size = width * height;
      this.images.slice(k * size, (k + 1) * size).forEach((ink, at) =>
        pixels.data.set([ink, ink, ink, 255], 4 * at));
      context.putImageData(pixels, 0, 0);
    }
  }

  name(k) {
    return this.model.get("_names")[k];
  }

  sentence(i, j) {
    const at = (row, column) => this.entries[row * this.columns + column], value = at(i, j);
    const parts = [`Row ${this.name(i)}, column ${this.name(j)}: kernel ${digits(value)}`];
    if (this.rows === this.columns && at(i, i) > 0 && at(j, j) > 0) {
      parts.push(`, cosine ${digits(value / Math.sqrt(at(i, i) * at(j, j)))}`);
    }
    parts.push(this.pinned ? ". Pinned: Escape or a click lets go." : ".");
    if (this.sheet) {
      const others = [...Array(this.rows).keys()].filter(k => k !== i);
      const most = others.sort((a, b) => at(i, b) - at(i, a)).slice(0, 5);
      parts.push(` A step for ${this.name(i)} raises most with it: `,
                 most.map(k => this.model.get("_words")[k] || k).join(", "), ".");
    }
    return parts.join("");
  }
}

function render({model, el}) {
  const view = new KernelView(model, el);
  const read = () => view.read();
  for (const name of ["_entries", "_shape", "alt", "title"]) model.on(`change:${name}`, read);
  model.on("change:pinned", read);
  return () => model.off(null, read);
}

export default {render};
