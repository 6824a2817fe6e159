// A place of the image, chosen by pointer in any panel or by keys in the first one, and its cross in all.

const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const LEAP = 5; // cells with Shift

function listenForPlaces(panels, keyboardPanel, state, changed) {
  const choose = (x, y) => {
    state.place = { x: within(x), y: within(y) };
    state.word = null;
    changed();
  };
  panels.onclick = (event) => {
    const target = event.target.closest(".place");
    if (!target) return;
    const box = target.getBoundingClientRect();
    choose((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  };
  keyboardPanel.onkeydown = (event) => {
    const step = KEYS[event.key];
    const start = event.key === "Enter" || event.key === " ";
    if ((!step && !start) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault(); // the page stays where it is
    const now = state.place ?? { x: 0.5, y: 0.5 };
    if (start || !state.place) return choose(now.x, now.y);
    // Cells of the finest map, so that every one of them can be reached.
    const cells = (side) => Math.max(...state.image.maps.map((map) => map[side]));
    const leap = event.shiftKey ? LEAP : 1;
    choose(now.x + (step[0] * leap) / cells("across"), now.y + (step[1] * leap) / cells("down"));
  };
}

function within(fraction) {
  return Math.min(0.999, Math.max(0.001, fraction));
}

function showCrosses(place) {
  for (const cross of document.querySelectorAll(".cross")) {
    cross.hidden = place === null;
    if (place === null) continue;
    cross.style.left = `${100 * place.x}%`;
    cross.style.top = `${100 * place.y}%`;
  }
}

function placeText({ x, y }) {
  return `${Math.round(100 * x)} % from the left, ${Math.round(100 * y)} % from the top`;
}
