// The page: controls, the picture of one frame of Newton's method, and its movement.

const LENGTHS = [64, 96, 128, 192, 256, 384, 512];
const HEIGHT = 300, GAPS = 120, EDGE = { left: 34, right: 12, top: 12, bottom: 24 };
const $ = (name) => document.getElementById(`see-${name}`);

const settings = { cell: "lem", gain: 4, steps: 256, chunks: 16 };
let solved, truth, range; // the solution, the plain loop's states, what the picture has room for
let at = 0; // the frame that is shown
let movement = 0; // of the animation that runs, 0 if none does
let playing = false;

const counts = () => [...Array(10).keys()].map((i) => 2 ** i).filter((c) => c <= settings.steps);
const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
const last = () => solved.frames.length - 1;
const shown = (state) => state[state.length - 1]; // of several states, the output

// -- the problem -----------------------------------------------------------------------------------

function solve() {
  const cell = CELLS[settings.cell];
  const scaled = cell.operands.map((name) => cell.scaled.includes(name));
  const every = Array.from({ length: settings.steps }, (_, t) =>
    cell.values.map((v, i) => (Array.isArray(v) ? v[t] : scaled[i] ? v * settings.gain : v)));
  const operands = (t) => every[t];
  const x0 = cell.states.map(() => 0);
  solved = newton(cell, operands, x0, settings.steps, settings.chunks);
  truth = loop(cell, operands, x0, settings.steps);
  const seen = [...truth, ...solved.frames[0].states].map(shown).filter(Number.isFinite);
  const low = Math.min(0, ...seen), high = Math.max(0, ...seen);
  const room = 0.12 * (high - low) || 1;
  range = [low - room, high + room];
}

function code() {
  const { title, options, seed, scaled } = CELLS[settings.cell];
  const more = Object.entries(options).map(([name, v]) => `, ${name}=${JSON.stringify(v)}`).join("");
  const gain = scaled.length
    ? `for name in ${JSON.stringify(scaled)}:\n    params[name] *= ${settings.gain}\n` : "";
  return `import numpy as np
import parnl

cell = parnl.get_cell("${settings.cell}", input_size=1, hidden_size=1${more})
params = cell.init(seed=${seed}, dtype="float64")
${gain}t = np.arange(${settings.steps})
inputs = ${INPUTS}
out = parnl.solve(
    cell, params, inputs[:, None], method="newton",
    chunks=${settings.chunks}, max_iterations=${settings.chunks},
)
print(out.info.iterations)  # ${last()} on this page
`;
}

// -- the pictures ----------------------------------------------------------------------------------

const number = (x) => (x === 0 ? "0" : Math.abs(x) < 0.01 || Math.abs(x) >= 100 ? x.toExponential(0) : x.toFixed(2));
const text = (x, y, words, anchor = "middle") =>
  `<text x="${x}" y="${y}" text-anchor="${anchor}">${words}</text>`;

// Draw the frame `at`: of each chunk the share `progress` has been run, and its start has gone the
// share `way` of its way to the next frame.
function draw(progress = 1, way = 0) {
  const svg = $("picture"), width = svg.clientWidth || 640;
  const { length, frames } = solved, { starts, ends, states, settled } = frames[at];
  const following = frames[Math.min(at + 1, last())].starts;
  const X = (t) => EDGE.left + (t / settings.steps) * (width - EDGE.left - EDGE.right);
  const bottom = HEIGHT - EDGE.bottom;
  const Y = (v) => {
    const share = (v - range[0]) / (range[1] - range[0]);
    const kept = Number.isFinite(share) ? Math.min(1, Math.max(0, share)) : 1;
    return bottom - kept * (bottom - EDGE.top);
  };
  const point = (t, v) => `${X(t).toFixed(1)} ${Y(v).toFixed(1)}`;
  const wide = X(length) - X(0), radius = Math.max(1.3, Math.min(4.5, wide / 3));

  let lines = "", runs = "", gaps = "", dots = "";
  starts.forEach((start, c) => {
    const from = c * length, to = Math.min(settings.steps, from + length);
    const until = from + Math.round(progress * (to - from));
    const points = [point(from, shown(start))];
    for (let t = from; t < until; t++) points.push(point(t + 1, shown(states[t])));
    runs += `M${points.join("L")}`;
    if (c && wide > 5) lines += `M${X(from).toFixed(1)} ${EDGE.top}V${bottom}`;
    const done = c === 0 || settled[c - 1];
    if (c && progress === 1 && !done) gaps += `M${point(from, shown(ends[c - 1]))}L${point(from, shown(start))}`;
    const v = shown(start) + (done ? 0 : way * (shown(following[c]) - shown(start)));
    dots += `<circle class="see-start${done ? " settled" : ""}" cx="${X(from).toFixed(1)}" cy="${Y(v).toFixed(1)}" r="${radius}"/>`;
  });
  const path = [point(0, shown(starts[0])), ...truth.map((x, t) => point(t + 1, shown(x)))];
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.innerHTML = `<path class="see-grid" d="${lines}"/>
<path class="see-axis" d="M${EDGE.left} ${Y(0)}H${width - EDGE.right}"/>
<path class="see-truth" d="M${path.join("L")}"/>
<path class="see-run${way ? " see-old" : ""}" d="${runs}"/><path class="see-gap" d="${gaps}"/>${dots}
${text(EDGE.left, HEIGHT - 6, "0")}${text((EDGE.left + width) / 2, HEIGHT - 6, "time step")}
${text(width - EDGE.right, HEIGHT - 6, settings.steps, "end")}
${text(EDGE.left - 6, Y(0) + 4, "0", "end")}${text(EDGE.left - 6, Y(truthTop()) + 4, number(truthTop()), "end")}`;
}

function truthTop() {
  const values = truth.map(shown).filter(Number.isFinite);
  const high = Math.max(...values), low = Math.min(...values);
  return high > -low ? high : low;
}

const largestGap = (frame) => largest(frame.gaps.flat());

function drawGaps() {
  const svg = $("gaps"), width = svg.clientWidth || 640, bottom = GAPS - EDGE.bottom, left = EDGE.left + 8;
  const low = -18, high = 2; // powers of ten; what is beyond stands at the edge
  const X = (i) => left + ((i + 0.5) / (last() + 1)) * (width - left - EDGE.right);
  const Y = (gap) => {
    const power = gap > 0 ? Math.min(high, Math.max(low, Math.log10(gap))) : gap === 0 ? low : high;
    return bottom - ((power - low) / (high - low)) * (bottom - EDGE.top);
  };
  const wide = (width - left - EDGE.right) / (last() + 1), half = Math.min(14, 0.38 * wide);
  const bars = solved.frames.map((frame, i) => {
    const top = Math.min(Y(largestGap(frame)), bottom - 2);
    return `<rect class="see-bar${i === at ? " now" : ""}" x="${(X(i) - half).toFixed(1)}" y="${top.toFixed(1)}" width="${(2 * half).toFixed(1)}" height="${(bottom - top).toFixed(1)}"/>`;
  });
  const every = Math.ceil((last() + 1) / Math.max(2, Math.floor(width / 44)));
  const labels = solved.frames.map((_, i) => (i % every ? "" : text(X(i), GAPS - 6, i || "guess")));
  const ticks = [0, -8, -16].map((power) =>
    `<path class="see-grid" d="M${left} ${Y(10 ** power)}H${width - EDGE.right}"/>${text(left - 4, Y(10 ** power) + 4, power ? `1e${power}` : "1", "end")}`);
  svg.setAttribute("viewBox", `0 0 ${width} ${GAPS}`);
  svg.innerHTML = ticks.join("") + bars.join("") + labels.join("");
  svg.setAttribute("aria-label",
    `Largest gap after each update: ${solved.frames.map((f) => largestGap(f).toExponential(0)).slice(0, 20).join(", ")}`);
}

function tell() {
  const { chunks, length, frames } = solved, frame = frames[at];
  const settled = 1 + frame.settled.filter(Boolean).length, gap = largestGap(frame);
  const when = at ? `Update ${at} of ${last()}` : "The guess";
  const all = `${last()} ${last() === 1 ? "update" : "updates"}`;
  const outcome = chunks === 1 ? "One chunk is the plain loop: no update is needed."
    : at === last() ? `Done: ${all} for ${chunks} chunks of ${length} steps.`
    : `${when}: ${settled} of ${chunks} starts settled, largest gap ${number(gap)}.`;
  $("status").textContent = outcome;
  $("picture").setAttribute("aria-label", `States of ${CELLS[settings.cell].title} over ${settings.steps} steps. ${outcome}`);
  $("step").disabled = at === last();
  $("play").disabled = last() === 0;
  $("play").textContent = playing ? "Pause" : at === last() && at ? "Play again" : "Play";
  document.getElementById("see").dataset.at = at;
  document.getElementById("see").dataset.updates = last();
}

// -- movement --------------------------------------------------------------------------------------

// Paint shares from 0 to 1 in so many milliseconds, then call `done`.
function animate(milliseconds, paint, done) {
  const mine = ++movement, begin = performance.now();
  const frame = (now) => {
    if (mine !== movement) return;
    const share = Math.min(1, Math.max(0, (now - begin) / milliseconds));
    paint(share);
    if (share < 1) requestAnimationFrame(frame);
    else done();
  };
  requestAnimationFrame(frame);
}

function stop() {
  movement++;
  playing = false;
}

function show(frame) {
  at = frame;
  draw();
  drawGaps();
  tell();
}

// One update: the starts move, then all chunks run.
function advance(then = () => {}) {
  if (at >= last()) return;
  const pace = playing ? Math.min(1, 14 / last()) : 1; // many updates go by faster
  const arrive = () => {
    show(at + 1);
    then();
  };
  if (still()) return playing ? animate(900 * pace, () => {}, arrive) : arrive();
  animate(500 * pace, (share) => draw(1, share * share * (3 - 2 * share) || 1e-9), () => {
    const from = at;
    animate(900 * pace, (share) => { at = from + 1; draw(share); at = from; }, arrive);
  });
}

function play() {
  if (at === last()) show(0);
  playing = true;
  tell();
  const again = () => {
    if (at < last()) return animate(350 * Math.min(1, 14 / last()), () => {}, () => advance(again));
    playing = false;
    tell();
  };
  advance(again);
}

// -- controls --------------------------------------------------------------------------------------

// The controls show the settings, the pictures what follows from them.
function changed(update = 0) {
  stop();
  const cell = CELLS[settings.cell], all = counts();
  settings.gain = cell.scaled.length ? Math.min(settings.gain, cell.most) : 1;
  settings.chunks = Math.min(settings.chunks, all.at(-1));
  solve();
  $("cell").value = settings.cell;
  const ranges = { gain: [cell.most, settings.gain, settings.gain.toFixed(1)],
    steps: [LENGTHS.length - 1, LENGTHS.indexOf(settings.steps), settings.steps],
    chunks: [all.length - 1, all.indexOf(settings.chunks), solved.chunks] };
  for (const [name, [most, value, words]] of Object.entries(ranges)) {
    $(name).max = most;
    $(name).value = value;
    $(name).setAttribute("aria-valuetext", words);
    $(`${name}-value`).textContent = words;
  }
  $("gain").disabled = !cell.scaled.length;
  $("gain-hint").textContent = cell.scaled.length
    ? `The gain multiplies ${cell.scaled.join(", ")}, the recurrent weights.`
    : "No gain for this cell: it is linear, and takes one update whatever its weights.";
  $("code").textContent = code();
  show(Math.min(update, last()));
}

// Settings from "cell=gru&gain=2&steps=256&chunks=16", as an example has them, or the address.
function set(words) {
  const given = new URLSearchParams(words);
  if (given.get("cell") in CELLS) settings.cell = given.get("cell");
  const gain = parseFloat(given.get("gain"));
  if (gain >= 0) settings.gain = gain;
  if (LENGTHS.includes(+given.get("steps"))) settings.steps = +given.get("steps");
  if (counts().includes(+given.get("chunks"))) settings.chunks = +given.get("chunks");
  changed(parseInt(given.get("update")) || 0);
}

function start() {
  for (const [name, { title }] of Object.entries(CELLS)) $("cell").add(new Option(title, name));
  $("steps").max = LENGTHS.length - 1;
  $("cell").addEventListener("change", (e) => { settings.cell = e.target.value; changed(); });
  $("gain").addEventListener("input", (e) => { settings.gain = +e.target.value; changed(); });
  $("steps").addEventListener("input", (e) => { settings.steps = LENGTHS[+e.target.value]; changed(); });
  $("chunks").addEventListener("input", (e) => { settings.chunks = counts()[+e.target.value]; changed(); });
  $("reset").addEventListener("click", () => { stop(); show(0); });
  $("step").addEventListener("click", () => { const now = at; stop(); show(now); advance(); });
  $("play").addEventListener("click", () => {
    if (playing) { stop(); show(at); } else play();
  });
  for (const button of document.querySelectorAll("#see [data-set]")) {
    button.addEventListener("click", () => { set(button.dataset.set); play(); });
  }
  addEventListener("resize", () => { if (!playing) show(at); });
  addEventListener("hashchange", () => set(location.hash.slice(1)));
  set(location.hash.slice(1));
}

start();
