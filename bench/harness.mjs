// What the benchmarks share: contenders take turns in one run (A B A B ...), medians and their ratio are printed, answers are checked first.

/** Runs each contender once per round, in turn, after one warm-up; returns the median milliseconds of each. */
export async function takeTurns(contenders, rounds = 9) {
  const names = Object.keys(contenders)
  const times = Object.fromEntries(names.map((name) => [name, []]))
  for (const name of names) await contenders[name]()
  for (let round = 0; round < rounds; round++) {
    for (const name of names) {
      const start = performance.now()
      await contenders[name]()
      times[name].push(performance.now() - start)
    }
  }
  return Object.fromEntries(names.map((name) => [name, median(times[name])]))
}

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

export function row(cells, widths) {
  console.log(cells.map((cell, i) => (i === 0 ? String(cell).padEnd(widths[i]) : String(cell).padStart(widths[i]))).join('  '))
}

export function verdict(ok) {
  return ok ? 'ok' : 'MISSED'
}

export function adapterLine(device) {
  const kind = device.software ? 'a software adapter: these figures show the shape of the code, not the speed of a GPU' : 'a GPU'
  console.log(`Adapter: ${device.description} (${kind})\n`)
}

export function randomFloats(n) {
  return Float32Array.from({ length: n }, () => Math.random() * 2 - 1)
}

export function check(name, actual, expected, tolerance) {
  for (let i = 0; i < expected.length; i++) {
    if (!(Math.abs(actual[i] - expected[i]) <= tolerance)) throw new Error(`${name}: element ${i} is ${actual[i]}, expected ${expected[i]}`)
  }
}
