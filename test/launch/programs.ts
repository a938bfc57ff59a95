// What users' scripts do, by name: `node programs.mjs NAME PLACEMENT RANKS [more]`. The last line of standard output is a result as JSON.
import { Tensor } from '../../runtime/core/tensor.ts'
import { runModel } from '../../runtime/model/run.ts'
import { fileFolder } from '../../runtime/model/source-file.ts'
import { type LaunchOptions, launch, type Placement, type RankContext } from '../../runtime/scheduler/launch.ts'

const [name, placement, ranks, ...more] = process.argv.slice(2) as [string, Placement | 'default', string, ...string[]]
const common: LaunchOptions = {
  ...(ranks !== '-' && { ranks: Number(ranks) }),
  ...(placement !== 'default' && { placement }),
  device: 'webgpu:software',
  timeoutMs: 30_000,
}

/** Sums over all ranks: on the device and on the host. */
async function sums({ rank, size, device, comm, host }: RankContext): Promise<unknown> {
  using x = Tensor.full([3, 5], rank + 1, { device })
  using y = await comm.allReduce(x)
  return { rank, size, device: (await y.data())[7], host: await host.allReduce(new Float64Array([rank])), text: new Map([[rank, 'é']]) }
}

const programs: Record<string, () => Promise<unknown>> = {
  sums: () => launch(common, sums),

  /** Results of calls that started ranks come back in each rank's own run of the program. */
  async twice() {
    const first = await launch(common, ({ rank }) => rank + 1)
    const between = await launch({ ranks: 2, placement: 'local', device: 'webgpu:software' }, ({ rank }) => rank * 100)
    const second = await launch(common, async ({ rank, host }) => [await host.allReduce(first[rank]! + between[1]!), rank])
    return { first, between, second }
  },

  async generate() {
    const { text } = await runModel({
      folder: fileFolder(`${process.env.RANKMESH_TEST_ROOT}/examples/models/tiny-shakespeare`),
      prompt: 'ROMEO:\n',
      maxNewTokens: Number(more[0]),
      ...common,
      ...(more[1] && { device: more[1] }),
      ranks: Number(ranks),
    })
    return text
  },

  /** A rank throws, number 1 unless told otherwise; what others hear goes to standard error. Nothing that ranks start takes itself for one. */
  async heard() {
    const orders = process.env.RANKMESH_ORDERS
    return launch(common, async ({ rank, host }) => {
      if (orders !== undefined) throw new Error('a rank hands its orders on')
      await host.barrier()
      if (rank === Number(more[0] ?? 1)) throw new TypeError('on purpose')
      try {
        await host.barrier()
      } catch (error) {
        console.error(`heard ${(error as Error).message}`)
        throw error
      }
    }).catch((error) => error.message)
  },

  /** Rank 1 returns while the others gather values. */
  async early() {
    return launch(common, async ({ rank, host }) => (rank === 1 ? 'a result' : host.allGather('a value'))).catch((error) => [
      error.code,
      error.message,
    ])
  },

  /** Rank 1 ends in some way while the others wait for it. */
  async ending() {
    const [how] = more
    const started = performance.now()
    const stop = new AbortController()
    if (how === 'signal') setTimeout(() => stop.abort(new RangeError('enough')), 1000)
    try {
      await launch({ ...common, signal: stop.signal }, async ({ rank, device, host, comm, signal }) => {
        await host.barrier()
        if (rank === 1) {
          if (how === 'throw') throw new TypeError('on purpose')
          if (how === 'kill') process.kill(process.pid, 'SIGKILL')
          if (how === 'exit') process.exit(3)
          if (how === 'return') return 0
          if (how === 'function') return () => {}
        }
        if (how === 'function') return 0
        if (how === 'signal' && rank === 0) {
          await new Promise((resolve) => signal.addEventListener('abort', resolve))
          throw signal.reason
        }
        using x = Tensor.full([4], 1, { device })
        for (;;) (await comm.allReduce(x)).dispose()
      })
      return { code: 'none' }
    } catch (error) {
      const { name: kind, code, message, rank } = error as Error & { code?: string; rank?: number }
      return { kind, code, message, rank, ms: performance.now() - started }
    }
  },
}

const program = programs[name]
if (!program) throw new Error(`no program ${name}`)
const result = await program()
console.log(
  JSON.stringify(result, (_, value) =>
    value instanceof Map ? [...value] : ArrayBuffer.isView(value) ? [...(value as Float64Array)] : value,
  ),
)
