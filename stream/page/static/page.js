// The live page: docs/page.md. Pictures come by one stream for all cameras (a browser opens only six
// connections to a host), everything else by server-sent events.

const CURVE_S = 120;
const MOST_CURVES = 12;
const MOST_ALERTS = 100;
const RETRY_MS = 2000;
const VERDICTS = { attack: "attack", bona_fide: "bona fide", undecided: "undecided", abstain: "abstains" };
const DASHES = [[], [6, 4], [2, 3], [10, 4, 2, 4]];

const byId = (id) => document.getElementById(id);
const cameras = new Map(); // id -> Camera
const tracks = new Map(); // id -> { source, points: [[seconds, p]], state, ended }
const totals = new Map(); // id of a camera -> { due, dropped }
let order = []; // ids of cameras
let chosen = ""; // id of the one camera that is shown; empty: all
let measured = { sources: {}, stages: {} };
let chart = null;
let chartOf = "";

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function colour(state) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${state.replace("_", "-")}`).trim();
}

function clock(ms) {
  return new Date(ms).toLocaleTimeString([], { hour12: false });
}

function ago(ms) {
  const seconds = Math.max(0, Math.round((Date.now() - ms) / 1000));
  if (seconds < 90) return `${seconds} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

// A message holds no addresses, and says so where one stood: on the page that is no news.
function plain(detail) {
  return detail.replaceAll("[address]", "").replace(/^[\s:,]+/, "");
}

function words(name) {
  return name.replaceAll("_", " ");
}

// --- what is asked of the server ---

async function ask(method, path, body) {
  const options = { method };
  if (body) {
    options.body = JSON.stringify(body);
    options.headers = { "content-type": "application/json" };
  }
  const answer = await fetch(path, options);
  if (answer.status === 401) location.assign("/login");
  const said = answer.status === 204 ? {} : await answer.json();
  if (!answer.ok) throw new Error(said.error);
  return said;
}

function complain(error) {
  byId("offline").textContent = error ? String(error.message ?? error) : "";
  byId("offline").hidden = !error;
}

async function act(method, path) {
  try {
    await ask(method, path);
    await loadSources();
  } catch (error) {
    complain(error);
    setTimeout(complain, 6000);
  }
}

// --- cameras ---

class Camera {
  constructor(id) {
    this.id = id;
    this.status = null;
    this.since = 0;
    this.faces = [];
    this.canvas = element("canvas", { width: 640, height: 360 });
    this.canvas.dataset.frames = "0";
    this.away = element("span", { className: "away", hidden: true });
    this.picture = element("button", { className: "picture", type: "button" }, this.canvas, this.away);
    this.picture.addEventListener("click", () => choose(chosen === id ? "" : id));
    this.state = element("span", { className: "state" });
    this.numbers = element("span", { className: "numbers" });
    this.pause = element("button", { type: "button", className: "small" }, "Pause");
    this.pause.addEventListener("click", () =>
      act("POST", `/api/sources/${id}/${this.stateNow === "paused" ? "resume" : "pause"}`));
    this.remove = element("button", { type: "button", className: "small plain" }, "Remove");
    this.remove.addEventListener("click", () => {
      if (confirm(`Stop watching ${id} and forget it?`)) act("DELETE", `/api/sources/${id}`);
    });
    this.card = element("article", { className: "panel camera" }, this.picture,
      element("div", { className: "line" }, element("h3", {}, id), this.state, this.numbers,
        element("div", { className: "buttons" }, this.pause, this.remove)));
    this.card.dataset.camera = id;
    this.pause.setAttribute("aria-label", `Pause ${id}`);
    this.remove.setAttribute("aria-label", `Remove ${id}`);
    this.show();
  }

  get stateNow() {
    return this.status?.state ?? "starting";
  }

  take(status, since) {
    this.status = status;
    this.since = since;
    if (!["open", "idle"].includes(status.state)) this.faces = [];
    totals.set(this.id, { due: status.frames_due, dropped: status.frames_dropped });
    this.show();
  }

  show() {
    const now = this.stateNow;
    const isUp = ["open", "idle"].includes(now);
    this.state.className = `state ${now}`;
    this.state.textContent = now;
    this.pause.textContent = now === "paused" ? "Resume" : "Pause";
    this.pause.setAttribute("aria-label", `${this.pause.textContent} ${this.id}`);
    this.away.hidden = isUp;
    if (!isUp) {
      const why = this.status ? `${words(this.status.code)}: ${plain(this.status.detail)}` : "not opened yet";
      this.away.replaceChildren(
        element("strong", {}, now[0].toUpperCase() + now.slice(1)),
        element("span", { className: "why" }, now === "paused" ? "on request" : why),
        element("span", { className: "since" }, this.since ? `since ${clock(this.since)} (${ago(this.since)})` : ""));
    }
    const said = this.faces.map((face) => `${VERDICTS[face.state]} ${face.p === null ? "" : face.p.toFixed(2)}`);
    this.picture.setAttribute("aria-label", `${this.id}, ${now}; faces: ${said.join(", ") || "none"}`);
    this.picture.setAttribute("aria-pressed", String(chosen === this.id));
    this.card.classList.toggle("alarm", this.faces.some((face) => face.state === "attack"));
    const speed = measured.sources[this.id];
    this.numbers.textContent = isUp && speed ? `${speed.fps.toFixed(1)}/s · ${Math.round(speed.p95)} ms p95` : "";
    this.card.hidden = chosen !== "" && chosen !== this.id;
  }

  async draw(header, jpeg) {
    const picture = await createImageBitmap(new Blob([jpeg], { type: "image/jpeg" }));
    const { canvas } = this;
    if (canvas.width !== picture.width || canvas.height !== picture.height) {
      canvas.width = picture.width;
      canvas.height = picture.height;
    }
    const pen = canvas.getContext("2d");
    pen.drawImage(picture, 0, 0);
    picture.close();
    const scale = canvas.width / header.width;
    // As large on the screen in every picture.
    const unit = canvas.width / Math.max(canvas.clientWidth, 1);
    for (const face of header.faces) drawFace(pen, face, scale, unit);
    this.faces = header.faces;
    canvas.dataset.frames = String(Number(canvas.dataset.frames) + 1);
    canvas.dataset.faces = header.faces.map((face) => face.state).join(" ");
    this.show();
  }
}

// On the picture, which is neither light nor dark.
const ON_PICTURE = { attack: "#ff4d52", bona_fide: "#4ade80", undecided: "#d5dceb", abstain: "#fbbf3f" };

function drawFace(pen, face, scale, unit) {
  const [x1, y1, x2, y2] = face.box.map((v) => v * scale);
  pen.lineWidth = (face.state === "attack" ? 3.5 : 2.2) * unit;
  pen.strokeStyle = ON_PICTURE[face.state];
  pen.setLineDash(face.state === "undecided" ? [6 * unit, 4 * unit] : face.state === "abstain" ? [2 * unit, 3 * unit] : []);
  pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
  pen.setLineDash([]);
  let text = VERDICTS[face.state];
  if (face.state === "abstain" && face.reason) text += `: ${words(face.reason)}`;
  else if (face.p !== null) text += ` ${face.p.toFixed(2)}`;
  if (face.family && face.family !== "unsure") text += ` ${face.family}`;
  const size = 13 * unit;
  pen.font = `650 ${size}px system-ui, sans-serif`;
  const width = pen.measureText(text).width + size * 0.8;
  const height = size * 1.5;
  const left = Math.max(0, Math.min(x1 - pen.lineWidth / 2, pen.canvas.width - width));
  const top = y1 - height >= 0 ? y1 - height : Math.min(y2, pen.canvas.height - height);
  pen.fillStyle = ON_PICTURE[face.state];
  pen.fillRect(left, top, width, height);
  pen.fillStyle = "#0a0d13";
  pen.textBaseline = "middle";
  pen.fillText(text, left + size * 0.4, top + height * 0.54);
}

async function loadSources() {
  const { sources } = await ask("GET", "/api/sources");
  const before = order.join(" ");
  order = sources.map((source) => source.id);
  for (const [id, camera] of cameras) {
    if (!order.includes(id)) {
      camera.card.remove();
      cameras.delete(id);
      totals.delete(id);
    }
  }
  for (const id of order) {
    if (!cameras.has(id)) cameras.set(id, new Camera(id));
  }
  if (order.join(" ") !== before) {  // else what is moved would lose focus, and the click on it
    byId("cameras").append(...order.map((id) => cameras.get(id).card));
    byId("filter").replaceChildren(element("option", { value: "" }, "All"),
      ...order.map((id) => element("option", { value: id }, id)));
  }
  choose(order.includes(chosen) ? chosen : "");
  summarise();
}

function choose(id) {
  const changed = chosen !== id;
  chosen = id;
  byId("filter").value = id;
  byId("cameras").classList.toggle("single", id !== "");
  cameras.forEach((camera) => camera.show());
  for (const item of byId("alert-list").children) item.hidden = chosen !== "" && item.dataset.camera !== chosen;
  showMeasured();
  drawCurves();
  if (changed) live.restart();
}

function summarise() {
  const states = [...cameras.values()].map((camera) => camera.stateNow);
  const up = states.filter((state) => state === "open" || state === "idle").length;
  const lost = states.filter((state) => state === "lost").length;
  const attacks = [...cameras.values()].flatMap((camera) => camera.faces).filter((face) => face.state === "attack").length;
  byId("summary").textContent = `${up} of ${states.length} cameras up` + (lost ? `, ${lost} lost` : "") +
    (attacks ? ` · ${attacks} ${attacks === 1 ? "face" : "faces"} under attack now` : "");
  document.title = attacks ? `(${attacks}) facewarden` : "facewarden";
}

// --- the live stream: lengths of JSON and JPEG, four bytes each, then both ---

const live = {
  abort: null,

  restart() {
    this.abort?.abort();
    this.abort = null;
    if (!document.hidden) this.watch();
  },

  async watch() {
    const abort = new AbortController();
    this.abort = abort;
    while (!abort.signal.aborted) {
      try {
        await this.read(abort.signal);
      } catch (error) {
        if (abort.signal.aborted) return;
        complain(error instanceof TypeError ? "No connection to facewarden; trying again." : error);
      }
      await new Promise((go) => setTimeout(go, RETRY_MS));
    }
  },

  async read(signal) {
    const answer = await fetch(`/live${chosen ? `?source=${encodeURIComponent(chosen)}` : ""}`, { signal });
    if (answer.status === 401) location.assign("/login");
    if (!answer.ok) throw new Error((await answer.json()).error);
    complain(null);
    const reader = answer.body.getReader();
    let held = new Uint8Array(0);
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const joined = new Uint8Array(held.length + value.length);
      joined.set(held);
      joined.set(value, held.length);
      held = await this.take(joined);
    }
  },

  async take(bytes) {
    let at = 0;
    while (bytes.length - at >= 8) {
      const view = new DataView(bytes.buffer, at);
      const [json, jpeg] = [view.getUint32(0), view.getUint32(4)];
      if (bytes.length - at < 8 + json + jpeg) break;
      if (json) {
        const header = JSON.parse(new TextDecoder().decode(bytes.subarray(at + 8, at + 8 + json)));
        const picture = bytes.slice(at + 8 + json, at + 8 + json + jpeg);
        await cameras.get(header.source)?.draw(header, picture);
      }
      at += 8 + json + jpeg;
    }
    return bytes.slice(at);
  },
};

// --- news ---

function takeStatus({ since, message }) {
  const { id } = message.source;
  const camera = cameras.get(id);
  camera?.take(message.status, Date.parse(since));
  if (!camera || message.status.state === "ended") refreshSoon();
  summarise();
}

let refreshing = null;
function refreshSoon() {
  refreshing ??= setTimeout(() => {
    refreshing = null;
    loadSources().catch(complain);
  }, 400);
}

function takeAlert(message) {
  const list = byId("alert-list");
  const known = [...list.children].some((item) => item.dataset.event === message.event.id);
  if (known) return;
  const item = message.verdict ? verdictItem(message) : sourceItem(message);
  item.dataset.event = message.event.id;
  item.dataset.camera = message.source.id;
  item.dataset.type = message.event.type;
  item.hidden = chosen !== "" && chosen !== message.source.id;
  if (Date.now() - Date.parse(message.ts) < 5000) item.classList.add("fresh");
  list.prepend(item);
  while (list.children.length > MOST_ALERTS) list.lastElementChild.remove();
  byId("no-alerts").hidden = true;
}

function headOf(message, chip) {
  const at = Date.parse(message.ts);
  return element("div", { className: "head" }, chip, element("b", {}, message.source.id),
    element("time", { dateTime: message.ts, title: message.ts }, clock(at)));
}

function verdictItem(message) {
  const { verdict } = message;
  const chip = element("span", { className: `verdict ${verdict.state}` }, VERDICTS[verdict.state]);
  const said = [];
  if (verdict.p_attack !== null) said.push(`p ${verdict.p_attack.toFixed(2)}`);
  if (verdict.family) said.push(verdict.family === "unsure" ? "kind unsure" : `${verdict.family} attack`);
  if (verdict.reason) said.push(words(verdict.reason));
  said.push(`was ${VERDICTS[verdict.previous]}`);
  const path = `/alerts/${encodeURIComponent(message.event.id)}`;
  const faces = element("div", { className: "faces" },
    face(`${path}/face.jpg`, `face on ${message.source.id}`),
    face(`${path}/evidence.jpg`, "where the detector saw its evidence, in red"));
  const item = element("li", { className: `alert ${verdict.state}` }, faces, headOf(message, chip),
    element("p", { className: "said" }, said.join(" · ")));
  if (message.evidence) item.append(element("p", { className: "said hint" }, `evidence ${message.evidence}`));
  return item;
}

function face(path, text) {
  const image = element("img", { alt: text, title: text, width: 64, height: 64, loading: "lazy" });
  let again = true;
  image.addEventListener("error", () => {
    // An alert may be here a moment before its face is.
    if (again) setTimeout(() => { image.src = `${path}?again`; }, 700);
    else image.remove();
    again = false;
  });
  image.src = path;
  return image;
}

function sourceItem(message) {
  const what = message.event.type.split(".").at(-1);
  const chip = element("span", { className: "state" + (what === "regained" ? " open" : " lost") }, words(what));
  const item = element("li", { className: `alert source${what === "regained" ? "" : " source-lost"}` }, headOf(message, chip));
  if (message.status) {
    const { code, detail } = message.status;
    item.append(element("p", { className: "said" }, code === "ok" ? plain(detail) : `${words(code)}: ${plain(detail)}`));
  }
  return item;
}

function takeScore({ track, source, ts, p, state, ended }) {
  if (!tracks.has(track)) tracks.set(track, { source, points: [], state, ended });
  const known = tracks.get(track);
  if (p !== null) known.points.push([Date.parse(ts) / 1000, p]);
  known.state = state;
  known.ended = ended;
}

// --- curves, stages, rates ---

function drawCurves() {
  const now = Date.now() / 1000;
  for (const [id, track] of tracks) {
    track.points = track.points.filter(([at]) => at > now - CURVE_S);
    if (!track.points.length && (track.ended || tracks.size > 200)) tracks.delete(id);
  }
  const shown = [...tracks.entries()]
    .filter(([, track]) => track.points.length && (!chosen || track.source === chosen))
    .slice(-MOST_CURVES);
  const times = [...new Set(shown.flatMap(([, track]) => track.points.map(([at]) => at)))].sort((a, b) => a - b);
  const data = [times, ...shown.map(([, track]) => {
    const values = new Map(track.points);
    return times.map((at) => values.get(at) ?? null);
  })];
  const place = byId("chart");
  const of = JSON.stringify([shown.map(([id, track]) => [id, track.state, track.ended, track.points.length > 1]), place.clientWidth, matchMedia("(prefers-color-scheme: dark)").matches]);
  if (of !== chartOf) {
    chartOf = of;
    chart?.destroy();
    chart = new uPlot(chartOptions(shown, place.clientWidth), data, place);
    byId("tracks").replaceChildren(...shown.map(([id, track], number) => legend(id, track, number)));
  } else {
    chart.setData(data);
  }
}

function chartOptions(shown, width) {
  const [text, line] = [colour("soft"), colour("line")];
  const axis = { stroke: text, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: "12px system-ui" };
  return {
    width, height: 220, legend: { show: false }, cursor: { drag: { x: false } },
    padding: [8, 8, 0, 0],
    scales: { x: { range: () => [Date.now() / 1000 - CURVE_S, Date.now() / 1000] }, y: { range: [0, 1] } },
    axes: [
      { ...axis, values: (_, ticks) => ticks.map((at) => clock(at * 1000)), space: 90 },
      { ...axis, size: 42 },
    ],
    series: [{}, ...shown.map(([id, track], number) => ({
      label: id, stroke: colour(track.state), width: 2, dash: DASHES[number % DASHES.length], spanGaps: true,
      points: { show: false },
    }))],
  };
}

function legend(id, track, number) {
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  svg.setAttribute("width", "28");
  svg.setAttribute("height", "8");
  const line = document.createElementNS(ns, "line");
  for (const [key, value] of Object.entries({ x1: 0, x2: 28, y1: 4, y2: 4, stroke: colour(track.state), "stroke-width": 2,
    "stroke-dasharray": DASHES[number % DASHES.length].join(" ") })) line.setAttribute(key, value);
  svg.append(line);
  const last = track.points.at(-1);
  const said = `${track.source} #${id.split("-").at(-1)}: ${VERDICTS[track.state]} ${last[1].toFixed(2)}`;
  return element("li", { className: track.ended ? "over" : "" }, svg, track.ended ? `${said}, gone` : said);
}

function showMeasured() {
  const row = (name, ...cells) => element("tr", {}, element("td", {}, name), ...cells);
  const cell = (text, className = "") => element("td", { className }, text);
  byId("stages").replaceChildren(...Object.entries(measured.stages).map(([name, ms]) =>
    row(name, cell(ms.p50.toFixed(1)), cell(ms.p95.toFixed(1)))));
  byId("rates").replaceChildren(...order.filter((id) => !chosen || id === chosen).map((id) => {
    const speed = measured.sources[id];
    const { due = 0, dropped = 0 } = totals.get(id) ?? {};
    return row(id, cell(speed ? speed.fps.toFixed(1) : "0"), cell(speed ? speed.p50.toFixed(0) : ""),
      cell(speed ? speed.p95.toFixed(0) : ""), cell(String(due)), cell(String(dropped), dropped ? "bad" : ""));
  }));
}

// --- begin ---

function listen() {
  const events = new EventSource("/events");
  const on = (kind, take) => events.addEventListener(kind, (event) => take(JSON.parse(event.data)));
  on("status", takeStatus);
  on("alert", takeAlert);
  on("score", takeScore);
  on("statistics", (said) => {
    measured = said;
    showMeasured();
  });
  events.addEventListener("error", () => {
    // A browser gives up when it is answered anything but a stream: then it is asked again.
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, RETRY_MS);
  });
}

byId("filter").addEventListener("change", (event) => choose(event.target.value));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName)) return;
  if (event.key === "Escape" || event.key === "0") choose("");
  else if (/^[1-9]$/.test(event.key) && order[event.key - 1]) choose(order[event.key - 1]);
});
addEventListener("resize", drawCurves);
document.addEventListener("visibilitychange", () => live.restart());

const add = byId("add");
byId("add-open").addEventListener("click", () => add.showModal());
add.querySelector("[value=cancel]").addEventListener("click", () => add.close());
add.querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  const wrong = form.querySelector(".wrong");
  wrong.textContent = "";
  try {
    await ask("POST", "/api/sources", Object.fromEntries(new FormData(form)));
    form.reset();
    add.close();
    await loadSources();
  } catch (error) {
    wrong.textContent = error.message;
  }
});

setInterval(() => {
  cameras.forEach((camera) => camera.show());
  summarise();
  drawCurves();
}, 1000);
await loadSources();
listen();
live.restart();
