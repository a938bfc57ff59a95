// The same sums and norms as others do them: PyTorch one operation after the other on one card, NCCL and then a norm, and ours among several cards.
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { Skip } from './checks.mjs'
import { needNccl, runRanks } from './groups.mjs'
import { cell, shapesFor } from './norm.mjs'

const program = join(import.meta.dirname, '../../bench/peers/fused_norm.py')

export async function run(report, { quick, devices, features, addon }) {
  const shapes = shapesFor(quick)
  const times = quick ? 3 : 50
  await report.check('PyTorch, ranks on one GPU', () => {
    table(report, 'torch', torch('cuda', shapes, times))
  })
  const cards = devices.length
  const apart = cards > 1 ? cards : 2
  const over = shapes.filter(({ ranks }) => ranks === 2).map((shape) => ({ ...shape, ranks: apart }))
  await report.check(`PyTorch over NCCL, ${cards} GPUs`, () => {
    if (cards < 2) throw new Skip('it wants several GPUs')
    table(report, 'torchNccl', torch('nccl', over, times))
  })
  const names = Array.from({ length: apart }, (_, i) => `cuda:${i % cards}`)
  for (const [backend, expect] of [
    ['nccl', 'NCCL'],
    ['cuda-ipc', 'CUDA'],
  ]) {
    await report.check(`${backend}, ${apart} ranks on ${cards} GPU${cards > 1 ? 's' : ''}, process`, async () => {
      if (backend === 'nccl') needNccl({ features, addon }, cards < 2)
      const plan = { task: 'norms', backend, expect, placement: 'process', ranks: apart, devices: names, shapes: over, times }
      const [{ about, found }] = await runRanks(plan, { env: cards < 2 ? { NCCL_MULTI_RANK_GPU_ENABLE: '1' } : {} })
      table(report, backend, found)
      return about
    })
  }
}

/** What PyTorch takes for such chains. @throws Skip where it is not there, or sees no GPU. */
function torch(device, shapes, times) {
  const input = shapes.map(({ ranks, rows, n }) => `${ranks} ${rows} ${n}`).join('\n')
  const ran = spawnSync('python3', [program, device, `${times}`], { input, encoding: 'utf8', timeout: 600_000 })
  if (ran.error) throw new Skip(`python3 is not there: ${ran.error.message}`)
  const lines = ran.stdout.split('\n').filter(Boolean)
  const said = ran.stderr.trim().split('\n').at(-1)
  if (lines.length === 0) throw new Skip(`PyTorch is not there: ${said}`)
  const [about, ...found] = lines.map((line) => JSON.parse(line))
  if (about.devices === 0) throw new Skip(`PyTorch ${about.torch} sees no GPU`)
  if (ran.status !== 0) throw new Error(`it ended with ${ran.status ?? ran.signal}: ${said}`)
  return found
}

function table(report, name, found) {
  report.figure('head', {}, [name, 'ranks', 'rows', 'n', 'us', 'graph, us'].map(cell).join(''))
  for (const { ranks, rows, n, microseconds, graphMicroseconds } of found) {
    const shown = [microseconds, graphMicroseconds].map((value) => value?.toFixed(1) ?? '')
    report.figure(name, { ranks, rows, n, microseconds, graphMicroseconds }, ['', ranks, rows, n, ...shown].map(cell).join(''))
  }
}
