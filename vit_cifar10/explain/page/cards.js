// Live pages: games and experiments with the image on the page. An open card stands beside the image.

const GUESSES = 3;

const game = { about: "", best: new Map(), found: "", busy: 0 }; // of the open card: what it has found, as text

/** The patches that speak most for the selected class in the untouched image or, if that is unknown, as it now is. */
function ranking(count) {
  const known = images[state.image].whole.explanations.get(state.target) ?? answer().explanations.get(state.target);
  return orderOf(known.evidence).slice(0, count);
}

const methodName = () => METHODS.evidence.name;
const predicted = () => data.classes[largestOf(images[state.image].whole.probabilities)];
const listOf = (chosen) => chosen.map(patchName).join("; ");

/** The answer to an experiment: "still deer, 81.7 → 55.4 %" or "airplane, 48.5 % (deer 81.7 → 37.1 %)". */
function outcome(probabilities, before = images[state.image].whole.probabilities) {
  const was = largestOf(before), is = largestOf(probabilities);
  const name = data.classes[was], moved = `${percent(before[was]).slice(0, -2)} → ${percent(probabilities[was])}`;
  return was === is ? `still ${name}, ${moved}` : `${data.classes[is]}, ${percent(probabilities[is])} (${name} ${moved})`;
}

/** Ask for the probabilities of many states, one after the other, until one is `enough`, and show how far it is. */
async function measure(list, enough = () => false) {
  const results = [], about = game.about;
  for (const changes of list) {
    game.busy = (results.length + 1) / list.length;
    show();
    results.push(await probe(changes));
    if (game.about !== about) throw new Error("the state has changed"); // ends the action that asked
    if (enough(results.at(-1))) break;
  }
  return results;
}

const removeMost = [`Remove ${GUESSES} patches`, () => edit({ removed: new Set(ranking(GUESSES)) })];
const putBack = ["Restore all", () => edit({ removed: new Set(), off: new Set(), fill: "mean" })];

const CARDS = {
  fool: {
    title: "Fool it with the fewest patches",
    text: () => `The network says ${predicted()}. Remove patches until it says something else. How few does it take?`,
    actions: [
      [`Let ${METHODS.evidence.name} try`, async () => {
        const order = ranking(patches), was = largestOf(images[state.image].whole.probabilities);
        const tries = order.map((_, count) => ({ removed: order.slice(0, count + 1) }));
        const results = await measure(tries, (probabilities) => largestOf(probabilities) !== was);
        const { length } = results, isFooled = largestOf(results.at(-1)) !== was;
        return isFooled ? `${methodName()} needs ${length}: ${listOf(order.slice(0, length))}.`
          : `Even without all patches, it says ${predicted()}.`;
      }],
      putBack,
    ],
    result() {
      const effect = comparison(), count = state.removed.size, { best } = game;
      if (!effect || !count) return "";
      const isFooled = largestOf(effect.before) !== largestOf(effect.after) && !state.off.size && !state.pixels;
      if (isFooled) best.set(state.image, Math.min(count, best.get(state.image) ?? count));
      const record = best.has(state.image) ? ` Your best for this image: ${best.get(state.image)}.` : "";
      const patchesText = `${count} patch${count > 1 ? "es" : ""} removed`;
      return `${isFooled ? "Fooled! " : ""}${patchesText}: ${outcome(effect.after)}.${record}`;
    },
  },
  head: {
    title: "Which head matters?",
    isVit: true,
    text: () => `Choose the head that “${predicted()}” needs most, with the sliders or in the overview below. Then `
      + "measure: each head is switched off alone.",
    actions: [["Measure all heads", async () => {
      const names = [], before = answer().probabilities, target = largestOf(before);
      for (let layer = 1; layer <= data.layers; layer += 1) {
        for (let head = 1; head <= data.heads; head += 1) names.push(`h${layer}.${head}`);
      }
      const chosen = partOf("head");
      const results = await measure(names.map((name) => ({ off: [...new Set([...state.off, name])] })));
      const order = orderOf(results.map((probabilities) => -probabilities[target]));
      const line = (index) => `${switchName(names[index])}: ${outcome(results[index], before)}`;
      const first = order.slice(0, 3).map((index, place) => `${place + 1}. Without ${line(index)}`).join("\n");
      const own = names.indexOf(chosen), place = order.indexOf(own) + 1;
      return `${first}${own < 0 ? "" : `\nYour choice is number ${place} of ${names.length}: without ${line(own)}`}`;
    }]],
  },
  guess: {
    title: "Guess before the map shows",
    text: () => `Which ${GUESSES} patches speak most for ${targetName()}? Click them. Then compare with ${methodName()}.`,
    actions: [
      ["Start", startGuess],
      ["Show the map", async () => {
        const chosen = state.guess, order = ranking(GUESSES);
        if (chosen.length < GUESSES) return `Click ${GUESSES - chosen.length} more.`;
        endGuess();
        const hits = chosen.filter((patch) => order.includes(patch)).length;
        const [own, method] = await measure([{ removed: chosen }, { removed: order }]);
        return `${methodName()} ranks first: ${listOf(order)}. You found ${hits} of ${GUESSES}.\n`
          + `Without your patches: ${outcome(own)}.\nWithout those of ${methodName()}: ${outcome(method)}.`;
      }],
    ],
    result: () => (state.tool === "guess" ? `${state.guess.length} of ${GUESSES} chosen.` : ""),
  },
  most: {
    title: "Remove what matters most",
    text: () => `Let everyone guess which patches “${predicted()}” needs. Then remove the ${GUESSES} that `
      + `${methodName()} ranks first, and compare: does any single patch change the answer?`,
    actions: [
      removeMost,
      ["Try every patch alone", async () => {
        const was = largestOf(images[state.image].whole.probabilities);
        const results = await measure(cells.map((_, patch) => ({ removed: [patch] })));
        const turning = results.flatMap((probabilities, patch) => (largestOf(probabilities) === was ? [] : [patch]));
        return turning.length ? `These patches alone change the answer: ${listOf(turning)}.`
          : `Without any single patch, it stays ${predicted()}.`;
      }],
      putBack,
    ],
    result: () => (comparison() ? `${capital(comparison().cause)}: ${outcome(comparison().after)}.` : ""),
  },
  story: {
    title: "Watch it decide",
    isVit: true,
    text: () => "The chart “When does it decide?” shows which class would lead if the network stopped early. Remove the "
      + "patches that matter most: which part of the story changes?",
    actions: [removeMost, putBack],
    result: () => `Whole image: ${storyOf(images[state.image].whole)}.`
      + (comparison() ? `\n${capital(comparison().cause)}: ${storyOf(answer())}.` : ""),
  },
  off: {
    title: "Switch parts off",
    isVit: true,
    text: () => `Switch off the heads with the longest red bars, which push ${targetName()} most, one after the other. `
      + "Then try the attention of each layer: some layers are needed, and some hardly.",
    actions: [
      ["Switch off the strongest head", () => {
        const strongest = largestOf(answer().explanations.get(state.target).contributions);
        const layer = Math.floor(strongest / data.heads) + 1, head = strongest % data.heads;
        change({ layer, head: FIRST_HEAD + head });
        edit({ off: new Set([...state.off, `h${layer}.${head + 1}`]) });
      }],
      ["Try every layer", async () => {
        const was = largestOf(images[state.image].whole.probabilities);
        const results = await measure(Array.from({ length: data.layers }, (_, layer) => ({ off: [`a${layer + 1}`] })));
        const order = orderOf(results.map((probabilities) => probabilities[was]));
        const line = (layer) => `without the attention of layer ${layer + 1}: ${outcome(results[layer])}`;
        return `Needed most: ${line(order.at(-1))}.\nNeeded least: ${line(order[0])}.`;
      }],
      putBack,
    ],
    result: () => (state.off.size && comparison() ? `${capital(comparison().cause)}: ${outcome(comparison().after)}.` : ""),
  },
};

/** Which class would lead after which layers: "deer after layer 1, airplane after layers 2 to 10". */
function storyOf({ lens }) {
  const runs = [], count = data.classes.length;
  for (let layer = 1; layer <= data.layers; layer += 1) {
    const leader = largestOf(lens.subarray(layer * count, (layer + 1) * count));
    if (runs.at(-1)?.leader === leader) runs.at(-1).last = layer;
    else runs.push({ leader, first: layer, last: layer });
  }
  return runs.map(({ leader, first, last }) => `${data.classes[leader]} after layer${first === last ? "" : "s"} ${first}`
    + (first === last ? "" : ` to ${last}`)).join(", ");
}

function buildCards() {
  for (const id of ["try", "copy"]) byId(id).hidden = false;
  byId("try").addEventListener("click", () => openCard(state.card === null ? "list" : null));
  byId("copy").addEventListener("click", copyLink);
}

function openCard(card) {
  if (state.tool === "guess") endGuess();
  change({ card, step: null, guess: [] });
  byId("card").hidden = card === null;
  if (card !== null) byId("card-title").focus();
}

/** Show the open card. Its buttons are only replaced if another card opens, so that they keep the focus. */
function drawCard() {
  const { card } = state, part = byId("card"), definition = CARDS[card];
  part.hidden = card === null;
  byId("try").setAttribute("aria-expanded", card !== null);
  byId("page").classList.toggle("guessing", state.tool === "guess");
  const about = JSON.stringify([card, state.image, describeState(false), state.target]);
  if (game.about !== about) Object.assign(game, { about, found: "", busy: 0 });
  if (card === null) return;
  byId("card-title").textContent = definition?.title ?? "Try it";
  byId("card-text").textContent = definition?.text() ?? "";
  const progress = game.busy ? `Measuring: ${Math.round(100 * game.busy)} %` : "";
  byId("card-result").textContent = [definition?.result?.(), progress || game.found].filter(Boolean).join("\n");
  if (part.dataset.card === card) return;
  part.dataset.card = card;
  const actions = byId("card-actions");
  actions.replaceChildren();
  actions.classList.toggle("list", !definition);
  if (definition) {
    for (const [name, action] of definition.actions) button(actions, name, () => act(action));
    button(actions, "Other cards", () => openCard("list"));
    return;
  }
  for (const [key, { title, isVit }] of Object.entries(CARDS)) {
    if (data.isVit || !isVit) button(actions, title, () => openCard(key));
  }
}

/** Do what a button of a card does, and show what it returns unless the state changes meanwhile. */
async function act(action) {
  if (game.busy || !state.answer?.explanations.has(state.target)) return;
  try {
    const found = await action();
    Object.assign(game, { found: found ?? game.found, busy: 0 });
  } catch (error) {
    if (error.message !== "the state has changed") throw error;
  }
  show();
}

// Guessing: the map is hidden until the user has chosen patches.

function startGuess() {
  edit({ removed: new Set(), off: new Set(), tool: "guess", guess: [], token: defaultToken, method: "evidence" });
}

function endGuess() {
  change({ tool: "select", token: defaultToken });
}

function guess(patch) {
  const others = state.guess.filter((other) => other !== patch);
  change({ guess: others.length < state.guess.length ? others : [...others, patch].slice(-GUESSES) });
}
