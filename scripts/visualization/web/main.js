// Controls around the canvas: legend, switches, timeline, keys. All state is in one object, and
// refresh() updates the page.
import { Stage } from "viewer/stage";

const VIEWS = { chase: "chase", top: "top", orbit: "orbit", front: "front" };
const $ = (id) => document.getElementById(id);

export function start(meta, data) {
  const stage = new Stage($("stage"), meta, data);
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  const state = {
    moment: 0, layer: 0, playing: false, cameras: meta.frames[0].cameras.length > 0,
    shown: meta.layers.map((layer) => layer.names.map(() => true)),
  };
  const frame = () => Math.round(state.moment);
  const hideTip = addTip(stage, meta, state, frame);
  let pictured = "";

  function refresh() {
    const now = meta.frames[frame()], layer = meta.layers[state.layer];
    const began = performance.now();
    const picture = `${state.moment}/${state.layer}`;
    if (picture !== pictured) hideTip(); // it describes another picture
    pictured = picture;
    stage.show(state.moment, state.layer, state.shown[state.layer]);
    $("sample").textContent = now.title;
    $("scores").replaceChildren(...now.scores.map(([name, value]) => chip(name, value.toFixed(1))));
    $("time").value = frame();
    $("clock").textContent = `${now.time.toFixed(1)} s`;
    $("play").textContent = state.playing ? "❚❚" : "▶";
    for (const [i, button] of [...$("modes").children].entries()) press(button, i === state.layer);
    $("legend-title").textContent = layer.key;
    const counts = new Array(layer.names.length).fill(0);
    for (const label of stage.voxels(frame(), state.layer).labels) counts[label]++;
    for (const [i, row] of [...$("classes").children].entries()) {
      press(row.firstChild, state.shown[state.layer][i]);
      row.querySelector(".count").textContent = counts[i] ? counts[i].toLocaleString("en") : "–";
      row.classList.toggle("absent", !counts[i]);
    }
    showCameras(now);
    Object.assign(document.body.dataset, {
      frame: frame(), layer: layer.name, faces: stage.mesh.userData.faces, ready: "true",
      build: (performance.now() - began).toFixed(1),
    });
  }

  function showCameras(now) {
    const open = state.cameras && now.cameras.length > 0;
    $("cameras").hidden = !open;
    press($("cameras-button"), open);
    if (!open || $("cameras").dataset.frame === String(frame())) return;
    $("cameras").dataset.frame = frame();
    $("cameras").replaceChildren(...now.cameras.map(({ name, image }) => {
      const figure = document.createElement("figure");
      const picture = Object.assign(document.createElement("img"), { src: image, alt: name });
      const caption = Object.assign(document.createElement("figcaption"), { textContent: name });
      figure.append(picture, caption);
      return figure;
    }));
  }

  function buildLegend() {
    const layer = meta.layers[state.layer];
    $("classes").replaceChildren(...layer.names.map((name, i) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      const swatch = document.createElement("i");
      swatch.style.background = `rgb(${layer.colours[i].join()})`;
      button.append(swatch, span("name", name), span("count", ""));
      button.dataset.label = name;
      button.addEventListener("click", () => {
        state.shown[state.layer][i] = !state.shown[state.layer][i];
        refresh();
      });
      button.addEventListener("dblclick", () => {
        state.shown[state.layer] = layer.names.map((_, j) => j === i);
        refresh();
      });
      item.append(button);
      return item;
    }));
  }

  const setLayer = (layer) => {
    if (!meta.layers[layer]) return;
    state.layer = layer;
    buildLegend();
    refresh();
  };
  const setAll = (shown) => {
    state.shown[state.layer] = state.shown[state.layer].map(() => shown);
    refresh();
  };
  const setFrame = (value) => {
    state.moment = Math.max(0, Math.min(meta.frames.length - 1, value));
    refresh();
  };
  const setView = (name, atOnce = calm) => {
    hideTip();
    stage.goTo(name, atOnce);
    for (const button of $("views").children) press(button, button.dataset.view === name);
  };
  const setTheme = (theme) => {
    document.documentElement.dataset.theme = theme;
    stage.setTheme(theme === "dark");
  };
  const flipTheme = () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  const flipCameras = () => {
    state.cameras = !state.cameras;
    refresh();
  };
  const help = () => ($("help").open ? $("help").close() : $("help").showModal());

  /** Play in the scene's real time; between samples the vehicle moves on. */
  function play(on) {
    state.playing = on && meta.frames.length > 1;
    let last = performance.now();
    if (state.playing && state.moment >= meta.frames.length - 1) state.moment = 0;
    if (!state.playing) state.moment = frame();
    const advance = (now) => {
      if (!state.playing) return;
      const before = Math.min(Math.floor(state.moment), meta.frames.length - 2);
      const gap = meta.frames[before + 1].time - meta.frames[before].time;
      state.moment += Math.max(0, now - last) / 1000 / Math.min(Math.max(gap, 0.1), 1.2);
      last = now;
      if (state.moment >= meta.frames.length - 1) {
        state.moment = meta.frames.length - 1;
        state.playing = false;
      }
      refresh();
      requestAnimationFrame(advance);
    };
    refresh();
    requestAnimationFrame(advance);
  }

  $("scene").textContent = meta.title;
  $("modes").append(...meta.layers.map((layer, i) => action(layer.name, `${layer.name} (${i + 1})`, () => setLayer(i))));
  $("views").append(...Object.entries(VIEWS).map(([name, text]) => {
    const button = action(text, `${text} (${name[0].toUpperCase()})`, () => setView(name));
    button.dataset.view = name;
    return button;
  }));
  $("time").max = meta.frames.length - 1;
  $("time").addEventListener("input", (event) => {
    state.playing = false;
    setFrame(Number(event.target.value));
  });
  $("play").addEventListener("click", () => play(!state.playing));
  $("all").addEventListener("click", () => setAll(true));
  $("none").addEventListener("click", () => setAll(false));
  $("theme-button").addEventListener("click", flipTheme);
  $("help-button").addEventListener("click", help);
  $("cameras-button").hidden = !meta.frames.some((f) => f.cameras.length);
  $("cameras-button").addEventListener("click", flipCameras);
  $("legend-button").addEventListener("click", () => {
    const folded = $("legend").classList.toggle("folded");
    $("legend-button").setAttribute("aria-expanded", String(!folded));
  });
  const meter = addMeter(stage);
  const keys = {
    " ": () => play(!state.playing), arrowleft: () => setFrame(frame() - 1),
    arrowright: () => setFrame(frame() + 1), a: () => setAll(true), n: () => setAll(false),
    d: flipTheme, i: flipCameras, s: meter, "?": help,
    c: () => setView("chase"), t: () => setView("top"), o: () => setView("orbit"), f: () => setView("front"),
    1: () => setLayer(0), 2: () => setLayer(1), 3: () => setLayer(2),
  };
  window.addEventListener("keydown", (event) => {
    const run = keys[event.key.toLowerCase()];
    if (!run || event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
    if (event.target.matches?.("button") && event.key === " ") return; // the key presses that button
    event.preventDefault();
    run();
  });
  if (window.innerWidth < 700) $("legend-button").click();
  setTheme(document.documentElement.dataset.theme);
  setLayer(0);
  setView(meta.view, true);
}

/** Show the class of the voxel under the pointer; in the difference, prediction and ground truth. */
function addTip(stage, meta, state, frame) {
  const tip = $("tip");
  const hide = () => {
    tip.hidden = true;
    stage.pick(null);
  };
  const labelAt = (layer, cell) => {
    const [, ny, nz] = meta.shape;
    const { indices, labels } = stage.voxels(frame(), layer);
    const wanted = (cell[0] * ny + cell[1]) * nz + cell[2];
    let low = 0, high = indices.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (indices[middle] < wanted) low = middle + 1;
      else high = middle;
    }
    return indices[low] === wanted ? meta.layers[layer].names[labels[low]] : "free";
  };
  $("stage").addEventListener("pointermove", (event) => {
    if (event.buttons) return hide();
    const found = stage.hit(event.offsetX, event.offsetY);
    if (!found) return hide();
    const layer = meta.layers[state.layer];
    const [x, y, z] = stage.egoPlace(frame(), found.cell);
    const swatch = document.createElement("i");
    swatch.style.background = `rgb(${layer.colours[found.label].join()})`;
    const lines = [span("place", `${ahead(x)}, ${aside(y)}, ${z.toFixed(1)} m up`)];
    meta.layers.forEach((other, i) => {
      if (i !== state.layer && other.isClasses) {
        lines.unshift(span("other", `${other.name}: ${labelAt(i, found.cell)}`));
      }
    });
    const name = document.createElement("b");
    name.append(swatch, layer.names[found.label]);
    tip.replaceChildren(name, ...lines);
    tip.hidden = false;
    const left = Math.min(event.clientX + 16, window.innerWidth - tip.offsetWidth - 8);
    const top = Math.min(event.clientY + 16, window.innerHeight - tip.offsetHeight - 8);
    Object.assign(tip.style, { left: `${left}px`, top: `${top}px` });
    stage.pick(found.cell);
  });
  $("stage").addEventListener("pointerleave", hide);
  return hide;
}

const ahead = (x) => `${Math.abs(x).toFixed(1)} m ${x < 0 ? "behind" : "ahead"}`;
const aside = (y) => `${Math.abs(y).toFixed(1)} m ${y < 0 ? "right" : "left"}`;

/** Draw continuously and show the number of frames per second. */
function addMeter(stage) {
  let on = false, since = 0, drawn = 0;
  const measure = (now) => {
    if (!on) return;
    stage.draw();
    if (now - since > 1000) {
      const rate = (1000 * (stage.drawn - drawn)) / (now - since);
      $("meter").textContent =
        `${rate.toFixed(1)} frames/s · ${stage.mesh.userData.faces.toLocaleString("en")} faces` +
        (stage.level ? " · lower resolution while moving" : "");
      document.body.dataset.rate = rate.toFixed(2);
      since = now;
      drawn = stage.drawn;
    }
    requestAnimationFrame(measure);
  };
  return () => {
    on = !on;
    $("meter").hidden = !on;
    since = performance.now();
    drawn = stage.drawn;
    requestAnimationFrame(measure);
  };
}

function action(text, title, run) {
  const button = Object.assign(document.createElement("button"), { textContent: text, title });
  button.addEventListener("click", run);
  return button;
}

function chip(name, value) {
  const element = span("chip", `${name} `);
  element.append(Object.assign(document.createElement("b"), { textContent: value }));
  return element;
}

function span(className, text) {
  return Object.assign(document.createElement("span"), { className, textContent: text });
}

function press(button, pressed) {
  button.setAttribute("aria-pressed", String(Boolean(pressed)));
}
