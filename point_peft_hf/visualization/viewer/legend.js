// What the colours mean; its entries show and hide.
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

// What the whole cloud is, with bars: it has one colour, so there is nothing to show or hide.
function shareRow(name, share) {
  const row = document.createElement("div"), bar = document.createElement("i"), number = document.createElement("span");
  row.className = "share";
  bar.style.width = `${100 * share}%`;
  number.textContent = `${(100 * share).toFixed(1)} %`;
  number.className = "count";
  row.append(name, number, bar);
  return row;
}

function showLegend() {
  const entries = element("entries"), scale = element("scale");
  document.querySelector("h2").textContent = current.label;
  current.hidden.clear();
  entries.replaceChildren();
  scale.hidden = Boolean(current.categories);
  if (current.shares.length) {
    entries.append(...current.shares.map(([name, share]) => shareRow(name, share)));
  } else if (current.categories) {
    const counts = new Map();
    for (const value of current.values) counts.set(value, (counts.get(value) || 0) + 1);
    for (const index of [...counts.keys()].sort((a, b) => a - b)) {
      const hidden = current.hidden;
      entries.append(entry(current.categories[index], current.colors[index], counts.get(index), false, () => {
        if (!hidden.delete(index)) hidden.add(index);
        return !hidden.has(index);
      }));
    }
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
