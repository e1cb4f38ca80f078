// Drawing the page from the data and the state.

function draw() {
  const image = images[state.image], method = METHODS[state.method];
  if (!image.whole) { // the worker has not seen it yet
    ask();
    return;
  }
  byId("title").textContent = headline(image);
  const small = byId("image");
  small.width = small.height = data.imageSize;
  small.getContext("2d").drawImage(shownPicture().color, 0, 0);
  small.setAttribute("aria-label", `${image.name}, as the network sees it`);
  byId("subtitle").textContent = [image.label, data.network].filter(Boolean).join(" · ");
  [...byId("images").children].forEach((choice, index) => choice.setAttribute("aria-pressed", index === state.image));
  for (const choice of byId("methods").children) markRadio(choice, choice.dataset.method === state.method);
  for (const tool of TOOLS) markRadio(byId(`tool-${tool}`), tool === state.tool);
  byId("patches").classList.toggle("painting", state.tool === "paint");
  byId("patches").classList.toggle("selecting", state.tool === "select");
  byId("meaning").textContent = method.meaning;
  byId("layer-part").hidden = !method.layers;
  byId("play").hidden = !method.layers || data.layers < 2;
  byId("head-part").hidden = !method.heads;
  const sliders = {
    layer: `${state.layer} of ${data.layers}`, head: headName(), strength: `${state.strength} %`,
  };
  for (const [name, text] of Object.entries(sliders)) {
    byId(name).value = state[name];
    byId(name).setAttribute("aria-valuetext", text);
    byId(`${name}-name`).textContent = text;
  }
  byId("play").textContent = state.timer ? "Pause" : "Play the layers";
  drawMaps(method);
  drawMap();
  drawClasses(image);
  if (data.isVit) {
    drawLens(image);
    drawOverview();
  }
  if (isLive) {
    drawEditing();
    ask();
    if (data.isVit) askForWalk();
    drawCard();
  }
}

/** Show whether a radio button is selected. Only the selected one can be reached with the Tab key. */
function markRadio(choice, isSelected) {
  choice.setAttribute("aria-checked", isSelected);
  choice.tabIndex = isSelected ? 0 : -1;
}

function drawMaps(method) {
  const map = mainMap() ?? emptyMap(), isAttention = state.method === "attention", isSigned = Boolean(method.signed);
  const to = isAttention && state.token !== ALL_PATCHES ? attentionOf(state.token, false) : null;
  const largest = (values) => values.reduce((max, value) => Math.max(max, isSigned ? Math.abs(value) : value), 0);
  const maximum = largest(map.values);
  byId("main").parentElement.classList.toggle("single", !to);
  byId("other").hidden = !to;
  byId("main-title").textContent = mainTitle(map);
  drawBoard(byId("main-canvas"), map, maximum, isSigned);
  drawScale(byId("main-scale"), isSigned);
  const signs = [`against: ${contribution(-maximum)}`, `for: ${contribution(maximum)}`];
  const ends = {
    attention: ["0", percent(maximum)],
    removal: ["raises", "lowers"].map((verb) => `${verb} it by ${points(maximum).replace("+", "")}`),
  };
  [byId("main-least").textContent, byId("main-most").textContent] = ends[state.method] ?? (isSigned ? signs : ["0", "maximum"]);
  if (to) {
    byId("other-title").textContent = `Attention to ${tokenName(state.token)}`;
    drawBoard(byId("other-canvas"), to, largest(to.values));
    byId("other-most").textContent = percent(largest(to.values));
    byId("other-token").textContent = to.classToken === null ? "" : `class token: ${percent(to.classToken)}`;
  }
  byId("tokens").hidden = !isAttention;
  for (const choice of byId("tokens").children) {
    choice.setAttribute("aria-pressed", choice.dataset.token === state.token);
    const isClassToken = choice.dataset.token === CLASS_TOKEN;
    choice.textContent = isClassToken ? `class token: ${percent(map.classToken ?? 0)}` : "the average patch";
    choice.title = isClassToken ? "Select the class token" : "Select no patch";
  }
  byId("readout").textContent = readout(map, to);
  const tabbable = selectedPatch() ?? 0;
  cells.forEach((cell, patch) => {
    cell.tabIndex = patch === tabbable ? 0 : -1;
    cell.setAttribute("aria-label", `${patchName(patch)}${state.removed.has(patch) ? ", removed" : ""}`);
  });
}

/** Draw the class probabilities and, if their effect is known, what the user's changes do to them. */
function drawClasses(image) {
  const list = byId("classes"), effect = comparison();
  const { probabilities } = image.whole, shown = effect?.after ?? probabilities;
  if (list.children.length !== image.explained.length) {
    list.replaceChildren();
    image.explained.forEach(() => {
      const choice = button(list, "", () => {
        const first = data.methods.find((method) => method.classes).key; // instead of one that is the same for all
        const method = METHODS[state.method].classes ? state.method : first;
        choose({ target: Number(choice.dataset.class), method });
      });
      for (const className of ["bar", "before", "", ""]) {
        choice.append(Object.assign(document.createElement("span"), { className }));
      }
    });
  }
  let rest = 1;
  image.explained.forEach((index, row) => {
    const choice = list.children[row];
    const [bar, before, name, value] = choice.children;
    choice.dataset.class = index;
    choice.setAttribute("aria-pressed", index === state.target);
    bar.style.width = `${100 * shown[index]}%`;
    before.hidden = !effect;
    before.style.left = `min(${100 * probabilities[index]}%, 100% - 2px)`;
    name.textContent = data.classes[index];
    value.textContent = (effect ? `${percent(probabilities[index])} → ` : "") + percent(shown[index]);
    rest -= shown[index];
  });
  const others = data.classes.length - image.explained.length;
  byId("rest").hidden = others === 0;
  byId("rest").textContent = `These are the ${image.explained.length} most probable of ${data.classes.length} classes. `
    + `The others add up to ${percent(Math.max(0, rest))}.`;
  byId("answers-title").textContent = effect ? `Probabilities ${effect.cause}` : "Class probabilities";
  byId("restore").hidden = state.removed.size === 0;
  byId("removal-note").textContent = removalNote();
}

function drawOverview() {
  byId("overview-note").textContent = `Attention from ${tokenName(state.token)}: one column per layer, `
    + "one row per head. Each map is scaled to its own maximum.";
  const moves = answer().explanations.get(state.target)?.contributions;
  const largest = moves ? Math.max(...moves.map(Math.abs)) : 0;
  byId("contribution-note").textContent = contributionText(moves);
  for (const choice of byId("thumbnails").querySelectorAll("button")) {
    const layer = Number(choice.dataset.layer), head = Number(choice.dataset.head);
    const map = attentionOf(state.token, true, layer, head);
    paintMap(choice.firstChild, map, Math.max(...map.values));
    drawContribution(choice, moves?.[(layer - 1) * data.heads + head - FIRST_HEAD], largest);
    choice.setAttribute("aria-pressed", state.method === "attention" && layer === state.layer && head === state.head);
  }
}

/** The bar below a thumbnail: how far the head moves the score of the selected class. */
function drawContribution(choice, value, largest) {
  const bar = choice.lastChild, fraction = value === undefined || largest === 0 ? 0 : value / largest;
  bar.style.width = `${50 * Math.abs(fraction)}%`;
  bar.style.left = `${fraction < 0 ? 50 + 50 * fraction : 50}%`;
  bar.className = fraction < 0 ? "bar against" : "bar for";
  const { layer, head } = choice.dataset;
  const moved = value === undefined ? "" : `, moves the score by ${contribution(value)}`;
  choice.setAttribute("aria-label", `layer ${layer}, head ${head - FIRST_HEAD + 1}${moved}`);
  choice.title = value === undefined ? "" : `${contribution(value)} for ${targetName()}`;
}
