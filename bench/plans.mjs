// Uneven plans on unlike ranks: decode with measured shares against even ones and against the best shares of a sweep.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileFolder, LanguageModel, launch, openDevice } from 'rankmesh'
import { row, verdict } from './harness.mjs'
import { writeModel } from './synthetic.mjs'

export const about = 'decode on unlike ranks: measured shares (1.5x the even ones, within 10 % of the best of a sweep)'

const SLOWER = 3
const STEPS = 8
const ROUNDS = 15
const SWEEP = [0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 1]

/** A device that computes every product `times` times. */
function slowed(fast, times) {
  const matmul = (x, w, options) => {
    const y = fast.matmul(x, w, options)
    for (let i = 1; i < times; i++) fast.matmul(x, w, { ...options, out: y })
    return y
  }
  return new Proxy(fast, {
    get(target, key) {
      if (key === 'matmul') return matmul
      const value = Reflect.get(target, key, target)
      return typeof value === 'function' ? value.bind(target) : value
    },
  })
}

const step = async ({ llama }) => {
  const logits = await llama.forward([97])
  await logits.last()
  logits.dispose()
}

/** The fewest milliseconds a token of each model, in turns: ranks wait for each other, so whatever else the cores do only makes them slower. */
async function fastest(models) {
  const times = Object.fromEntries(Object.keys(models).map((name) => [name, Number.POSITIVE_INFINITY]))
  for (let round = 0; round < ROUNDS; round++) {
    for (const [name, model] of Object.entries(models)) {
      model.llama.truncate(0)
      const start = performance.now()
      for (let i = 0; i < STEPS; i++) await step(model)
      times[name] = Math.min(times[name], (performance.now() - start) / STEPS)
    }
  }
  return times
}

/** Milliseconds a token by plan, all loaded at once and timed in turns, and the shares that were measured. */
async function compare(folder, devices, repeats) {
  const [result] = await launch({ ranks: 2, devices }, async ({ rank, comm, device }) => {
    const context = { comm, device: rank === 1 ? slowed(device, repeats) : device }
    const load = (shares) => LanguageModel.load(folder, context, { capacity: STEPS, shares })
    const models = { measured: await load('measured') }
    for (const fast of SWEEP) models[fast] = await load([fast, 1 - fast])
    const times = await fastest(models)
    const { shares } = models.measured.llama.plan
    for (const model of Object.values(models)) model.dispose()
    return { times, shares }
  })
  return result
}

/** How much longer a rank alone takes when it computes every product so many times; less than that, as weights are in caches by then. */
async function slowness(folder, device, repeats) {
  const [times] = await launch({ ranks: 1, devices: [device] }, async ({ comm, device }) => {
    const models = {
      fast: await LanguageModel.load(folder, { comm, device }, { capacity: STEPS }),
      slow: await LanguageModel.load(folder, { comm, device: slowed(device, repeats) }, { capacity: STEPS }),
    }
    const times = await fastest(models)
    for (const model of Object.values(models)) model.dispose()
    return times
  })
  return times.slow / times.fast
}

export async function run() {
  const at = mkdtempSync(join(tmpdir(), 'rankmesh-plans-'))
  const devices = [await openDevice('cpu'), await openDevice('cpu')]
  try {
    const folder = fileFolder(writeModel(at, '57m', 'f16'))
    let repeats = SLOWER
    let slower = await slowness(folder, devices[0], repeats)
    while (slower < SLOWER) slower = await slowness(folder, devices[0], ++repeats)
    console.log('Two CPU ranks, 57 million weights in float16. Rank 1 computes every product several times,')
    console.log(`so that alone it takes ${slower.toFixed(2)} times as long as rank 0.\n`)
    const { times, shares } = await compare(folder, devices, repeats)
    const best = SWEEP.reduce((a, b) => (times[b] < times[a] ? b : a))
    const widths = [22, 12, 10]
    row(['share of the fast rank', 'ms/token', 'of even'], widths)
    const line = (name, time) => row([name, time.toFixed(2), `${(times[0.5] / time).toFixed(2)}x`], widths)
    for (const fast of SWEEP) line(fast.toFixed(2), times[fast])
    line(`measured: ${shares[0].toFixed(2)}`, times.measured)
    const [gain, off] = [times[0.5] / times.measured, times.measured / times[best] - 1]
    console.log(`\nmeasured against even: ${gain.toFixed(2)}x, at least 1.5x: ${verdict(gain >= 1.5)}`)
    console.log(`measured against the best (${best}): ${(100 * off).toFixed(1)} % longer, at most 10 %: ${verdict(off <= 0.1)}`)
  } finally {
    for (const device of devices) device.dispose()
    rmSync(at, { recursive: true })
  }
}
