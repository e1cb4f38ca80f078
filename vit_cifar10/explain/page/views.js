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
  byId("subtitle").textContent = [image.name, image.label, data.network].filter(Boolean).join(" · ");
  [...byId("images").children].forEach((choice, index) => choice.setAttribute("aria-pressed", index === state.image));
  for (const choice of byId("methods").children) markRadio(choice, choice.dataset.method === state.method);
  for (const tool of TOOLS) markRadio(byId(`tool-${tool}`), tool === state.tool);
  for (const board of boards) board.classList.toggle("painting", isLive && state.tool === "paint");
  byId("hint").textContent = HINTS[state.tool];
  byId("meaning").textContent = method.meaning;
  byId("layer-part").hidden = !method.layers;
  byId("play").hidden = !method.layers || data.layers < 2;
  byId("head-part").hidden = !method.heads;
  byId("own-scale-part").hidden = !method.layers;
  byId("own-scale").checked = state.ownScale;
  byId("own-scale-name").textContent = `Own color scale per ${method.heads ? "layer and head" : "layer"}`;
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
    drawOverview(image);
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
  const maximum = scaleOf(map), other = byId("other");
  drawPhoto();
  byId("main-title").textContent = mainTitle(map);
  drawBoard(byId("main-canvas"), map, maximum, isSigned);
  drawUniform("main", isAttention ? maximum : null, isSigned);
  const signs = [`against: ${contribution(-maximum)}`, `for: ${contribution(maximum)}`];
  const ends = {
    attention: ["0", percent(maximum)],
    removal: ["raises", "lowers"].map((verb) => `${verb} it by ${points(maximum).replace("+", "")}`),
  };
  [byId("main-least").textContent, byId("main-most").textContent] = ends[state.method] ?? (isSigned ? signs : ["0", "maximum"]);
  other.hidden = !to;
  if (to) {
    const most = scaleOf(to, false);
    byId("other-title").textContent = `Attention to ${tokenName(state.token)}`;
    byId("other-most").textContent = percent(most);
    byId("other-token").textContent = to.classToken === null ? "" : `class token: ${percent(to.classToken)}`;
    if (other.open) {
      drawBoard(byId("other-canvas"), to, most);
      drawUniform("other", most);
    }
  }
  byId("tokens").hidden = !isAttention;
  for (const choice of byId("tokens").children) {
    choice.setAttribute("aria-pressed", choice.dataset.token === state.token);
    const isClassToken = choice.dataset.token === CLASS_TOKEN;
    choice.textContent = isClassToken ? `class token: ${percent(map.classToken ?? 0)}` : "the average patch";
    choice.title = isClassToken ? "Select the class token" : "Select no patch";
  }
  byId("readout").textContent = readout(map, to);
  cells.forEach((cell, patch) => {
    cell.setAttribute("aria-selected", patch === state.token);
    cell.setAttribute("aria-label", `${patchName(patch)}${state.removed.has(patch) ? ", removed" : ""}`);
  });
}

/** Draw a color scale. On a scale of attention, which ends at `maximum`, mark what each token would get if all got the same. */
function drawUniform(board, maximum, isSigned = false) {
  const place = maximum ? Math.sqrt(1 / tokens / maximum) : Infinity, label = byId(`${board}-uniform`);
  drawScale(byId(`${board}-scale`), isSigned, place < 1 ? place : null);
  label.textContent = place < 1 ? `uniform = 1/${tokens} = ${percent(1 / tokens)}` : "";
  label.style.left = `${100 * place}%`;
  label.style.transform = `translateX(${-100 * place}%)`; // so that it does not leave the scale
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
      for (const className of ["", "lane", ""]) {
        choice.append(Object.assign(document.createElement("span"), { className }));
      }
      for (const className of ["bar", "before"]) {
        choice.children[1].append(Object.assign(document.createElement("span"), { className }));
      }
    });
  }
  let rest = 1;
  image.explained.forEach((index, row) => {
    const choice = list.children[row];
    const [name, lane, value] = choice.children, [bar, before] = lane.children;
    choice.dataset.class = index;
    choice.setAttribute("aria-pressed", index === state.target);
    bar.style.width = `${100 * shown[index]}%`;
    before.hidden = !effect;
    before.style.left = `${100 * probabilities[index]}%`;
    name.textContent = data.classes[index];
    value.textContent = effect ? moved(probabilities[index], shown[index]) : percent(shown[index]);
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

function drawOverview(image) {
  byId("overview-note").textContent = `Attention from ${tokenName(state.token)}: one column per layer, `
    + `one row per head. ${state.ownScale ? "Each map has its own color scale." : "All have the same color scale."}`;
  const moves = answer().explanations.get(state.target)?.contributions;
  const largest = moves ? Math.max(...moves.map(Math.abs)) : 0;
  byId("contribution-note").textContent = contributionText(moves);
  for (const choice of byId("thumbnails").querySelectorAll("button")) {
    const layer = Number(choice.dataset.layer), head = Number(choice.dataset.head);
    const map = attentionOf(state.token, true, layer, head);
    paintMap(choice.firstChild, map, state.ownScale ? Math.max(...map.values) : largestAttention(image.whole, true));
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
