// Collectives and fused collectives with ranks of one thread, in threads and in processes, that share a GPU, and on several GPUs.
// Sizes are multiples of the number of ranks, as reduce-scatter wants them.
import { FLOATS, Skip } from './checks.mjs'
import { alike, runRanks } from './groups.mjs'

/** By which a group over the devices' memory describes itself. */
const PEERS = "kernels over the devices' memory"

export async function run(report, { seed, quick, sanitized, devices, addon }) {
  const counts = quick ? [2] : [1, 2, 4, 8]
  const shapes = quick
    ? [
        [1, 64],
        [5, 96],
      ]
    : [
        [1, 64],
        [3, 1040],
        [9, 4096],
        [130, 1024],
      ]
  const dtypes = quick ? ['float32', 'bfloat16'] : FLOATS
  const timeoutMs = sanitized ? 600_000 : 60_000
  const seconds = sanitized ? 1800 : 300
  const plan = { task: 'collectives', seed, shapes, dtypes, timeoutMs }
  for (const placement of ['local', 'thread', 'process']) {
    for (const ranks of counts) {
      const expect = placement === 'local' || ranks === 1 ? undefined : PEERS
      await report.check(`${ranks} rank${ranks > 1 ? 's' : ''} on cuda:0, ${placement}`, async () =>
        alike(await runRanks({ ...plan, placement, ranks, devices: ['cuda:0'], expect }, { seconds })),
      )
    }
  }
  // As ranks on GPUs that do not reach each other's memory have it.
  for (const placement of ['local', 'process']) {
    const pinned = { backend: 'cuda-ipc', memory: 'pinned', expect: 'by kernels over pinned memory' }
    await report.check(`2 ranks on cuda:0 over pinned memory, ${placement}`, async () =>
      alike(await runRanks({ ...plan, ...pinned, placement, ranks: 2, devices: ['cuda:0'] }, { seconds })),
    )
  }
  const names = devices.map(({ index }) => `cuda:${index}`)
  for (const placement of ['local', 'thread', 'process']) {
    for (const ranks of [names.length, ...(quick ? [] : [2 * names.length])]) {
      await report.check(`${ranks} ranks on ${names.length} GPUs, ${placement}`, async () => {
        if (names.length < 2) throw new Skip('there is one GPU')
        return alike(
          await runRanks(
            { ...plan, shapes: shapes.map(([rows, n]) => [rows, n * names.length]), placement, ranks, devices: names },
            { seconds },
          ),
        )
      })
    }
  }
  // One store that reaches all GPUs, and the bits without.
  for (const placement of ['local', 'thread', 'process']) {
    await report.check(`${names.length} ranks on ${names.length} GPUs by multicast, ${placement}`, async () => {
      if (names.length < 2) throw new Skip('there is one GPU')
      for (const { index } of devices) {
        const engine = addon.createCudaEngine(index)
        const { available, detail } = engine.multicast()
        engine.close()
        if (!available) throw new Skip(detail)
      }
      const wide = shapes.map(([rows, n]) => [rows, n * names.length])
      const group = { ...plan, shapes: wide, placement, ranks: names.length, devices: names }
      const by = await runRanks(group, { seconds })
      const [{ about }] = by
      const refused = /without multicast \((.*)\)/.exec(about)
      if (refused) throw new Skip(refused[1])
      if (!about.includes('by multicast')) throw new Error(`expected ranks with a multicast, and they are ${about}`)
      const pinned = await runRanks({ ...group, backend: 'cuda-ipc', memory: 'pinned' }, { seconds })
      alike([...by, ...pinned])
      return about
    })
  }
}
