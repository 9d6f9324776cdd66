"use strict";
const scene = JSON.parse(document.getElementById("scene").textContent);
const element = (id) => document.getElementById(id);
const canvas = element("cloud"), overlay = element("overlay"), tip = element("tip");

function decode(text, Type) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new Type(bytes.buffer);
}
const rgb = (color) => [1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16));
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const isDark = () => document.documentElement.dataset.theme === "dark";
const number = (value) => (value === 0 ? "0" : String(Number(value.toPrecision(3))));

const positions = decode(scene.positions, Float32Array);
for (const coloring of scene.colorings) {
  coloring.values = decode(coloring.values, coloring.categories ? Uint16Array : Float32Array);
  coloring.hidden = new Set();
  for (const markers of coloring.markers) {
    markers.positions = decode(markers.positions, Float32Array);
    markers.visible = true;
  }
}

// The middle of the box around the cloud and its markers is what everything turns around.
const everything = [positions, ...scene.colorings.flatMap((c) => c.markers.map((m) => m.positions))];
const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
for (const list of everything)
  for (let i = 0; i < list.length; i++) {
    low[i % 3] = Math.min(low[i % 3], list[i]);
    high[i % 3] = Math.max(high[i % 3], list[i]);
  }
const middle = low.map((value, axis) => (value + high[axis]) / 2);
let radius = 0;
for (const list of everything)
  for (let i = 0; i < list.length; i += 3)
    radius = Math.max(radius, Math.hypot(list[i] - middle[0], list[i + 1] - middle[1], list[i + 2] - middle[2]));
radius ||= 1;

const FIELD = 0.6, START = { yaw: 0.6, pitch: 0.35, zoom: 1, x: 0, y: 0 };
let view = { ...START }, current = scene.colorings[0], turning = true, dirty = true, lastTime = 0;
// On slow machines a moving cloud is drawn with a share of its points, so that it moves smoothly, and fully at rest.
const SLOW_FRAME = 50, FAST_FRAME = 24, STILL_AFTER = 200;
let detail = 1, drawnDetail = 0, lastMoved = 0;
const order = Uint32Array.from({ length: scene.count }, (_, i) => i);
for (let i = scene.count - 1; i > 0; i--) {
  const other = Math.floor(Math.random() * (i + 1));
  [order[i], order[other]] = [order[other], order[i]];
}

// -- Drawing ----------------------------------------------------------------------------------------------------------

const VERTEX = `
attribute vec3 position; attribute vec4 color;
uniform mat4 matrix; uniform float size, nearest, farthest, pull; varying vec4 tint; varying float depth;
void main() {
  gl_Position = matrix * vec4(position, 1.0);
  depth = clamp((gl_Position.w - nearest) / (farthest - nearest), 0.0, 1.0);
  gl_PointSize = max(size / gl_Position.w, 1.5);
  gl_Position.z -= pull * gl_Position.w;
  tint = color;
  if (color.a < 0.5) gl_Position = vec4(2.0, 2.0, 2.0, 1.0);
}`;
const FRAGMENT = `
precision mediump float;
uniform vec3 paper, ring; uniform float rim; varying vec4 tint; varying float depth;
void main() {
  float r = length(gl_PointCoord - 0.5) * 2.0;
  if (r > 1.0) discard;
  vec3 shade = r > rim ? ring : tint.rgb * (1.05 - 0.22 * r * r);
  gl_FragColor = vec4(mix(shade, paper, 0.45 * depth * step(1.0, rim)), 1.0);
}`;

const gl = canvas.getContext("webgl", { antialias: false, preserveDrawingBuffer: true });
const locations = {}, buffers = {};

function build() {
  const program = gl.createProgram();
  for (const [type, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(type);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  gl.useProgram(program);
  for (const name of ["matrix", "size", "nearest", "farthest", "pull", "paper", "ring", "rim"])
    locations[name] = gl.getUniformLocation(program, name);
  for (const name of ["position", "color"]) {
    locations[name] = gl.getAttribLocation(program, name);
    gl.enableVertexAttribArray(locations[name]);
  }
  for (const name of ["points", "pointColors", "markers", "markerColors"]) buffers[name] = gl.createBuffer();
  gl.enable(gl.DEPTH_TEST);
  const shuffled = new Float32Array(positions.length);
  order.forEach((from, to) => shuffled.set(positions.subarray(3 * from, 3 * from + 3), 3 * to));
  fill("points", shuffled);
}

function fill(name, data) {
  gl.bindBuffer(gl.ARRAY_BUFFER, buffers[name]);
  gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
}

function range(values) {
  let least = Infinity, most = -Infinity;
  for (const value of values) {
    if (value < least) least = value;
    if (value > most) most = value;
  }
  return [least, most];
}

// What is dark would not show on a dark page.
function lighten(color, share) {
  return isDark() ? color.map((value) => Math.round(value + share * (255 - value))) : color.map(Math.round);
}

function categoryColor(color) {
  const channels = rgb(color), [red, green, blue] = channels;
  return lighten(channels, 0.3 * red + 0.6 * green + 0.1 * blue < 100 ? 0.18 : 0);
}

function rampColor(share) {
  const place = share * (scene.ramp.length - 1), index = Math.min(Math.floor(place), scene.ramp.length - 2);
  const a = rgb(scene.ramp[index]), b = rgb(scene.ramp[index + 1]);
  return lighten(a.map((value, channel) => value + (place - index) * (b[channel] - value)), 0.22);
}

function pointColors(coloring) {
  const colors = new Uint8Array(scene.count * 4), table = [];
  let slot;
  if (coloring.categories) {
    coloring.colors.forEach((color, i) => table.push([...categoryColor(color), coloring.hidden.has(i) ? 0 : 255]));
    slot = (value) => value;
  } else {
    const [least, most] = range(coloring.values);
    for (let i = 0; i < 256; i++) table.push([...rampColor(i / 255), 255]);
    slot = (value) => (most > least ? Math.round((255 * (value - least)) / (most - least)) : 0);
  }
  for (let i = 0; i < scene.count; i++) colors.set(table[slot(coloring.values[order[i]])], 4 * i);
  return colors;
}

function upload() {
  fill("pointColors", pointColors(current));
  const shown = current.markers.filter((markers) => markers.visible);
  const places = new Float32Array(shown.reduce((sum, markers) => sum + markers.positions.length, 0));
  const colors = new Uint8Array((places.length / 3) * 4);
  let start = 0;
  for (const markers of shown) {
    markers.start = start / 3;
    places.set(markers.positions, start);
    for (let i = start / 3; i < (start + markers.positions.length) / 3; i++)
      colors.set([...(markers.color ? categoryColor(markers.color) : rgb(css("--panel"))), 255], 4 * i);
    start += markers.positions.length;
  }
  fill("markers", places);
  fill("markerColors", colors);
  dirty = true;
}

// Column-major product of perspective, move and turn; `w` of a projected point is its distance from the eye.
function cameraMatrix() {
  const aspect = canvas.width / canvas.height, focal = 1 / Math.tan(FIELD / 2);
  const distance = (radius * 1.05 * Math.max(1, 1 / aspect)) / Math.sin(FIELD / 2) / view.zoom;
  const nearest = Math.max(distance - 1.2 * radius, 0.01 * radius), farthest = distance + 1.2 * radius;
  const [sy, cy, sp, cp] = [Math.sin(view.yaw), Math.cos(view.yaw), Math.sin(view.pitch), Math.cos(view.pitch)];
  const rows = [[cy, 0, sy], [sp * sy, cp, -sp * cy], [-cp * sy, sp, cp * cy]];
  const move = rows.map((row) => -row.reduce((sum, value, axis) => sum + value * middle[axis], 0));
  const [x, y, z] = [move[0] + view.x, move[1] + view.y, move[2] - distance];
  const a = -(farthest + nearest) / (farthest - nearest), b = (-2 * farthest * nearest) / (farthest - nearest);
  const columns = [0, 1, 2].map((axis) => {
    const depth = rows[2][axis];
    return [(focal / aspect) * rows[0][axis], focal * rows[1][axis], a * depth, -depth];
  });
  columns.push([(focal / aspect) * x, focal * y, a * z + b, -z]);
  return { matrix: new Float32Array(columns.flat()), rows, nearest, farthest, distance, focal };
}

function pixelSize() {
  // Wide enough to close the surface of a typical object: a few times the mean spacing of its points.
  const spacing = radius * Math.sqrt(16 / scene.count);
  return Math.min(Math.max(spacing, 0.006 * radius), 0.045 * radius) * element("size").value;
}

function drawSet(points, colors, start, count, size, rim, pull) {
  for (const [buffer, name, width, type] of [[points, "position", 3, gl.FLOAT], [colors, "color", 4, gl.UNSIGNED_BYTE]]) {
    gl.bindBuffer(gl.ARRAY_BUFFER, buffers[buffer]);
    gl.vertexAttribPointer(locations[name], width, type, type === gl.UNSIGNED_BYTE, 0, 0);
  }
  gl.uniform1f(locations.size, size);
  gl.uniform1f(locations.rim, rim);
  gl.uniform1f(locations.pull, pull);
  gl.drawArrays(gl.POINTS, start, count);
}

function draw(share = 1) {
  const camera = cameraMatrix(), paper = rgb(css("--paper")).map((value) => value / 255);
  const scale = (canvas.height / 2) * camera.focal;
  gl.viewport(0, 0, canvas.width, canvas.height);
  gl.clearColor(...paper, 1);
  gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
  gl.uniformMatrix4fv(locations.matrix, false, camera.matrix);
  gl.uniform1f(locations.nearest, camera.nearest);
  gl.uniform1f(locations.farthest, camera.farthest);
  gl.uniform3fv(locations.paper, paper);
  gl.uniform3fv(locations.ring, rgb(css("--ink")).map((value) => value / 255));
  const count = Math.ceil(share * scene.count);
  drawSet("points", "pointColors", 0, count, pixelSize() * scale * share ** -0.2, 2, 0);
  for (const markers of current.markers.filter((m) => m.visible)) {
    // Markers come forward a little, so that the points around a centre do not bury it; some come before everything.
    if (markers.onTop) gl.depthRange(0, 0);
    drawSet("markers", "markerColors", markers.start, markers.positions.length / 3, 0.055 * radius * scale, 0.72, 0.02);
    gl.depthRange(0, 1);
  }
  drawAxes(camera.rows);
}

function drawAxes(rows) {
  const pen = overlay.getContext("2d"), ratio = overlay.width / overlay.clientWidth;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, overlay.clientWidth, overlay.clientHeight);
  const corner = [46, overlay.clientHeight - 46];
  pen.font = "600 13px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.strokeStyle = pen.fillStyle = css("--ink");
  pen.lineWidth = 1.6;
  ["x", "y", "z"].forEach((name, axis) => {
    const [x, y] = [rows[0][axis], -rows[1][axis]];
    pen.beginPath();
    pen.moveTo(...corner);
    pen.lineTo(corner[0] + 24 * x, corner[1] + 24 * y);
    pen.stroke();
    pen.fillText(name, corner[0] + 34 * x, corner[1] + 34 * y);
  });
}

function frame(time) {
  if (turning) {
    view.yaw += Math.min(time - lastTime, 100) * 0.0004;
    dirty = true;
  }
  const elapsed = time - lastTime;
  lastTime = time;
  if (dirty) {
    // Two frames in a row tell how fast this machine draws; the first after a rest does not.
    if (time - lastMoved < STILL_AFTER + elapsed && elapsed > SLOW_FRAME) detail = Math.max(detail * 0.8, 0.1);
    else if (elapsed < FAST_FRAME) detail = Math.min(detail * 1.1, 1);
    lastMoved = time;
    drawnDetail = detail;
    draw(detail);
  } else if (drawnDetail < 1 && time - lastMoved > STILL_AFTER) {
    drawnDetail = 1;
    draw();
  }
  dirty = false;
  requestAnimationFrame(frame);
}

function resize() {
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  for (const target of [canvas, overlay]) {
    target.width = Math.max(Math.round(target.clientWidth * ratio), 1);
    target.height = Math.max(Math.round(target.clientHeight * ratio), 1);
  }
  if (gl) draw();
}

// -- Legend -----------------------------------------------------------------------------------------------------------

function entry(name, color, count, isMarker, toggle) {
  const button = document.createElement("button"), swatch = document.createElement("i");
  const number = document.createElement("span");
  button.type = "button";
  button.title = "Show or hide";
  button.setAttribute("aria-pressed", "true");
  swatch.style.background = color ? `rgb(${categoryColor(color).join(" ")})` : "var(--panel)";
  swatch.className = isMarker ? "marker" : "";
  number.textContent = count.toLocaleString("en");
  number.className = "count";
  button.append(swatch, name, number);
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(toggle()));
    upload();
  });
  return button;
}

function showLegend() {
  const entries = element("entries"), scale = element("scale");
  document.querySelector("h2").textContent = current.label;
  entries.replaceChildren();
  scale.hidden = Boolean(current.categories);
  if (current.categories) {
    const counts = new Map();
    for (const value of current.values) counts.set(value, (counts.get(value) || 0) + 1);
    for (const index of [...counts.keys()].sort((a, b) => a - b)) {
      const hidden = current.hidden;
      entries.append(entry(current.categories[index], current.colors[index], counts.get(index), false, () => {
        if (!hidden.delete(index)) hidden.add(index);
        return !hidden.has(index);
      }));
    }
    current.hidden.clear();
  } else {
    const [least, most] = range(current.values), isNarrow = matchMedia("(max-width: 640px)").matches;
    const stops = scene.ramp.map((_, i) => `rgb(${rampColor(i / (scene.ramp.length - 1)).join(" ")})`);
    scale.firstChild.style.background = `linear-gradient(to ${isNarrow ? "right" : "top"}, ${stops.join(", ")})`;
    scale.lastChild.replaceChildren(...[1, 0.75, 0.5, 0.25, 0].map((share) => {
      const tick = document.createElement("li");
      tick.textContent = number(least + share * (most - least));
      return tick;
    }));
  }
  for (const markers of current.markers) {
    markers.visible = true;
    entries.append(entry(markers.name, markers.color, markers.positions.length / 3, true, () => {
      markers.visible = !markers.visible;
      return markers.visible;
    }));
  }
}

// -- Hover ------------------------------------------------------------------------------------------------------------

function nearestTo(list, x, y, reach, isShown) {
  const { matrix: m } = cameraMatrix(), [width, height] = [canvas.clientWidth, canvas.clientHeight];
  let best = -1, bestDepth = Infinity;
  for (let i = 0; i < list.length; i += 3) {
    const w = m[3] * list[i] + m[7] * list[i + 1] + m[11] * list[i + 2] + m[15];
    if (w <= 0 || w >= bestDepth) continue;
    const px = ((m[0] * list[i] + m[4] * list[i + 1] + m[8] * list[i + 2] + m[12]) / w + 1) * 0.5 * width;
    const py = (1 - (m[1] * list[i] + m[5] * list[i + 1] + m[9] * list[i + 2] + m[13]) / w) * 0.5 * height;
    if ((px - x) ** 2 + (py - y) ** 2 < reach * reach && isShown(i / 3)) [best, bestDepth] = [i / 3, w];
  }
  return best;
}

function describe(x, y) {
  for (const markers of current.markers.filter((m) => m.visible)) {
    const index = nearestTo(markers.positions, x, y, 9, () => true);
    if (index >= 0) return [markers.name, markers.positions.subarray(3 * index, 3 * index + 3)];
  }
  const index = nearestTo(positions, x, y, 6, (i) => !current.hidden.has(current.values[i]));
  if (index < 0) return null;
  const value = current.values[index];
  const text = current.categories ? current.categories[value] : `${current.label}: ${number(value)}`;
  return [text, positions.subarray(3 * index, 3 * index + 3)];
}

function showTip(x, y) {
  const found = describe(x, y);
  tip.hidden = !found;
  if (!found) return;
  const place = document.createElement("small");
  place.textContent = `x ${found[1][0].toFixed(3)}, y ${found[1][1].toFixed(3)}, z ${found[1][2].toFixed(3)}`;
  tip.replaceChildren(found[0], place);
  tip.style.left = `${Math.max(Math.min(x + 14, canvas.clientWidth - tip.offsetWidth - 4), 0)}px`;
  tip.style.top = `${Math.max(Math.min(y + 14, canvas.clientHeight - tip.offsetHeight - 4), 0)}px`;
}

// -- Turning, zooming, moving -----------------------------------------------------------------------------------------

const pointers = new Map();

function setTurning(value) {
  turning = value;
  element("turn").setAttribute("aria-pressed", String(value));
}

function change(update) {
  setTurning(false);
  tip.hidden = true;
  update();
  view.pitch = Math.max(-Math.PI / 2, Math.min(Math.PI / 2, view.pitch));
  view.zoom = Math.max(0.2, Math.min(40, view.zoom));
  dirty = true;
}

function move(dx, dy) {
  const { distance, focal } = cameraMatrix(), unit = (2 * distance) / focal / canvas.clientHeight;
  change(() => { view.x += dx * unit; view.y -= dy * unit; });
}

function onPointerMove(event) {
  const before = pointers.get(event.pointerId), here = { x: event.offsetX, y: event.offsetY, button: before?.button };
  if (!before) return event.pointerType === "mouse" && !turning ? showTip(here.x, here.y) : undefined;
  const [dx, dy] = [here.x - before.x, here.y - before.y];
  pointers.set(event.pointerId, here);
  if (pointers.size === 1) {
    if (before.button === 2 || event.shiftKey) return move(dx, dy);
    return change(() => { view.yaw += dx * 0.008; view.pitch += dy * 0.008; });
  }
  const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
  const spread = (point) => Math.max(Math.hypot(point.x - other.x, point.y - other.y), 1);
  change(() => { view.zoom *= spread(here) / spread(before); });
  return move(dx / 2, dy / 2);
}

function listen() {
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.offsetX, y: event.offsetY, button: event.button });
    setTurning(false);
    if (event.pointerType !== "mouse") showTip(event.offsetX, event.offsetY);
  });
  canvas.addEventListener("pointermove", onPointerMove);
  for (const name of ["pointerup", "pointercancel"])
    canvas.addEventListener(name, (event) => pointers.delete(event.pointerId));
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("dblclick", () => change(() => { view = { ...START }; }));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    change(() => { view.zoom *= Math.exp(-event.deltaY * 0.0012); });
  }, { passive: false });
  const keys = {
    ArrowLeft: () => { view.yaw -= 0.1; }, ArrowRight: () => { view.yaw += 0.1; },
    ArrowUp: () => { view.pitch += 0.1; }, ArrowDown: () => { view.pitch -= 0.1; },
    "+": () => { view.zoom *= 1.15; }, "-": () => { view.zoom /= 1.15; },
  };
  canvas.addEventListener("keydown", (event) => {
    if (!keys[event.key]) return;
    event.preventDefault();
    change(keys[event.key]);
  });
  element("size").addEventListener("input", () => { dirty = true; });
  element("turn").addEventListener("click", () => setTurning(!turning));
  element("theme").addEventListener("click", () => setTheme(!isDark()));
  element("coloring").addEventListener("change", (event) => choose(event.target.selectedIndex));
  new ResizeObserver(resize).observe(canvas);
  matchMedia("(max-width: 640px)").addEventListener("change", showLegend);
}

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  element("theme").textContent = dark ? "Light" : "Dark";
  if (gl) choose(scene.colorings.indexOf(current));
}

function choose(index) {
  current = scene.colorings[index];
  tip.hidden = true;
  showLegend();
  upload();
}

function start() {
  const heading = document.querySelector("h1"), count = document.createElement("small");
  count.textContent = ` ${scene.count.toLocaleString("en")} points`;
  heading.append(scene.title, count);
  scene.colorings.forEach((coloring) => element("coloring").add(new Option(coloring.name)));
  const prefersDark = matchMedia("(prefers-color-scheme: dark)").matches;
  if (!gl) {
    setTheme(prefersDark);
    element("message").hidden = false;
    element("message").textContent = "This browser shows no WebGL, which draws the points. Switch on hardware or "
      + "software graphics in its settings, or open the page in another browser.";
    return;
  }
  build();
  setTurning(!matchMedia("(prefers-reduced-motion: reduce)").matches);
  setTheme(prefersDark);
  listen();
  resize();
  requestAnimationFrame(frame);
}

start();
