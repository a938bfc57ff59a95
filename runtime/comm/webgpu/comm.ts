// WebGpuComm: collectives among ranks of one thread on WebGPU devices. Ranks on one device reduce in its memory; devices exchange one
// partial each through host memory, and the same kernels finish on each of them.
import { type DType, dtypeSize, isFloat } from '../../core/dtype.ts'
import { ArgumentError, checkInteger, DeviceError, DTypeError, invalidArgument, ShapeError } from '../../core/errors.ts'
import { checkShape, formatShape, resolveDim, type Shape, sizeOf, splitAt } from '../../core/shape.ts'
import { Tensor } from '../../core/tensor.ts'
import { sameMemory, type WebGpuDevice } from '../../device/webgpu/device.ts'
import { copyBytes, elementType, floatType, type Operand, operand, rangeOf } from '../../device/webgpu/launch.ts'
import { checkEps, expectDType, expectShape } from '../../device/webgpu/ops.ts'
import { type GpuStorage, writableStorage } from '../../device/webgpu/pool.ts'
import { type CommStats, type DeviceComm, type FusedNorm, REDUCE_OPS, type ReduceOp } from '../device-comm.ts'
import type { LocalHostComm } from '../host.ts'
import type { MeetOptions, Offer } from '../rendezvous.ts'
import {
  type Cluster,
  clustersOf,
  emptySlices,
  exchange,
  exchangeTensors,
  mergeLanes,
  readAll,
  type Slices,
  slicesOf,
  storageRange,
  upload,
} from './clusters.ts'
import { fusedNorm, reduceSlices } from './kernels.ts'
import { interleave, scatterParts } from './moves.ts'

/** What a collective does once all ranks are there. It runs to its end at once on one device, and awaits the host over several. */
type Action<P, R> = (payloads: P[]) => Promise<R[]>

export class WebGpuComm implements DeviceComm {
  readonly rank: number
  readonly size: number
  readonly deviceRank: number
  readonly deviceSize: number
  readonly #host: LocalHostComm
  readonly #devices: readonly WebGpuDevice[]
  readonly #clusters: readonly Cluster[]
  readonly #counts = { collectives: 0, fused: 0, bytes: 0 }

  private constructor(host: LocalHostComm, devices: readonly WebGpuDevice[], clusters: readonly Cluster[]) {
    this.#host = host
    this.rank = host.rank
    this.size = host.size
    this.#devices = devices
    this.#clusters = clusters
    const { ranks } = this.#home(host.rank)
    this.deviceRank = ranks.indexOf(host.rank)
    this.deviceSize = ranks.length
  }

  /** Every rank of `host` joins with its own view of its device. */
  static async create(host: LocalHostComm, device: WebGpuDevice): Promise<WebGpuComm> {
    const { devices, clusters } = await host.meet('createDeviceComm(webgpu)', { payload: device }, (devices) => {
      if (new Set(devices).size < devices.length) {
        throw new ArgumentError('Two ranks gave the same view of a device; give each rank its own, made with device.view()')
      }
      const clusters = clustersOf(devices)
      return devices.map(() => ({ devices, clusters }))
    })
    return new WebGpuComm(host, devices, clusters)
  }

  async allReduce(
    x: Tensor,
    { op = 'sum', out, ...options }: { op?: ReduceOp; out?: Tensor | undefined } & MeetOptions = {},
  ): Promise<Tensor> {
    const call = `allReduce(${op}, ${describeTensor(x)}${out ? ', out' : ''})`
    const prepare = (): { x: Tensor; out: Tensor | undefined } => {
      this.#checkReduce(x, op)
      if (out) this.#checkWritten(out, x.shape, x.dtype, 'out')
      return { x, out }
    }
    if (this.size === 1 && !out) return prepare().x.share()
    return this.#run(call, x.byteLength, prepare, options, async (payloads) => {
      const partials = await this.#partials(
        payloads.map((p) => p.x),
        op,
      )
      return this.#spread(
        x.shape,
        x.dtype,
        payloads.map((p) => p.out),
        (cluster, i, y) => reduceSlices(cluster, partials[i] as Slices, y, op, this.size),
        partials,
      )
    })
  }

  async allReduceResidualBiasRMSNorm(args: FusedNorm, options: MeetOptions = {}): Promise<Tensor> {
    const { x, residual, bias, eps = 1e-6, zeroCentered = false, out } = args
    const flags = `eps ${eps}${bias ? ', bias' : ''}${zeroCentered ? ', zeroCentered' : ''}${out ? ', out' : ''}`
    const call = `allReduceResidualBiasRMSNorm(${describeTensor(x)}, residual ${residual.dtype}, ${flags})`
    const prepare = (): FusedNorm => {
      this.#checkFused(args, eps)
      return args
    }
    const n = x.shape.at(-1) ?? 0
    const rows = n === 0 ? 0 : x.size / n
    const result = await this.#run(call, x.byteLength, prepare, options, async (payloads) => {
      const partials = await this.#partials(
        payloads.map((p) => p.x),
        'sum',
      )
      const run = (cluster: Cluster, i: number, y: Operand): void => {
        if (rows === 0) return
        const { gpu, sink } = cluster
        const own = cluster.ranks.map((rank) => payloads[rank] as FusedNorm)
        const lead = own[0] as FusedNorm
        const operands = {
          residual: operand(gpu, lead.residual, 'rw'),
          weight: operand(gpu, lead.weight, 'r'),
          bias: lead.bias ? operand(gpu, lead.bias, 'r') : null,
          out: y,
        }
        fusedNorm(cluster, partials[i] as Slices, operands, { rows, n, eps, zeroCentered })
        for (const { residual: other } of own.slice(1)) {
          const to = rangeOf(gpu, other)
          const from = operands.residual.range
          if (to.buffer !== from.buffer || to.offset !== from.offset) copyBytes(sink, from, to, from.byteLength)
        }
      }
      return this.#spread(
        x.shape,
        residual.dtype,
        payloads.map((p) => p.out),
        run,
        partials,
      )
    })
    this.#counts.fused++
    return result
  }

  async allGather(x: Tensor, { dim = -1, ...options }: { dim?: number } & MeetOptions = {}): Promise<Tensor> {
    const call = `allGather(${describeTensor(x)}, dim ${dim})`
    const prepare = (): Tensor => this.#checkMoved(x, dim)
    if (this.size === 1) return prepare().share()
    return this.#run(call, x.byteLength, prepare, options, async (tensors) => {
      const slices = await this.#side(tensors, this.#clusters)
      const shape = widened(x.shape, dim, this.size)
      return this.#spread(shape, x.dtype, [], (cluster, i, y) => interleave(cluster, slices[i] as Slices, y.range, x, dim), slices)
    })
  }

  async gather(x: Tensor, { dst = 0, dim = -1, ...options }: { dst?: number; dim?: number } & MeetOptions = {}): Promise<Tensor | null> {
    const call = `gather(${describeTensor(x)}, dst ${dst}, dim ${dim})`
    const prepare = (): Tensor => {
      checkInteger('dst', dst, 0, this.size - 1)
      return this.#checkMoved(x, dim)
    }
    if (this.size === 1) return prepare().share()
    return this.#run<Tensor, Tensor | null>(call, x.byteLength, prepare, options, async (tensors) => {
      const cluster = this.#home(dst)
      const [slices] = (await this.#side(tensors, [cluster])) as [Slices]
      const result = Tensor.empty(widened(x.shape, dim, this.size), { dtype: x.dtype, device: this.#devices[dst] as WebGpuDevice })
      interleave(cluster, slices, rangeOf(cluster.gpu, result), x, dim)
      slices.release()
      return tensors.map((_, rank) => (rank === dst ? result : null))
    })
  }

  async reduceScatter(
    x: Tensor,
    { dim = -1, op = 'sum', ...options }: { dim?: number; op?: ReduceOp } & MeetOptions = {},
  ): Promise<Tensor> {
    const call = `reduceScatter(${op}, ${describeTensor(x)}, dim ${dim})`
    const prepare = (): Tensor => {
      this.#checkReduce(x, op)
      const at = resolveDim(dim, x.shape.length)
      if ((x.shape[at] as number) % this.size !== 0) {
        throw new ShapeError(
          `Expected dimension ${dim} of ${formatShape(x.shape)} to be a multiple of the group's ${this.size} ranks; pad it, or use reduceScatterV`,
        )
      }
      return x
    }
    if (this.size === 1) return prepare().share()
    return this.#run(call, x.byteLength, prepare, options, async (tensors) => {
      const partials = await this.#partials(tensors, op)
      const shape = x.shape.map((n, i) => (i === resolveDim(dim, x.shape.length) ? n / this.size : n))
      const bytes = sizeOf(shape) * dtypeSize(x.dtype)
      const results: Tensor[] = []
      this.#clusters.forEach((cluster, i) => {
        const storages = cluster.gpu.pool.allocateSlices(cluster.ranks.length, bytes)
        if (bytes > 0) scatterParts(cluster, partials[i] as Slices, storages, x, dim, op, this.size)
        partials[i]?.release()
        cluster.ranks.forEach((rank, k) => {
          results[rank] = new Tensor(this.#devices[rank] as WebGpuDevice, storages[k] as GpuStorage, shape, x.dtype)
        })
      })
      return results
    })
  }

  async broadcast(x: Tensor, { src = 0, ...options }: { src?: number } & MeetOptions = {}): Promise<Tensor> {
    const call = `broadcast(${describeTensor(x)}, src ${src})`
    const prepare = (): Tensor => {
      checkInteger('src', src, 0, this.size - 1)
      this.#checkHere(x, 'x')
      return x
    }
    if (this.size === 1) return prepare().share()
    return this.#run(call, this.rank === src ? x.byteLength : 0, prepare, options, async (tensors) => {
      const from = this.#home(src)
      const range = rangeOf(from.gpu, tensors[src] as Tensor)
      const [bytes] = this.#clusters.length > 1 && x.byteLength > 0 ? await readAll([{ cluster: from, range }]) : []
      return this.#spread(x.shape, x.dtype, [], (cluster, _, y) => {
        if (cluster === from) copyBytes(cluster.sink, range, y.range, range.byteLength)
        else if (bytes) upload(cluster, y.range, bytes)
      })
    })
  }

  async barrier(options: MeetOptions = {}): Promise<void> {
    if (this.size === 1) return
    await this.#run<null, null>(
      'barrier()',
      0,
      () => null,
      options,
      async (all) => all,
    )
  }

  async allocate(
    shape: Shape,
    { dtype = 'float32', shared = false, ...options }: { dtype?: DType; shared?: boolean } & MeetOptions = {},
  ): Promise<Tensor> {
    const call = `allocate([${shape.join(', ')}] ${dtype}${shared ? ', shared' : ''})`
    const prepare = (): number => {
      checkShape(shape)
      return sizeOf(shape) * dtypeSize(dtype)
    }
    return this.#run(call, 0, prepare, options, async ([bytes = 0]) => {
      const results: Tensor[] = []
      for (const { gpu, ranks } of this.#clusters) {
        const storages = gpu.pool.allocateSlices(shared ? 1 : ranks.length, bytes)
        ranks.forEach((rank, k) => {
          const storage = storages[shared ? 0 : k] as GpuStorage
          if (shared && k > 0) storage.retain()
          results[rank] = new Tensor(this.#devices[rank] as WebGpuDevice, storage, shape, dtype)
        })
      }
      return results
    })
  }

  /** A comm over some of this one's ranks, on a host group that was split from this one's. */
  async over(host: LocalHostComm): Promise<WebGpuComm> {
    return WebGpuComm.create(host, this.#devices[this.rank] as WebGpuDevice)
  }

  async split(options: { color: number | null; key?: number }): Promise<WebGpuComm | null> {
    const host = await this.#host.split(options)
    return host && this.over(host)
  }

  stats(): CommStats {
    const { submits, maps } = (this.#devices[this.rank] as WebGpuDevice).stats
    return { ...this.#counts, submits, maps }
  }

  /** Meets the other ranks and lets `action` run once for all; a rank whose own arguments are bad joins to say so. */
  async #run<P, R>(call: string, bytes: number, prepare: () => P, options: MeetOptions, action: Action<P, R>): Promise<R> {
    let offer: Offer<P>
    try {
      offer = { payload: prepare() }
    } catch (refusal) {
      offer = { refusal }
    }
    const all = (payloads: P[]): Promise<R[]> => {
      mergeLanes(this.#clusters)
      return action(payloads)
    }
    if (this.size === 1 && 'refusal' in offer) throw offer.refusal
    const result = await this.#host.meet(call, offer, all, options)
    this.#counts.collectives++
    this.#counts.bytes += bytes
    return result
  }

  /** What is left to add on each device: its ranks' operands where it is alone, else every device's partial sum. */
  async #partials(tensors: readonly Tensor[], op: ReduceOp): Promise<Slices[]> {
    const [{ dtype, size }] = tensors as [Tensor]
    const clusters = this.#clusters
    if (clusters.length === 1) return [slicesOf(clusters[0] as Cluster, tensors, dtype)]
    if (clusters.length === tensors.length) return exchangeTensors(clusters, tensors, clusters)
    const wire = isFloat(dtype) ? 'float32' : dtype
    const bytes = size * dtypeSize(wire)
    const scratch = clusters.map((cluster) => {
      const x = slicesOf(
        cluster,
        cluster.ranks.map((rank) => tensors[rank] as Tensor),
        dtype,
      )
      const y = emptySlices(cluster, 1, bytes, wire)
      reduceSlices(cluster, x, { range: y.range, dtype: wire, use: 'w', count: size, padded: true }, op === 'avg' ? 'sum' : op, 1)
      x.release()
      return y
    })
    const sources = clusters.map((cluster, i) => ({ cluster, range: { ...(scratch[i] as Slices).range, byteLength: bytes } }))
    try {
      return await exchange(sources, clusters, bytes, wire)
    } finally {
      for (const y of scratch) y.release()
    }
  }

  /** All ranks' operands side by side on each device of `targets`. */
  async #side(tensors: readonly Tensor[], targets: readonly Cluster[]): Promise<Slices[]> {
    if (this.#clusters.length === 1) return [slicesOf(this.#clusters[0] as Cluster, tensors, (tensors[0] as Tensor).dtype)]
    return exchangeTensors(this.#clusters, tensors, targets)
  }

  /** One result a device, computed by `run` and held by all its ranks; where ranks brought their own `out`, the result goes there. */
  #spread(
    shape: Shape,
    dtype: DType,
    outs: readonly (Tensor | undefined)[],
    run: (cluster: Cluster, index: number, y: Operand) => void,
    used: readonly Slices[] = [],
  ): Tensor[] {
    const results: Tensor[] = []
    const count = sizeOf(shape)
    this.#clusters.forEach((cluster, i) => {
      const { gpu, ranks, sink } = cluster
      const storage = gpu.pool.allocate(count * dtypeSize(dtype))
      const common = commonOperand(
        cluster,
        ranks.map((rank) => outs[rank]),
      )
      const y = common ?? { range: storageRange(storage), dtype, use: 'w', count, padded: true }
      run(cluster, i, y)
      used[i]?.release()
      for (const rank of ranks) {
        const out = outs[rank]
        if (out) {
          if (!common) copyBytes(sink, y.range, rangeOf(gpu, out), y.range.byteLength)
          results[rank] = out
        } else {
          storage.retain()
          results[rank] = new Tensor(this.#devices[rank] as WebGpuDevice, storage, shape, dtype)
        }
      }
      storage.readOnly = true
      storage.release()
    })
    return results
  }

  #home(rank: number): Cluster {
    return this.#clusters.find(({ ranks }) => ranks.includes(rank)) as Cluster
  }

  #checkHere(tensor: Tensor, name: string): void {
    const device = this.#devices[this.rank] as WebGpuDevice
    if (device.failure) throw device.failure
    if (!sameMemory(tensor.device, device)) {
      throw new DeviceError(`Expected ${name} on ${device.name} but it is on ${tensor.device.name}; move it with tensor.to(device)`)
    }
    void tensor.storage // throws where it was disposed
  }

  #checkWritten(tensor: Tensor, shape: Shape, dtype: DType, name: string): void {
    this.#checkHere(tensor, name)
    expectShape(tensor, shape, name)
    expectDType(tensor, dtype, name)
    writableStorage((this.#devices[this.rank] as WebGpuDevice).gpu.pool, tensor.storage)
  }

  #checkReduce(x: Tensor, op: ReduceOp): void {
    this.#checkHere(x, 'x')
    if (!REDUCE_OPS.includes(op)) throw invalidArgument('op', REDUCE_OPS.join(', '), op)
    elementType(x.dtype, 'x')
    if (op === 'avg' && !isFloat(x.dtype)) throw new DTypeError(`Expected a float dtype for avg but received ${x.dtype}; use sum`)
  }

  #checkMoved(x: Tensor, dim: number): Tensor {
    this.#checkHere(x, 'x')
    resolveDim(dim, x.shape.length)
    return x
  }

  #checkFused({ x, residual, weight, bias, out }: FusedNorm, eps: number): void {
    this.#checkHere(x, 'x')
    const n = x.shape.at(-1)
    if (n === undefined) throw new ShapeError('Expected at least one dimension for x but received a scalar')
    floatType(x.dtype, 'x')
    floatType(residual.dtype, 'residual')
    this.#checkWritten(residual, x.shape, residual.dtype, 'residual')
    for (const [name, tensor] of Object.entries({ weight, bias })) {
      if (!tensor) continue
      this.#checkHere(tensor, name)
      expectShape(tensor, [n], name)
      expectDType(tensor, residual.dtype, name)
    }
    if (out) this.#checkWritten(out, x.shape, residual.dtype, 'out')
    checkEps(eps)
  }
}

function describeTensor(x: Tensor): string {
  if (!(x instanceof Tensor)) throw invalidArgument('x', 'a Tensor', x)
  return `${formatShape(x.shape)} ${x.dtype}`
}

/** The shape of all ranks' tensors concatenated along dim. */
function widened(shape: Shape, dim: number, ranks: number): number[] {
  const { length } = splitAt(shape, resolveDim(dim, shape.length))
  return shape.map((n, i) => (i === resolveDim(dim, shape.length) ? length * ranks : n))
}

/** The memory that all ranks of a device named as their `out`, where it is one and the same. */
function commonOperand({ gpu }: Cluster, outs: readonly (Tensor | undefined)[]): Operand | null {
  const [first] = outs
  if (!first) return null
  const target = operand(gpu, first, 'w')
  const same = outs.every((out) => {
    const range = out && rangeOf(gpu, out)
    return range?.buffer === target.range.buffer && range.offset === target.range.offset
  })
  return same ? target : null
}
