// Points that one drags over a picture, and a small image that one draws. The page follows at once;
// Python gets the values as fast as it takes them, and of those that wait the last alone.

const STEPS = {ArrowUp: [0, 1], ArrowDown: [0, -1], ArrowLeft: [-1, 0], ArrowRight: [1, 0]};

function add(parent, name, className, attributes = {}) {
  const element = document.createElement(name);
  element.className = className;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return parent.appendChild(element);
}

// Numbers for people: three digits, and a minus sign.
function digits(value) {
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

const inside = (value, low, high) => Math.min(high, Math.max(low, value));

// Where in an element the pointer is, from 0 to 1: from the left and from above.
function under(event, element) {
  const box = element.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

class Surface {
  constructor(model, el, hint) {
    this.model = model;
    el.classList.add(`ntk-${model.get("_kind")}`);
    el.setAttribute("data-lm-suppress-shortcuts", "true");
    this.area = add(el, "div", "ntk-surface");
    this.below = add(el, "div", "ntk-below");
    this.says = add(this.below, "p", "ntk-says", {"aria-live": "polite"});
    this.hint = this.says.textContent = hint;
    el.addEventListener("keydown", event => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "Escape") this.reset();
      else if (!this.takes(event)) return;
      event.preventDefault();
      event.stopPropagation();  // JupyterLab would move to another cell
    });
  }

  button(words, act) {
    const button = add(this.below, "button", "ntk-button", {type: "button"});
    button.textContent = words;
    button.addEventListener("click", act);
    return button;
  }

  reset() {
    this.send(this.model.get("_start"));
    this.says.textContent = "Back at the start.";
  }

  // Calls move(event, where) for a pointer that is held down, from the start.
  listen(element, area, move) {
    element.addEventListener("pointerdown", event => {
      if (event.button) return;
      event.preventDefault();  // no text is selected, and no image carried away
      element.focus();
      element.setPointerCapture(event.pointerId);
      move(event, under(event, area));
    });
    element.addEventListener("pointermove", event => {
      if (element.hasPointerCapture(event.pointerId)) move(event, under(event, area));
    });
  }

  send(value) {
    this.model.set("value", value);
    this.model.save_changes();
  }
}

class Points extends Surface {
  constructor(model, el) {
    super(model, el, "Drag a point, or reach it by Tab and move it by arrow keys.");
    this.button("Reset", () => this.reset());
    this.handles = model.get("value").map((_, i) => this.handle(i));
    this.read();
  }

  handle(i) {
    const handle = add(this.area, "div", "ntk-handle", {
      tabindex: 0, role: "application", "aria-roledescription": "point"});
    let grip;  // a point keeps its distance to the pointer
    this.listen(handle, this.area, (event, where) => {
      const at = this.place(i);
      if (event.type === "pointerdown") grip = at.map((part, k) => part - where[k]);
      else this.move(i, this.value(where.map((part, k) => part + grip[k])));
    });
    handle.addEventListener("focus", () => this.say(i));
    return handle;
  }

  takes(event) {
    const i = this.handles.indexOf(event.target), step = STEPS[event.key];
    if (i < 0 || !step) return false;
    const frame = this.model.get("_frame");
    this.move(i, this.model.get("value")[i].map((value, k) =>
      value + step[k] * (frame[k][5] - frame[k][4]) / 50));
    return true;
  }

  // Where in the picture point i is, from the left and from above.
  place(i) {
    const parts = this.model.get("_frame").map(([start, length, first, last], k) =>
      start + length * (this.model.get("value")[i][k] - first) / (last - first));
    return [parts[0], 1 - parts[1]];
  }

  value([left, top]) {
    return this.model.get("_frame").map(([start, length, first, last], k) =>
      first + ([left, 1 - top][k] - start) / length * (last - first));
  }

  move(i, point) {
    const frame = this.model.get("_frame"), points = [...this.model.get("value")];
    points[i] = point.map((value, k) => inside(value, frame[k][4], frame[k][5]));
    this.send(points);
    this.say(i);
  }

  say(i) {
    this.says.textContent = `${this.words(i)}.`;
  }

  words(i) {
    const [x, y] = this.model.get("value")[i].map(digits);
    return `Point ${i + 1} of ${this.handles.length}: x = ${x}, y = ${y}`;
  }

  read() {
    const drawn = this.model.get("_frame").length > 0;
    this.handles.forEach((handle, i) => {
      handle.hidden = !drawn;
      if (!drawn) return;
      const [left, top] = this.place(i);
      Object.assign(handle.style, {left: `${100 * left}%`, top: `${100 * top}%`});
      handle.setAttribute("aria-label", `${this.words(i)}: use the arrow keys`);
    });
  }
}

const SIDE = 128;  // pixels for the pen, each way, or a few more
const TIP = [0.5, 0.9];  // black up to one distance from its middle, white from another, in cells

class Canvas extends Surface {
  constructor(model, el) {
    super(model, el, "Draw here; or by keys: arrows, Space for ink, Delete.");
    this.size = model.get("value").length;
    this.fine = Math.ceil(SIDE / this.size);
    this.side = this.size * this.fine;
    this.ink = new Float32Array(this.side ** 2);
    this.board = add(this.area, "div", "ntk-paper", {tabindex: 0, role: "application",
      "aria-label": `Image of ${this.size} × ${this.size} cells: arrow keys move, ` +
        "Space adds ink, Delete takes it away"});
    this.canvas = add(this.board, "canvas", "ntk-ink", {"aria-hidden": "true"});
    this.canvas.width = this.canvas.height = this.side;
    this.cursor = add(this.board, "div", "ntk-cursor");
    this.at = [0, 0];
    this.eraser = this.button("Eraser", () => this.erase(!this.erases()));
    this.erase(false);
    this.button("Clear", () => this.clear());
    if (model.get("_start").flat().some(grey => grey)) this.button("Reset", () => this.reset());
    let last;
    this.listen(this.board, this.canvas, (event, where) => {
      where = where.map(part => part * this.size);
      this.stroke(event.type === "pointerdown" ? where : last, where);
      last = where;
      this.at = where.map(part => inside(Math.floor(part), 0, this.size - 1));
      this.says.textContent = this.hint;
      this.inked();
    });
    this.go(0, 0);
    this.read();
  }

  clear() {
    this.ink.fill(0);
    this.inked();
    this.says.textContent = "Empty.";
  }

  erases() {
    return this.eraser.getAttribute("aria-pressed") === "true";
  }

  erase(on) {
    this.eraser.setAttribute("aria-pressed", on);
  }

  takes(event) {
    if (event.target !== this.board) return false;
    const step = STEPS[event.key];
    if (step) this.go(step[0], -step[1]);
    else if (event.key === " ") this.each(ink => Math.min(1, ink + 0.25));
    else if (event.key === "Delete" || event.key === "Backspace") this.each(() => 0);
    else return false;
    const [column, row] = this.at, grey = this.cells()[row][column];
    this.says.textContent =
      `Row ${row + 1}, column ${column + 1}: ${grey} of ${this.model.get("_black")}.`;
    return true;
  }

  go(right, down) {
    this.at = [right, down].map((step, k) => inside(this.at[k] + step, 0, this.size - 1));
    const [left, top] = this.at.map(part => `${100 * part / this.size}%`);
    Object.assign(this.cursor.style, {left, top, width: `${100 / this.size}%`,
                                      height: `${100 / this.size}%`});
  }

  // Another ink for all of the cell chosen.
  each(change) {
    const [left, top] = this.at.map(part => part * this.fine);
    for (let y = top; y < top + this.fine; y++) {
      for (let x = left; x < left + this.fine; x++) {
        this.ink[y * this.side + x] = change(this.ink[y * this.side + x]);
      }
    }
    this.inked();
  }

  // From one place to another, in cells.
  stroke([x0, y0], [x1, y1]) {
    const [dx, dy] = [x1 - x0, y1 - y0], square = dx * dx + dy * dy || 1, [black, white] = TIP;
    const erases = this.erases();
    for (let row = 0; row < this.side; row++) {
      for (let column = 0; column < this.side; column++) {
        const [x, y] = [column, row].map(part => (part + 0.5) / this.fine);
        const along = inside(((x - x0) * dx + (y - y0) * dy) / square, 0, 1);
        const far = Math.hypot(x - x0 - along * dx, y - y0 - along * dy);
        const ink = inside((white - far) / (white - black), 0, 1);
        const k = row * this.side + column;
        this.ink[k] = erases ? Math.min(this.ink[k], 1 - ink) : Math.max(this.ink[k], ink);
      }
    }
  }

  // Row and column of the cell with pixel k.
  cell(k) {
    return [k / this.side, k % this.side].map(part => Math.floor(part / this.fine));
  }

  // What Python gets: the mean ink of each cell.
  cells() {
    const most = this.model.get("_black") / this.fine ** 2;
    const sums = Array.from({length: this.size}, () => Array(this.size).fill(0));
    this.ink.forEach((ink, k) => {
      const [row, column] = this.cell(k);
      sums[row][column] += ink;
    });
    return sums.map(row => row.map(sum => Math.round(most * sum)));
  }

  inked() {
    this.go(0, 0);
    this.paint();
    this.send(this.cells());
  }

  paint() {
    const context = this.canvas.getContext("2d");
    const pixels = context.createImageData(this.side, this.side);
    this.ink.forEach((ink, k) => {
      const grey = 255 * (1 - ink);
      pixels.data.set([grey, grey, grey, 255], 4 * k);
    });
    context.putImageData(pixels, 0, 0);
  }

  // An image from elsewhere takes the place of the ink; what was drawn here stays as fine as it is.
  read() {
    const image = this.model.get("value"), black = this.model.get("_black");
    if (String(image) !== String(this.cells())) {
      this.ink = this.ink.map((_, k) => {
        const [row, column] = this.cell(k);
        return image[row][column] / black;
      });
    }
    this.paint();
  }
}

function render({model, el}) {
  const surface = new {points: Points, canvas: Canvas}[model.get("_kind")](model, el);
  const read = () => surface.read();
  for (const name of ["value", "_frame"]) model.on(`change:${name}`, read);
  return () => model.off(null, read);
}

export default {render};
