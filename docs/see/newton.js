// Newton's method on chunk starts, for one channel: the iteration of parnl/solver/newton.py, with
// every update kept to be looked at. A chunk of this page is shorter than 1024 steps, from which
// on parnl guesses its start from the steps before it; so every start is first guessed as x0.

const EPSILON = Number.EPSILON;
const LIMIT = Math.sqrt(Number.MAX_VALUE) / 100; // products of Jacobians stay finite
const GROWTH = Math.log(100); // what grows by more amplifies rounding errors

const clamp = (x) => Math.min(Math.max(x, -LIMIT), LIMIT);
const tamed = (x) => (Number.isNaN(x) ? 0 : clamp(x));
const largest = (xs) => xs.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
const difference = (a, b) => (a === b || (a !== a && b !== b) ? 0 : a - b);

// Products of k x k blocks, row by row, and with a vector.
function matmul(a, b, k) {
  return a.map((_, e) => {
    const row = e - (e % k);
    let total = a[row] * b[e % k];
    for (let m = 1; m < k; m++) total += a[row + m] * b[m * k + (e % k)];
    return total;
  });
}
function matvec(a, x) {
  return x.map((_, i) => {
    let total = a[i * x.length] * x[0];
    for (let j = 1; j < x.length; j++) total += a[i * x.length + j] * x[j];
    return total;
  });
}
const plus = (x, y) => x.map((_, i) => x[i] + y[i]);

// d[0] = b[0] and d[c] = a[c] d[c - 1] + b[c]. Neighbours are composed in pairs, the scan of the
// pairs gives every second value: log2 C levels, each of which runs in parallel.
function affineScan(a, b) {
  const n = b.length, k = b[0].length;
  if (n === 1) return [b[0]];
  const pairA = [], pairB = [];
  for (let c = 0; c + 1 < n; c += 2) {
    pairA.push(matmul(a[c + 1], a[c], k).map(clamp));
    pairB.push(plus(b[c + 1], matvec(a[c + 1], b[c])));
  }
  const odd = affineScan(pairA, pairB);
  return b.map((_, c) => {
    if (c % 2) return odd[(c - 1) / 2];
    return c ? plus(b[c], matvec(a[c], odd[c / 2 - 1])) : b[0];
  });
}

// The states of steps from <= t < to, and the product of their Jacobians.
function rollout(cell, operands, start, from, to) {
  const k = start.length, states = [];
  let x = start, product = null;
  for (let t = from; t < to; t++) {
    const [next, jacobian] = cell.stepJacobian(x, operands(t));
    product = product ? matmul(jacobian, product, k) : jacobian;
    states.push((x = next));
  }
  return { states, end: x, product };
}

// By how much, as a logarithm, what is left at a chunk start has grown up to this one, at most.
// sizes: of the states, the units to measure in.
function growth(products, sizes) {
  const k = Math.sqrt(products[0].length);
  let level = 0, lowest = 0;
  return products.map((raw) => {
    const nan = raw.some(Number.isNaN);
    let entries = raw.map((p) => (nan ? 0 : clamp(p)));
    if (k > 1) {
      const ratio = (i, j) => (sizes[i] > 0 ? Math.min(sizes[j] / sizes[i], LIMIT) : 0);
      entries = entries.map((p, e) => clamp(p * ratio(Math.floor(e / k), e % k)));
    }
    let power = 1; // the norm of a power nears the spectral radius
    for (; k > 1 && power < 4; power *= 2) entries = matmul(entries, entries, k).map(clamp);
    level += nan ? 0 : Math.log(Math.max(largest(entries), 1e-30)) / power;
    lowest = Math.max(lowest, -level);
    return level + lowest;
  });
}

// For each flag, whether it and all before it are set.
function allSoFar(flags) {
  let all = true;
  return flags.map((flag) => (all = all && flag));
}

// Solve T = `steps` in about `asked` chunks. Returns the number of chunks, their length, and what
// there is before the first update and after each: chunk starts, states, ends of the chunks, gaps
// to the next start, and which of these starts are settled.
function newton(cell, operands, x0, steps, asked, { tolerance = null, most = asked } = {}) {
  const chunks = Math.ceil(steps / Math.ceil(steps / asked));
  const length = Math.ceil(steps / chunks);
  const allowed = tolerance ?? 8 * EPSILON * Math.sqrt(length);

  function run(starts, before = null) {
    const runs = starts.map((start, c) => // a start that has not moved gives the same run
      before && before.starts[c] === start ? before.runs[c]
        : rollout(cell, operands, start, c * length, Math.min(steps, (c + 1) * length)));
    const ends = runs.map((r) => r.end);
    const gaps = starts.slice(1).map((s, c) => s.map((_, i) => difference(ends[c][i], s[i])));
    const raw = runs.slice(0, -1).map((r) => r.product);
    return { starts, runs, ends, gaps, raw, states: runs.flatMap((r) => r.states) };
  }

  function update(frame) {
    const { starts, ends, gaps, raw, settled } = frame;
    const products = raw.map((block) => block.map(tamed));
    const open = gaps.map((gap, c) => (settled[c] ? gap.map(() => 0) : gap));
    const change = affineScan(products, open);
    const none = x0.map(() => 0);
    const after = products.map((product, c) =>
      settled[c] ? starts[c + 1] : plus(ends[c], matvec(product, c ? change[c - 1] : none)));
    const next = run([starts[0], ...after], frame);

    const sizes = []; // of each state, the largest at the chunk starts so far
    next.starts.forEach((s, c) =>
      sizes.push(s.map((x, i) => Math.max(c ? sizes[c - 1][i] : 0, Number.isFinite(x) ? Math.abs(x) : 0))));
    const tame = growth(raw, sizes[chunks - 1]).map((g) => g < GROWTH);
    const allTame = tame.every(Boolean);
    const bounded = allSoFar(raw.map((block, c) => tame[c] && largest(block) < LIMIT));
    next.settled = allSoFar(next.gaps.map((gap, c) => {
      const small = gap.every((g, i) => Math.abs(g) <= allowed * sizes[c + 1][i]);
      const enough = cell.linear ? bounded[c] : allTame && small;
      return settled[c] || enough || largest(gap) === 0;
    }));
    return next;
  }

  const frames = [run(Array(chunks).fill(x0))];
  frames[0].settled = Array(chunks - 1).fill(false);
  while (frames.length <= most && !frames.at(-1).settled.every(Boolean)) {
    frames.push(update(frames.at(-1)));
  }
  return { chunks, length, frames };
}

// The plain loop: every state, one step after the other.
function loop(cell, operands, x0, steps) {
  const states = [];
  for (let t = 0, x = x0; t < steps; t++) states.push((x = cell.step(x, operands(t))));
  return states;
}
