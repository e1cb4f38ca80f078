// The map of the network, which network_map.py has drawn: it shows the image and the scores, and selects layers.

let mapped = null; // the picture in the map

function buildMap() {
  for (const block of document.querySelectorAll(".block")) {
    const layer = Number(block.dataset.layer);
    svg(block, "title", {}, `layer ${layer}`);
    block.addEventListener("click", (event) => {
      event.stopPropagation();
      choose({ layer, method: METHODS[state.method].layers ? state.method : "attention" });
    });
  }
  if (!isLive || !data.isVit) return;
  for (const stage of document.querySelectorAll(".stage")) {
    stage.addEventListener("click", () => openWalk(Number(stage.dataset.step)));
  }
}

function drawMap() {
  const probabilities = comparison()?.after ?? answer().probabilities, order = orderOf(probabilities);
  const { color } = shownPicture();
  for (const map of document.querySelectorAll(".map")) { // one for wide and one for narrow screens
    map.querySelectorAll(".score").forEach((score, row) => {
      const [bar, name, value] = score.children, index = order[row];
      bar.setAttribute("transform", `scale(${probabilities[index]} 1)`);
      const full = data.classes[index];
      name.textContent = full.length > 14 ? `${full.slice(0, 13)}…` : full;
      value.textContent = percent(probabilities[index]);
    });
  }
  if (mapped !== color) {
    for (const picture of document.querySelectorAll(".map image")) picture.setAttribute("href", color.toDataURL());
    mapped = color;
  }
  byId("count").textContent = state.removed.size ? `${state.removed.size} of ${patches} removed` : "";
  const isMarked = METHODS[state.method].layers || state.step !== null;
  for (const block of document.querySelectorAll(".block")) {
    const { layer } = block.dataset;
    block.classList.toggle("selected", isMarked && Number(layer) === state.layer);
    for (const part of ["attention", "mlp"]) {
      block.querySelector(`.${part}`).classList.toggle("off", state.off.has(`${part[0]}${layer}`));
    }
  }
  const here = [3, 4].includes(state.step) ? 2 : state.step; // three steps are about a block
  for (const stage of document.querySelectorAll(".stage")) {
    stage.classList.toggle("here", Number(stage.dataset.step) === here);
  }
}
