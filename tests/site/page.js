
// The pages without Python: sliders choose among pictures drawn beforehand, and a kernel view gets
// what Python would have sent.
(() => {
  const data = element => JSON.parse(element.querySelector("script").textContent);

  // The place that a control stands at, and what it says of it.
  function place(control) {
    const input = control.querySelector("input");
    if (input.type === "checkbox") return Number(input.checked);
    if (input.type === "radio") return Number(control.querySelector("input:checked").value);
    const label = JSON.parse(input.dataset.labels)[input.value];
    control.querySelector("output").textContent = label;
    input.setAttribute("aria-valuetext", label);
    return Number(input.value);
  }

  function explore(explorer) {
    const words = data(explorer), controls = [...explorer.querySelectorAll(".control")];
    const picture = explorer.querySelector("img"), heard = explorer.querySelector(".heard");
    const source = key => `${explorer.dataset.stem}${key}.webp`;
    const key = () => controls.map(place).join("-");
    const update = () => {
      const now = key();
      picture.src = source(now);
      picture.alt = heard.textContent = words[now];
      explorer.querySelector(".ntk-words p").textContent = words[now];
    };
    const fetchAll = () => {  // once somebody is about to move something
      for (const each of Object.keys(words)) new Image().src = source(each);
    };
    key();
    explorer.hidden = false;
    explorer.addEventListener("input", update);
    explorer.querySelector(".controls").addEventListener("pointerenter", fetchAll, {once: true});
    explorer.querySelector(".controls").addEventListener("focusin", fetchAll, {once: true});
    const button = explorer.querySelector(".play");
    if (button) play(button, button.parentElement.querySelector("input"), update);
  }

  // From the first value to the last; a second click stops it.
  function play(button, slider, update) {
    let timer = null;
    const stop = () => {
      clearInterval(timer);
      timer = null;
      button.textContent = "Play";
    };
    button.addEventListener("click", () => {
      if (timer) return stop();
      button.textContent = "Stop";
      slider.value = 0;
      update();
      timer = setInterval(() => {
        slider.stepUp();
        update();
        if (slider.value === slider.max) stop();
      }, 600);
    });
  }

  // What the view's own JavaScript asks of its model.
  function show(view) {
    const traits = data(view);
    for (const [name, value] of Object.entries(traits)) {
      if (value?.base64 === undefined) continue;
      traits[name] = new DataView(Uint8Array.from(atob(value.base64), c => c.charCodeAt(0)).buffer);
    }
    view.querySelector("img").remove();  // what stands there without JavaScript
    window.renderView({el: view, model: {
      get: name => traits[name], set: (name, value) => { traits[name] = value; },
      save_changes() {}, on() {}, off() {}}});
  }

  // What is wider than the page gets a bar of its own, and can be scrolled by keys.
  function reach() {
    for (const formula of document.querySelectorAll("math[display=inline]")) {
      formula.classList.remove("wide");
      const text = formula.closest("p, li, td, .text");
      if (formula.getBoundingClientRect().width > text.clientWidth) formula.classList.add("wide");
    }
    for (const wide of document.querySelectorAll("pre, table, math[display=block], math.wide")) {
      if (wide.scrollWidth > wide.clientWidth) wide.tabIndex = 0;
      else wide.removeAttribute("tabindex");
    }
  }

  document.querySelectorAll(".explorer").forEach(explore);
  document.querySelectorAll(".view").forEach(show);
  const contents = document.querySelector(".contents details");
  if (contents) contents.open = matchMedia("(min-width: 75em)").matches;
  reach();
  addEventListener("resize", reach);
  document.addEventListener("toggle", reach, true);
})();
