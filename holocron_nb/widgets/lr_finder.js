// The LR finder's view: a live loss curve over a logarithmic axis on which a rate is chosen by click or arrow keys, and training with it.
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 720, HEIGHT = 300, SMALL = 200, LEFT = 56, RIGHT = 16, TOP = 14, BOTTOM = 44;
const SHAPES = { "steepest": "M0-5A5 5 0 1 1 0 5A5 5 0 1 1 0-5Z", "valley": "M-6-4H6L0 6Z", "minimum/10": "M-6 4H6L0-6Z", "slide": "M-5-5H5V5H-5Z" };
const MEANS = {
  train_loss: { mark: "epoch-train", shape: "M-4-4H4V4H-4Z", label: "training" },
  val_loss: { mark: "epoch-val", shape: "M0-5.5L5.5 0L0 5.5L-5.5 0Z", label: "validation" },
};
const KEYS = { ArrowRight: 0.05, ArrowUp: 0.05, ArrowLeft: -0.05, ArrowDown: -0.05, PageUp: 1, PageDown: -1 };

const element = (name, attributes = {}, children = []) => {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};

const draw = (parent, name, attributes, text) => {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
};

const rate = (lr) => lr.toExponential(1).replace("+", "");

// About five round numbers from low to high.
const ticks = (low, high) => {
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((m) => m * power >= rough) * power;
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) found.push(k * step);
  return { found, digits: Math.max(0, -Math.floor(Math.log10(step))) };
};

const drawLosses = (svg, low, high, y, height) => {
  const { found, digits } = ticks(low, high), middle = (TOP + height - BOTTOM) / 2;
  for (const loss of found) {
    draw(svg, "line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(loss), y2: y(loss), class: "grid" });
    draw(svg, "text", { x: LEFT - 8, y: y(loss) + 4, "text-anchor": "end" }, loss.toFixed(digits));
  }
  draw(svg, "text", { x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})` }, "loss");
};

// Between which losses the curve is shown: a loss that explodes is cut off, not the valley before it.
const lossRange = (curves) => {
  const seen = curves.filter((curve) => curve.smooth.length);
  if (!seen.length) return [0, 1];
  const low = Math.min(...seen.flatMap((curve) => curve.smooth));
  const first = Math.max(...seen.flatMap((curve) => curve.smooth.slice(0, Math.ceil(curve.smooth.length / 4))));
  const reach = Math.max(first - low, 1e-3);
  return [low - 0.15 * reach, first + 0.6 * reach];
};

const scales = (model) => {
  const [start, end] = [Math.log10(model.get("start_lr")), Math.log10(model.get("end_lr"))];
  const [low, high] = lossRange([model.get("curve"), model.get("previous")]);
  return {
    start, end, low, high,
    x: (lr) => LEFT + ((Math.log10(lr) - start) / (end - start)) * (WIDTH - LEFT - RIGHT),
    y: (loss) => TOP + ((high - loss) / (high - low)) * (HEIGHT - TOP - BOTTOM),
    lr: (x) => 10 ** (start + ((x - LEFT) / (WIDTH - LEFT - RIGHT)) * (end - start)),
  };
};

const drawAxes = (svg, scale) => {
  for (let decade = Math.ceil(scale.start - 1e-9); decade <= scale.end + 1e-9; decade++) {
    const x = scale.x(10 ** decade);
    draw(svg, "line", { x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM, class: "grid" });
    draw(svg, "text", { x, y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, `1e${decade}`);
  }
  drawLosses(svg, scale.low, scale.high, scale.y, HEIGHT);
  draw(svg, "text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, "learning rate (log)");
};

const drawCurve = (group, scale, curve, className) => {
  const points = curve.lrs.map((lr, i) => `${scale.x(lr).toFixed(1)},${scale.y(curve.smooth[i]).toFixed(1)}`);
  if (points.length) draw(group, "polyline", { points: points.join(" "), class: className });
};

const drawPoints = (group, scale, curve) => {
  const dots = curve.lrs.map((lr, i) => `M${scale.x(lr).toFixed(1)} ${scale.y(curve.losses[i]).toFixed(1)}h0`);
  if (dots.length) draw(group, "path", { d: dots.join(""), class: "raw" });
};

// The smoothed loss at a rate, for the height of a mark.
const lossAt = (curve, lr) => {
  const i = curve.lrs.findIndex((known) => known >= lr);
  return curve.smooth[i < 0 ? curve.smooth.length - 1 : i];
};

const drawMarks = (svg, scale, model) => {
  for (const [name, lr] of Object.entries(model.get("suggestions"))) {
    const y = Math.min(Math.max(scale.y(lossAt(model.get("curve"), lr)), TOP), HEIGHT - BOTTOM);
    const mark = draw(svg, "path", { d: SHAPES[name], class: "mark", "data-name": name, transform: `translate(${scale.x(lr)} ${y})` });
    draw(mark, "title", {}, `${name}: ${rate(lr)}`);
  }
};

const drawChoice = (svg, scale, lr) => {
  if (lr === null || lr < 10 ** (scale.start - 1e-9) || lr > 10 ** (scale.end + 1e-9)) return;
  const x = scale.x(lr), right = x > WIDTH - 110;
  draw(svg, "line", { x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM, class: "choice" });
  draw(svg, "text", { x: right ? x - 6 : x + 6, y: TOP + 12, "text-anchor": right ? "end" : "start", class: "choice-label" }, `lr ${rate(lr)}`);
};

const drawChart = (svg, model, id) => {
  const scale = scales(model);
  svg.replaceChildren();
  const clip = draw(draw(svg, "defs", {}), "clipPath", { id });
  draw(clip, "rect", { x: LEFT, y: TOP - 4, width: WIDTH - LEFT - RIGHT, height: HEIGHT - TOP - BOTTOM + 8 });
  drawAxes(svg, scale);
  const curves = draw(svg, "g", { "clip-path": `url(#${id})` });
  drawCurve(curves, scale, model.get("previous"), "previous");
  drawPoints(curves, scale, model.get("curve"));
  drawCurve(curves, scale, model.get("curve"), "smooth");
  drawMarks(svg, scale, model);
  drawChoice(svg, scale, model.get("lr"));
};

// The training's losses over its steps: dots for batches, marked lines for the epochs' means.
const drawTraining = (svg, training) => {
  const { steps, losses, epochs } = training;
  svg.replaceChildren();
  svg.style.display = steps.length || epochs.length ? "" : "none";
  const ends = epochs.map((e) => e.step), means = epochs.flatMap((e) => [e.train_loss, e.val_loss]).filter(Number.isFinite);
  const all = [...losses, ...means];
  if (!all.length) return;
  const [first, last] = [Math.min(...steps, ...ends), Math.max(...steps, ...ends)], reach = Math.max(Math.max(...all) - Math.min(...all), 1e-3);
  const [low, high] = [Math.min(...all) - 0.05 * reach, Math.max(...all) + 0.05 * reach];
  const x = (step) => LEFT + (last > first ? (step - first) / (last - first) : 0.5) * (WIDTH - LEFT - RIGHT);
  const y = (loss) => TOP + ((high - loss) / (high - low)) * (SMALL - TOP - BOTTOM);
  drawLosses(svg, low, high, y, SMALL);
  const shown = ticks(first, Math.max(last, first + 1)).found.filter(Number.isInteger);
  for (const step of shown) draw(svg, "text", { x: x(step), y: SMALL - BOTTOM + 16, "text-anchor": "middle" }, step);
  draw(svg, "text", { x: (LEFT + WIDTH - RIGHT) / 2, y: SMALL - 8, "text-anchor": "middle" }, "step");
  draw(svg, "path", { d: steps.map((step, i) => `M${x(step).toFixed(1)} ${y(losses[i]).toFixed(1)}h0`).join(""), class: "raw" });
  for (const [name, { mark, shape, label }] of Object.entries(MEANS)) {
    const points = epochs.filter((e) => Number.isFinite(e[name])).map((e) => [x(e.step).toFixed(1), y(e[name]).toFixed(1)]);
    if (!points.length) continue;
    draw(svg, "polyline", { points: points.map((p) => p.join(",")).join(" "), class: mark });
    for (const [px, py] of points) draw(svg, "path", { d: shape, transform: `translate(${px} ${py})`, class: mark });
    const [px, py] = points.at(-1).map(Number), right = px > WIDTH - 110;
    draw(svg, "text", { x: right ? px - 9 : px + 9, y: py + 4, "text-anchor": right ? "end" : "start" }, label);
  }
};

const metrics = (epoch) => Object.entries(epoch).filter(([name, v]) => name !== "step" && Number.isFinite(v)).map(([name, v]) => `${name} ${v.toFixed(4)}`).join(", ");

const trainingText = (model) => {
  const { steps, epochs } = model.get("training");
  const soFar = epochs.length ? ` Epoch ${epochs.length}: ${metrics(epochs[epochs.length - 1])}.` : "";
  if (model.get("status") === "trained") return `Trained.${soFar}`;
  return `Epoch ${epochs.length + 1} of ${model.get("num_epochs")}, step ${steps.length ? steps[steps.length - 1] : 0} …${soFar}`;
};

const describe = (svg, model) => {
  const lr = model.get("lr");
  const text = lr === null ? "no rate chosen" : `learning rate ${rate(lr)}`;
  const range = [model.get("start_lr"), model.get("end_lr")].map(Math.log10);
  for (const [key, value] of Object.entries({ valuemin: range[0], valuemax: range[1], valuenow: lr === null ? range[0] : Math.log10(lr), valuetext: text }))
    svg.setAttribute(`aria-${key}`, value);
};

const statusText = (model) => {
  const steps = model.get("curve").lrs.length, lr = model.get("lr"), message = model.get("message");
  if (model.get("status") === "idle") return "Not run yet.";
  if (model.get("status") === "running") return `Step ${steps} of ${model.get("num_it")} …`;
  if (["training", "trained"].includes(model.get("status"))) return trainingText(model);
  if (message) return message;
  const chosen = lr === null ? "" : ` Chosen rate: ${rate(lr)}.`;
  return `${model.get("status") === "stopped" ? "Stopped" : "Done"} after ${steps} steps.${chosen}`;
};

function render({ model, el }) {
  const id = `holocron-clip-${crypto.randomUUID()}`;
  const start = element("button", { type: "button", class: "start" });
  const slider = element("input", { type: "range", min: 0, max: 0.99, step: 0.01, "aria-label": "smoothing" });
  const beta = element("output");
  const svg = document.createElementNS(SVG, "svg");
  const attributes = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "slider", tabindex: 0, "aria-label": "learning rate" };
  for (const [key, value] of Object.entries(attributes)) svg.setAttribute(key, value);
  const chips = element("div", { class: "chips", role: "group", "aria-label": "suggestions" });
  const status = element("div", { class: "status", role: "status" });
  const smoothing = element("label", {}, ["smoothing ", slider, " ", beta]);
  const layer = element("select", { class: "freeze" }, [element("option", { value: "" }, ["nothing"])]);
  const decay = element("input", { type: "number", class: "decay", min: 0, step: "any", placeholder: "as all others" });
  const epochs = element("input", { type: "number", class: "epochs", min: 1, step: 1, "aria-label": "epochs" });
  const train = element("button", { type: "button", class: "train" });
  const curves = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ viewBox: `0 0 ${WIDTH} ${SMALL}`, role: "img", class: "training" })) curves.setAttribute(key, value);
  const options = [element("label", {}, ["freeze until ", layer]), element("label", {}, ["weight decay of norms ", decay])];
  const legend = element("div", { class: "legend" });
  el.append(element("div", { class: "holocron-lr-finder", "data-live": model.get("_key") }, [
    element("div", { class: "bar" }, [start, smoothing, ...options]), svg, legend, chips,
    element("div", { class: "bar" }, [train, element("label", {}, [epochs, " epochs"])]), curves, status,
  ]));

  const choose = (lr) => {
    const inside = Math.min(Math.max(lr, model.get("start_lr")), model.get("end_lr"));
    model.set("lr", inside);
    model.save_changes();
  };
  const update = () => {
    drawChart(svg, model, id);
    describe(svg, model);
    drawTraining(curves, model.get("training"));
    const [running, training] = ["running", "training"].map((status) => model.get("status") === status);
    start.textContent = running ? "Stop" : model.get("curve").lrs.length ? "Run again" : "Start";
    start.disabled = training;
    train.textContent = training ? "Stop training" : model.get("lr") === null ? "Train" : `Train with ${rate(model.get("lr"))}`;
    train.disabled = running || (!training && model.get("lr") === null);
    for (const input of [layer, decay, epochs]) input.disabled = running || training;
    const names = model.get("layers");
    if (layer.options.length !== names.length + 1) layer.append(...names.map((name) => element("option", { value: name }, [name])));
    layer.value = model.get("freeze_until") ?? "";
    const typing = el.getRootNode().activeElement; // what is being typed is the user's
    if (typing !== decay) decay.value = model.get("norm_weight_decay") ?? "";
    if (typing !== epochs) epochs.value = model.get("num_epochs");
    legend.textContent = model.get("previous").lrs.length ? "solid: this search, dashed: the search before" : "";
    curves.setAttribute("aria-label", `training losses: ${trainingText(model)}`);
    slider.value = model.get("beta");
    beta.textContent = model.get("beta").toFixed(2);
    status.textContent = statusText(model);
    status.classList.toggle("failed", model.get("status") === "failed");
  };
  const updateChips = () => {
    chips.replaceChildren(...Object.entries(model.get("suggestions")).map(([name, lr]) => {
      const glyph = document.createElementNS(SVG, "svg");
      glyph.setAttribute("viewBox", "-7 -7 14 14");
      glyph.setAttribute("aria-hidden", "true");
      draw(glyph, "path", { d: SHAPES[name], class: "mark" });
      const chip = element("button", { type: "button", "data-name": name }, [glyph, ` ${name} ${rate(lr)}`]);
      chip.addEventListener("click", () => choose(lr));
      return chip;
    }));
  };

  start.addEventListener("click", () => model.send({ kind: model.get("status") === "running" ? "stop" : "start" }));
  train.addEventListener("click", () => model.send({ kind: model.get("status") === "training" ? "stop" : "train" }));
  for (const input of [decay, epochs]) input.addEventListener("keydown", (event) => { if (event.key === "Enter") input.blur(); });
  const store = (name, value) => { model.set(name, value); model.save_changes(); };
  layer.addEventListener("change", () => store("freeze_until", layer.value || null));
  decay.addEventListener("change", () => store("norm_weight_decay", decay.value === "" ? null : Math.max(0, Number(decay.value))));
  epochs.addEventListener("change", () => store("num_epochs", Math.max(1, Math.round(Number(epochs.value)) || 1)));
  slider.addEventListener("input", () => { model.set("beta", Number(slider.value)); model.save_changes(); });
  svg.addEventListener("click", (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    choose(scales(model).lr(point.x));
  });
  svg.addEventListener("keydown", (event) => {
    const [low, high] = [model.get("start_lr"), model.get("end_lr")];
    const from = model.get("lr") ?? Math.sqrt(low * high);
    const to = { Home: low, End: high }[event.key] ?? (event.key in KEYS ? from * 10 ** KEYS[event.key] : null);
    if (to === null) return;
    event.preventDefault();
    event.stopPropagation();
    choose(to);
  });
  // JupyterLab and Notebook look for shortcuts before we do, from the focused element upwards, and end where this attribute stands:
  // those with Ctrl, such as saving, they may have
  const share = (event) => {
    if (el.contains(event.target)) event.target.toggleAttribute("data-lm-suppress-shortcuts", !(event.ctrlKey || event.metaKey));
  };
  window.addEventListener("keydown", share, true);
  let waiting = false;
  const soon = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; update(); });
  };
  for (const name of ["curve", "previous", "lr", "beta", "status", "message", "start_lr", "end_lr", "num_it", "suggestions", "training", "num_epochs", "freeze_until", "norm_weight_decay", "layers"]) model.on(`change:${name}`, soon);
  model.on("change:suggestions", updateChips);
  update();
  updateChips();
  return () => window.removeEventListener("keydown", share, true);
}

export default { render };
