"use strict";
// The scene as Python wrote it, and what of it is shown.
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

// Which axis of the data points up on the page, as rows of a rotation.
const UPS = {
  y: [[1, 0, 0], [0, 1, 0], [0, 0, 1]], z: [[1, 0, 0], [0, 0, 1], [0, -1, 0]], x: [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
};
let up = "y";
const fitting = new Map();

// The least distance of the eye from which the whole cloud is seen however it turns; `focal` is that of either side.
function fittingDistance(focalX, focalY) {
  const key = `${up} ${focalX.toFixed(3)}`;
  if (fitting.has(key)) return fitting.get(key);
  const [sp, cp] = [Math.sin(START.pitch), Math.cos(START.pitch)];
  let distance = 0.1 * radius;
  for (const list of everything)
    for (let i = 0; i < list.length; i += 3) {
      const from = [0, 1, 2].map((k) => list[i + k] - middle[k]);
      const [x, y, z] = UPS[up].map((row) => row[0] * from[0] + row[1] * from[1] + row[2] * from[2]);
      const around = Math.hypot(x, z);
      distance = Math.max(distance, around * Math.hypot(focalX, cp) + y * sp);
      for (const near of [around, -around])
        distance = Math.max(distance, Math.abs(y * cp - near * sp) * focalY + y * sp + near * cp);
    }
  fitting.set(key, distance);
  return distance;
}

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
