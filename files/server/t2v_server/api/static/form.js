/** The form: the model's parameters within its limits. */

import { ApiError, createVideo } from "./api.js";
import { $, announce, el } from "./dom.js";
import { errorText, number, t } from "./strings.js";

const TEXTS = ["prompt", "negative_prompt"];
const NUMBERS = [
  "width", "height", "num_frames", "num_inference_steps", "guidance_scale", "fps", "flow_shift",
];
const SLIDERS = ["num_frames", "num_inference_steps", "guidance_scale"];
const IN_MORE = new Set([
  "negative_prompt", "num_inference_steps", "guidance_scale", "fps", "flow_shift", "seed",
]);
const FIELDS = [...TEXTS, ...NUMBERS, "seed"];
const MAX_SEED = 2n ** 63n - 1n;

let limits;
let sizes = []; // of the presets, in their order: {name, width, height}
let onAccepted;
let sending = false;

/** Set the form up for `model`, an entry of GET /v1/models; `accepted` gets each new video. */
export function setUpForm(model, accepted) {
  // Older servers do not name the bounds that all models share.
  limits = {
    size_multiple: 32, frames_step: 4, min_steps: 1, max_guidance_scale: 50, max_flow_shift: 50,
    max_fps: 120,
    ...model.limits,
  };
  onAccepted = accepted;
  sizes = presets(model.defaults);
  bound("width", limits.size_multiple, limits.max_side, limits.size_multiple);
  bound("height", limits.size_multiple, limits.max_side, limits.size_multiple);
  bound("num_frames", 1, limits.max_frames, limits.frames_step);
  bound("num_inference_steps", limits.min_steps, limits.max_steps, 1);
  bound("guidance_scale", 0, limits.max_guidance_scale, 0.5);
  bound("fps", 1, limits.max_fps, 1);
  bound("flow_shift", 0.01, limits.max_flow_shift, "any");
  $("guidance_scale").step = "any";
  // Few requests go beyond it, and a slider to 50 would be coarse where it matters.
  $("guidance_scale-slider").max = Math.min(limits.max_guidance_scale, 15);

  for (const name of SLIDERS) {
    $(`${name}-slider`).addEventListener("input", (event) => {
      $(name).value = event.target.value;
      show(name, "");
      reflect();
    });
  }
  $("composer").addEventListener("input", (event) => {
    if (event.target.name in messages) show(event.target.name, "");
    if (event.target.name === "preset") choosePreset(event.target.value);
    reflect();
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("composer").requestSubmit();
  });
  $("dice").addEventListener("click", () => {
    $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
    show("seed", "");
  });
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!sending) submit();
  });
  fill({ ...model.defaults, prompt: $("prompt").value, negative_prompt: "", seed: "" });
  $("submit").disabled = false;
}

/** Put a video's parameters in the form. */
export function useAgain(video) {
  fill(video);
  $("more").open = true;
  $("composer").scrollIntoView({ block: "start" });
  $("prompt").focus({ preventScroll: true });
  announce(t("announceFilled"));
}

/** Write the form's own texts again, after a change of the language. */
export function translateForm() {
  if (!limits) return;
  drawPresets();
  for (const name of Object.keys(messages)) show(name, messages[name]);
  $("submit").textContent = t(sending ? "sending" : "make");
  reflect();
}

function fill(values) {
  for (const name of FIELDS) {
    $(name).value = values[name] ?? "";
    show(name, "");
  }
  show("form", "");
  show("size", "");
  drawPresets(sizes.findIndex(({ width, height }) =>
    width === values.width && height === values.height));
  reflect();
}

function bound(name, least, most, step) {
  for (const input of [$(name), $(`${name}-slider`)]) {
    if (input) Object.assign(input, { min: least, max: most, step });
  }
}

/** Sizes around the model's own: turned, square and small, each within the limits. */
function presets({ width, height }) {
  const { size_multiple: multiple, max_side: side, max_pixels: pixels } = limits;
  const fit = (length) =>
    Math.min(Math.max(Math.round(length / multiple), 1) * multiple, side);
  const shaped = (area, ratio) => {
    const size = { width: fit(Math.sqrt(area * ratio)), height: fit(Math.sqrt(area / ratio)) };
    while (size.width * size.height > pixels) {
      size[size.width > size.height ? "width" : "height"] -= multiple;
    }
    return size;
  };
  const long = Math.max(width, height);
  const short = Math.min(width, height);
  const wide = long > short ? { width: long, height: short } : shaped(long * short, 16 / 9);
  const all = [
    { name: "landscape", ...wide },
    { name: "portrait", width: wide.height, height: wide.width },
    { name: "square", ...shaped(long * short, 1) },
    { name: "small", ...shaped(long * short * 0.42, wide.width / wide.height) },
  ];
  return all.filter((size, index) => index === all.findIndex((other) =>
    other.width === size.width && other.height === size.height));
}

function drawPresets(chosen = chosenPreset()) {
  const choice = (value, title, detail, shape) => {
    const input = el("input", {
      type: "radio", name: "preset", value: String(value), checked: value === chosen,
    });
    return el("label", { className: "preset" }, input, shape,
      el("span", { className: "preset-name" }, title),
      el("span", { className: "preset-size" }, detail));
  };
  const focused = document.activeElement?.name === "preset";
  $("presets").replaceChildren(
    ...sizes.map(({ name, width, height }, index) => {
      const shape = el("span", { className: "shape", "aria-hidden": "true" });
      const scale = (name === "small" ? 13 : 20) / Math.max(width, height);
      shape.style.width = `${width * scale}px`; // allowed by the policy, unlike an attribute
      shape.style.height = `${height * scale}px`;
      return choice(index, t(name), `${width} × ${height}`, shape);
    }),
    choice(-1, t("custom"), t("customHint"),
      el("span", { className: "shape dashed", "aria-hidden": "true" })),
  );
  $("custom-size").hidden = chosen !== -1;
  if (focused) $("presets").querySelector(":checked")?.focus();
}

function chosenPreset() {
  return Number($("presets").querySelector(":checked")?.value ?? 0);
}

function choosePreset(value) {
  const size = sizes[value];
  $("custom-size").hidden = size !== undefined;
  if (size) {
    $("width").value = size.width;
    $("height").value = size.height;
  }
  for (const name of ["width", "height", "size"]) show(name, "");
}

/** Bring what follows from the fields up to date: sliders, seconds, the count, the hint. */
function reflect() {
  for (const name of SLIDERS) $(`${name}-slider`).value = $(name).value;
  const [frames, fps] = [Number($("num_frames").value), Number($("fps").value)];
  $("seconds").textContent = frames > 0 && fps > 0 ? t("seconds", { seconds: frames / fps, fps }) : "";
  const length = characters($("prompt").value);
  $("prompt-count").textContent = length > limits.max_prompt_chars * 0.8
    ? `${number(length)} / ${number(limits.max_prompt_chars)}` : "";
  $("size-hint").textContent = t("sizeHint", {
    multiple: limits.size_multiple, side: String(limits.max_side), pixels: limits.max_pixels,
  });
}

/** As the server counts: code points, not UTF-16 units. */
const characters = (text) => [...text.trim()].length;

/** What is wrong with each field: a function that says it in the current language. */
const messages = {};
for (const name of [...FIELDS, "size", "form"]) messages[name] = "";

function show(name, message) {
  messages[name] = message;
  const text = typeof message === "function" ? message() : message;
  $(`${name}-error`).textContent = text;
  const input = $(name);
  if (text) input?.setAttribute("aria-invalid", "true");
  else input?.removeAttribute("aria-invalid");
}

function check() {
  const found = {};
  const text = (name) => $(name).value;
  if (!text("prompt").trim()) found.prompt = () => t("required");
  for (const name of TEXTS) {
    const [length, most] = [characters(text(name)), limits.max_prompt_chars];
    if (length > most) found[name] = () => t("tooLong", { length, most });
  }
  const { size_multiple: multiple, max_side: side, max_pixels: pixels } = limits;
  const [width, height] = [Number(text("width")), Number(text("height"))];
  for (const [name, value] of [["width", width], ["height", height]]) {
    if (!(value >= multiple && value <= side && value % multiple === 0)) {
      found[name] = () => t("sizeStep", { multiple, most: String(side) });
    }
  }
  if (!found.width && !found.height && width * height > pixels) {
    found.size = () =>
      t("tooManyPixels", { width: String(width), height: String(height), most: pixels });
  }
  const { frames_step: step, max_frames: mostFrames } = limits;
  const frames = Number(text("num_frames"));
  if (!(frames >= 1 && frames <= mostFrames && (frames - 1) % step === 0)) {
    const wish = Math.min(Math.max(frames || 1, 1), mostFrames - step);
    const below = Math.floor((wish - 1) / step) * step + 1;
    found.num_frames = () => t("framesStep", { step, most: mostFrames, below, above: below + step });
  }
  for (const [name, least, most, whole] of [
    ["num_inference_steps", limits.min_steps, limits.max_steps, true],
    ["guidance_scale", 0, limits.max_guidance_scale, false],
    ["fps", 1, limits.max_fps, true],
    ["flow_shift", 0.01, limits.max_flow_shift, false],
  ]) {
    const value = text(name) === "" ? NaN : Number(text(name));
    if (!(value >= least && value <= most) || (whole && !Number.isInteger(value))) {
      found[name] = () => t(whole ? "wholeRange" : "range", { least, most });
    }
  }
  const seed = text("seed").trim();
  if (seed && !(/^\d{1,19}$/.test(seed) && BigInt(seed) <= MAX_SEED)) {
    found.seed = () => t("wholeRange", { least: 0, most: String(MAX_SEED) });
  }
  return found;
}

/** Show what is wrong and go to the first of it. */
function complain(found) {
  for (const name of Object.keys(messages)) show(name, found[name] ?? "");
  const first = FIELDS.find((name) => name in found);
  if (first && IN_MORE.has(first)) $("more").open = true;
  if ("width" in found || "height" in found) drawPresets(-1);
  if (first) $(first).focus();
}

async function submit() {
  const found = check();
  complain(found);
  if (Object.keys(found).length) return;
  const parameters = {};
  for (const name of FIELDS) {
    const value = $(name).value.trim();
    if (value) parameters[name] = value;
  }
  sending = true;
  $("submit").setAttribute("aria-disabled", "true"); // not disabled: it would lose the focus
  $("submit").textContent = t("sending");
  try {
    const video = await createVideo(parameters);
    announce(t("accepted"));
    onAccepted(video);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    const name = error.param in messages ? error.param : "form";
    complain({ [name]: () => errorText(error) });
  } finally {
    sending = false;
    $("submit").removeAttribute("aria-disabled");
    $("submit").textContent = t("make");
  }
}
