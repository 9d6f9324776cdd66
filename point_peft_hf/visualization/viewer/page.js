// Theme, choice of the colouring, and the start.
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
