// What is under the pointer, and turning, zooming and moving by mouse, fingers and keys.
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
  element("up").addEventListener("change", (event) => change(() => {
    up = event.target.value;
    view = { ...START };
  }));
  element("turn").addEventListener("click", () => setTurning(!turning));
  element("theme").addEventListener("click", () => setTheme(!isDark()));
  element("coloring").addEventListener("change", (event) => choose(event.target.selectedIndex));
  new ResizeObserver(resize).observe(canvas);
  matchMedia("(max-width: 640px)").addEventListener("change", () => choose(element("coloring").selectedIndex));
}
