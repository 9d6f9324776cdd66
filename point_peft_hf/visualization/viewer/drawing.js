// Points and markers by WebGL, and the axes in the corner.
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
  const [sy, cy, sp, cp] = [Math.sin(view.yaw), Math.cos(view.yaw), Math.sin(view.pitch), Math.cos(view.pitch)];
  const distance = (1.04 * fittingDistance(focal / aspect, focal)) / view.zoom;
  const nearest = Math.max(distance - 1.2 * radius, 0.01 * radius), farthest = distance + 1.2 * radius;
  const turned = [[cy, 0, sy], [sp * sy, cp, -sp * cy], [-cp * sy, sp, cp * cy]];
  const rows = turned.map((row) => [0, 1, 2].map((axis) => row.reduce((sum, v, k) => sum + v * UPS[up][k][axis], 0)));
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
