// Figures of one GPU: copies, the fused all-reduce with residual and norm, what a call costs JavaScript, products of one token, decoding.
import { LanguageModel, launch, openDevice, Tensor } from 'rankmesh'
import { median } from './checks.mjs'
import { folder } from './model.mjs'
import { cell, normBytes, shapesFor, share, timed, timeFusedNorm } from './norm.mjs'

const DEVICE = 'cuda:0'

export async function run(report, { quick }) {
  const device = await openDevice(DEVICE)
  const copy = await copyBandwidth(device, quick ? 2 ** 16 : 2 ** 28)
  report.figure('copy', { gigabytesPerSecond: copy }, `copy bandwidth, read and written: ${copy.toFixed(1)} GB/s`)
  for (const [outs, k] of quick
    ? [[64, 64]]
    : [
        [4096, 4096],
        [14336, 4096],
      ]) {
    const { microseconds, gigabytesPerSecond } = await matvec(device, outs, k)
    const line = `1 token by ${outs} x ${k} bfloat16: ${microseconds.toFixed(1)} us, ${gigabytesPerSecond.toFixed(0)} GB/s of weights (${share(gigabytesPerSecond, copy)} of copy)`
    report.figure('matvec', { outs, k, microseconds, gigabytesPerSecond }, line)
  }
  device.dispose()

  report.figure('head', {}, 'fused all-reduce + residual + RMSNorm, bfloat16, ranks on one GPU:')
  report.figure(
    'head',
    {},
    ['ranks', 'rows', 'n', 'us', 'GB/s', 'of copy', 'recorded us', 'GB/s', 'of copy', 'JavaScript us', 'to beat, us'].map(cell).join(''),
  )
  for (const { ranks, rows, n, beat } of shapesFor(quick)) {
    const results = await launch({ ranks, placement: 'local', device: DEVICE }, (context) =>
      timeFusedNorm(context, { rows, n, times: quick ? 3 : 50 }),
    )
    const { plain, recorded, enqueue } = results[0]
    const speed = (microseconds) => normBytes(ranks, rows, n) / microseconds / 1e3
    const of = (microseconds) => [microseconds.toFixed(1), speed(microseconds).toFixed(0), share(speed(microseconds), copy)]
    const values = { ranks, rows, n, microseconds: plain, recordedMicroseconds: recorded, enqueueMicroseconds: enqueue }
    const line = [ranks, rows, n, ...of(plain), ...of(recorded), enqueue.toFixed(1), beat ?? ''].map(cell).join('')
    report.figure('fusedNorm', { ...values, gigabytesPerSecond: speed(plain), recordedGigabytesPerSecond: speed(recorded) }, line)
  }
  for (const ranks of [1, 2, 4]) {
    const tokensPerSecond = await decode(ranks, quick ? 4 : 128)
    report.figure(
      'decode',
      { ranks, tokensPerSecond },
      `decode of the bundled model, ${ranks} ranks: ${tokensPerSecond.toFixed(0)} tokens/s`,
    )
  }
}

async function copyBandwidth(device, bytes) {
  const [a, b] = [Tensor.empty([bytes / 2], { dtype: 'bfloat16', device }), Tensor.empty([bytes / 2], { dtype: 'bfloat16', device })]
  const microseconds = await timed(device, 20, () => device.copy(a, b))
  a.dispose()
  b.dispose()
  return (2 * bytes) / microseconds / 1e3
}

async function matvec(device, outs, k) {
  const options = { dtype: 'bfloat16', device }
  // Several, so that none is found in the cache.
  const count = Math.min(8, Math.ceil(2 ** 29 / (outs * k * 2)))
  const weights = Array.from({ length: count }, () => Tensor.full([outs, k], 0.01, options))
  const x = Tensor.full([1, k], 1, options)
  const out = Tensor.empty([1, outs], { device })
  let next = 0
  const microseconds = await timed(device, 64, () => device.matmul(x, weights[next++ % count], { out }))
  for (const tensor of [...weights, x, out]) tensor.dispose()
  return { microseconds, gigabytesPerSecond: (outs * k * 2) / microseconds / 1e3 }
}

async function decode(ranks, steps) {
  const results = await launch({ ranks, placement: 'local', device: DEVICE }, async (context) => {
    const model = await LanguageModel.load(folder, context, { capacity: steps + 16 })
    const rates = []
    for (let round = 0; round < 4; round++) {
      let start = 0
      let count = 0
      for await (const _ of model.generate('ROMEO:\n', { maxNewTokens: steps, stopIds: [] })) {
        if (count++ === 0) start = performance.now()
      }
      if (round > 0) rates.push(((count - 1) * 1000) / (performance.now() - start))
    }
    model.dispose()
    return median(rates)
  })
  return results[0]
}
