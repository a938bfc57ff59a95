// Mixed groups whose CUDA ranks a transport joins: the bits of the fixed order, what crosses between devices and host, and that the transport did it.
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { afterAll, describe, expect, it } from 'vitest'
import { LEFT_AT } from '../../runtime/comm/cuda/plan.ts'
import type { ReduceOp } from '../../runtime/comm/device-comm.ts'
import { AllReduceFusionPattern } from '../../runtime/comm/fusion/patterns.ts'
import { PART_ELEMENTS } from '../../runtime/comm/staged/joined-site.ts'
import { addonReport, loadAddon } from '../../runtime/core/addon-node.ts'
import { type DType, decode, dtypeSize, encode, type TensorData } from '../../runtime/core/dtype.ts'
import { Tensor } from '../../runtime/core/tensor.ts'
import type { Device } from '../../runtime/device/device.ts'
import { EngineDevice } from '../../runtime/device/engine/device.ts'
import { openDevice } from '../../runtime/device/open.ts'
import { launch, type RankContext } from '../../runtime/scheduler/launch.ts'
import { bundle } from '../support/bundle.ts'
import { cudaDevices, reason } from '../support/cuda.ts'
import { testDevice } from '../support/device.ts'
import { fixedOrderBytes } from '../support/fixed-order.ts'
import { memoryWires } from '../support/memory-wire.ts'
import { launchOver } from '../support/over-wire.ts'
import { Random, seed } from '../support/random.ts'
import { expectRounded } from '../support/tensors.ts'
import { type Found, mixed } from './staged-cuda-program.ts'

const [cpu, gpu, ...cuda] = await Promise.all([openDevice('cpu'), testDevice(), ...cudaDevices().map(({ open }) => open())])
const [a, b] = [cuda[0] ?? cpu, cuda[1] ?? cpu] as [Device, Device]
afterAll(() => {
  for (const device of [cpu, gpu, ...cuda]) device.dispose()
})

const drawn = seed()

interface Kind {
  name: string
  devices: readonly Device[]
  /** Ranks that add first have the same number. */
  place: readonly number[]
  wired?: boolean
}

const KINDS: Kind[] = [
  { name: 'cuda, cuda, cpu', devices: [a, b, cpu], place: [0, 0, 1] },
  { name: 'cpu, cuda, cuda, webgpu', devices: [cpu, a, b, gpu], place: [1, 0, 0, 2] },
  { name: 'cuda, cpu, cuda of one device', devices: [a, cpu, a], place: [0, 1, 0] },
  { name: 'cuda, cpu, cuda over a wire', devices: [a, cpu, b], place: [0, 1, 0], wired: true },
]

function run<T>({ devices, wired }: Kind, main: (context: RankContext) => Promise<T>): Promise<T[]> {
  const options = { ranks: devices.length, devices: [...devices], timeoutMs: 20_000 }
  return wired ? launchOver(memoryWires(devices.length, { seed: drawn }), options, main) : launch(options, main)
}

/** Values whose sums show the order in which they are added. */
function draw(random: Random, dtype: DType, count: number): TensorData {
  const whole = dtype === 'int32'
  const values = Array.from({ length: count }, () => (whole ? random.bits() | 0 : (random.uniform() - 0.5) * 2 ** random.int(9)))
  return decode(dtype, encode(dtype, values))
}

const BIG = 2 * PART_ELEMENTS + 331

describe.skipIf(reason !== '').each(KINDS)(`$name (seed ${drawn})${reason}`, (kind) => {
  const joined = kind.place.flatMap((place, rank) => (place === 0 ? [rank] : []))

  it('says who is joined', async () => {
    for (const text of await run(kind, async ({ comm }) => comm.describe())) {
      expect(text).toContain(`ranks ${joined.join('+')} joined on their devices`)
    }
  })

  it('sums: the bits of the fixed order on every rank, large, odd, small and of nothing', async () => {
    const random = new Random(drawn)
    const cases = (['float32', 'bfloat16', 'float16', 'int32'] as const).flatMap((dtype) =>
      (['sum', 'avg', 'prod', 'min', 'max'] as ReduceOp[])
        .filter((op) => !(op === 'avg' && dtype === 'int32'))
        .flatMap((op) => (op === 'sum' ? [BIG, 1003, 0] : op === 'avg' ? [BIG] : [BIG - 330]).map((count) => ({ dtype, op, count }))),
    )
    const inputs = cases.map(({ dtype, count }) => kind.devices.map(() => draw(random, dtype, count)))
    const found = await run(kind, async ({ comm, device, rank }) => {
      const results: Uint8Array[] = []
      for (const [i, { dtype, op, count }] of cases.entries()) {
        using x = Tensor.fromBytes(encode(dtype, inputs[i]![rank] as never), [count], dtype, device)
        using y = await comm.allReduce(x, { op })
        results.push(await y.bytes())
      }
      return results
    })
    for (const [i, { dtype, op, count }] of cases.entries()) {
      const wanted = fixedOrderBytes(inputs[i]!, kind.place, op, dtype)
      for (const [rank, results] of found.entries()) {
        expect(Buffer.compare(results[i]!, wanted), `${op} of ${count} ${dtype}, rank ${rank}`).toBe(0)
      }
    }
  })

  it('a result into a place of its own, reduce, reduceScatter and what is moved', async () => {
    const random = new Random(drawn + 1)
    const P = kind.devices.length
    const count = P * 4096
    const inputs = kind.devices.map(() => draw(random, 'bfloat16', count))
    const sum = fixedOrderBytes(inputs, kind.place, 'sum', 'bfloat16')
    const all = Buffer.concat(inputs.map((values) => encode('bfloat16', values as never)))
    const found = await run(kind, async ({ comm, device, rank }) => {
      const x = Tensor.fromBytes(encode('bfloat16', inputs[rank] as never), [count], 'bfloat16', device)
      using base = Tensor.zeros([count + 3], { dtype: 'bfloat16', device })
      using out = base.narrow(0, 3, count)
      await comm.allReduce(x, { out })
      const reduced = await comm.reduce(x, { dst: P - 1 })
      const part = await comm.reduceScatter(x, { dim: 0 })
      const gathered = await comm.allGather(x)
      const sent = await comm.broadcast(x, { src: P - 1 })
      await comm.broadcast(x, { src: 1, inPlace: true })
      return Promise.all([base, reduced, part, gathered, sent, x].map((tensor) => tensor?.bytes() ?? null))
    })
    const width = dtypeSize('bfloat16')
    for (const [rank, [base, reduced, part, gathered, sent, replaced]] of found.entries()) {
      expect(Buffer.compare(base!, Buffer.concat([new Uint8Array(3 * width), sum])), `out, rank ${rank}`).toBe(0)
      if (rank === P - 1) expect(Buffer.compare(reduced!, sum)).toBe(0)
      else expect(reduced).toBeNull()
      expect(Buffer.compare(part!, sum.subarray(rank * 4096 * width, (rank + 1) * 4096 * width)), `reduceScatter, rank ${rank}`).toBe(0)
      expect(Buffer.compare(gathered!, all), `allGather, rank ${rank}`).toBe(0)
      expect(Buffer.compare(sent!, all.subarray((P - 1) * count * width)), `broadcast, rank ${rank}`).toBe(0)
      expect(Buffer.compare(replaced!, all.subarray(count * width, 2 * count * width)), `in place, rank ${rank}`).toBe(0)
    }
  })

  it.each(['float32', 'bfloat16'] as const)('fused norm of %s: within the bound, and the same bits on all ranks', async (dtype) => {
    const random = new Random(drawn + 2)
    for (const [rows, n] of [
      [9, 1031],
      [9, 1032],
      [1, 8200],
      [0, 64],
    ] as const) {
      const partials = kind.devices.map(() => decode(dtype, encode(dtype, random.floats(rows * n))) as Float32Array)
      const [stream, gamma, bias] = [rows * n, n, n].map((k) => decode(dtype, encode(dtype, random.floats(k))) as Float32Array)
      const found = await run(kind, async ({ comm, device, rank }) => {
        const put = (values: Float32Array, shape: number[]): Tensor => Tensor.fromBytes(encode(dtype, values), shape, dtype, device)
        const residual = put(stream!, [rows, n])
        const args = { x: put(partials[rank]!, [rows, n]), residual, weight: put(gamma!, [n]), bias: put(bias!, [n]) }
        const y = await comm.allReduceResidualBiasRMSNorm(args)
        const pattern = AllReduceFusionPattern.kARResidualRMSNorm
        const given = { input: args.x, residualIn: residual, rmsGamma: args.weight, pattern }
        const fused = n % 4 === 0 ? await comm.allReduceFusion(given) : null
        return Promise.all([residual, y, fused?.residualOut, fused?.normOut].map((tensor) => tensor?.bytes() ?? new Uint8Array(0)))
      })
      for (const results of found) for (const [i, bytes] of results.entries()) expect(Buffer.compare(bytes, found[0]![i]!)).toBe(0)
      const total = Float64Array.from(stream!, (before, i) => partials.reduce((s, part) => s + part[i]!, before + bias![i % n]!))
      expectRounded(dtype, found[0]![0]!, total, { abs: 1e-5, rel: 1e-6, what: 'residual' })
      const stored = decode(dtype, found[0]![0]!) as Float32Array
      const roots = Array.from({ length: rows }, (_, row) => {
        return Math.sqrt(stored.subarray(row * n, (row + 1) * n).reduce((s, v) => s + v * v, 0) / n + 1e-6)
      })
      const wanted = Float64Array.from(stored, (value, i) => (value * gamma![i % n]!) / roots[Math.floor(i / n)]!)
      expectRounded(dtype, found[0]![1]!, wanted, { abs: 1e-5, rel: 1e-5, what: 'norm' })
    }
  })
})

interface Crossed {
  read: number[]
  written: number[]
}

/** What all ranks' `work` reads of CUDA devices and writes to them, in bytes by device: told on rank 0. All ranks call it. */
async function crossed({ host, rank, device }: RankContext, work: () => Promise<unknown>): Promise<Crossed | null> {
  await (device as EngineDevice).sync()
  await host.barrier()
  const [read, written] = [new Map<object, number>(), new Map<object, number>()]
  const add = (to: Map<object, number>, device: EngineDevice, bytes: number): void => {
    if (device.kind === 'cuda') to.set(device.memory, (to.get(device.memory) ?? 0) + bytes)
  }
  const own = { read: EngineDevice.prototype.read, write: EngineDevice.prototype.write }
  if (rank === 0) {
    EngineDevice.prototype.read = function (...args) {
      if (args[1] !== LEFT_AT) add(read, this, args[2]) // of a group that has ended, and has yet to learn that all have left
      return own.read.apply(this, args)
    }
    EngineDevice.prototype.write = function (...args) {
      add(written, this, args[2].byteLength)
      own.write.apply(this, args)
    }
  }
  try {
    await host.barrier()
    await work()
    await host.barrier()
  } finally {
    if (rank === 0) Object.assign(EngineDevice.prototype, own)
  }
  await host.barrier()
  return rank === 0 ? { read: [...read.values()], written: [...written.values()] } : null
}

describe.skipIf(reason !== '')(`what crosses between CUDA devices and the host${reason}`, () => {
  const count = 2 * 3 * 4096
  const half = count / 2
  const kinds = KINDS.filter(({ name }) => !name.includes('of one device'))

  it.each(kinds)('$name: of a sum each joined rank reads a half and writes a half', async (kind) => {
    for (const dtype of ['float32', 'bfloat16'] as const) {
      const width = dtypeSize(dtype)
      const found = await run(kind, async (context) => {
        const { comm, device } = context
        using x = Tensor.full([count], 1, { dtype, device })
        const before = comm.stats()
        let result: Tensor | undefined
        const crossing = await crossed(context, async () => {
          result = await comm.allReduce(x)
        })
        const stats = comm.stats()
        expect([...((await result!.data()) as Float32Array)].every((value) => value === kind.devices.length)).toBe(true)
        return { crossing, sent: stats.hostBytes - before.hostBytes, rounds: stats.crossings - before.crossings }
      })
      expect(found[0]!.crossing).toEqual({ read: [4 * half, 4 * half], written: [width * half, width * half] })
      for (const [rank, { sent, rounds }] of found.entries()) {
        const own = kind.place[rank] === 0 ? 4 * half : width * count
        expect([rounds, sent], `rank ${rank}`).toEqual(kind.wired ? [1, own] : [0, 0])
      }
    }
  })

  it.each(kinds)('$name: of a fused norm, also of the residual', async (kind) => {
    const [rows, n] = [24, 1024]
    const found = await run(kind, async (context) => {
      const { comm, device } = context
      using x = Tensor.full([rows, n], 1, { device })
      using residual = Tensor.full([rows, n], 1, { device })
      using weight = Tensor.full([n], 1, { device })
      let result: Tensor | undefined
      const crossing = await crossed(context, async () => {
        result = await comm.allReduceResidualBiasRMSNorm({ x, residual, weight, eps: 0 })
      })
      expect([...((await result!.data()) as Float32Array)].every((value) => value === 1)).toBe(true)
      return crossing
    })
    const bytes = 2 * rows * n // of a half, as float32
    // Where no CPU's residual is at hand, a rank reads its rows of its own, and the weight.
    const alone = kind.wired ? bytes + 4 * n : 0
    expect(found[0]).toEqual({ read: [bytes + alone, bytes + alone], written: [2 * bytes, 2 * bytes] })
  })

  it('small messages: each partial is read as it is', async () => {
    const kind = KINDS[0] as Kind
    const small = 2 * PART_ELEMENTS - 1
    const found = await run(kind, async (context) => {
      using x = Tensor.full([small], 1, { device: context.device })
      return await crossed(context, async () => (await context.comm.allReduce(x)).dispose())
    })
    expect(found[0]).toEqual({ read: [4 * small, 4 * small], written: [4 * small, 4 * small] })
  })
})

const shm = loadAddon()?.features().shm
const noProcesses = reason || (shm?.available ? '' : `: skipped, ${shm?.detail}`)

describe.skipIf(noProcesses !== '')(`three processes (seed ${drawn})${noProcesses}`, () => {
  it('have the bits of one thread, and send a part each', async () => {
    const local = await launch({ ranks: 3, devices: [a, b, cpu] }, (context) => mixed(context, drawn))
    const program = await bundle('test/comm/staged-cuda-program.ts')
    const plan = JSON.stringify({ devices: ['cuda:0', 'cuda:1', 'cpu'], start: drawn })
    const env = { ...process.env, RANKMESH_ADDON: addonReport().path ?? 'off' }
    const { stdout } = await promisify(execFile)(process.execPath, [program, plan], { env, timeout: 100_000 })
    const found = JSON.parse(stdout.split('\n')[0] as string) as Found[]
    const part = 4 * 5 * 2048
    for (const [rank, { about, digest, sent }] of found.entries()) {
      expect(about).toContain('ranks 0+1 joined on their devices')
      expect(digest, `rank ${rank}`).toBe(local[0]!.digest)
      expect(sent, `rank ${rank}`).toBe(part) // of the rank on the CPU a whole one of bfloat16
    }
  })
})
