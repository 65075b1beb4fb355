// The page of ClearSR. It speaks the same HTTP API as every program (/openapi.json) and decides nothing about
// pictures: sizes, estimates, command lines and ranges of settings all come from the server.

const $ = (id) => document.getElementById(id);
const LIVE = { queued: "waiting", step: "working", saving: "saving" };
const THUMB_SIDE = 160, BEAT_MS = 20000, NARROW = 820, ESTIMATE_AFTER_MS = 180, RECONNECT_MS = 1000;
const MOST_PAST = 50;           // results of a visit that are shown
const KEPT_PICTURES = 50, KEPT_BYTES = 300e6, VISIT_MS = 3600e3;  // what a reload finds again

let server = null;              // /v1/settings
let controls = {};              // field -> its element under "All settings"
let pictures = [];              // what was dropped: see `add`
let past = [];                  // runs that are done, newest first
let shown = { picture: null, run: null };
let working = null;             // the run that goes on: {cancelled, job}
let comparing = null;
const made = new WeakMap();     // picture or run -> its element in a list
let isDialMoved = false;
const targets = {   // of "to size", as last set
  width: 2000, height: 2000, longest_side: 2000, shortest_side: 2000, fit: "1920x1080", megapixels: 12, upscale: 3,
};
let lines = {};                 // command and curl, as the server gives them
let nextExample = 0;

// ---------------------------------------------------------------- the server

class Refusal extends Error {
  constructor(code, message, status = 0, wait = 0) {
    super(message);
    Object.assign(this, { code, status, wait });
  }
}

/** A response, or the Refusal that it is. */
async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Refusal("unreachable", "");
  }
  if (response.ok) return response;
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch { /* an answer of a proxy, which is no JSON */ }
  const wait = Number(response.headers.get("Retry-After")) || 5;
  throw new Refusal(error.code ?? "unknown", error.message ?? "", response.status, wait);
}

const form = (file, name, fields = {}) => {
  const data = new FormData();
  for (const [key, value] of Object.entries(fields)) data.append(key, value);
  data.append("file", file, name);
  return data;
};

/** What went wrong, and what to do, in words for people. */
function words(error, name = "This picture") {
  const limits = server?.limits;
  const known = {
    unreachable: "The server cannot be reached. Your pictures are kept here; start it again, then go on.",
    restarted: "The server was restarted while it worked on this. Run the picture again.",
    unreadable: `“${name}” cannot be opened: it is a folder, or was moved or changed. Choose it again.`,
    not_an_image: `“${name}” is not a picture that can be read. JPEG, PNG, WebP, TIFF, AVIF and HEIF can.`,
    bad_image: `“${name}” is damaged or incomplete. Export it again, or choose another file.`,
    large_enough: "It is as large already, and was skipped.",
    too_large: `“${name}” is larger than the ${limits?.upload_mb} MB that this server takes. Save it smaller.`,
    queue_full: "The server is busy with other pictures. It is tried again by itself.",
    too_many_uploads: "The server is busy with other pictures. It is tried again by itself.",
    slow_upload: "Sending the picture took too long. Check the connection, then try again.",
    time_limit: "This took longer than the server allows. Choose a smaller size or fewer steps.",
    out_of_memory: "There is not enough memory for this. Choose a smaller size, or a smaller tile.",
    no_storage: "The server’s disk is full at the moment. Try again in a few minutes.",
    shutting_down: "The server is being stopped. Your pictures are kept here; go on when it is back.",
    cancelled: "Cancelled.",
    no_such_job: "The server no longer has this result. Run the picture again.",
    no_token: "The server asks for its token again. Reload the page.",
    internal_error: "The server made a mistake that is not yours. Its log says which.",
  };
  if (error.code === "too_many_pixels") return (error.picture ? `“${name}”: ` : "") + tooManyPixels(error.message);
  if (error.code === "bad_setting" || error.code === "no_text") return settingWords(error.message);
  return known[error.code] ?? "The server refused this, and did not say why. Try again.";
}

function tooManyPixels(message) {
  const [, what, got, most] = message.match(/^the (\w+) would have ([\d.]+) .*at most ([\d.]+)/) ?? [];
  if (!what) return "This is too large for the server. Choose a smaller size.";
  const advice = what === "result" ? "Choose a smaller size." : "Make it smaller first.";
  return `The ${what} would have ${got} megapixels; this server goes up to ${most}. ${advice}`;
}

/** Which setting is meant, and its range; a rule about several is said as it is. */
function settingWords(message) {
  const field = message.split(":")[0];
  const control = field in controls ? controls[field].setting : null;
  const [, times] = message.match(/at most ([\d.]+) times/) ?? [];
  if (times || field in targets) {
    $("target").ariaInvalid = "true";
    return `Size: ${sizeWords(field, message, times)}.`;
  }
  for (const [name, { input }] of Object.entries(controls)) input.ariaInvalid = String(name === field);
  if (!control) return /Input should|configuration/.test(message) ? ruleWords(message) : `${capital(message)}.`;
  return `${control.label}: ${rangeWords(control)}.`;
}

function sizeWords(field, message, times) {
  const [, most] = message.match(/less than or equal to ([\d.]+)/) ?? [];
  if (times || (field === "upscale" && most)) return `at most ${times ?? most} times the picture’s own`;
  if (field === "fit") return "width x height in pixels, such as 1920x1080";
  if (most) return `at most ${most}`;
  return field === "upscale" || field === "megapixels" ? "a number above 0" : "a whole number above 0";
}

const ruleWords = (message) => `These settings do not go together: ${message
  .replace(/^configuration: /, "").replace(/ \(got .*$/, "").replace(/--/g, "").replace(/_/g, " ")}.`;

function rangeWords({ kind, choices, minimum, maximum, step }) {
  if (choices.length) return `one of ${choices.join(", ")}`;
  const number = kind === "integer" ? "a whole number" : "a number";
  const range = minimum !== null && maximum !== null ? ` from ${minimum} to ${maximum}`
    : minimum !== null ? ` of at least ${minimum}` : "";
  return `${number}${range}${typeof step === "number" && step > 1 ? `, in steps of ${step}` : ""}`;
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const duration = (s) => (s < 90 ? `${Math.max(1, Math.round(s))} s` : `${Math.round(s / 60)} min`);
const megabytes = (bytes) => (bytes < 5e4 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
const dimensions = (w, h) => `${w} × ${h}`;
const element = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};
/** Said to those who hear the page; shown elsewhere already. */
const announce = (text) => { if ($("live").textContent !== text) $("live").textContent = text; };

// ---------------------------------------------------------------- settings

async function loadSettings() {
  for (;;) {
    try {
      server = await (await call("/v1/settings")).json();
      break;
    } catch (error) {
      $("estimate").textContent = words(error);
      await pause(2000);
    }
  }
  buildGroups();
  buildPresets();
  $("format").replaceChildren(...server.formats.map(({ name, quality }) =>
    new Option(name.toUpperCase() + (quality === null ? ", lossless" : ""), name)));
  const size = document.querySelector(`[name=size][value="${server.upscale}"]`);
  if (size) size.checked = true;
  else {
    document.querySelector("[name=size][value=to]").checked = true;
    targets.upscale = server.upscale;
    $("measure").value = "upscale";
    measureChosen();
  }
  $("when-large").value = server.when_large;
  $("detail").value = server.detail;
  $("example").hidden = false;
  settingsChanged();
}

function buildGroups() {
  $("groups").replaceChildren(...server.groups.map(({ name, fields }) => {
    const group = element("fieldset", {}, element("legend", { textContent: name }));
    for (const setting of fields) group.append(buildField(setting));
    return group;
  }));
}

function buildField(setting) {
  const id = `set-${setting.field}`;
  const input = element(setting.kind === "choice" ? "select" : "input", { id });
  if (setting.kind === "choice") {
    if (setting.default === null) input.append(new Option("unset", ""));
    input.append(...setting.choices.map((choice) => new Option(choice, choice)));
  } else if (setting.kind === "boolean") {
    Object.assign(input, { type: "checkbox" });
  } else if (setting.kind === "string") {
    Object.assign(input, { type: "text" });
  } else {
    Object.assign(input, { type: "number", step: setting.step });
    if (setting.minimum !== null) input.min = setting.minimum;
    if (setting.maximum !== null) input.max = setting.maximum;
    if (setting.default === null) input.placeholder = "by the dial";
  }
  input.setAttribute("aria-describedby", `${id}-help`);
  controls[setting.field] = { input, setting };
  putDefault(setting.field);
  return element("div", { className: "field" },
    element("label", { htmlFor: id, textContent: setting.label }), input,
    element("small", { id: `${id}-help` }, `${capital(setting.help)} `, element("code", { textContent: setting.flag })));
}

function putDefault(field) {
  const { input, setting } = controls[field];
  if (setting.kind === "boolean") input.checked = setting.default;
  else input.value = setting.default ?? "";
}

function buildPresets() {
  $("presets").replaceChildren(...server.presets.map(({ name, detail }) => {
    const button = element("button", { type: "button", textContent: name });
    button.dataset.detail = detail;
    button.onclick = () => { $("detail").value = detail; dialMoved(); };
    return button;
  }));
}

function dialMoved() {
  isDialMoved = true;
  for (const field of ["lsa", "alpha", "beta"]) putDefault(field);
  settingsChanged();
}

/** A preset of Latent Space Adjustment was chosen: the dial follows. */
function presetChosen() {
  isDialMoved = false;
  for (const field of ["alpha", "beta"]) putDefault(field);
  settingsChanged();
}

/** The settings that differ from the model's own, as a request has them; without the size. */
function chosen() {
  const fields = {};
  if (isDialMoved && Number($("detail").value) !== server.detail) fields.detail = $("detail").value;
  for (const [field, { input, setting }] of Object.entries(controls)) {
    const value = setting.kind === "boolean" ? input.checked : input.value.trim();
    if (value !== "" && String(value) !== String(setting.default ?? "")) fields[field] = String(value);
  }
  return fields;
}

/** Another measure of the size has its own number; a box to fit into is two. */
function measureChosen() {
  const measure = $("measure").value;
  $("target").type = measure === "fit" ? "text" : "number";
  $("target").value = targets[measure];
  $("when-large").disabled = measure === "upscale";
}

/** The size that is wanted, as a request has it. */
function sizeFields() {
  const size = document.querySelector("[name=size]:checked").value;
  if (size !== "to") return { upscale: size };
  const measure = $("measure").value, rule = $("when-large").value;
  const isUsual = measure === "upscale" || rule === server.when_large;
  return { [measure]: $("target").value || "0", ...(isUsual ? {} : { when_large: rule }) };
}

/** The settings, the size among them, as a request has them. */
const requestFields = () => ({ ...sizeFields(), ...chosen() });

let estimateTimer = 0, estimateNumber = 0;
function settingsChanged() {
  if (!server) return;
  const size = document.querySelector("[name=size]:checked").value;
  $("to-size").hidden = size !== "to";
  for (const button of $("presets").children) button.ariaPressed = String(button.dataset.detail === $("detail").value);
  $("detail").setAttribute("aria-valuetext", dialWords());
  clearTimeout(estimateTimer);
  estimateTimer = setTimeout(estimate, ESTIMATE_AFTER_MS);
}

function dialWords() {
  const value = Number($("detail").value);
  const preset = server.presets.find(({ detail }) => detail === value);
  return preset ? preset.name : Math.abs(value) === 100 ? (value < 0 ? "Truest" : "Crispest")
    : `${Math.abs(value)} % ${value < 0 ? "truer" : "crisper"}`;
}

const isReady = (picture) => picture.width && picture.state !== "failed";

async function estimate() {
  const number = ++estimateNumber, picture = shown.picture, ready = pictures.filter(isReady);
  updateRun();
  const wanted = picture && isReady(picture) ? [picture, ...ready.filter((other) => other !== picture)] : ready;
  try {
    const asked = wanted.length ? wanted.slice(0, 20) : [null];
    const answers = await Promise.all(asked.map(async (one) => {
      const query = new URLSearchParams(requestFields());
      if (one) {
        query.set("name", one.name);
        for (const side of ["width", "height"]) query.set(`picture_${side}`, one[side]);
      }
      try {
        return await (await call(`/v1/estimate?${query}`)).json();
      } catch (error) {
        throw Object.assign(error, { picture: wanted.length > 1 ? one : null });
      }
    }));
    if (number !== estimateNumber) return;
    showEstimate(wanted, answers);
  } catch (error) {
    if (number !== estimateNumber) return;
    $("estimate").textContent = words(error, (error.picture ?? picture)?.name);
    $("estimate").classList.add("bad");
    updateRun();
    if (["unreachable", "shutting_down"].includes(error.code)) estimateTimer = setTimeout(estimate, 2000);
  }
}

function showEstimate(wanted, answers) {
  for (const input of [$("target"), ...Object.values(controls).map((control) => control.input)]) input.ariaInvalid = null;
  const [first] = answers;
  lines = first;
  $("command").textContent = first.command;
  $("curl").textContent = first.curl;
  $("strengths").textContent = `alpha ${first.alpha} · beta ${first.beta}`;
  if (!isDialMoved || controls.alpha.input.value || controls.beta.input.value) $("detail").value = first.detail;
  for (const button of $("presets").children) button.ariaPressed = String(button.dataset.detail === $("detail").value);
  $("estimate").classList.remove("bad");
  updateRun();
  if (!wanted.length) {
    $("estimate").textContent = "Choose a picture to begin.";
    return;
  }
  const seconds = answers.reduce((sum, one) => sum + (one.seconds ?? NaN), 0) * (wanted.length / answers.length);
  const memory = Math.max(...answers.map((one) => one.gigabytes ?? 0));
  const size = `${dimensions(wanted[0].width, wanted[0].height)} → ${dimensions(first.result_width, first.result_height)}`;
  const what = wanted.length > 1 ? `${wanted.length} pictures` : size;
  const needs = Number.isNaN(seconds) ? "how long is being measured"
    : `about ${duration(seconds)}, ${memory < 0.1 ? "under 0.1" : memory.toFixed(1)} GB of memory`;
  $("estimate").replaceChildren(element("span", { textContent: what }), element("span", { textContent: needs }));
  if (Number.isNaN(seconds)) estimateTimer = setTimeout(estimate, 1500);
}

function updateRun() {
  const ready = pictures.filter(isReady).length, isBad = $("estimate").classList.contains("bad");
  $("run").disabled = !server || !ready || isBad || working !== null;
  $("run").textContent = working ? "Working…" : ready > 1 ? `Upscale ${ready} pictures` : "Upscale";
  $("cancel").hidden = working === null;
  $("draw").textContent = comparing ? "Stop the comparison" : "Draw the comparison";
  $("draw").disabled = comparing === null && (!server || !ready || isBad);
}

// ---------------------------------------------------------------- pictures

async function add(files) {
  const first = pictures.length;
  for (const file of files) keep(take(file, file.name || "pasted.png"));
  if (pictures.length > first) show(pictures[first]);
}

/** A picture of a file, in the strip; `number` says its place among those that are kept. */
function take(file, name, number = nextNumber()) {
  const picture = { file, name, number, state: "reading", url: URL.createObjectURL(file), stop: new AbortController() };
  pictures.push(picture);
  read(picture);
  return picture;
}

/** Find out how large a picture is; where the browser cannot show it, the server can. */
async function read(picture) {
  try {
    if (picture.file.size > server?.limits.upload_mb * 1e6) throw new Refusal("too_large", "");
    await picture.file.slice(0, 1).arrayBuffer().catch(() => { throw new Refusal("unreadable", ""); });
    const image = await decoded(picture.url).catch(() => look(picture));
    picture.width ||= image.naturalWidth;
    picture.height ||= image.naturalHeight;
    picture.thumb = thumbnail(image);
    picture.state = "ready";
  } catch (error) {
    if (!pictures.includes(picture)) return;
    if (!(error instanceof Refusal)) error = new Refusal("bad_image", "");
    Object.assign(picture, { state: "failed", error: words(error, picture.name) });
    announce(picture.error);
  }
  if (!pictures.includes(picture)) return;
  if (shown.picture === picture) show(picture);
  showShelf();
  settingsChanged();
}

async function decoded(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  if (!image.naturalWidth) throw new Error("a drawing without a size");
  return image;
}

async function look(picture) {
  const response = await send("/v1/look", picture, {}, picture.stop.signal, (text) => tell(picture, text));
  [picture.width, picture.height] = response.headers.get("X-ClearSR-Size").split("x").map(Number);
  URL.revokeObjectURL(picture.url);
  picture.url = URL.createObjectURL(await response.blob());
  return decoded(picture.url);
}

function thumbnail(image) {
  const share = Math.min(1, THUMB_SIDE / Math.max(image.naturalWidth, image.naturalHeight));
  const canvas = element("canvas", {
    width: Math.max(1, image.naturalWidth * share), height: Math.max(1, image.naturalHeight * share),
  });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}

function remove(picture) {
  const place = pictures.indexOf(picture), hadFocus = made.get(picture).contains(document.activeElement);
  pictures.splice(place, 1);
  picture.stop.abort();
  forgetKept([picture]);
  if (working?.picture === picture) working.skip();
  if (shown.picture === picture) show(pictures[Math.min(place, pictures.length - 1)] ?? null);
  if (!past.some((run) => run.picture === picture)) URL.revokeObjectURL(picture.url);
  showShelf();
  if (hadFocus) ($("strip").children[Math.min(place, pictures.length - 1)] ?? $("empty")).querySelector("button").focus();
  settingsChanged();
}

/** Put a picture, and a result of it, on the stage. */
function show(picture, run = picture?.run ?? null) {
  shown = { picture, run };
  $("empty").hidden = picture !== null;
  $("viewer").hidden = !picture || !picture.width;
  $("unread").hidden = picture?.state !== "failed" || Boolean(picture.width);
  $("unread").textContent = picture?.error ?? "";
  $("result").hidden = !picture;
  if (picture?.width) viewer.show(picture, run);
  else if (picture) viewer.clear();
  showResult();
  showShelf();
  settingsChanged();
}

function showResult() {
  const { picture, run } = shown;
  if (!picture) return;
  const size = picture.width ? ` · ${dimensions(picture.width, picture.height)}` : "";
  $("caption").textContent = picture.name + size;
  $("caption").title = picture.name;
  const isWorking = picture.state in LIVE;
  $("bar").hidden = !isWorking;
  $("status").classList.toggle("bad", Boolean(picture.error) && !run);
  $("status").hidden = !$("unread").hidden;
  $("status").textContent = isWorking ? picture.said : run ? doneWords(run) : picture.error ?? picture.said ?? "";
  if (isWorking) showBar(picture);
  const warnings = run && !isWorking ? [...run.warnings, ...(run.more ?? [])] : [];
  $("warnings").replaceChildren(...warnings.map(({ text }) => element("li", { textContent: capital(text) })));
  $("save").hidden = !run || isWorking;
  $("quality-of").hidden = !chosenFormat()?.quality;
}

const doneWords = (run) => `Done in ${duration(run.seconds)}, ${dimensions(run.width, run.height)}, ${megabytes(run.bytes)}`;

function showBar({ state, done, steps }) {
  const share = state === "step" && steps ? Math.round((100 * done) / steps) : state === "saving" ? 100 : 0;
  $("bar").classList.toggle("waiting", state !== "step" || !done);
  $("bar").firstElementChild.style.width = `${share}%`;
  $("bar").setAttribute("aria-valuenow", share);
  $("bar").setAttribute("aria-valuetext", shown.picture.said ?? "");
}

function showShelf() {
  $("shelf").hidden = !pictures.length && !past.length;
  arrange($("strip"), pictures, (picture) => {
    const cross = element("button", { type: "button", className: "remove", textContent: "×", ariaLabel: `Remove ${picture.name}` });
    cross.onclick = () => remove(picture);
    return element("li", {}, thumb(picture, () => show(picture)), cross);
  }, (picture, button) => {
    const failed = picture.state === "failed" ? "not read" : picture.error && "failed";
    const what = failed || (LIVE[picture.state] ?? (picture.run ? "done" : picture.state));
    showThumb(button, picture, what, shown.picture === picture);
    button.classList.toggle("failed", Boolean(failed));
  });
  $("past").hidden = !past.length;
  arrange($("history"), past, (run) => {
    const view = () => { run.picture.run = run; show(run.picture, run); };
    return element("li", {}, thumb(run.picture, view));
  }, (run, button) => showThumb(button, run.picture, run.label, shown.run === run));
}

/** Bring a list up to date. Elements stay where they are, so that no click and no focus is lost to news. */
function arrange(list, things, make, update) {
  const wanted = things.map((thing) => {
    if (!made.has(thing)) made.set(thing, make(thing));
    const item = made.get(thing);
    update(thing, item.firstElementChild);
    return item;
  });
  for (const item of [...list.children]) if (!wanted.includes(item)) item.remove();
  wanted.forEach((item, place) => { if (list.children[place] !== item) list.insertBefore(item, list.children[place] ?? null); });
}

function thumb(picture, onclick) {
  return element("button", { type: "button", className: "thumb", onclick }, element("span", { className: "pane" }),
    element("span", { className: "name", textContent: picture.name }), element("span", { className: "what" }));
}

function showThumb(button, picture, what, isShown) {
  const [pane, , state] = button.children;
  if (picture.thumb && !pane.children.length) pane.append(element("img", { src: picture.thumb, alt: "" }));
  if (state.textContent !== what) state.textContent = what;
  button.title = picture.error ?? `${picture.name}: ${what}`;
  button.ariaCurrent = String(isShown);
}

// ---------------------------------------------------------------- before and after

/** The picture on the stage: how large it is shown, and where the result begins. */
class Viewer {
  constructor() {
    this.zoom = "fit";
    this.place = 0.5;             // of the handle, in the part of the picture that can be seen
    this.size = { width: 1, height: 1 };
    this.touches = new Map();
    const view = $("view"), handle = $("handle");
    view.addEventListener("scroll", () => this.clip());
    new ResizeObserver(() => this.lay()).observe(view);
    view.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    for (const target of [view, handle]) {
      target.addEventListener("pointerdown", (event) => this.press(event, target));
      target.addEventListener("pointermove", (event) => this.move(event));
      for (const name of ["pointerup", "pointercancel"]) target.addEventListener(name, (event) => this.release(event));
    }
    handle.addEventListener("keydown", (event) => this.key(event));
    for (const button of $("zoom").children) button.onclick = () => this.setZoom(button.dataset.zoom);
    view.addEventListener("dragstart", (event) => event.preventDefault());
    $("after").onerror = missed;
  }

  clear() { $("viewer").hidden = true; }

  show(picture, run) {
    const before = $("before"), after = $("after");
    if (before.getAttribute("src") !== picture.url) before.src = picture.url;
    before.alt = run ? `${picture.name}, before` : picture.name;
    this.pairs = Boolean(run) && !(picture.state in LIVE);
    const source = this.pairs ? run.result : picture.preview;
    after.hidden = !source;
    if (source && after.getAttribute("src") !== source) after.src = source;
    after.alt = this.pairs ? `${picture.name}, upscaled` : source ? "An early look at the result" : "";
    $("viewer").classList.toggle("pairs", this.pairs);
    for (const id of ["handle", "tag-before"]) $(id).hidden = !this.pairs;
    $("tag-after").hidden = !source;
    $("tag-after").textContent = this.pairs ? "After" : "Early look";
    this.size = this.pairs ? { width: run.width, height: run.height } : { width: picture.width, height: picture.height };
    this.lay();
  }

  setZoom(zoom, x = 0.5, y = 0.5) {
    const view = $("view"), old = this.scale();
    const at = { x: view.scrollLeft + x * view.clientWidth, y: view.scrollTop + y * view.clientHeight };
    this.zoom = zoom === "fit" ? "fit" : Math.min(8, Math.max(0.1, Number(zoom)));
    this.lay();
    const by = this.scale() / old;
    view.scrollTo(at.x * by - x * view.clientWidth, at.y * by - y * view.clientHeight);
    this.clip();
  }

  /** CSS pixels per pixel of the picture; at 100 % one of the screen's for each. */
  scale() {
    const view = $("view"), { width, height } = this.size;
    if (this.zoom !== "fit") return this.zoom / devicePixelRatio;
    return Math.min(view.clientWidth / width, view.clientHeight / height) || 1;
  }

  lay() {
    const scale = this.scale(), paper = $("paper"), view = $("view");
    paper.style.width = `${this.size.width * scale}px`;
    paper.style.height = `${this.size.height * scale}px`;
    const isEnlarged = this.zoom !== "fit";
    $("viewer").classList.toggle("enlarged", isEnlarged);
    $("viewer").classList.toggle("fine", isEnlarged && this.zoom >= 2 && !this.pairs);
    view.style.overflow = isEnlarged ? "auto" : "hidden";
    for (const button of $("zoom").children) button.ariaPressed = String(button.dataset.zoom === String(this.zoom));
    this.clip();
  }

  /** Where the picture lies in the window onto it: left edge and width of what can be seen. */
  seen() {
    const view = $("view").getBoundingClientRect(), paper = $("paper").getBoundingClientRect();
    const left = Math.max(0, paper.left - view.left), right = Math.min(view.width, paper.right - view.left);
    return { left, width: Math.max(1, right - left), cut: view.left - paper.left };
  }

  clip() {
    const { left, width, cut } = this.seen(), x = left + this.place * width;
    $("after").style.clipPath = this.pairs ? `inset(0 0 0 ${x + cut}px)` : "none";
    $("handle").style.left = `${x}px`;
    $("handle").setAttribute("aria-valuenow", Math.round(this.place * 100));
    $("handle").setAttribute("aria-valuetext", `${Math.round(this.place * 100)} percent before, the rest after`);
  }

  put(x) {
    const { left, width } = this.seen();
    this.place = Math.min(1, Math.max(0, (x - $("view").getBoundingClientRect().left - left) / width));
    this.clip();
  }

  press(event, target) {
    if (event.button !== 0) return;
    this.touches.set(event.pointerId, event);
    if (this.touches.size === 2) { this.drag = null; this.pinch = { span: this.span(), scale: this.scale() * devicePixelRatio }; return; }
    const slides = target === $("handle") || (this.pairs && this.zoom === "fit");
    if (!slides && event.pointerType === "touch") return;       // the browser scrolls
    this.drag = slides ? "slide" : "pan";
    target.setPointerCapture(event.pointerId);
    if (slides) { this.put(event.clientX); if (this.pairs) $("handle").focus({ preventScroll: true }); }
    event.preventDefault();
  }

  move(event) {
    const last = this.touches.get(event.pointerId);
    if (!last) return;
    this.touches.set(event.pointerId, event);
    if (this.pinch && this.touches.size === 2) this.setZoom((this.pinch.scale * this.span()) / this.pinch.span);
    else if (this.drag === "slide") this.put(event.clientX);
    else if (this.drag === "pan") $("view").scrollBy(last.clientX - event.clientX, last.clientY - event.clientY);
  }

  release(event) {
    this.touches.delete(event.pointerId);
    this.pinch = null;
    this.drag = null;
  }

  span() {
    const [a, b] = [...this.touches.values()];
    return Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY) || 1;
  }

  /** The wheel scrolls; with Ctrl, which a trackpad's pinch sends too, it zooms. */
  wheel(event) {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const view = $("view").getBoundingClientRect();
    const zoom = this.scale() * devicePixelRatio * Math.exp(-event.deltaY / 300);
    this.setZoom(zoom, (event.clientX - view.left) / view.width, (event.clientY - view.top) / view.height);
  }

  key(event) {
    const by = { ArrowLeft: -0.02, ArrowDown: -0.02, ArrowRight: 0.02, ArrowUp: 0.02, PageUp: 0.1, PageDown: -0.1 }[event.key];
    if (by !== undefined) this.place = Math.min(1, Math.max(0, this.place + by));
    else if (event.key === "Home") this.place = 0;
    else if (event.key === "End") this.place = 1;
    else return;
    event.preventDefault();
    this.clip();
  }
}

// ---------------------------------------------------------------- runs

async function upscale() {
  const all = pictures.filter(isReady), signature = () => JSON.stringify(requestFields());
  const left = all.filter((picture) => picture.run?.signature !== signature());
  const queue = left.length ? left : all;
  working = { cancelled: false };
  $("notice").textContent = "";
  updateRun();
  if (!queue.includes(shown.picture)) show(queue[0]);
  if (innerWidth <= NARROW) scrollTo({ top: 0 });   // on a phone, from the settings to the picture
  try {
    for (const [number, picture] of queue.entries()) {
      if (working.cancelled) break;
      if (!pictures.includes(picture)) continue;
      if (queue.length > 1 && shown.picture?.state !== "ready") show(picture);
      const place = queue.length > 1 ? `${number + 1} of ${queue.length} · ` : "";
      if (!(await upscaleOne(picture, signature(), place))) break;
    }
  } finally {
    working = null;
    updateRun();
    settingsChanged();
  }
}

/** One picture from its sending to its result; whether the others have their turn. */
async function upscaleOne(picture, signature, place) {
  const fields = requestFields();
  Object.assign(working, { picture, stop: new AbortController() });
  working.skip = () => { working.stop?.abort(); dropJob(working?.job); };
  Object.assign(picture, { state: "queued", said: `${place}Sending`, error: null, preview: null, done: 0, steps: 0 });
  if (shown.picture === picture) show(picture, null);
  try {
    const say = (text) => tell(picture, `${place}${text}`);
    const job = await (await send("/v1/jobs", picture, fields, working.stop.signal, say)).json();
    working.job = job;
    const done = await follow(job, working.stop.signal, (state) => told(picture, state, place));
    const label = `${Number((done.width / picture.width).toPrecision(3))}× · ${fields.alpha || fields.beta ? "by hand" : dialWords().toLowerCase()}`;
    const run = { ...done, picture, signature, label, ended: Date.now() };
    Object.assign(picture, { state: "ready", run, said: "", preview: null });
    past = [run, ...past].slice(0, MOST_PAST);
    keep(picture);
    announce(`${picture.name}: ${doneWords(run)}`);
    if (shown.picture === picture) show(picture, run);
    else showShelf();
    return true;
  } catch (error) {
    if (working.stop.signal.aborted) error = new Refusal("cancelled", "");
    const text = words(error, picture.name), isOver = ["unreachable", "shutting_down", "no_token"].includes(error.code);
    const isBad = ["not_an_image", "bad_image"].includes(error.code);
    Object.assign(picture, { state: "ready", preview: null, said: text, error: error.code === "cancelled" ? null : text });
    if (isBad) picture.state = "failed";
    announce(text);
    if (shown.picture === picture) show(picture, picture.error ? null : picture.run ?? null);
    if (error.code === "cancelled" && shown.picture === picture) $("status").textContent = text;
    showShelf();
    return !isOver && !working.cancelled;
  } finally {
    if (working) working.job = null;
  }
}

/** Send a picture; while the server is full, wait and try again. */
async function send(path, picture, fields, signal, say) {
  for (;;) {
    try {
      return await call(path, { method: "POST", body: form(picture.file, picture.name, fields), signal });
    } catch (error) {
      if (signal.aborted) throw new Refusal("cancelled", "");
      if (!["queue_full", "too_many_uploads"].includes(error.code)) throw error;
      say(words(error));
      await pause(1000 * error.wait);
      if (signal.aborted) throw new Refusal("cancelled", "");
    }
  }
}

/** What a job has become, once it is done; `say` hears of all before. */
function follow(job, signal, say) {
  return new Promise((resolve, reject) => {
    let events, isOver = false;
    const end = (act, value) => { isOver = true; events.close(); act(value); };
    const connect = () => {
      events = new EventSource(job.events);
      for (const name of Object.keys(LIVE)) events.addEventListener(name, (event) => say(JSON.parse(event.data)));
      events.addEventListener("done", (event) => end(resolve, JSON.parse(event.data)));
      events.addEventListener("failed", (event) => {
        const { code, message, status } = JSON.parse(event.data).error;
        end(reject, new Refusal(code, message, status));
      });
      events.onerror = check;
    };
    /** The connection broke. The browser connects again by itself, but not where it was answered by an error. */
    const check = async () => {
      const broken = events;
      try {
        await call(`/v1/jobs/${job.id}`);
      } catch (error) {
        if (!isOver) end(reject, error.code === "no_such_job" ? new Refusal("restarted", "") : error);
        return;
      }
      await pause(RECONNECT_MS);
      if (!isOver && broken === events && broken.readyState === EventSource.CLOSED) connect();
    };
    signal.addEventListener("abort", () => end(reject, new Refusal("cancelled", "")));
    connect();
  });
}

function told(picture, state, place) {
  Object.assign(picture, { state: state.state, done: state.done ?? 0, steps: state.steps ?? 0 });
  if (state.preview) picture.preview = state.preview;
  const left = state.seconds_left === undefined ? "" : ` · about ${duration(state.seconds_left)} left`;
  const text = {
    queued: state.ahead ? `Waiting, ${state.ahead} before it` : "Next in the queue",
    step: state.done ? `Step ${state.done} of ${state.steps}${left}` : `Working${left}`,
    saving: "Saving",
  }[state.state];
  if (state.state !== "step" || !state.done) announce(`${picture.name}: ${text}`);
  if (shown.picture === picture && state.preview) viewer.show(picture, null);
  tell(picture, place + text);
}

function tell(picture, text) {
  picture.said = text;
  if (shown.picture === picture) showResult();
  showShelf();
}

function cancel() {
  if (!working) return;
  working.cancelled = true;
  working.skip?.();
}

function dropJob(job) {
  if (job) fetch(`/v1/jobs/${job.id}`, { method: "DELETE", keepalive: true }).catch(() => {});
}

/** The result on the stage does not come: if the server has it no longer, say so. */
async function missed() {
  const { run, picture } = shown;
  if (!run) return;
  try {
    await call(`/v1/jobs/${run.id}`);
  } catch (error) {
    if (error.code !== "no_such_job") return;
    past = past.filter((other) => other !== run);
    Object.assign(picture, { run: past.find((other) => other.picture === picture) ?? null, said: words(error) });
    if (shown.run === run) show(picture, null);
  }
}

const chosenFormat = () => server?.formats.find(({ name }) => name === $("format").value);

async function download(event) {
  event.preventDefault();
  const { run, picture } = shown, format = chosenFormat();
  if (!run) return;
  const query = new URLSearchParams({ format: format.name });
  if (format.quality !== null && $("quality").value) query.set("quality", $("quality").value);
  $("download").disabled = true;
  try {
    const response = await call(`${run.result}?${query}`);
    run.more = JSON.parse(response.headers.get("X-ClearSR-Warnings") ?? "[]")
      .filter(({ text }) => !run.warnings.some((known) => known.text === text));
    const url = URL.createObjectURL(await response.blob());
    const link = element("a", { href: url, download: run.file.replace(/\.png$/, format.suffix) });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
    showResult();
  } catch (error) {
    $("status").classList.add("bad");
    $("status").textContent = /^format:/.test(error.message)
      ? `A picture of this size does not fit into ${format.name.toUpperCase()}. Choose another format.` : words(error, picture.name);
  } finally {
    $("download").disabled = false;
  }
}

// ---------------------------------------------------------------- comparison

async function compare() {
  const picture = shown.picture && isReady(shown.picture) ? shown.picture : pictures.find(isReady);
  const say = (text) => { $("compare-status").textContent = text; };
  comparing = { stop: new AbortController(), skip() { this.stop.abort(); dropJob(this.job); } };
  updateRun();
  $("grid").replaceChildren();
  try {
    const { detail: _1, alpha: _2, beta: _3, lsa: _4, ...fields } = requestFields();
    say("Sending");
    const { signal } = comparing.stop;
    const job = comparing.job = await (await send("/v1/comparisons", picture, fields, signal, say)).json();
    const done = await follow(job, signal, ({ state, done, steps, ahead }) =>
      say(state === "queued" ? (ahead ? `Waiting, ${ahead} before it` : "Next in the queue") : `${done} of ${steps}`));
    drawGrid(done);
    say("");
  } catch (error) {
    say(words(comparing.stop.signal.aborted ? new Refusal("cancelled", "") : error, picture.name));
  } finally {
    comparing = null;
    updateRun();
  }
}

function drawGrid({ cells, alphas, betas }) {
  const head = element("tr", {}, element("td"), ...betas.map((beta) => element("th", { scope: "col", textContent: `beta ${beta}` })));
  const rows = alphas.map((alpha, row) => element("tr", {}, element("th", { scope: "row", textContent: `alpha ${alpha}` }),
    ...betas.map((beta, column) => {
      const image = element("img", { src: cells[row * betas.length + column], alt: "" });
      const button = element("button", { type: "button", ariaLabel: `Use alpha ${alpha}, beta ${beta}` }, image);
      button.onclick = () => {
        for (const other of $("grid").querySelectorAll("button")) other.ariaPressed = String(other === button);
        controls.alpha.input.value = alpha;
        controls.beta.input.value = beta;
        settingsChanged();
        announce(`alpha ${alpha} and beta ${beta} are set`);
      };
      return element("td", {}, button);
    })));
  $("grid").replaceChildren(element("table", {}, head, ...rows));
}

// ---------------------------------------------------------------- the rest of the page

async function copy(name) {
  const button = document.querySelector(`[data-copy=${name}]`), usual = button.textContent;
  try {
    await navigator.clipboard.writeText(lines[name]);
  } catch {        // without TLS there is no clipboard but this
    getSelection().selectAllChildren($(name));
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  announce("Copied");
  setTimeout(() => { button.textContent = usual; }, 1500);
}

async function example() {
  $("notice").textContent = "";
  const names = (await (await call("/v1/settings")).json()).examples;
  if (!names?.length) {
    $("example").hidden = names !== null;
    $("notice").textContent = names ? "This server has no examples." : "The examples are being prepared. Try again in a moment.";
    return;
  }
  const name = names[nextExample++ % names.length];
  const response = await call(`/v1/examples/${encodeURIComponent(name)}`);
  add([new File([await response.blob()], name, { type: "image/png" })]);
}

/** Whether the server is there, and still the one that it was. */
async function beat() {
  try {
    const { instance } = await (await call("/healthz")).json();
    if (server && instance !== server.instance) {
      server.instance = instance;
      $("notice").textContent = "The server was restarted. Your pictures are still here.";
    } else if ($("notice").textContent.startsWith("The server cannot")) {
      $("notice").textContent = "";
    }
  } catch {
    $("notice").textContent = "The server cannot be reached. Your pictures are kept here.";
  }
}

// ---------------------------------------------------------------- what a reload finds again

// The pictures of a visit, which is the life of a tab, are kept in the browser's own store (without one, the page
// works as well): few, and no longer than an hour after the tab was last seen. Their results are the server's.

const visit = nameVisit();

function nameVisit() {
  const fresh = String(Math.random()).slice(2);
  try {
    return (sessionStorage.clearsrVisit ??= fresh);
  } catch {
    return fresh;
  }
}

/** Note that this visit goes on; returns those that do. */
function visitsAlive() {
  const now = Date.now();
  try {
    const seen = { ...JSON.parse(localStorage.clearsrVisits ?? "{}"), [visit]: now };
    const alive = Object.fromEntries(Object.entries(seen).filter(([, time]) => now - time < VISIT_MS));
    localStorage.clearsrVisits = JSON.stringify(alive);
    return alive;
  } catch {
    return { [visit]: now };
  }
}

const opened = new Promise((resolve) => {
  try {
    const request = indexedDB.open("clearsr", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("pictures", { keyPath: ["visit", "number"] });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => resolve(null);
  } catch {
    resolve(null);
  }
});

/** What a request to the store gives; undefined if there is no store, or no room in it. */
async function stored(act) {
  const database = await opened;
  if (!database) return undefined;
  return new Promise((resolve, reject) => {
    const transaction = database.transaction("pictures", "readwrite");
    const request = act(transaction.objectStore("pictures"));
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onabort = reject;
  }).catch(() => undefined);
}

let lastNumber = 0;
const nextNumber = () => (lastNumber = Math.max(Date.now(), lastNumber + 1));

async function keep(picture) {
  if (!pictures.includes(picture)) return;
  const runs = past.filter((run) => run.picture === picture).map(({ picture: _, ...run }) => run);
  await stored((store) => store.put({ visit, number: picture.number, name: picture.name, file: picture.file, runs }));
  let bytes = 0;
  forgetKept([...pictures].reverse().filter(({ file }, place) => place >= KEPT_PICTURES || (bytes += file.size) > KEPT_BYTES));
}

const forgetKept = (some) => stored((store) => some.forEach(({ number }) => store.delete([visit, number])));

async function restore() {
  const alive = visitsAlive();
  const keys = await stored((store) => store.getAllKeys()) ?? [];
  await stored((store) => keys.filter(([of]) => !(of in alive)).forEach((key) => store.delete(key)));
  const records = await stored((store) => store.getAll(IDBKeyRange.bound([visit, 0], [visit, Infinity]))) ?? [];
  for (const { file, name, number, runs } of records) {
    const picture = take(file, name, number);
    for (const run of runs) restoreRun({ ...run, picture });
  }
  if (records.length && !shown.picture) show(pictures[0]);
}

/** A result of before the reload, if the server still has it. */
async function restoreRun(run) {
  const { picture } = run;
  try {
    await call(`/v1/jobs/${run.id}`);
  } catch {
    return;
  }
  past = [...past, run].sort((a, b) => b.ended - a.ended);
  picture.run = past.find((other) => other.picture === picture);
  if (shown.picture === picture && !(picture.state in LIVE)) show(picture);
  else showShelf();
}

const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
let over = 0;
addEventListener("dragenter", (event) => { if (holdsFiles(event)) { over += 1; $("over").hidden = false; event.preventDefault(); } });
const takesText = (event) => Boolean(event.target.closest?.("input[type=text], input[type=number]"));
addEventListener("dragover", (event) => {
  if (holdsFiles(event)) { event.preventDefault(); return; }
  if (takesText(event)) return;
  event.preventDefault();       // a link that is dropped would lead away from the page
  event.dataTransfer.dropEffect = "none";
});
addEventListener("dragleave", (event) => { if (holdsFiles(event) && --over <= 0) { over = 0; $("over").hidden = true; } });
addEventListener("drop", (event) => {
  if (!holdsFiles(event) && takesText(event)) return;
  event.preventDefault();
  if (!holdsFiles(event)) return;
  over = 0;
  $("over").hidden = true;
  add(event.dataTransfer.files);
});
addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) { event.preventDefault(); add(files); }
});
addEventListener("pagehide", () => { dropJob(working?.job); dropJob(comparing?.job); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) beat(); });
setInterval(() => { visitsAlive(); if (!document.hidden) beat(); }, BEAT_MS);

const viewer = new Viewer();
for (const button of document.querySelectorAll(".choose")) button.onclick = () => $("files").click();
$("files").onchange = () => { add($("files").files); $("files").value = ""; };
$("example").onclick = () => example().catch((error) => { $("notice").textContent = words(error); });
$("settings").onsubmit = (event) => { event.preventDefault(); if (!$("run").disabled) upscale(); };
$("settings").oninput = ({ target }) =>
  (target.id === "detail" ? dialMoved() : target === controls.lsa?.input ? presetChosen() : settingsChanged());
$("measure").oninput = measureChosen;
$("target").oninput = () => { targets[$("measure").value] = $("target").value; };
$("cancel").onclick = cancel;
$("draw").onclick = () => (comparing ? comparing.skip() : compare());
$("reset").onclick = () => { Object.keys(controls).forEach(putDefault); $("detail").value = server.detail; isDialMoved = false; settingsChanged(); };
$("save").onsubmit = download;
$("format").onchange = () => { $("quality").value = chosenFormat().quality ?? ""; showResult(); };
for (const button of document.querySelectorAll("[data-copy]")) button.onclick = () => copy(button.dataset.copy);
restore();
loadSettings();
