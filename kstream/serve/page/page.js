// The live page: takes server-sent events, keeps what they say of each session, and draws what has changed.
// Pixels are fetched when they are looked at. Nothing here is sent to the server but GET requests.

const $ = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

const MAX_SPOKES = 4096;
const MAX_OPEN_FRAMES = 8;
const MAX_HISTORY = 1500;
const MAX_LINES = 400;
const MAX_PLANES = 96; // kept on this side, of those that were looked at
const RETRY_MS = 1000; // until a plane that could not be had is asked for again
const RANGE_DB = 55; // of the k-space picture, below the brightest sample
const BINS_PER_OCTAVE = 4; // of the latency histogram
const FIRST_MS = 1e-3;

const FIRE = ramp([[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]]);
const SEA = ramp([[59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]);

function ramp(stops) {
  const table = new Uint8Array(256 * 3);
  for (let i = 0; i < 256; i++) {
    const place = (i / 255) * (stops.length - 1);
    const left = Math.min(Math.floor(place), stops.length - 2);
    for (let c = 0; c < 3; c++) table[3 * i + c] = stops[left][c] + (place - left) * (stops[left + 1][c] - stops[left][c]);
  }
  return table;
}

const rgb = (table, share) => {
  const i = 3 * Math.round(clamp(share, 0, 1) * 255);
  return `rgb(${table[i]},${table[i + 1]},${table[i + 2]})`;
};

// ---- what is known -----------------------------------------------------------------------------------------------

const known = { server: {}, sessions: new Map(), lines: [] };

const view = {
  session: null, // null follows the newest
  frame: 0,
  isFollowing: true,
  plane: null, // null: not chosen yet, the middle or the largest lesion
  mark: null, // {x, y}
  markFrame: -1, // whose labels have set it; volumes come newest first
  isMarkChosen: false,
  hover: null,
  mode: "m",
  brightness: 0,
  contrast: 0,
  opacity: 45,
  hasOverlay: true,
  hasLetters: true,
  isSwapped: false,
  axis: "plane",
  entered: "",
};

function newSession(about) {
  return { about, frames: new Map(), history: [], deliveries: [], spokes: new Map(), spokeFrame: -1, nSamples: 0, brightest: -Infinity };
}

function session() {
  if (view.session !== null && known.sessions.has(view.session)) return known.sessions.get(view.session);
  return [...known.sessions.values()].at(-1) ?? null;
}

const idOf = (s) => s.about.session;

function nPlanes(s) {
  const frame = s && [...s.frames.values()].find((f) => f.shape);
  return frame ? frame.shape[0] * (s.about.plan?.n_slices ?? 1) : 0;
}

const hasPicture = (frame) => Boolean(frame?.has_image || frame?.has_labels);
const withPicture = (s) => (s ? [...s.frames.values()].filter(hasPicture).map((f) => f.frame).sort((a, b) => a - b) : []);

function addSpokes(s, spokes) {
  for (const spoke of spokes) {
    if (!s.spokes.has(spoke.frame)) {
      s.spokes.set(spoke.frame, []);
      if (s.spokes.size > MAX_OPEN_FRAMES) s.spokes.delete(s.spokes.keys().next().value);
    }
    const list = s.spokes.get(spoke.frame);
    if (list.length < MAX_SPOKES) list.push(spoke);
    s.spokeFrame = spoke.frame;
    if (spoke.level_db) {
      s.nSamples = spoke.n_samples;
      for (const level of spoke.level_db) if (level > s.brightest) s.brightest = level;
    }
  }
}

// ---- events ------------------------------------------------------------------------------------------------------

const dirty = new Set();
function redraw(...panels) {
  if (!dirty.size) requestAnimationFrame(drawDirty);
  for (const panel of panels) dirty.add(panel);
}
function drawDirty() {
  const panels = [...dirty];
  dirty.clear();
  for (const panel of panels) DRAW[panel]();
}

function listen() {
  const source = new EventSource("/events");
  const on = (name, take) => source.addEventListener(name, (event) => take(JSON.parse(event.data)));
  source.onopen = () => connected(true);
  source.onerror = () => connected(false);
  on("everything", takeEverything);
  on("server", (server) => {
    known.server = server;
    redraw("header", "queue");
  });
  on("session", takeSession);
  on("spokes", (told) => {
    const s = sessionOf(told.session);
    addSpokes(s, told.spokes);
    if (s === session()) redraw("kspace", "density", "header");
  });
  on("frame", takeFrame);
  on("forgotten", (told) => {
    const wasShown = session() === known.sessions.get(told.session);
    known.sessions.delete(told.session);
    forgetPlanes(told.session);
    if (view.session === told.session) view.session = null;
    if (wasShown) showSession();
    redraw("sessions");
  });
  on("delivered", (told) => {
    const s = sessionOf(told.session);
    s.deliveries.push(told);
    if (s.deliveries.length > 400) s.deliveries.shift();
    if (s === session()) redraw("latency");
  });
  on("line", (line) => {
    known.lines.push(line);
    if (known.lines.length > MAX_LINES) known.lines.shift();
    addLine(line);
  });
}

let isConnected = null; // not known yet
function connected(isSo) {
  isConnected = isSo;
  $("banner").hidden = isSo;
  $("banner").textContent = isSo ? "" : "No connection to the server: it was stopped, or its page ended. Trying again.";
  redraw("header");
}

function sessionOf(id) {
  if (!known.sessions.has(id)) known.sessions.set(id, newSession({ session: id, state: "connected", warnings: [] }));
  return known.sessions.get(id);
}

function takeEverything(all) {
  known.server = all.server;
  known.lines = all.lines;
  known.sessions.clear();
  planes.clear();
  last.identity = ""; // another server may use the same numbers
  for (const told of all.sessions) {
    const s = newSession(told.about);
    for (const frame of told.frames) s.frames.set(frame.frame, frame);
    s.history = told.history;
    s.deliveries = told.deliveries;
    addSpokes(s, told.spokes);
    known.sessions.set(idOf(s), s);
  }
  $("log").replaceChildren();
  for (const line of known.lines) addLine(line);
  showSession();
}

function takeSession(about) {
  const isNew = !known.sessions.has(about.session);
  const s = sessionOf(about.session);
  s.history.push(about.point);
  if (s.history.length > MAX_HISTORY) s.history.shift();
  delete about.point;
  s.about = about;
  if (isNew && s === session()) showSession();
  redraw("sessions", "header");
  if (s === session()) redraw("latency", "histogram", "queue", "stages");
}

function takeFrame(frame) {
  const s = sessionOf(frame.session);
  s.frames.set(frame.frame, frame);
  if (s !== session()) return;
  if (hasPicture(frame) && view.isFollowing) view.frame = withPicture(s).at(-1);
  if (frame.has_labels && frame.mark && frame.frame >= view.markFrame && !view.isMarkChosen) {
    view.markFrame = frame.frame;
    view.plane = frame.mark.plane;
    view.mark = { x: frame.mark.x, y: frame.mark.y };
  }
  chooseDefaults();
  askCurve();
  redraw("frame", "header", "curve");
}

// The middle, until somebody or a label says where to look.
function chooseDefaults() {
  const s = session();
  const n = nPlanes(s);
  const shape = s?.frames.get(view.frame)?.shape;
  if (view.plane === null || view.plane >= n) view.plane = n ? Math.floor(n / 2) : null;
  if (!view.mark && shape) view.mark = { x: Math.floor(shape[2] / 2), y: Math.floor(shape[1] / 2) };
}

function showSession() {
  const s = session();
  view.plane = null;
  view.mark = null;
  view.markFrame = -1;
  view.hover = null;
  view.isMarkChosen = false;
  view.isFollowing = true;
  view.frame = withPicture(s).at(-1) ?? 0;
  const marked = s && [...s.frames.values()].findLast((f) => f.mark);
  if (marked) {
    view.plane = marked.mark.plane;
    view.mark = { x: marked.mark.x, y: marked.mark.y };
  }
  painted.key = "";
  curve.values = [];
  chooseDefaults();
  askCurve();
  redraw(...Object.keys(DRAW));
}

// ---- canvases ----------------------------------------------------------------------------------------------------

// A context in CSS pixels, on a canvas that is as fine as the screen.
function context(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const fine = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * fine) || canvas.height !== Math.round(height * fine)) {
    canvas.width = Math.round(width * fine);
    canvas.height = Math.round(height * fine);
  }
  const ctx = canvas.getContext("2d");
  ctx.setTransform(fine, 0, 0, fine, 0, 0);
  return [ctx, width, height];
}

let colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["ink", "muted", "rule", "accent", "median", "tail", "magnitude", "labels", "panel", "picture", "mark"])
    colours[name] = style.getPropertyValue(`--${name}`).trim();
}

// ---- k-space and sampling ----------------------------------------------------------------------------------------

const painted = { key: "", n: 0, brightest: 0, layer: document.createElement("canvas"), cells: 0, counts: null, nCounted: 0 };

function reach(s) {
  const matrix = s.about.scan?.recon_matrix ?? [2, 2];
  return Math.max(matrix[0], matrix[1]) / 2;
}

const spokesOf = (s) => s?.spokes.get(s.spokeFrame) ?? [];

function drawKspace() {
  const [ctx, width, height] = context($("kspace"));
  const s = session();
  const spokes = spokesOf(s);
  const key = s ? `${idOf(s)}/${s.spokeFrame}/${width}x${height}@${window.devicePixelRatio}` : "";
  const layer = painted.layer;
  if (key !== painted.key || !s || s.brightest > painted.brightest + 2) {
    Object.assign(painted, { key, n: 0, brightest: s?.brightest ?? 0 });
    layer.width = $("kspace").width || 1;
    layer.height = $("kspace").height || 1;
  }
  const side = 0.97 * Math.min(width, height);
  const scale = s ? side / 2 / reach(s) : 1;
  const at = (x, y) => [width / 2 + x * scale, height / 2 + y * scale];
  const fine = window.devicePixelRatio || 1;
  const pen = layer.getContext("2d");
  pen.setTransform(fine, 0, 0, fine, 0, 0);
  pen.globalCompositeOperation = "lighten"; // crossings keep the brighter sample
  for (; painted.n < spokes.length; painted.n++) paintSpoke(pen, spokes[painted.n], at, painted.brightest);
  ctx.clearRect(0, 0, width, height);
  drawGuides(ctx, width, height, side / 2);
  ctx.drawImage(layer, 0, 0, width, height);
  const newest = spokes.at(-1);
  if (newest && s.about.state !== "ended") {
    ctx.strokeStyle = colours.mark;
    ctx.lineWidth = 1.5;
    strokePath(ctx, newest.path, at);
  }
  ctx.font = "11px system-ui, sans-serif";
  text(ctx, "kx", width / 2 + side / 2 - 16, height / 2 - 6);
  text(ctx, "ky", width / 2 + 6, height / 2 + side / 2 - 6);
  const label = s && Number.isFinite(s.brightest) ? `${s.brightest} dB` : "0 dB";
  $("kspace-high").textContent = label;
  $("kspace-low").textContent = s && Number.isFinite(s.brightest) ? `${s.brightest - RANGE_DB} dB` : "";
  const plan = s?.about.plan;
  $("kspace-note").textContent = plan ? `${s.about.scan.trajectory}, partition ${plan.partition + 1} of ${plan.n_partitions}` : "";
}

function drawGuides(ctx, width, height, radius) {
  ctx.strokeStyle = "#28313b";
  ctx.lineWidth = 1;
  for (const share of [0.5, 1]) {
    ctx.beginPath();
    ctx.arc(width / 2, height / 2, radius * share, 0, 2 * Math.PI);
    ctx.stroke();
  }
  ctx.beginPath();
  ctx.moveTo(width / 2 - radius, height / 2);
  ctx.lineTo(width / 2 + radius, height / 2);
  ctx.moveTo(width / 2, height / 2 - radius);
  ctx.lineTo(width / 2, height / 2 + radius);
  ctx.stroke();
}

function strokePath(ctx, path, at) {
  ctx.beginPath();
  ctx.moveTo(...at(path[0], path[1]));
  for (let i = 2; i < path.length; i += 2) ctx.lineTo(...at(path[i], path[i + 1]));
  ctx.stroke();
}

// Point of a path at a share of its length in points.
function along(path, share) {
  const place = share * (path.length / 2 - 1);
  const left = Math.min(Math.floor(place), path.length / 2 - 2);
  const rest = place - left;
  return [0, 1].map((c) => path[2 * left + c] + rest * (path[2 * left + 2 + c] - path[2 * left + c]));
}

function paintSpoke(pen, spoke, at, brightest) {
  pen.lineWidth = 2;
  if (!spoke.level_db) {
    pen.strokeStyle = "#262138";
    strokePath(pen, spoke.path, at);
    return;
  }
  const n = spoke.level_db.length;
  for (let i = 0; i < n; i++) {
    pen.strokeStyle = rgb(FIRE, 0.12 + (0.88 * (spoke.level_db[i] - brightest + RANGE_DB)) / RANGE_DB);
    pen.beginPath();
    pen.moveTo(...at(...along(spoke.path, i / n)));
    pen.lineTo(...at(...along(spoke.path, (i + 1) / n)));
    pen.stroke();
  }
}

const grid = { key: "", n: 0, cells: 0, counts: new Uint16Array(0) };

function drawDensity() {
  const [ctx, width, height] = context($("density"));
  const s = session();
  const spokes = spokesOf(s);
  ctx.clearRect(0, 0, width, height);
  const note = $("density-note");
  if (!s || !s.nSamples) {
    note.textContent = "";
    return;
  }
  const cells = clamp(2 * Math.ceil(reach(s)), 8, 160);
  const key = `${idOf(s)}/${s.spokeFrame}/${cells}/${s.nSamples}`;
  if (grid.key !== key) Object.assign(grid, { key, n: 0, cells, counts: new Uint16Array(cells * cells) });
  for (; grid.n < spokes.length; grid.n++) countSpoke(spokes[grid.n], s.nSamples, reach(s));
  let top = 1;
  let nSampled = 0;
  let nDisc = 0;
  for (let y = 0; y < cells; y++) {
    for (let x = 0; x < cells; x++) {
      const count = grid.counts[y * cells + x];
      top = Math.max(top, count);
      if ((x + 0.5 - cells / 2) ** 2 + (y + 0.5 - cells / 2) ** 2 > (cells / 2) ** 2) continue;
      nDisc++;
      nSampled += count > 0;
    }
  }
  const picture = new ImageData(cells, cells);
  for (let i = 0; i < grid.counts.length; i++) {
    if (!grid.counts[i]) continue;
    const c = 3 * Math.round((255 * Math.log2(grid.counts[i])) / Math.max(Math.log2(top), 1));
    picture.data.set([SEA[c], SEA[c + 1], SEA[c + 2], 255], 4 * i);
  }
  const side = 0.97 * Math.min(width, height);
  drawPixels(ctx, picture, (width - side) / 2, (height - side) / 2, side, side);
  $("density-high").textContent = `${top} samples in a cell`;
  note.textContent = `${Math.round((100 * nSampled) / nDisc)} % of the cells of frame ${s.spokeFrame}`;
}

function countSpoke(spoke, nSamples, radius) {
  const { cells, counts } = grid;
  for (let i = 0; i < nSamples; i++) {
    const [kx, ky] = along(spoke.path, i / Math.max(nSamples - 1, 1));
    const x = Math.floor(((kx / radius + 1) / 2) * cells);
    const y = Math.floor(((ky / radius + 1) / 2) * cells);
    if (x >= 0 && y >= 0 && x < cells && y < cells) counts[y * cells + x]++;
  }
}

const scratch = document.createElement("canvas");
function drawPixels(ctx, picture, x, y, width, height) {
  scratch.width = picture.width;
  scratch.height = picture.height;
  scratch.getContext("2d").putImageData(picture, 0, 0);
  ctx.imageSmoothingEnabled = false;
  ctx.drawImage(scratch, x, y, width, height);
}

// ---- the frame ---------------------------------------------------------------------------------------------------

const COMING = { isComing: true }; // in place of a plane that is being fetched
const GONE = { isGone: true }; // and of one that is not kept
const planes = new Map(); // address -> {data, shape}; an address holds a revision, so what it names never changes

function forgetPlanes(id) {
  for (const address of planes.keys()) if (address.split("/")[1] === id) planes.delete(address);
}

// Revision of the volume that holds a plane; undefined if it has not come or is not kept.
function revisionOf(kind, s, frame, number) {
  const slices = frame.revisions[kind];
  const first = s.about.plan?.first_slice ?? Math.min(...Object.keys(slices).map(Number));
  return slices[first + Math.floor(number / frame.shape[0])];
}

function plane(kind, s, frame, number) {
  const revision = revisionOf(kind, s, frame, number);
  if (revision === undefined) return GONE;
  const address = `${kind}/${idOf(s)}/${frame.frame}/${number}?revision=${revision}`;
  if (!planes.has(address)) {
    planes.set(address, COMING);
    if (planes.size > MAX_PLANES) planes.delete(planes.keys().next().value);
    fetchPlane(address, kind);
  }
  return planes.get(address);
}

async function fetchPlane(address, kind) {
  const found = await fetch(`/${address}`).then((answer) => readPlane(answer, kind)).catch(() => null);
  if (planes.get(address) !== COMING) return;
  planes.set(address, found ?? GONE);
  redraw("frame");
  if (!found) setTimeout(() => planes.get(address) === GONE && planes.delete(address), RETRY_MS); // the next look asks again
}

async function readPlane(answer, kind) {
  if (!answer.ok) return null;
  const bytes = await answer.arrayBuffer();
  const shape = answer.headers.get("x-shape").split(",").map(Number);
  return { data: kind === "image" ? new Float32Array(bytes) : new Uint8Array(bytes), shape };
}

// Black and white of the current mode as it comes, before brightness and contrast.
function autoWindow(s) {
  const windows = [...s.frames.values()].filter((f) => f.window).map((f) => f.window);
  const low = Math.min(...windows.map((w) => w[0]));
  const high = Math.max(...windows.map((w) => w[1]));
  switch (view.mode) {
    case "p": return [-Math.PI, Math.PI];
    case "r": case "i": return [-high, high];
    case "l": return [Math.log(high) - 7, Math.log(high)];
    default: return [low, high];
  }
}

function shownWindow(s) {
  const [low, high] = autoWindow(s);
  const width = (high - low) * 2 ** (-view.contrast / 50);
  const level = (low + high) / 2 - (view.brightness / 100) * (high - low);
  return [level - width / 2, level + width / 2];
}

function valueOf(data, i) {
  const re = data[2 * i];
  const im = data[2 * i + 1];
  switch (view.mode) {
    case "p": return Math.atan2(im, re);
    case "r": return re;
    case "i": return im;
    case "l": return Math.log(Math.max(Math.hypot(re, im), 1e-31));
    default: return Math.hypot(re, im);
  }
}

let place = null; // where the picture is in its canvas: {x, y, width, height, nx, ny}

function drawFrame() {
  const [ctx, width, height] = context($("frame"));
  ctx.clearRect(0, 0, width, height);
  const s = session();
  const frame = s?.frames.get(view.frame);
  fillControls(s, frame);
  const isThere = hasPicture(frame) && view.plane !== null;
  const image = isThere && frame.has_image ? plane("image", s, frame, view.plane) : GONE;
  const labels = isThere && frame.has_labels ? plane("labels", s, frame, view.plane) : GONE;
  const base = image.data || image.isComing ? image : labels; // labels of a frame without an image lie on black
  $("empty").hidden = !base.isGone;
  showEmpty(s, frame);
  if (!base.data) return keepPicture(ctx, width, height, base.isComing ? identityOf(s, frame) : "");
  const [ny, nx] = base.shape;
  const [vx, vy] = frame.voxel_size_mm ?? [1, 1];
  const [w, h] = view.isSwapped ? [vy * ny, vx * nx] : [vx * nx, vy * ny];
  const scale = Math.min(width / w, height / h);
  place = { width: w * scale, height: h * scale, nx, ny };
  place.x = (width - place.width) / 2;
  place.y = (height - place.height) / 2;
  ctx.fillStyle = "#000";
  ctx.fillRect(place.x, place.y, place.width, place.height);
  if (image.data) drawPixels(ctx, grey(image, shownWindow(s)), place.x, place.y, place.width, place.height);
  if (view.hasOverlay && labels.data) drawLabels(ctx, labels, frame.table);
  if (view.hasLetters) drawLetters(ctx, frame, s);
  drawMark(ctx);
  const canvas = $("frame");
  Object.assign(canvas.dataset, { frame: view.frame, plane: view.plane, mode: view.mode, labels: Boolean(view.hasOverlay && labels.data) });
  Object.assign(last, { width: canvas.width, height: canvas.height, identity: identityOf(s, frame) });
  last.getContext("2d").drawImage(canvas, 0, 0);
  showVoxel(s, frame, image, labels);
}

// While a plane is on its way, the one before stays if it is of the same frame; otherwise nothing is shown.
const last = document.createElement("canvas");
const identityOf = (s, frame) => `${idOf(s)}/${frame.frame}/${frame.shape}`;
function keepPicture(ctx, width, height, identity) {
  const canvas = $("frame");
  if (identity && last.identity === identity && last.width === canvas.width && last.height === canvas.height) {
    ctx.drawImage(last, 0, 0, width, height);
    return;
  }
  place = null;
  for (const name of ["frame", "plane", "mode", "labels"]) delete canvas.dataset[name];
  $("voxel").textContent = "\u00a0";
}

function grey({ data, shape: [ny, nx] }, [low, high]) {
  const picture = view.isSwapped ? new ImageData(ny, nx) : new ImageData(nx, ny);
  const gain = 255 / (high - low || 1);
  for (let y = 0; y < ny; y++) {
    for (let x = 0; x < nx; x++) {
      const value = (valueOf(data, y * nx + x) - low) * gain;
      const i = 4 * (view.isSwapped ? x * ny + y : y * nx + x);
      picture.data[i] = picture.data[i + 1] = picture.data[i + 2] = value; // clamped by its type
      picture.data[i + 3] = 255;
    }
  }
  return picture;
}

// Voxel corners to the canvas.
function toCanvas(x, y) {
  const [u, v] = view.isSwapped ? [y / place.ny, x / place.nx] : [x / place.nx, y / place.ny];
  return [place.x + u * place.width, place.y + v * place.height];
}

function drawLabels(ctx, { data, shape: [ny, nx] }, table) {
  const at = (x, y) => (x < 0 || y < 0 || x >= nx || y >= ny ? 0 : data[y * nx + x]);
  const fills = table.map(() => new Path2D());
  const edges = table.map(() => new Path2D());
  for (let y = 0; y < ny; y++) {
    for (let x = 0; x < nx; x++) {
      const label = data[y * nx + x];
      if (!label || label >= table.length) continue;
      const [x0, y0] = toCanvas(x, y);
      const [x1, y1] = toCanvas(x + 1, y + 1);
      fills[label].rect(x0, y0, x1 - x0, y1 - y0);
      const sides = [[x - 1, y, x, y, x, y + 1], [x + 1, y, x + 1, y, x + 1, y + 1], [x, y - 1, x, y, x + 1, y], [x, y + 1, x, y + 1, x + 1, y + 1]];
      for (const [ox, oy, ax, ay, bx, by] of sides) {
        if (at(ox, oy) === label) continue;
        edges[label].moveTo(...toCanvas(ax, ay));
        edges[label].lineTo(...toCanvas(bx, by));
      }
    }
  }
  table.forEach(([, r, g, b], label) => {
    ctx.fillStyle = `rgba(${r},${g},${b},${view.opacity / 100})`;
    ctx.fill(fills[label]);
    ctx.strokeStyle = `rgb(${r},${g},${b})`;
    ctx.lineWidth = 1.5;
    ctx.lineCap = "square";
    ctx.stroke(edges[label]);
  });
}

const LETTERS = [["R", "L"], ["A", "P"], ["F", "H"]]; // of an axis of LPS, at its low and high end

// Letter at the high and at the low end of an array axis.
function ends(affine, axis) {
  const column = [0, 1, 2].map((row) => affine[row][axis]);
  const main = column.map(Math.abs).indexOf(Math.max(...column.map(Math.abs)));
  const [low, high] = LETTERS[main];
  return column[main] >= 0 ? [low, high] : [high, low];
}

function drawLetters(ctx, frame, s) {
  if (frame.affine_lps) drawSides(ctx, frame.affine_lps);
  const { x, y, width, height } = place;
  ctx.textBaseline = "middle";
  ctx.font = "12px system-ui, sans-serif";
  ctx.textAlign = "left";
  const without = frame.has_image ? "" : " · labels only, no image";
  text(ctx, `frame ${frame.frame} · slice ${view.plane + 1} of ${nPlanes(s)}${without}`, x + 10, y + 15);
  ctx.textAlign = "right";
  text(ctx, "research use only", x + width - 10, y + height - 13);
  ctx.textAlign = "left";
}

function drawSides(ctx, affine) {
  const [[left, right], [top, bottom]] = view.isSwapped ? [ends(affine, 1), ends(affine, 0)] : [ends(affine, 0), ends(affine, 1)];
  const { x, y, width, height } = place;
  ctx.font = "600 14px system-ui, sans-serif";
  ctx.textAlign = "center";
  ctx.textBaseline = "middle";
  text(ctx, left, x + 12, y + height / 2);
  text(ctx, right, x + width - 12, y + height / 2);
  text(ctx, top, x + width / 2, y + 13);
  text(ctx, bottom, x + width / 2, y + height - 13);
}

function text(ctx, words, x, y) {
  ctx.lineWidth = 3;
  ctx.strokeStyle = "#000a";
  ctx.strokeText(words, x, y);
  ctx.fillStyle = "#f2f4f6";
  ctx.fillText(words, x, y);
}

function drawMark(ctx) {
  const mark = view.mark;
  if (!mark || !view.hasLetters) return;
  const [x, y] = toCanvas(mark.x + 0.5, mark.y + 0.5);
  ctx.beginPath();
  for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
    ctx.moveTo(x + 6 * dx, y + 6 * dy);
    ctx.lineTo(x + 15 * dx, y + 15 * dy);
  }
  for (const [lineWidth, strokeStyle] of [[4, "#000b"], [1.8, colours.mark]]) {
    Object.assign(ctx, { lineWidth, strokeStyle, lineCap: "round" });
    ctx.stroke();
  }
}

function showEmpty(s, frame) {
  const isRunning = s && s.about.state === "measuring";
  const wasThere = Boolean(frame?.shape);
  const words = wasThere ? `Frame ${frame.frame}, slice ${(view.plane ?? 0) + 1}: not kept, or not there yet.` : isRunning ? "The first frame is being filled." : "Waiting for a scan.";
  $("empty").firstChild.textContent = words;
  const port = known.server.port;
  $("empty-hint").hidden = Boolean(isRunning) || wasThere;
  $("empty-hint").textContent = `kstream replay scan.h5${port && port !== 9002 ? ` --port ${port}` : ""}`;
}

function showVoxel(s, frame, image, labels) {
  const at = view.hover ?? view.mark;
  const line = $("voxel");
  const [ny, nx] = (image.data ? image : labels).shape;
  if (!at || at.x >= nx || at.y >= ny) {
    line.textContent = "\u00a0";
    return;
  }
  const i = at.y * nx + at.x;
  const parts = [`x ${at.x}, y ${at.y}, slice ${view.plane + 1}`];
  if ((s.about.plan?.n_slices ?? 1) === 1 && frame.affine_lps) parts.push(position(frame.affine_lps, at.x, at.y, view.plane));
  const value = image.data ? valueOf(image.data, i) : NaN;
  if (image.data) parts.push(view.mode === "p" ? `${value.toFixed(2)} rad` : number(value));
  if (labels.data?.[i]) parts.push(frame.table[labels.data[i]]?.[0] ?? "");
  line.textContent = parts.join("  ·  ");
}

function position(affine, x, y, z) {
  const mm = affine.slice(0, 3).map((row) => row[0] * x + row[1] * y + row[2] * z + row[3]);
  return `${mm.map((v, axis) => `${LETTERS[axis][v >= 0 ? 1 : 0]} ${Math.abs(v).toFixed(1)}`).join("  ")} mm`;
}

const number = (v) => (v === 0 ? "0" : Math.abs(v) >= 1e4 || Math.abs(v) < 1e-2 ? v.toExponential(2) : v.toPrecision(4));

// ---- the curve ---------------------------------------------------------------------------------------------------

const curve = { asked: "", isAsking: false, frames: [], values: [], has_first: false };

async function askCurve() {
  const s = session();
  const at = view.hover ?? view.mark;
  if (!s || !at || view.plane === null) return;
  const address = `/curve/${idOf(s)}/${view.plane}/${at.y}/${at.x}`;
  const newest = Math.max(0, ...[...s.frames.values()].flatMap((f) => Object.values(f.revisions.image)));
  const key = `${address}?${newest}`;
  if (key === curve.asked || curve.isAsking) return;
  curve.asked = key;
  curve.isAsking = true;
  const answer = await fetch(address).then((a) => (a.ok ? a.json() : null), () => null);
  curve.isAsking = false;
  if (answer) Object.assign(curve, answer);
  redraw("curve");
  askCurve(); // for where the pointer is by now
}

function drawCurve() {
  const [ctx, width, height] = context($("curve"));
  ctx.clearRect(0, 0, width, height);
  const s = session();
  const at = view.hover ?? view.mark;
  const note = $("curve-note");
  if (!at || !curve.values.length) {
    const hasLabelsOnly = s && [...s.frames.values()].some((f) => f.has_labels) && ![...s.frames.values()].some((f) => f.has_image);
    note.textContent = hasLabelsOnly ? "this preset makes labels and no image" : "point at the frame, or move the mark";
    return;
  }
  const { frames, values, has_first: hasFirst } = curve;
  const shown = frames.indexOf(view.frame);
  const first = values[0];
  const change = hasFirst && shown >= 0 && first > 0 ? 100 * (values[shown] / first - 1) : NaN; // of the scan's first frame
  note.textContent = `x ${at.x}, y ${at.y}${shown >= 0 ? `: ${number(values[shown])}` : ""}${Number.isFinite(change) && shown > 0 ? ` (${change >= 0 ? "+" : "−"}${Math.abs(change).toFixed(0)} %)` : ""}`;
  const top = Math.max(...values) * 1.12 || 1;
  const box = { left: 56, right: width - 10, top: 6, bottom: height - 20 };
  const x = (i) => (frames.length === 1 ? (box.left + box.right) / 2 : box.left + 8 + ((box.right - box.left - 16) * i) / (frames.length - 1));
  const y = (v) => box.bottom - ((box.bottom - box.top) * v) / top;
  axes(ctx, box, steps(0, top, 3).map((v) => [y(v), String(Number(v.toPrecision(3)))]), []);
  ctx.textAlign = "center";
  const every = Math.ceil(frames.length / 8);
  frames.forEach((frame, i) => i % every === 0 && ctx.fillText(i ? String(frame) : `frame ${frame}`, x(i), height - 6));
  ctx.strokeStyle = colours.median;
  ctx.lineWidth = 2;
  ctx.beginPath();
  values.forEach((v, i) => (i ? ctx.lineTo(x(i), y(v)) : ctx.moveTo(x(i), y(v))));
  ctx.stroke();
  values.forEach((v, i) => {
    ctx.fillStyle = i === shown ? colours.labels : colours.median;
    ctx.beginPath();
    ctx.arc(x(i), y(v), i === shown ? 5.5 : 3.5, 0, 2 * Math.PI);
    ctx.fill();
  });
}

// ---- charts ------------------------------------------------------------------------------------------------------

// Lines of a chart; ticks are [place, words].
function axes(ctx, box, horizontal, vertical) {
  ctx.font = "11px system-ui, sans-serif";
  ctx.textBaseline = "alphabetic";
  ctx.fillStyle = colours.muted;
  ctx.strokeStyle = colours.rule;
  ctx.lineWidth = 1;
  ctx.beginPath();
  for (const [y] of horizontal) {
    ctx.moveTo(box.left, Math.round(y) + 0.5);
    ctx.lineTo(box.right, Math.round(y) + 0.5);
  }
  for (const [x] of vertical) {
    ctx.moveTo(Math.round(x) + 0.5, box.top);
    ctx.lineTo(Math.round(x) + 0.5, box.bottom);
  }
  ctx.stroke();
  ctx.textAlign = "right";
  for (const [y, words] of horizontal) ctx.fillText(words, box.left - 6, y + 4);
  ctx.textAlign = "center";
  for (const [x, words] of vertical) ctx.fillText(words, x, box.bottom + 14);
}

// Round numbers between two ends.
function steps(low, high, n) {
  const rough = (high - low) / n;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * [1, 2, 5, 10].find((f) => f * unit >= rough);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high * (1 + 1e-9); v += step) found.push(v);
  return found;
}

// Two digits, and no zeros behind them.
const short = (v) => (v >= 100 ? String(Math.round(v)) : String(Number(v.toPrecision(2))));

function duration(ms) {
  if (!Number.isFinite(ms)) return "–";
  if (ms >= 1000) return `${short(ms / 1000)} s`;
  return ms >= 1 ? `${short(ms)} ms` : `${short(1000 * ms)} µs`;
}

const decade = (power) => duration(10 ** power);

function bytes(n) {
  if (n >= 2 ** 30) return `${short(n / 2 ** 30)} GiB`;
  if (n >= 2 ** 20) return `${short(n / 2 ** 20)} MiB`;
  return n >= 1024 ? `${Math.round(n / 1024)} KiB` : `${n ?? 0} B`;
}

// The time axis of a session: its last minutes, or what there is of them.
function span(s) {
  const isOver = s.about.state === "ended";
  const end = isOver ? s.about.at_s : Math.max(known.server.at_s ?? 0, s.about.at_s ?? 0);
  const begin = Math.min(s.history[0]?.[0] ?? end, s.deliveries[0]?.at_s ?? end);
  const seconds = clamp(end - begin, 10, 300);
  return { end, seconds, isOver };
}

function timeTicks({ end, seconds, isOver }, x) {
  const every = [2, 5, 10, 30, 60, 120].find((t) => seconds / t <= 5) ?? 300;
  const ticks = [];
  for (let back = 0; back <= seconds; back += every) ticks.push([x(end - back), back ? `−${back} s` : isOver ? "end" : "now"]);
  return ticks;
}

function drawLatency() {
  const [ctx, width, height] = context($("latency"));
  ctx.clearRect(0, 0, width, height);
  const s = session();
  if (!s?.history.length) {
    $("latency-note").textContent = "";
    return;
  }
  const time = span(s);
  const box = { left: 56, right: width - 12, top: 8, bottom: height - 20 };
  const x = (t) => box.right - ((box.right - box.left) * (time.end - t)) / time.seconds;
  const points = s.history.filter((p) => p && p[2] !== null && time.end - p[0] <= time.seconds);
  const sent = s.deliveries.filter((d) => d.of !== "overlay" && time.end - d.at_s <= time.seconds);
  const all = [...points.flatMap((p) => [p[2], p[3]]), ...sent.map((d) => d.first_ms)].filter((v) => v > 0);
  const low = Math.floor(Math.log10(Math.min(0.1, ...all)));
  const high = Math.ceil(Math.log10(Math.max(10, ...all)));
  const y = (ms) => box.bottom - ((box.bottom - box.top) * (Math.log10(ms) - low)) / (high - low);
  const every = Math.ceil((high - low) / 4);
  const powers = Array.from({ length: high - low + 1 }, (_, i) => low + i).filter((p) => (p - low) % every === 0);
  axes(ctx, box, powers.map((p) => [y(10 ** p), decade(p)]), timeTicks(time, x));
  strip(ctx, points, x, y, 3, colours.tail, 1.5);
  strip(ctx, points, x, y, 2, colours.median, 2);
  for (const d of sent) {
    ctx.fillStyle = d.of === "labels" ? colours.labels : colours.magnitude;
    ctx.beginPath();
    ctx.arc(x(d.at_s), y(Math.max(d.first_ms, 10 ** low)), 4.5, 0, 2 * Math.PI);
    ctx.fill();
  }
  const newest = s.deliveries.findLast((d) => d.of === "labels") ?? s.deliveries.findLast((d) => d.of !== "overlay");
  $("latency-note").textContent = newest ? `${newest.of} of frame ${newest.frame}: ${duration(newest.first_ms)} after its last readout` : "";
}

// A line through one column of the history, with gaps where nothing came.
function strip(ctx, points, x, y, column, colour, lineWidth) {
  ctx.strokeStyle = colour;
  ctx.lineWidth = lineWidth;
  ctx.beginPath();
  points.forEach((p, i) => {
    const isJoined = i && p[0] - points[i - 1][0] < 2;
    if (isJoined) ctx.lineTo(x(p[0]), y(p[column]));
    else ctx.moveTo(x(p[0]) - 1, y(p[column])), ctx.lineTo(x(p[0]), y(p[column]));
  });
  ctx.stroke();
}

function quantile(counts, n, share) {
  let passed = 0;
  for (let i = 0; i < counts.length; i++) {
    passed += counts[i];
    if (counts[i] && passed >= share * n) return FIRST_MS * 2 ** ((i + 0.5) / BINS_PER_OCTAVE);
  }
  return NaN;
}

function drawHistogram() {
  const [ctx, width, height] = context($("histogram"));
  ctx.clearRect(0, 0, width, height);
  const latency = session()?.about.latency;
  const note = $("histogram-note");
  if (!latency?.n) {
    note.textContent = session()?.about.door === "Gadgetron" ? "not measured for Gadgetron" : "";
    return;
  }
  const { counts, n } = latency;
  const first = counts.findIndex((c) => c);
  const end = counts.findLastIndex((c) => c) + 1;
  const from = Math.max(Math.min(first, end - 12) - 1, 0);
  const to = end + 1;
  const box = { left: 12, right: width - 12, top: 8, bottom: height - 20 };
  const x = (bin) => box.left + ((box.right - box.left) * (bin - from)) / (to - from);
  const binOf = (ms) => Math.log2(ms / FIRST_MS) * BINS_PER_OCTAVE;
  const low = Math.ceil(Math.log10(FIRST_MS * 2 ** (from / BINS_PER_OCTAVE)));
  const high = Math.floor(Math.log10(FIRST_MS * 2 ** (to / BINS_PER_OCTAVE)));
  const ticks = Array.from({ length: Math.max(high - low + 1, 0) }, (_, i) => [x(binOf(10 ** (low + i))), decade(low + i)]);
  axes(ctx, box, [[box.bottom, ""]], ticks);
  const top = Math.max(...counts);
  ctx.fillStyle = colours.median;
  for (let i = from; i < to; i++) {
    const tall = counts[i] ? Math.max(((box.bottom - box.top) * counts[i]) / top, 1.5) : 0;
    ctx.fillRect(x(i) + 0.5, box.bottom - tall, Math.max(x(i + 1) - x(i) - 1, 1), tall);
  }
  const [p50, p95] = [0.5, 0.95].map((share) => quantile(counts, n, share));
  note.textContent = `median ${duration(p50)}, 95 % ${duration(p95)}, longest ${duration(latency.longest_ms)}, of ${n.toLocaleString("en")}`;
}

function drawQueue() {
  const [ctx, width, height] = context($("queue"));
  ctx.clearRect(0, 0, width, height);
  const s = session();
  if (!s?.history.length) {
    $("queue-note").textContent = "";
    return;
  }
  const time = span(s);
  const box = { left: 56, right: width - 12, top: 6, bottom: height - 18 };
  const points = s.history.filter((p) => p && time.end - p[0] <= time.seconds);
  const top = Math.max(2 ** 16, ...points.map((p) => p[1])) * 1.1;
  const x = (t) => box.right - ((box.right - box.left) * (time.end - t)) / time.seconds;
  const y = (v) => box.bottom - ((box.bottom - box.top) * v) / top;
  axes(ctx, box, [[y(0), "0"], [y(top / 1.1), bytes(top / 1.1)]], timeTicks(time, x));
  ctx.fillStyle = colours.tail;
  ctx.beginPath();
  ctx.moveTo(x(points[0]?.[0] ?? time.end), y(0));
  for (const p of points) ctx.lineTo(x(p[0]), y(p[1]));
  ctx.lineTo(x(points.at(-1)?.[0] ?? time.end), y(0));
  ctx.fill();
  const limit = known.server.queue_bytes ? ` of ${bytes(known.server.queue_bytes)}` : "";
  $("queue-note").textContent = `${bytes(s.about.queued_bytes)}${limit} wait, ${bytes(s.about.unsent_bytes)} to send`;
}

// ---- tables and the bar at the top -------------------------------------------------------------------------------

function element(name, words = "", more = {}) {
  const made = Object.assign(document.createElement(name), more);
  if (words !== "") made.textContent = words;
  return made;
}

function drawStages() {
  const stages = session()?.about.stages ?? [];
  const total = stages.reduce((sum, [, , ms]) => sum + ms, 0);
  $("stages-note").textContent = total ? `${duration(total)} of work` : "";
  const rows = stages.map(([name, n, ms, longest]) => {
    const row = element("tr");
    row.append(element("th", name.replace(/([a-z])([A-Z])/g, "$1 $2").toLowerCase(), { scope: "row" }));
    const bar = element("span", "", { className: "bar", title: `${duration(ms)} in ${n} calls` });
    bar.style.width = `${total ? (100 * ms) / total : 0}%`;
    const share = element("td");
    share.append(bar);
    row.append(share, element("td", n ? duration(ms / n) : "–"), element("td", n ? duration(longest) : "–"));
    return row;
  });
  $("stages").tBodies[0].replaceChildren(...rows);
}

const STATES = { connected: "", measuring: "busy", completed: "good", with_errors: "warn" };

function stateOf(about) {
  const word = about.state === "ended" ? about.outcome : about.state;
  return [word.replaceAll("_", " "), STATES[word] ?? "bad"];
}

function drawSessions() {
  const chosen = session();
  const rows = [...known.sessions.values()].reverse().map((s) => {
    const { about } = s;
    const counters = about.counters ?? {};
    const row = element("tr", "", { className: s === chosen ? "chosen" : "" });
    const head = element("th", "", { scope: "row" });
    const button = element("button", about.session, { type: "button" });
    button.setAttribute("aria-pressed", String(s === chosen));
    button.setAttribute("aria-label", `show session ${about.session}`);
    button.onclick = () => choose(about.session);
    head.append(button);
    const [word, kind] = stateOf(about);
    const state = element("td");
    state.append(element("span", word, { className: `pill ${kind}` }));
    row.append(head, state, element("td", about.preset ?? ""), element("td", `${(about.client ?? "").replace(" port ", ":")}${about.door === "Gadgetron" ? " (Gadgetron)" : ""}`));
    for (const name of ["received", "frames", "images", "dropped"]) row.append(element("td", (counters[name] ?? 0).toLocaleString("en"), { className: "n" }));
    row.append(element("td", String(about.warnings?.length ?? 0), { className: "n" }));
    return row;
  });
  keepFocus($("sessions"), () => $("sessions").tBodies[0].replaceChildren(...rows));
  $("sessions-note").textContent = known.sessions.size ? "" : "none yet";
  $("warnings").replaceChildren(...(chosen?.about.warnings ?? []).map((words) => element("li", words)));
  const select = $("session");
  const options = [element("option", "newest", { value: "" }), ...[...known.sessions.keys()].map((id) => element("option", id, { value: id }))];
  if (select.options.length !== options.length || select.options[1]?.value !== options[1]?.value) select.replaceChildren(...options);
  select.value = view.session ?? "";
}

// Rows are made anew; whoever stood on a button stays there.
function keepFocus(table, change) {
  const words = table.contains(document.activeElement) ? document.activeElement.textContent : null;
  change();
  if (words !== null) [...table.querySelectorAll("button")].find((b) => b.textContent === words)?.focus();
}

function choose(id) {
  view.session = id === "" || id === null ? null : id;
  showSession();
}

function drawHeader() {
  const s = session();
  const pill = $("state");
  const [word, kind] = isConnected === null ? ["connecting", ""] : !isConnected ? ["no connection", "bad"] : s ? stateOf(s.about) : ["waiting", ""];
  pill.textContent = word;
  pill.className = `pill ${kind}`;
  const { server } = known;
  const memory = server.resident_bytes ? `${bytes(server.resident_bytes)} of memory` : "";
  const workers = (server.workers ?? []).map((w) => `${w.name} ${w.state}`).join(", ");
  const lost = [[server.n_lost, "volumes"], [server.n_lost_paths, "spokes"]].filter(([n]) => n).map(([n, of]) => `${n.toLocaleString("en")} ${of} not shown`);
  $("server").textContent = [server.port ? `port ${server.port}` : "", server.is_recording ? "recording" : "", workers, memory, ...lost].filter(Boolean).join(" · ");
  const plan = s?.about.plan;
  const n = spokesOf(s).length;
  const share = plan?.n_spokes ? Math.min(n / plan.n_spokes, 1) : 0;
  $("progress-bar").value = share;
  const isOver = s?.about.state === "ended";
  const counters = s?.about.counters;
  if (!s) $("progress-text").textContent = "no scan yet";
  else if (isOver) $("progress-text").textContent = `${(counters?.received ?? 0).toLocaleString("en")} readouts, ${counters?.frames ?? 0} frames, ${counters?.images ?? 0} images`;
  else if (plan && s.spokeFrame >= 0) $("progress-text").textContent = `frame ${s.spokeFrame} (${s.spokeFrame + 1} of ${plan.n_frames}), spoke ${n} of ${plan.n_spokes}`;
  else $("progress-text").textContent = "the scan begins";
  document.title = `${word} · kstream live`;
}

function addLine(line) {
  const log = $("log");
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 30;
  const item = element("li", "", { className: line.level });
  const time = new Date(1000 * line.time_s);
  item.append(element("time", time.toTimeString().slice(0, 8)), " ", element("b", `${line.level.toLowerCase()}${line.session === "-" ? "" : ` ${line.session}`}`), ` ${line.text}`);
  log.append(item);
  while (log.childElementCount > MAX_LINES) log.firstElementChild.remove();
  if (isAtEnd) log.scrollTop = log.scrollHeight;
}

const DRAW = {
  header: drawHeader,
  kspace: drawKspace,
  density: drawDensity,
  frame: drawFrame,
  curve: drawCurve,
  latency: drawLatency,
  histogram: drawHistogram,
  queue: drawQueue,
  stages: drawStages,
  sessions: drawSessions,
};

// ---- controls ----------------------------------------------------------------------------------------------------

function fillControls(s, frame) {
  const frames = withPicture(s);
  const n = nPlanes(s);
  range("frame", 0, Math.max(frames.length - 1, 0), Math.max(frames.indexOf(view.frame), 0), frames.length ? `${view.frame}` : "");
  range("plane", 0, Math.max(n - 1, 0), view.plane ?? 0, n ? `${view.plane + 1} of ${n}` : "");
  range("level", -100, 100, view.brightness, signed(view.brightness));
  range("width", -100, 100, view.contrast, signed(view.contrast));
  range("opacity", 0, 100, view.opacity, `${Math.round(view.opacity)} %`);
  $("overlay-in").checked = view.hasOverlay;
  $("follow-in").checked = view.isFollowing;
  document.querySelector(`input[name="mode"][value="${view.mode}"]`).checked = true;
  for (const axis of ["frame", "plane"]) $(`${axis}-in`).parentElement.classList.toggle("chosen", view.axis === axis);
  if (view.entered) $(`${view.axis}-out`).textContent = `${view.entered}_`;
  const note = frame ? `${frame.shape ? `${frame.shape[2]} × ${frame.shape[1]} × ${n}` : ""}${frame.n_readouts < frame.n_expected ? `, incomplete: ${frame.n_readouts} of ${frame.n_expected} readouts` : ""}` : "";
  $("frame-note").textContent = note;
  $("frame").setAttribute("aria-label", frame ? `Frame ${view.frame}, slice ${(view.plane ?? 0) + 1} of ${n}, ${MODES[view.mode]}, labels ${view.hasOverlay && frame.has_labels ? "shown" : "not shown"}` : "No frame yet");
  fillLegend(frame);
}

const MODES = { m: "magnitude", p: "phase", r: "real part", i: "imaginary part", l: "logarithm" };
const signed = (v) => (Math.round(v) > 0 ? `+${Math.round(v)}` : `${Math.round(v)}`.replace("-", "−"));

function range(name, min, max, value, words) {
  const input = $(`${name}-in`);
  Object.assign(input, { min, max });
  if (document.activeElement !== input || Number(input.value) !== Math.round(value)) input.value = value;
  input.disabled = min === max;
  $(`${name}-out`).textContent = words;
}

function fillLegend(frame) {
  const entries = (frame?.has_labels ? frame.table : []).slice(1).map(([name, r, g, b], i) => {
    const item = element("li");
    const patch = element("i");
    patch.style.background = `rgb(${r},${g},${b})`;
    const ml = frame.volumes_ml?.[i + 1] ?? 0;
    item.append(patch, frame.volumes_ml ? `${name}: ${ml ? `${ml.toPrecision(3)} ml` : "none"}` : name);
    return item;
  });
  if (frame?.has_labels && frame.provenance?.model) entries.push(element("li", `by ${frame.provenance.model}`));
  else if (frame?.has_image && !frame.has_labels) entries.push(element("li", "no labels of this frame"));
  $("legend").replaceChildren(...entries);
}

function look(change) {
  Object.assign(view, change);
  askCurve();
  redraw("frame", "curve");
}

function lookAtFrame(frame) {
  if (frame !== undefined) look({ frame, isFollowing: frame === withPicture(session()).at(-1) && view.isFollowing });
}

function lookAtPlane(plane) {
  const n = nPlanes(session());
  if (n) look({ plane: ((plane % n) + n) % n, isMarkChosen: true });
}

function step(by) {
  if (view.axis === "plane") return lookAtPlane((view.plane ?? 0) + by);
  const frames = withPicture(session());
  const index = frames.indexOf(view.frame) + by;
  if (frames.length) look({ frame: frames[((index % frames.length) + frames.length) % frames.length], isFollowing: false });
}

function moveMark(dx, dy) {
  const shape = session()?.frames.get(view.frame)?.shape;
  if (!shape || !view.mark) return;
  const [x, y] = view.isSwapped ? [dy, dx] : [dx, dy];
  look({ mark: { x: clamp(view.mark.x + x, 0, shape[2] - 1), y: clamp(view.mark.y + y, 0, shape[1] - 1) }, hover: null, isMarkChosen: true });
}

function enter(key) {
  if (key === "Backspace") view.entered = view.entered.slice(0, -1);
  else if (key !== "Enter") view.entered = (view.entered + key).slice(-4);
  else if (view.entered) {
    const number = Number(view.entered);
    view.entered = "";
    if (view.axis === "plane" && number >= 1 && number <= nPlanes(session())) lookAtPlane(number - 1);
    if (view.axis === "frame" && withPicture(session()).includes(number)) look({ frame: number, isFollowing: false });
  }
  redraw("frame");
}

function save() {
  const link = element("a", "", { download: `kstream-session-${session() ? idOf(session()) : ""}-frame-${view.frame}-slice-${(view.plane ?? 0) + 1}.png` });
  $("frame").toBlob((blob) => {
    if (!blob) return;
    link.href = URL.createObjectURL(blob);
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
}

function fullScreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else $("stage").requestFullscreen?.().then(() => $("frame").focus(), () => {});
}

// As sigpy has it: a tenth of the window's width up or down, and a tenth wider or narrower.
const brighten = (by) => look({ brightness: clamp(view.brightness + by * 10 * 2 ** (-view.contrast / 50), -200, 200) });
const widen = (factor) => look({ contrast: clamp(view.contrast - 50 * Math.log2(factor), -200, 200) });
const mode = (letter) => look({ mode: letter, brightness: 0, contrast: 0 });

const KEYS = {
  ArrowUp: () => step(1),
  ArrowDown: () => step(-1),
  ArrowLeft: () => look({ axis: view.axis === "plane" ? "frame" : "plane", entered: "" }),
  ArrowRight: () => look({ axis: view.axis === "plane" ? "frame" : "plane", entered: "" }),
  "]": () => brighten(1),
  "[": () => brighten(-1),
  "{": () => widen(0.9),
  "}": () => widen(1.1),
  q: () => look({ brightness: 0, contrast: 0 }),
  t: () => look({ isSwapped: !view.isSwapped }),
  a: () => look({ hasLetters: !view.hasLetters }),
  o: () => look({ hasOverlay: !view.hasOverlay }),
  ",": () => look({ opacity: clamp(view.opacity - 10, 0, 100) }),
  ".": () => look({ opacity: clamp(view.opacity + 10, 0, 100) }),
  n: () => look({ isFollowing: true, frame: withPicture(session()).at(-1) ?? 0 }),
  s: save,
  f: fullScreen,
  h: toggleHelp,
  "?": toggleHelp,
  Enter: () => enter("Enter"),
  Backspace: () => enter("Backspace"),
};
for (const letter of "mpril") KEYS[letter] = () => mode(letter);
for (const digit of "0123456789") KEYS[digit] = () => enter(digit);

const MARK_KEYS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };

function toggleHelp() {
  const help = $("help");
  if (help.open) help.close();
  else help.showModal();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const target = event.target;
  const isControl = target.matches?.("input, select, button, a, .scroll");
  const isMoving = event.key.startsWith("Arrow") || event.key === "Enter";
  if ((isControl && isMoving) || target.matches?.("select")) return; // arrows belong to what has the focus
  if ($("help").open && event.key !== "h" && event.key !== "?") return;
  const act = event.shiftKey && MARK_KEYS[event.key] ? () => moveMark(...MARK_KEYS[event.key]) : KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

function voxelAt(event) {
  if (!place) return null;
  const box = $("frame").getBoundingClientRect();
  const u = (event.clientX - box.left - place.x) / place.width;
  const v = (event.clientY - box.top - place.y) / place.height;
  if (u < 0 || v < 0 || u >= 1 || v >= 1) return null;
  const [x, y] = view.isSwapped ? [v, u] : [u, v];
  return { x: Math.floor(x * place.nx), y: Math.floor(y * place.ny) };
}

function attach() {
  document.addEventListener("keydown", onKey);
  $("help-open").onclick = toggleHelp;
  $("session").onchange = (event) => choose(event.target.value);
  $("frame-in").oninput = (event) => {
    view.axis = "frame";
    view.isFollowing = false;
    lookAtFrame(withPicture(session())[Number(event.target.value)]);
  };
  $("plane-in").oninput = (event) => {
    view.axis = "plane";
    lookAtPlane(Number(event.target.value));
  };
  $("level-in").oninput = (event) => look({ brightness: Number(event.target.value) });
  $("width-in").oninput = (event) => look({ contrast: Number(event.target.value) });
  $("opacity-in").oninput = (event) => look({ opacity: Number(event.target.value) });
  $("overlay-in").onchange = (event) => look({ hasOverlay: event.target.checked });
  $("follow-in").onchange = (event) => (event.target.checked ? KEYS.n() : look({ isFollowing: false }));
  $("reset").onclick = KEYS.q;
  $("log-warnings").onchange = (event) => $("log").classList.toggle("few", event.target.checked);
  for (const input of document.querySelectorAll('input[name="mode"]')) input.onchange = () => mode(input.value);
  const canvas = $("frame");
  canvas.onpointermove = (event) => {
    const at = voxelAt(event);
    if (at?.x !== view.hover?.x || at?.y !== view.hover?.y) look({ hover: at });
  };
  canvas.onpointerleave = () => look({ hover: null });
  canvas.onclick = (event) => {
    const at = voxelAt(event);
    if (at) look({ mark: at, hover: null, isMarkChosen: true });
  };
  canvas.addEventListener("wheel", onWheel, { passive: false });
  const resized = new ResizeObserver(() => redraw(...Object.keys(DRAW)));
  for (const each of document.querySelectorAll("canvas")) resized.observe(each);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readColours();
    redraw(...Object.keys(DRAW));
  });
}

let turned = 0;
function onWheel(event) {
  if (event.ctrlKey || nPlanes(session()) < 2) return;
  event.preventDefault();
  turned += event.deltaMode === 1 ? 40 * event.deltaY : event.deltaY;
  if (Math.abs(turned) < 40) return;
  lookAtPlane((view.plane ?? 0) - Math.sign(turned));
  turned = 0;
}

readColours();
attach();
listen();
redraw(...Object.keys(DRAW));
